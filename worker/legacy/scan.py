"""Listing a legacy project's directory: what is there, and what may be stored of it. Reads no content."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NoReturn

from worker.allocation import Allocation
from worker.errors import (
    DirectoryMissingError,
    EntryRefusedError,
    EntryUnreadableError,
    NoSessionsError,
    NotADirectoryPathError,
    PathRefusedError,
    SourceChangedError,
)
from worker.legacy.file_list import FileList, ScannedFile
from worker.legacy.listing import Lister
from worker.legacy.moved_links import Move, followed
from worker.legacy.noise import Noise, is_noise
from worker.legacy.roots import Roots, check_apart_from_store, check_place, is_within
from worker.runtime.throttle import Pace, unlimited
from worker.store.beneath import PATH_MOST_BYTES, status_of
from worker.store.digest import Signature, printable, reading

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a link",
}

_NESTED_MOST = 1_000_000
"""The most entries behind links in linked directories: a few of them can stand for more than all memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedDirectory:
    """A directory of the tree, with permission bits, time of change, user and group."""

    path: str
    mode: int
    mtime_ns: int
    owner: tuple[int, int]


_Entry = ScannedFile | ScannedDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Everything below a project's directory. `links` counts links that are stored as what they point to,
    `allocated_bytes` the room that the directory takes on disk, without what links lead to.
    """

    root: str
    root_mode: int
    root_mtime_ns: int
    root_owner: tuple[int, int]
    directories: tuple[ScannedDirectory, ...]
    files: FileList
    links: int
    noise: Noise
    allocated_bytes: int = 0
    moved: Move | None = None

    @property
    def size_bytes(self) -> int:
        """The sum of all file sizes."""
        return self.files.size_bytes

    @property
    def session_names(self) -> tuple[str, ...]:
        """The immediate subdirectories."""
        return tuple(entry.path for entry in self.directories if "/" not in entry.path)


def scan(
    project_path: str,
    roots: Roots,
    pace: Pace = unlimited,
    *,
    threads: ThreadPoolExecutor | None = None,
    needs_sessions: bool = True,
    follows_links: bool = True,
    moved: Move | None = None,
) -> Scan:
    """List the tree at `project_path`. `pace` is asked at each entry. Of one that was `moved` away links are
    followed as if it were at its own place; without `follows_links` a link is refused as a pipe is. Where
    calls take long `threads` make several at a time.

    A directory is opened without following a link anywhere on the way, and its entries are looked at by its
    descriptor: what becomes a link meanwhile leads nowhere. However deep the tree is, few directories are
    open at a time.

    Raises a `ProjectError` that names the path or the entry: missing, not a directory, outside the allowed
    roots, overlapping the store, without sessions, unreadable, or holding what cannot be stored.
    """
    walk = _begin(project_path, roots, pace, moved, threads)
    walk.follows_links = follows_links
    directories: list[ScannedDirectory] = []
    files = FileList(walk.root)
    for entry in walk.entries():
        if isinstance(entry, ScannedFile):
            files.append(entry)
        else:
            directories.append(entry)
    status = walk.root_status
    found = Scan(
        root=project_path,
        root_mode=stat.S_IMODE(status.st_mode),
        root_mtime_ns=status.st_mtime_ns,
        root_owner=(status.st_uid, status.st_gid),
        directories=tuple(directories),
        files=files,
        links=walk.links,
        noise=walk.noise,
        allocated_bytes=walk.allocation.size_bytes,
        moved=moved,
    )
    if needs_sessions and not found.session_names:
        raise NoSessionsError(f"No session directories found: {printable(project_path)}")
    return found


def check_same(
    before: Scan, roots: Roots, pace: Pace = unlimited, threads: ThreadPoolExecutor | None = None
) -> None:
    """List the tree again, as `scan`; raise `SourceChangedError` naming the first entry that came, went or
    was replaced.

    A directory's own times do not matter. Nothing of the second list is kept while it is equal.
    """
    now = _begin(before.root, roots, pace, before.moved, threads).entries()
    files, directories = iter(before.files), iter(before.directories)
    for entry in now:
        of_kind: Iterator[_Entry] = files if isinstance(entry, ScannedFile) else directories
        old = next(of_kind, None)
        if old is None or _content(old) != _content(entry):
            was = _contents([*([old] if old else []), *files, *directories])
            _refuse_change(before.root, was, _contents([entry, *now]))
    if rest := _contents([*files, *directories]):
        _refuse_change(before.root, rest, {})


def _contents(entries: Iterable[_Entry]) -> dict[str, Signature | None]:
    return dict(map(_content, entries))


def _content(entry: _Entry) -> tuple[str, Signature | None]:
    """What an entry is, as far as a stored tree goes."""
    return entry.path, entry.signature if isinstance(entry, ScannedFile) else None


def _refuse_change(
    root: str, old: Mapping[str, Signature | None], new: Mapping[str, Signature | None]
) -> NoReturn:
    changed = min(
        (path for path in old.keys() | new.keys() if old.get(path, 0) != new.get(path, 0)), default=""
    )
    raise SourceChangedError(
        f"Entry changed while the directory was read: {printable(os.path.join(root, changed))}"
    )


def _begin(
    project_path: str,
    roots: Roots,
    pace: Pace,
    moved: Move | None,
    threads: ThreadPoolExecutor | None,
) -> "_Walk":
    _check_is_directory(project_path)
    real = os.path.realpath(project_path)
    check_place(project_path, real, roots)
    return _Walk(real, roots, pace, moved, Lister(threads))


def _check_is_directory(path: str) -> None:
    if not os.path.isabs(path):
        raise PathRefusedError(f"Project path is not absolute: {printable(path)}")
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DirectoryMissingError(f"Directory does not exist: {printable(path)}") from error
    except OSError as error:
        raise EntryUnreadableError(f"Cannot read {printable(path)}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryPathError(f"Project path is not a directory: {printable(path)}")


@dataclass(frozen=True, slots=True)
class _Pending:
    """A directory to be listed: its real path, its path in the tree, and where the walk left a directory by a
    link to come here.

    A link to any directory on the way would never end. Of the directories between two links only the last,
    which lies in all of them, needs to be remembered.
    """

    real: str
    path: str
    left_at: tuple[str, ...]
    in_noise: bool


class _Walk:
    """One walk through a tree, directories before their entries, names in byte order.

    `root_status` is what `stat` says of the root, once the walk has begun; `links` and `noise` are complete
    at its end.
    """

    root_status: os.stat_result

    def __init__(self, real_root: str, roots: Roots, pace: Pace, moved: Move | None, lister: Lister) -> None:
        self.roots = roots
        self.root = real_root
        self.follows_links = True
        self.links = 0
        self.noise = Noise()
        self.allocation = Allocation()
        self._pace = pace
        self._moved = moved
        self._lister = lister
        self._nested = 0

    def entries(self) -> Iterator[_Entry]:
        """Walk everything; a stack of its own, so that deep trees do not exhaust Python's."""
        pending = [_Pending(self.root, "", (), in_noise=False)]
        with closing(self._lister) as lister:
            while pending:
                here = pending.pop()
                with lister.listed(here.real, (one.real for one in reversed(pending))) as listed:
                    if not here.path:
                        self.root_status = listed.status
                        self.allocation.add(listed.status)
                    for name, status in listed.entries:
                        self._pace(0)
                        entry, below = self._entry(name, status, here)
                        if below is not None:
                            pending.append(below)
                        yield entry

    def _entry(self, name: str, status: os.stat_result, here: _Pending) -> tuple[_Entry, _Pending | None]:
        """One entry, and the directory to descend into, if it is one."""
        path = f"{here.path}/{name}" if here.path else name
        source = f"{here.real}/{name}"
        in_noise = here.in_noise or self._notice(name, path)
        left_at = here.left_at
        if not left_at:
            self.allocation.add(status)
        if stat.S_ISLNK(status.st_mode) and self.follows_links:
            left_at = (*left_at, here.real)
            source = self._target(source, path, left_at)
            self.links += 1
            with reading(source):
                status = status_of(source)
        if len(left_at) > 1:
            self._count_nested(path)
        if stat.S_ISREG(status.st_mode):
            return _file(source, path, status), None
        if stat.S_ISDIR(status.st_mode):
            return _directory(path, status), _Pending(source, path, left_at, in_noise=in_noise)
        kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise EntryRefusedError(f"Entry cannot be stored, it is {kind}: {printable(path)}")

    def _notice(self, name: str, path: str) -> bool:
        """Is this what another program left? Then it is counted."""
        if not is_noise(name):
            return False
        self.noise = self.noise.and_one_at(path)
        return True

    def _count_nested(self, path: str) -> None:
        self._nested += 1
        if self._nested > _NESTED_MOST:
            raise EntryRefusedError(
                f"Links in linked directories stand for more than {_NESTED_MOST} entries: {printable(path)}"
            )

    def _target(self, source: str, path: str, left_at: tuple[str, ...]) -> str:
        """Where a link leads, if it may be followed. It is opened by that path, with no link on the way."""
        try:
            moved = self._moved
            real = os.path.realpath(source, strict=True) if moved is None else followed(source, moved)
        except FileNotFoundError as error:
            raise EntryRefusedError(f"Link leads nowhere: {printable(path)}") from error
        except OSError as error:
            raise EntryRefusedError(
                f"Link cannot be followed ({error.strerror}): {printable(path)}"
            ) from error
        if not any(is_within(real, root) for root in self.roots.real_allowed):
            raise EntryRefusedError(f"Link leaves LEGACY_ROOTS: {printable(path)} -> {printable(real)}")
        if any(is_within(step, real) for step in left_at):
            raise EntryRefusedError(f"Link leads to a directory that contains it: {printable(path)}")
        try:
            check_apart_from_store(real, self.roots, f"Link {printable(path)}")
        except PathRefusedError as error:
            raise EntryRefusedError(str(error)) from error
        return real


def _file(source: str, path: str, status: os.stat_result) -> ScannedFile:
    return ScannedFile(
        path=path,
        source=source,
        signature=Signature.of(status),
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
    )


def _directory(path: str, status: os.stat_result) -> ScannedDirectory:
    if "/" not in path:
        _check_row_can_hold(path)
    elif len(path) > PATH_MOST_BYTES:
        # No stored tree could hold it, and a walk that went on would keep a longer path for each level.
        raise too_long(path)
    return ScannedDirectory(
        path=path,
        mode=stat.S_IMODE(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        owner=(status.st_uid, status.st_gid),
    )


def too_long(path: str) -> EntryRefusedError:
    """A path that no stored tree can hold, named by its two ends."""
    whole = printable(path)
    return EntryRefusedError(f"Path is too long to be stored: {whole[:200]} … {whole[-100:]}")


def _check_row_can_hold(name: str) -> None:
    """A session directory's name goes into text columns, which hold UTF-8 only."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise EntryRefusedError(f"Session directory's name is not UTF-8: {printable(name)}") from None
