"""Listing a legacy project's directory: what is there, what may be stored, what must not. Reads no file's content."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from worker.blobs.digest import Signature, printable, reading
from worker.errors import (
    DirectoryMissingError,
    EntryRefusedError,
    EntryUnreadableError,
    NoSessionsError,
    NotADirectoryPathError,
    PathRefusedError,
    SourceChangedError,
)

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Where legacy projects may lie, and the store's directories, which no project may touch."""

    allowed: tuple[Path, ...]
    store: tuple[Path, ...]

    @cached_property
    def real_allowed(self) -> tuple[str, ...]:
        """The same with links resolved: once, not for each path that is compared with them."""
        return tuple(os.path.realpath(root) for root in self.allowed)

    @cached_property
    def real_store(self) -> tuple[str, ...]:
        """Likewise."""
        return tuple(os.path.realpath(root) for root in self.store)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedFile:
    """A regular file of the tree. `source` is where its bytes are (a link's target), `mode` its permission bits, `owner` user and group."""

    path: str
    source: str
    signature: Signature
    mode: int
    owner: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedDirectory:
    """A directory of the tree, with permission bits, time of change, user and group."""

    path: str
    mode: int
    mtime_ns: int
    owner: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Everything below a project's directory. `links` counts symbolic links that are stored as what they point to."""

    root: str
    root_mode: int
    root_mtime_ns: int
    root_owner: tuple[int, int]
    directories: tuple[ScannedDirectory, ...]
    files: tuple[ScannedFile, ...]
    links: int

    @property
    def size_bytes(self) -> int:
        """The sum of all file sizes."""
        return sum(file.signature.size_bytes for file in self.files)

    @property
    def session_names(self) -> tuple[str, ...]:
        """The immediate subdirectories."""
        return tuple(entry.path for entry in self.directories if "/" not in entry.path)


def scan(project_path: str, roots: Roots, *, needs_sessions: bool = True) -> Scan:
    """List the tree at `project_path`.

    Raises a `ProjectError` that names the path or the entry: missing, not a directory, outside the allowed roots,
    overlapping the store, without sessions, unreadable, or holding what cannot be stored.
    """
    status = _project_status(project_path)
    real = os.path.realpath(project_path)
    check_place(project_path, real, roots)
    walk = _Walk(real, roots)
    walk.run()
    found = Scan(
        root=project_path,
        root_mode=stat.S_IMODE(status.st_mode),
        root_mtime_ns=status.st_mtime_ns,
        root_owner=(status.st_uid, status.st_gid),
        directories=tuple(walk.directories),
        files=tuple(walk.files),
        links=walk.links,
    )
    if needs_sessions and not found.session_names:
        raise NoSessionsError(f"No session directories found: {printable(project_path)}")
    return found


def _project_status(path: str) -> os.stat_result:
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
    return status


def check_place(path: str, real: str, roots: Roots) -> None:
    """Raise `PathRefusedError` unless `real`, which `path` resolves to, is inside the roots and apart from the store."""
    if not any(_is_within(real, root) for root in roots.real_allowed):
        allowed = ", ".join(str(root) for root in roots.allowed)
        raise PathRefusedError(f"Project path is outside LEGACY_ROOTS ({allowed}): {printable(path)}")
    _check_apart_from_store(real, roots, f"Project path {printable(path)}")


def _check_apart_from_store(real: str, roots: Roots, subject: str) -> None:
    for store, real_store in zip(roots.store, roots.real_store, strict=True):
        if _is_within(real, real_store) or _is_within(real_store, real):
            raise PathRefusedError(f"{subject} overlaps the store's directory {store}")


def _is_within(real: str, real_root: str) -> bool:
    """Is one resolved path the same as the other or below it?"""
    return real == real_root or real.startswith(real_root.rstrip("/") + "/")


class _Walk:
    """One walk through a tree, directories before their entries, names in byte order.

    `chain` holds the real directories from the root down to where the walk is: a link to any of them would
    never end.
    """

    def __init__(self, real_root: str, roots: Roots) -> None:
        self.roots = roots
        self.root = real_root
        self.directories: list[ScannedDirectory] = []
        self.files: list[ScannedFile] = []
        self.links = 0

    def run(self) -> None:
        """Walk everything; a stack of its own, so that deep trees do not exhaust Python's."""
        pending: list[tuple[str, str, tuple[str, ...]]] = [(self.root, "", (self.root,))]
        while pending:
            real, relative, chain = pending.pop()
            for name in _names(real):
                path = f"{relative}/{name}" if relative else name
                descend = self._entry(os.path.join(real, name), path, chain)
                if descend is not None:
                    pending.append((descend, path, (*chain, descend)))

    def _entry(self, source: str, path: str, chain: tuple[str, ...]) -> str | None:
        """Take one entry; the real directory to descend into, if it is one."""
        with reading(source):
            status = os.lstat(source)
        if stat.S_ISLNK(status.st_mode):
            source = self._target(source, path, chain)
            self.links += 1
            with reading(source):
                status = os.lstat(source)
        if stat.S_ISREG(status.st_mode):
            self._file(source, path, status)
            return None
        if stat.S_ISDIR(status.st_mode):
            self._directory(path, status)
            return source
        kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise EntryRefusedError(f"Entry cannot be stored, it is {kind}: {printable(path)}")

    def _file(self, source: str, path: str, status: os.stat_result) -> None:
        self.files.append(
            ScannedFile(
                path=path,
                source=source,
                signature=Signature.of(status),
                mode=stat.S_IMODE(status.st_mode),
                owner=(status.st_uid, status.st_gid),
            )
        )

    def _directory(self, path: str, status: os.stat_result) -> None:
        if "/" not in path:
            _check_row_can_hold(path)
        self.directories.append(
            ScannedDirectory(
                path=path,
                mode=stat.S_IMODE(status.st_mode),
                mtime_ns=status.st_mtime_ns,
                owner=(status.st_uid, status.st_gid),
            )
        )

    def _target(self, source: str, path: str, chain: tuple[str, ...]) -> str:
        """Where a link leads, if it may be followed."""
        try:
            real = os.path.realpath(source, strict=True)
        except FileNotFoundError as error:
            raise EntryRefusedError(f"Link leads nowhere: {printable(path)}") from error
        except OSError as error:
            raise EntryRefusedError(
                f"Link cannot be followed ({error.strerror}): {printable(path)}"
            ) from error
        if not any(_is_within(real, root) for root in self.roots.real_allowed):
            raise EntryRefusedError(f"Link leaves LEGACY_ROOTS: {printable(path)} -> {printable(real)}")
        if any(step == real or step.startswith(real.rstrip("/") + "/") for step in chain):
            raise EntryRefusedError(f"Link leads to a directory that contains it: {printable(path)}")
        try:
            _check_apart_from_store(real, self.roots, f"Link {printable(path)}")
        except PathRefusedError as error:
            raise EntryRefusedError(str(error)) from error
        return real


def _names(directory: str) -> Iterator[str]:
    """The directory's entries in byte order."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceChangedError(f"Entry vanished while it was read: {printable(directory)}") from error
    except OSError as error:
        raise EntryUnreadableError(f"Cannot read {printable(directory)}: {error.strerror}") from error
    yield from sorted(names, key=os.fsencode)


def _check_row_can_hold(name: str) -> None:
    """A session directory's name goes into text columns, which hold UTF-8 only."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise EntryRefusedError(f"Session directory's name is not UTF-8: {printable(name)}") from None
