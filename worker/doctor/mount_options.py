"""Whether the options of the mounts that directories lie on are safe (nfs(5))."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from worker.findings import Check, failed, passed, warned
from worker.legacy.mount_table import Mount, current_mounts, mount_of

_NFS = {"nfs", "nfs4"}
_SOFT = {"soft", "softerr"}
_NO_CACHE = ({"noac"}, {"acregmin=0", "acregmax=0", "acdirmin=0", "acdirmax=0"})
"""How the kernel shows `noac`, and `actimeo=0`."""

_REMEDY = "Mount it so (docs/operations.md, Several machines, one file system): "


def check_mounts(data_places: Sequence[str], legacy_roots: Sequence[str]) -> Check:
    """Check the mounts of these directories on this machine."""
    resolved = {place: os.path.realpath(place) for place in (*data_places, *legacy_roots)}
    return mounts_check(current_mounts(), data_places, legacy_roots, resolved)


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
