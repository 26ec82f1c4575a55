"""Moving a legacy directory away as a whole, and back: one rename each, durable. Knows no rows."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from worker.errors import (
    DirectoryChangedError,
    DirectoryGoneError,
    LegacyNotDurableError,
    LegacyPlaceTakenError,
    MountReadOnlyError,
    MovedAwayMissingError,
    NotADirectoryOfItsOwnError,
    PathRefusedError,
    PlaceNotWritableError,
    ReclaimRefusedError,
)
from worker.legacy.mount_table import current_mounts, mount_of, points_in
from worker.legacy.moved_links import Move
from worker.legacy.roots import Roots, check_place, is_within
from worker.messages import MOVED_AWAY
from worker.store.beneath import open_resolved
from worker.store.digest import printable
from worker.store.syscalls import refresh, rename_without_replacing

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}

Identity = tuple[int, int]
"""Device and inode of a directory: the same thing under whatever name."""


def plan_move(path: str, name: str, roots: Roots, *, now: str | None = None) -> Move:
    """Where a legacy directory would go: to `.label-reclaimed/<name>` in its root or, where that is another
    mount, beside it. Writes nothing. `now` is where it is, if not at its path.

    Raises a `ReclaimRefusedError` for a directory that cannot be moved as a whole, or not from here.
    """
    source = os.path.realpath(path)
    here = os.path.realpath(now or path)
    if not os.path.isdir(here):
        raise DirectoryGoneError(f"Legacy path no longer exists: {printable(path)}")
    try:
        check_place(path, source, roots)
    except PathRefusedError as error:
        raise NotADirectoryOfItsOwnError(str(error)) from error
    _check_whole(here, roots)
    move = Move(source=source, target=f"{_above_target(source, roots)}/{MOVED_AWAY}/{name}")
    _check_writable(move)
    if os.path.lexists(move.target):
        raise LegacyPlaceTakenError(f"Cannot be moved to {printable(move.target)}: something is there")
    return move


def identity_of(path: str) -> Identity:
    """Which directory a resolved path leads to now. Raises `DirectoryGoneError`."""
    try:
        descriptor = open_resolved(path, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise DirectoryGoneError(f"Legacy path no longer exists: {printable(path)}") from error
    try:
        return _identity(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def is_away(move: Move) -> bool:
    """Is something where the directory was to be moved to? Asked anew of a network file system."""
    refresh(os.path.dirname(move.target), move.target)
    return os.path.lexists(move.target)


def is_home(move: Move) -> bool:
    """Is something at the directory's own place?"""
    refresh(os.path.dirname(move.source), move.source)
    return os.path.lexists(move.source)


def move_away(move: Move, expected: Identity, roots: Roots) -> None:
    """Rename the directory to its target, and wait until the disk has it.

    Nothing is ever replaced, and no link followed: what is at the place must be the `expected` directory
    itself. Raises `DirectoryChangedError` if it is another one, `LegacyNotDurableError` if the disk does not
    say that it has the names; the directory is away then.
    """
    with refusals(move.source), ExitStack() as stack:
        home = stack.enter_context(_folder(os.path.dirname(move.source), roots))
        away = stack.enter_context(_target_folder(move, roots))
        name, new_name = os.path.basename(move.source), os.path.basename(move.target)
        if _at(home, name) != expected:
            raise DirectoryChangedError(f"Another directory is at the legacy path: {printable(move.source)}")
        if not _rename(name, home, new_name, away):
            raise LegacyPlaceTakenError(f"Cannot be moved to {printable(move.target)}: something is there")
        if _at(away, new_name) != expected:
            # It was exchanged in the last moment: what was moved is not ours to move.
            _rename(new_name, away, name, home)
            raise DirectoryChangedError(f"Another directory is at the legacy path: {printable(move.source)}")
        _flush(move, home, away)


def move_back(move: Move, roots: Roots) -> None:
    """Rename the directory to its own place again, and wait until the disk has it. Nothing is replaced.

    Raises `LegacyPlaceTakenError` when something is there, `MovedAwayMissingError` when it is not where it
    was moved to, or what was around its place is gone.
    """
    with refusals(move.target), _way_back(move, roots) as (away, home):
        if not _rename(os.path.basename(move.target), away, os.path.basename(move.source), home):
            raise _taken(move)
        _flush(move, home, away)


def rehearse_move_back(move: Move, roots: Roots) -> None:
    """Raise what `move_back` would, as far as is known without writing."""
    with refusals(move.target), _way_back(move, roots):
        if is_home(move):
            raise _taken(move)
        _check_writable(move)


@contextmanager
def _way_back(move: Move, roots: Roots) -> Iterator[tuple[int, int]]:
    """The directory that holds what was moved away, and the one that held it before, open."""
    with ExitStack() as stack:
        away = stack.enter_context(opened_folder_of(move.target, roots))
        if _at(away, os.path.basename(move.target)) is None:
            raise missing(move.target)
        try:
            home = stack.enter_context(_folder(os.path.dirname(move.source), roots))
        except (FileNotFoundError, NotADirectoryError) as error:
            above = printable(os.path.dirname(move.source))
            raise LegacyPlaceTakenError(f"Cannot be moved back: there is no directory {above}") from error
        yield away, home


def _taken(move: Move) -> LegacyPlaceTakenError:
    return LegacyPlaceTakenError(f"Cannot be moved back: something is at {printable(move.source)}")


