"""Which mount a directory lies on, and whether its options are safe (proc(5), nfs(5))."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.findings import Check, failed, passed, warned

MOUNTINFO = "/proc/self/mountinfo"

_NFS = {"nfs", "nfs4"}
_SOFT = {"soft", "softerr"}
_NO_CACHE = ({"noac"}, {"acregmin=0", "acregmax=0", "acdirmin=0", "acdirmax=0"})
"""How the kernel shows `noac`, and `actimeo=0`."""

_REMEDY = "Mount it so (docs/operations.md, Several machines, one file system): "


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


def mounts(mountinfo: str) -> list[Mount]:
    """All mounts, in the order in which they were made."""
    return [mount for line in mountinfo.splitlines() if (mount := _mount(line)) is not None]


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


def mount_of(place: str, among: Sequence[Mount]) -> Mount | None:
    """The mount that a resolved path lies on: the deepest one, and of several at one point the latest."""
    above = [one for one in among if place == one.point or place.startswith(f"{one.point.rstrip('/')}/")]
    return max(reversed(above), key=lambda one: len(one.point), default=None)


def check_mounts(data_places: Sequence[str], legacy_roots: Sequence[str]) -> Check:
    """Check the mounts of these directories on this machine."""
    text = Path(MOUNTINFO).read_text(encoding="utf-8", errors="surrogateescape")
    resolved = {place: os.path.realpath(place) for place in (*data_places, *legacy_roots)}
    return mounts_check(mounts(text), data_places, legacy_roots, resolved)


def mounts_check(
    among: Sequence[Mount],
    data_places: Sequence[str],
    legacy_roots: Sequence[str],
    resolved: Mapping[str, str],
) -> Check:
    """Is every place on NFS mounted so that outages are waited out and other machines' writes are seen?"""
    on_nfs = {
        place: mount
        for place, real in resolved.items()
        if (mount := mount_of(real, among)) is not None and mount.kind in _NFS
    }
    if not on_nfs:
        return passed("nothing lies on NFS")
    wrong = list(_wrong(on_nfs, data_places))
    if wrong:
        return failed("; ".join(dict.fromkeys(wrong)), f"{_REMEDY}hard, and DATA_DIR lookupcache=positive.")
    cached = [f"{mount.point} is writable and caches attributes" for mount in _cached(on_nfs, legacy_roots)]
    if cached:
        finding = f"{'; '.join(dict.fromkeys(cached))}: a file that another machine rewrites may look unchanged for a minute"
        return warned(finding, f"{_REMEDY}legacy directories ro, or with actimeo=0.")
    return passed(f"{', '.join(sorted({mount.point for mount in on_nfs.values()}))}: as it should be")


def _wrong(on_nfs: Mapping[str, Mount], data_places: Sequence[str]) -> Iterator[str]:
    for place, mount in on_nfs.items():
        if soft := _SOFT & mount.options:
            yield f"{mount.point} is mounted {soft.pop()}: a server that reboots makes reads and writes fail"
        # The kernel shows "positive" as "pos".
        if place in data_places and not any(
            one.startswith(("lookupcache=pos", "lookupcache=none")) for one in mount.options
        ):
            yield f"{mount.point} is mounted without lookupcache=positive: what another machine has made may stay unseen"


def _cached(on_nfs: Mapping[str, Mount], legacy_roots: Sequence[str]) -> Iterator[Mount]:
    for place, mount in on_nfs.items():
        if place in legacy_roots and mount.is_writable and not any(how <= mount.options for how in _NO_CACHE):
            yield mount


def host_identity() -> tuple[str, str]:
    """The name under which a file server knows this machine, and an id of its last boot."""
    return _known_as(), _read("/proc/sys/kernel/random/boot_id")


def _known_as() -> str:
    """Its host name, and what an administrator has told the NFS client to add (`nfs4_unique_id`)."""
    unique = _read("/sys/module/nfs/parameters/nfs4_unique_id")
    return f"{os.uname().nodename} {unique}".strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
