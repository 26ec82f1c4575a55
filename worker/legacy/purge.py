"""Removing a legacy directory that was moved away: what was migrated goes, what came later stays. Knows no
rows.

By descriptors of directories: no link is followed, on the way or in it, and nothing is removed that is not an
entry of the manifest with the size and the time of modification that it had.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from worker.errors import NotADirectoryOfItsOwnError
from worker.legacy.mount_table import current_mounts, points_in
from worker.legacy.moved_away import check_removable, opened_folder_of, refusals
from worker.legacy.moved_links import Move, followed
from worker.legacy.roots import Roots
from worker.legacy.tree_attributes import Attributes, TreeAttributes
from worker.runtime.throttle import Pace, unlimited
from worker.store.beneath import open_resolved
from worker.store.digest import printable
from worker.store.manifest import Directory, Entry, File, Manifest
from worker.store.syscalls import sync_file_system

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 512
_NAMED = 100
_NONE_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV}
"""How opening a directory fails that is gone, or something else by now."""

_Expected = Mapping[str, tuple[Entry, Attributes]]


@dataclass
class Purged:
    """What a purge removed, and what it left. `freed_bytes`: allocated blocks that the file system has back;
    of a file with more names than were removed, none. `kept` names what stays, the first hundred.
    """

    freed_bytes: int = 0
    files: int = 0
    kept: list[str] = field(default_factory=list)
    kept_count: int = 0

    def keep(self, path: str, why: str) -> None:
        """Note something that stays."""
        self.kept_count += 1
        if len(self.kept) < _NAMED:
            self.kept.append(f"{printable(path)} ({why})")


def purge_tree(
    move: Move,
    manifest: Manifest,
    attributes: TreeAttributes,
    roots: Roots,
    *,
    rehearse: bool = False,
    advance: Callable[[int, int], None] = lambda _files, _bytes: None,
    pace: Pace = unlimited,
) -> Purged:
    """Remove what was migrated of a directory that was moved away, and the directory if nothing else is in
    it; then wait for the disk. `rehearse` only counts, and raises what the
    purge would, as far as is known without writing.

    Twice, or after dying anywhere: what is gone already is passed over. Raises `NotADirectoryOfItsOwnError`
    when something is mounted in it, `MountReadOnlyError` and `PlaceNotWritableError` where nothing can be
    removed, `MovedAwayMissingError` when the directory is missing that holds such directories.
    """
    target = move.target
    for point in points_in(os.path.realpath(target), current_mounts()):
        raise NotADirectoryOfItsOwnError(f"{printable(target)} holds the mount point {printable(point)}")
    done = Purged()
    with opened_folder_of(target, roots) as folder, refusals(target):
        try:
            top = os.open(os.path.basename(target), _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            return done
        check_removable(target)
        try:
            through = partial(_through, move=Move(source=move.source, target=os.path.realpath(target)))
            _Purge(top, through, _by_directory(manifest, attributes), done, rehearse, advance, pace).run(
                [entry.path for entry in manifest.directories]
            )
            own_bytes = os.fstat(top).st_blocks * _BLOCK_BYTES
        finally:
            os.close(top)
        if not done.kept_count and (rehearse or _is_removed(os.path.basename(target), folder)):
            done.freed_bytes += own_bytes
        if not rehearse:
            sync_file_system(folder)
    return done


def _is_removed(name: str, folder: int) -> bool:
    """Remove a directory if nothing is in it."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True


def _by_directory(
    manifest: Manifest, attributes: TreeAttributes
) -> dict[str, dict[str, tuple[Entry, Attributes]]]:
    """The entries of each directory, by name."""
    found: dict[str, dict[str, tuple[Entry, Attributes]]] = {"": {}}
    for entry, kept in zip(manifest.entries, attributes.entries, strict=True):
        above, _, name = entry.path.rpartition("/")
        found.setdefault(above, {})[name] = (entry, kept)
    return found