def missing(target: str) -> MovedAwayMissingError:
    """What is to be said when nothing is where a directory was moved to."""
    return MovedAwayMissingError(f"It is not where it was moved to: {printable(target)}")


@contextmanager
def opened_folder_of(target: str, roots: Roots) -> Iterator[int]:
    """The directory that holds what was moved to `target`, open, reached through no link. Raises
    `MovedAwayMissingError` when there is none.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(_folder(os.path.dirname(target), roots))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise missing(target) from error
        yield folder


def check_removable(target: str) -> None:
    """Raise `MountReadOnlyError` or `PlaceNotWritableError` if what was moved to a place cannot be removed
    there.
    """
    _check_folder_writable(os.path.dirname(target))


# Where it may go --------------------------------------------------------------------------------------------


def _check_whole(source: str, roots: Roots) -> None:
    """Raise unless the directory is one thing that can be renamed and leaves every root where it is."""
    for root, real in zip(roots.allowed, roots.real_allowed, strict=True):
        if is_within(real, source):
            where = "is" if real == source else "holds"
            raise NotADirectoryOfItsOwnError(f"{printable(source)} {where} the legacy root {root}")
    for point in points_in(source, current_mounts()):
        what = "is a mount point" if point == source else f"holds the mount point {printable(point)}"
        raise NotADirectoryOfItsOwnError(f"{printable(source)} {what}")


def _above_target(source: str, roots: Roots) -> str:
    """The innermost root that the directory is in, if it lies on the same mount as the directory; else the
    directory above it.
    """
    parent = os.path.dirname(source)
    root = max((real for real in roots.real_allowed if is_within(source, real)), key=len)
    return root if _mount_id(root) == _mount_id(parent) else parent


def _mount_id(path: str) -> tuple[str, int]:
    """One file system that is mounted twice has one device number, and yet nothing can be renamed across."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
            number = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
        return number, os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _check_writable(move: Move) -> None:
    home, away = os.path.dirname(move.source), os.path.dirname(move.target)
    for folder in (home, away if os.path.lexists(away) else os.path.dirname(away)):
        _check_folder_writable(folder)
    if os.path.lexists(away) and not stat.S_ISDIR(os.lstat(away).st_mode):
        raise PlaceNotWritableError(f"{printable(away)} is not a directory")


def _check_folder_writable(folder: str) -> None:
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise _read_only(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PlaceNotWritableError(f"{printable(folder)} cannot be written to")


def _read_only(place: str) -> MountReadOnlyError:
    mount = mount_of(os.path.realpath(place), current_mounts())
    point = printable(mount.point) if mount is not None else printable(place)
    return MountReadOnlyError(f"{printable(place)} is on a read-only mount: {point}")


# Doing it ---------------------------------------------------------------------------------------------------


@contextmanager
def refusals(path: str) -> Iterator[None]:
    """Turn what the operating system refuses at a path, or below it, into errors that name the place."""
    try:
        yield
    except OSError as error:
        where = os.fspath(error.filename or path)
        if error.errno == errno.EROFS:
            raise _read_only(path) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise PlaceNotWritableError(f"{printable(where)}: {error.strerror}") from error
        if error.errno == errno.EBUSY:
            raise NotADirectoryOfItsOwnError(f"{printable(path)} is a mount point") from error
        raise ReclaimRefusedError(f"Cannot change {printable(where)}: {error.strerror}") from error


@contextmanager
def _folder(path: str, roots: Roots) -> Iterator[int]:
    """A directory in the roots, open, reached through no link. One above it may have become a link since its
    path was noted: then it is where that leads to.
    """
    real = os.path.realpath(path)
    if not any(is_within(real, root) for root in roots.real_allowed):
        raise NotADirectoryOfItsOwnError(f"{printable(path)} is outside LEGACY_ROOTS")
    descriptor = open_resolved(real, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _target_folder(move: Move, roots: Roots) -> Iterator[int]:
    """The directory of what was moved away, made if need be, for its owner alone: whoever works in a
    directory that was checked and moved would change it unseen.
    """
    with _folder(os.path.dirname(os.path.dirname(move.target)), roots) as above:
        with suppress(FileExistsError):
            os.mkdir(MOVED_AWAY, 0o700, dir_fd=above)
            os.fsync(above)
        descriptor = os.open(MOVED_AWAY, _FOLDER, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _at(folder: int, name: str) -> Identity | None:
    """The directory of this name, if it is one itself."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return _identity(status) if stat.S_ISDIR(status.st_mode) else None


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _rename(name: str, folder: int, new_name: str, to_folder: int) -> bool:
    """Rename without replacing; False when something has the new name."""
    try:
        return rename_without_replacing(name, new_name, folder, to_folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Not every file system knows the flag (NFS does not). Without it an empty directory that comes within
    # this instant is replaced; anything else still stops the rename.
    place = f"/proc/self/fd/{to_folder}"
    refresh(f"{place}/.", f"{place}/{new_name}")
    if os.path.lexists(f"{place}/{new_name}"):
        return False
    try:
        os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=to_folder)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


def _flush(move: Move, *folders: int) -> None:
    """Wait until the disk has the names, in both directories."""
    for folder in folders:
        try:
            os.fsync(folder)
        except OSError as error:
            raise LegacyNotDurableError(
                f"Cannot flush the directories of {printable(move.source)}: {error.strerror}"
            ) from error
