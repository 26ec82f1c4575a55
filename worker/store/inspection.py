"""A tree compared with its manifest: what is missing, of the wrong size or kind, or not in the manifest at
all. Reads no file's bytes and changes nothing.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum

from worker.errors import EntryUnreadableError
from worker.runtime.throttle import Pace, unlimited
from worker.store.beneath import directory
from worker.store.digest import printable
from worker.store.files import check_answers
from worker.store.manifest import Entry, File, Manifest
from worker.store.syscalls import refresh

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BUSY = re.compile(r"\.nfs[0-9a-f]{16,}")
"""How NFS names a file that was replaced while a program had it open: it goes by itself."""

_VANISHED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}


class What(StrEnum):
    """What is wrong with a stored file or directory."""

    MISSING = "missing"
    WRONG_BYTES = "wrong_bytes"
    WRONG_SIZE = "wrong_size"
    UNEXPECTED_ENTRY = "unexpected_entry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file of the manifest that is there with its size, and what `stat` says of it."""

    file: File
    inode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is not as the manifest has it. `path` is relative to the tree, '' the tree itself; `file` is the
    manifest's, if it is about one; `inode` that of a file that is there.

    Of a directory that is missing nothing else is said: all that was in it is missing, too.
    """

    path: str
    what: What
    file: File | None = None
    inode: int | None = None


def inspect(manifest: Manifest, tree: str, pace: Pace = unlimited) -> Iterator[Found | Fault]:
    """Every entry of a tree against the manifest, directory by directory, by descriptors: no link is
    followed.

    Before something is said to be wrong, a network file system is asked anew. Raises `StoreBrokenError` where
    it does not answer, and `EntryUnreadableError` for a directory that cannot be listed.
    """
    by_folder = _by_folder(manifest)
    pending = [""]
    while pending:
        folder = pending.pop()
        wanted = by_folder[folder]
        pace(0)
        there = _looked_at_twice(tree, folder, wanted)
        if there is None:
            yield Fault(path=folder, what=What.MISSING)
            continue
        for name, one in wanted.items():
            pace(0)
            fault = _judge(one, there.get(name))
            if fault is not None:
                yield fault
            elif isinstance(one, File):
                status = there[name]
                yield Found(file=one, inode=status.st_ino, mtime_ns=status.st_mtime_ns)
            else:
                pending.append(one.path)
        yield from _unexpected(folder, wanted, there)


def is_folder(tree: str, folder: str) -> bool:
    """Is there such a directory in the tree, reached without a link? '' is the tree itself."""
    try:
        with _opened(tree, folder):
            return True
    except OSError:
        return False


def _looked_at_twice(tree: str, folder: str, wanted: Mapping[str, Entry]) -> dict[str, os.stat_result] | None:
    """What is in a directory; asked for anew if something of it is not as it should be."""
    there = _list(tree, folder)
    suspects = (
        wanted.keys()
        if there is None
        else [name for name, one in wanted.items() if _judge(one, there.get(name)) is not None]
    )
    if there is not None and not suspects and len(there) == len(wanted):
        return there
    _ask_anew(tree, folder, suspects)
    return _list(tree, folder)


def _unexpected(
    folder: str, wanted: Mapping[str, Entry], there: Mapping[str, os.stat_result]
) -> Iterator[Fault]:
    """What the manifest does not have, and what has the name of an entry and is something else."""
    for name in sorted(there, key=os.fsencode):
        one = wanted.get(name)
        if one is None or not _is_of_kind(one, there[name]):
            yield Fault(path=_join(folder, name), what=What.UNEXPECTED_ENTRY)


def _judge(one: Entry, status: os.stat_result | None) -> Fault | None:
    """What is wrong with one entry of the manifest, by presence, kind and size."""
    file = one if isinstance(one, File) else None
    if status is None or not _is_of_kind(one, status):
        return Fault(path=one.path, what=What.MISSING, file=file)
    if file is not None and status.st_size != file.size_bytes:
        return Fault(path=one.path, what=What.WRONG_SIZE, file=file, inode=status.st_ino)
    return None


def _is_of_kind(one: Entry, status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) if isinstance(one, File) else stat.S_ISDIR(status.st_mode)


def _by_folder(manifest: Manifest) -> dict[str, dict[str, Entry]]:
    """The manifest's entries by the directory that they are in, '' for the tree itself."""
    found: dict[str, dict[str, Entry]] = {"": {}}
    for one in manifest.directories:
        found[one.path] = {}
    for entry in manifest.entries:
        above, _, name = entry.path.rpartition("/")
        found.setdefault(above, {})[name] = entry
    return found


def _list(tree: str, folder: str) -> dict[str, os.stat_result] | None:
    """What is in a directory of the tree; None where there is none."""
    try:
        with _opened(tree, folder) as here, os.scandir(here) as entries:
            return dict(_statuses(entries))
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        check_answers(error)
        where = printable(_join(tree, folder) if folder else tree)
        raise EntryUnreadableError(f"Cannot list the stored directory {where}: {error.strerror}") from error


def _statuses(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, os.stat_result]]:
    for entry in entries:
        if _BUSY.fullmatch(entry.name):
            continue
        # Another worker may be putting a good file in place of a bad one.
        with suppress(FileNotFoundError):
            yield entry.name, entry.stat(follow_symlinks=False)


@contextmanager
def _opened(tree: str, folder: str) -> Iterator[int]:
    """Only the way to the tree may lead over links: DATA_DIR is the operator's to place."""
    root = os.open(tree, _DIRECTORY)
    try:
        if not folder:
            yield root
            return
        with directory(folder, dir_fd=root) as below:
            yield below
    finally:
        os.close(root)


def _ask_anew(tree: str, folder: str, names: Iterable[str]) -> None:
    """Have a network file system ask its server, from the directory above the tree down to these names."""
    way = [os.path.dirname(tree), tree]
    for name in folder.split("/") if folder else ():
        way.append(f"{way[-1]}/{name}")
    refresh(*way, *(f"{way[-1]}/{name}" for name in names))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