class _Purge:
    """One walk through the manifest's directories, the deepest first."""

    def __init__(
        self,
        top: int,
        through: Callable[[str], os.stat_result],
        expected: Mapping[str, _Expected],
        done: Purged,
        rehearse: bool,  # noqa: FBT001 - private, and named at its only call
        advance: Callable[[int, int], None],
        pace: Pace,
    ) -> None:
        self._top = top
        self._through = through
        self._expected = expected
        self._done = done
        self._rehearse = rehearse
        self._advance = advance
        self._pace = pace
        self._modes: dict[str, int] = {}
        self._would_go: set[str] = set()
        self._would_stay: set[str] = set()
        self._unread: set[str] = set()
        self._names: Counter[tuple[int, int]] = Counter()
        self._device = os.fstat(top).st_dev

    def run(self, directories: Sequence[str]) -> None:
        """Links first: whether one still leads to what it stood for can be seen only while that is there."""
        links = [link for path in ("", *directories) for link in self._links(path)]
        for path, name in links:
            with self._opened(path) as folder:
                if folder is not None and not self._rehearse:
                    os.unlink(name, dir_fd=folder)
            self._done.files += 1
            self._would_go.add(_join(path, name))
        for path in reversed(["", *directories]):
            self._purge(path)
        for path in reversed(self._modes):
            with self._opened(path) as stays:
                if stays is not None:
                    os.fchmod(stays, self._modes[path])

    def _links(self, path: str) -> Iterator[tuple[str, str]]:
        """The links of a directory that stand for an entry of the manifest, as they did when it was
        migrated.
        """
        with self._opened(path) as folder:
            if folder is None:
                return
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.is_symlink()]
            for name in names:
                known = self._expected.get(path, {}).get(name)
                with suppress(OSError):
                    if known is not None and _fits(
                        self._through(_join(path, name)), *known, through_link=True
                    ):
                        yield path, name

    def _purge(self, path: str) -> None:
        """Remove a directory's files, and those directories in it that are empty by now."""
        with self._opened(path) as folder:
            if folder is None:
                return
            for name in sorted(os.listdir(folder), key=os.fsencode):
                self._pace(0)
                whole = _join(path, name)
                if whole not in self._would_go:
                    self._one(folder, whole, name, self._expected.get(path, {}).get(name))

    def _one(self, folder: int, path: str, name: str, known: tuple[Entry, Attributes] | None) -> None:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if known is None:
            self._keep(path, "not there when it was migrated")
        elif stat.S_ISDIR(status.st_mode) and isinstance(known[0], Directory):
            self._remove_directory(folder, path, name, status)
        elif not _fits(status, *known):
            self._keep(path, "changed since it was migrated")
        else:
            if not self._rehearse:
                os.unlink(name, dir_fd=folder)
            self._done.files += 1
            if self._is_last_name(status):
                self._done.freed_bytes += status.st_blocks * _BLOCK_BYTES
            self._advance(1, status.st_size)

    def _is_last_name(self, status: os.stat_result) -> bool:
        """Does the file system get a file's blocks back when this name goes? A rehearsal counts what would
        have gone before.
        """
        if not self._rehearse or status.st_nlink == 1:
            return status.st_nlink == 1
        identity = status.st_dev, status.st_ino
        self._names[identity] += 1
        return self._names[identity] == status.st_nlink

    def _remove_directory(self, folder: int, path: str, name: str, status: os.stat_result) -> None:
        """What is left in it has been named by now."""
        if status.st_dev != self._device:
            self._keep(path, "on another file system")
            return
        if path in self._unread:
            self._keep(path, "cannot be looked into before a purge changes its mode")
            return
        goes = path not in self._would_stay if self._rehearse else _is_removed(name, folder)
        if goes:
            self._done.freed_bytes += status.st_blocks * _BLOCK_BYTES

    def _keep(self, path: str, why: str) -> None:
        """What stays keeps the directories around it."""
        self._done.keep(path, why)
        above = os.path.dirname(path)
        while above and above not in self._would_stay:
            self._would_stay.add(above)
            above = os.path.dirname(above)

    @contextmanager
    def _opened(self, path: str) -> Iterator[int | None]:
        """A directory of the tree, reached through no link, writable for its owner; None when there is none
        any more, or something else, or another file system's.
        """
        try:
            folder = open_resolved(path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._top)
        except PermissionError:
            if self._rehearse:
                self._unread.add(path)
                yield None
                return
            folder = self._made_readable(path)
        except OSError as error:
            if error.errno not in _NONE_THERE:
                raise
            yield None
            return
        try:
            status = os.fstat(folder)
            mode = stat.S_IMODE(status.st_mode)
            if self._rehearse:
                _check_writable(folder, status)
            elif mode & 0o700 != 0o700:
                self._modes.setdefault(path, mode)
                os.fchmod(folder, mode | 0o700)
            yield folder if status.st_dev == self._device else None
        finally:
            os.close(folder)

    def _made_readable(self, path: str) -> int:
        """One that its owner may not list: by what it is, not by its name."""
        itself = open_resolved(path or ".", os.O_PATH | os.O_DIRECTORY, dir_fd=self._top)
        try:
            name, mode = f"/proc/self/fd/{itself}", stat.S_IMODE(os.fstat(itself).st_mode)
            self._modes.setdefault(path, mode)
            os.chmod(name, mode | 0o700)
        finally:
            os.close(itself)
        return open_resolved(path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._top)


def _check_writable(folder: int, status: os.stat_result) -> None:
    """Raise `PermissionError` unless something can be removed from an open directory: its owner may let
    himself.
    """
    name = f"/proc/self/fd/{folder}"
    if os.geteuid() not in {0, status.st_uid} and not os.access(name, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.readlink(name))


def _through(path: str, move: Move) -> os.stat_result:
    """What a link stands for. Its text is of the time when the directory was at its own place."""
    return os.lstat(followed(f"{move.target}/{path}", move))


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _fits(status: os.stat_result, entry: Entry, kept: Attributes, *, through_link: bool = False) -> bool:
    """Is it what was migrated? A directory counts only where a link leads to it, and only with all its
    attributes: elsewhere it is what is in it that counts.
    """
    if isinstance(entry, File):
        return (
            stat.S_ISREG(status.st_mode)
            and status.st_size == entry.size_bytes
            and status.st_mtime_ns == kept.mtime_ns
        )
    now = Attributes(stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_uid, status.st_gid)
    return through_link and stat.S_ISDIR(status.st_mode) and now == kept
