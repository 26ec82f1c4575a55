"""What stat says of a whole directory, in little memory: has anything in it changed? Reads no content."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from worker.allocation import Allocation
from worker.errors import DirectoryChangedError
from worker.messages import MOVED_AWAY
from worker.runtime.throttle import Pace, unlimited
from worker.store.beneath import open_resolved
from worker.store.digest import not_read, printable

_FOLDER = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """One digest for each directory, over names, inodes, sizes, modes, times of what is in it; of the root
    itself, nothing.

    `allocated_bytes` and `files` are what is in it: blocks, a file with several links counted once, and
    regular files and links.
    """

    directories: Mapping[str, bytes]
    allocated_bytes: int
    files: int

    def check_same(self, later: "Fingerprint", root: str) -> None:
        """Raise `DirectoryChangedError`, naming a directory in which something came, went or changed."""
        both = self.directories.keys() | later.directories.keys()
        changed = [path for path in both if self.directories.get(path) != later.directories.get(path)]
        if changed:
            where = printable(os.path.join(root, min(changed)).rstrip("/"))
            raise DirectoryChangedError(f"Something changed meanwhile in {where}")


def fingerprint(root: str, pace: Pace = unlimited) -> Fingerprint:
    """Of the directory at a resolved path. No link is followed, neither on the way nor in it.

    Raises `SourceChangedError` or `EntryUnreadableError` for what cannot be listed.
    """
    directories: dict[str, bytes] = {}
    allocation, files = Allocation(), 0
    try:
        top = open_resolved(root, _FOLDER)
    except OSError as error:
        raise not_read(root, error) from error
    try:
        allocation.add(os.fstat(top))
        pending = [""]
        while pending:
            path = pending.pop()
            digest = hashlib.blake2b(digest_size=16)
            for name, status in _entries(top, path, root):
                pace(0)
                digest.update(_row(name, status))
                if stat.S_ISDIR(status.st_mode):
                    pending.append(f"{path}/{name}" if path else name)
                else:
                    files += 1
                allocation.add(status)
            directories[path] = digest.digest()
    finally:
        os.close(top)
    return Fingerprint(directories=directories, allocated_bytes=allocation.size_bytes, files=files)


def _entries(top: int, path: str, root: str) -> Iterator[tuple[str, os.stat_result]]:
    """What is in a directory, in byte order; one at a time, as there may be a million."""
    try:
        folder = open_resolved(path or ".", _FOLDER, dir_fd=top)
        try:
            for name in sorted(os.listdir(folder), key=os.fsencode):
                if name != MOVED_AWAY:
                    yield name, os.stat(name, dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)
    except OSError as error:
        raise not_read(os.path.join(root, path), error) from error


def _row(name: str, status: os.stat_result) -> bytes:
    """A directory's own times change when something in it does, which its own digest shows; its size and
    links likewise.
    """
    seen = [status.st_mode, status.st_dev, status.st_ino, status.st_uid, status.st_gid]
    if not stat.S_ISDIR(status.st_mode):
        seen += [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return os.fsencode(name) + b"\0" + repr(seen).encode("ascii") + b"\0"
