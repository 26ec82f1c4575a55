"""Which mount a directory lies on, and what is mounted below it, as this machine sees it (proc(5))."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo: mount point, file system type, all options of mount and file system."""

    point: str
    kind: str
    options: frozenset[str]

    @property
    def is_writable(self) -> bool:
        """Neither the mount nor its file system is read-only."""
        return "ro" not in self.options


def current_mounts() -> list[Mount]:
    """All mounts that this process sees now."""
    return mounts(Path(MOUNTINFO).read_text(encoding="utf-8", errors="surrogateescape"))


def mounts(mountinfo: str) -> list[Mount]:
    """All mounts, in the order in which they were made."""
    return [mount for line in mountinfo.splitlines() if (mount := _mount(line)) is not None]


def mount_of(place: str, among: Sequence[Mount]) -> Mount | None:
    """The mount that a resolved path lies on: the deepest one, and of several at one point the latest."""
    above = [one for one in among if place == one.point or place.startswith(f"{one.point.rstrip('/')}/")]
    return max(reversed(above), key=lambda one: len(one.point), default=None)


def points_in(place: str, among: Sequence[Mount]) -> list[str]:
    """The mount points at a resolved path and below it."""
    return [one.point for one in among if one.point == place or one.point.startswith(f"{place.rstrip('/')}/")]


def _mount(line: str) -> Mount | None:
    here, found, there = line.partition(" - ")
    fields, of_file_system = here.split(" "), there.split(" ")
    if not found or len(fields) < 6 or len(of_file_system) < 3:
        return None
    options = frozenset((*fields[5].split(","), *of_file_system[2].split(",")))
    return Mount(point=_unescaped(fields[4]), kind=of_file_system[0], options=options)


def _unescaped(text: str) -> str:
    r"""A space is written \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
