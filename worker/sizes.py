"""Numbers as people read them. Knows nothing of what they count."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


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
