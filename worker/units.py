"""Sizes as people read and write them, and how much of a file system stays free. Knows no file."""

import re

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def reserve_of(file_system_bytes: int) -> int:
    """What the store leaves free on a file system of this size: 1 GiB, or a fiftieth if that is less."""
    return min(1 << 30, file_system_bytes // 50)


def human_bytes(size_bytes: float) -> str:
    """Three digits and a decimal unit, as disks are sold: `1.24 GB`."""
    size, unit = float(size_bytes), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} bytes" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"


def human_duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def parse_bytes(text: str) -> int:
    """`500M` as a number of bytes, suffixes of 1024; raises `ValueError` for anything else, and below one."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)\s*", text.upper())
    size = int(float(match[1]) * _SUFFIXES[match[2]]) if match is not None else 0
    if size < 1:
        raise ValueError(text)
    return size
