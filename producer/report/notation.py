"""How values are written on a report's page: durations, rates, shares and moments as people read them."""

import re
from collections.abc import Mapping
from datetime import datetime

from worker.units import human_bytes

PLACES = {"in_place": "in place", "moved_away": "moved away", "purged": "purged"}
"""Where a legacy directory is, for people."""


def human_duration(seconds: float) -> str:
    """Write seconds in the two units that matter: `820 ms`, `12.3 s`, `3 min 42 s`, `2 h 05 min`, `1 d 04
    h`.
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest_s:02} s"


def rate(size: int, seconds: float) -> str:
    """Write bytes a second; a dash where nothing was read, or too briefly for a rate to mean anything."""
    return f"{human_bytes(int(size / seconds))}/s" if size and seconds >= 0.001 else "\u2013"


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, in the unit that matters: `5 min ago`, `3 h ago`, `12 d ago`."""
    minutes = max(0, int((now - moment).total_seconds() // 60))
    for size, unit in ((1440, "d"), (60, "h")):
        if minutes >= 2 * size:
            return f"{minutes // size} {unit} ago"
    return f"{minutes} min ago"


def clock(seconds: float) -> str:
    """Write a mark of the time axis: `0.5 s`, `20 s`, `4:30`, `2:15 h`."""
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes}:{rest_s:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def moment(text: str) -> str:
    """Write a time of the report for people: `7 Mar 2026, 14:03:21 UTC`."""
    at = datetime.fromisoformat(text)
    return f"{at.day} {at:%b %Y, %H:%M:%S} UTC"


def percent(part: float, whole: float) -> str:
    """Write a share without rounding something to nothing, or not quite all to all."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 1:
        return "under 1 %"
    return "over 99 %" if 99 < share < 100 else f"{share:.0f} %"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Choose the form of a noun or verb that a count asks for; without `many` an `s` is added."""
    return one if count == 1 else many or f"{one}s"


def in_words(error_class: str) -> str:
    """Put the name of an error class into words: `DirectoryMissingError` becomes `Directory missing`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", error_class.removesuffix("Error")).capitalize()
    return words or "Cause unknown"


def places(directories: Mapping[str, int]) -> str:
    """Where legacy directories are: `2 in place, 1 purged`."""
    return ", ".join(f"{count:,} {PLACES[place]}" for place, count in directories.items() if count) or "none"
