"""Rebuilding a legacy directory from the store: bytes proved by digest; modes, times, owners as they were."""

import errno
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial

from worker.errors import (
    EntryUnreadableError,
    LegacyNotDurableError,
    RollbackRefusedError,
    SourceChangedError,
    StoredBytesMismatchError,
)
from worker.legacy import tree_attributes
from worker.legacy.roots import Roots, check_place
from worker.legacy.tree_attributes import Attributes, TreeAttributes
from worker.runtime import log
from worker.runtime.throttle import Pace, unlimited
from worker.store.beneath import open_resolved
from worker.store.digest import (
    new_buffer,
    new_hasher,
    printable,
    read_stored,
)
from worker.store.files import (
    FlushError,
    check_answers,
    flushing,
    new_file,
)
from worker.store.manifest import Directory, File, Manifest
from worker.store.removal import (
    BUILDING,
    REMOVED,
    remove_tree,
    take_away,
)
from worker.store.store import TASK_CHARACTERS, Store, attempt_of
from worker.store.syscalls import refresh, rename_without_replacing, sync_file_system

_log = log.get(__name__)

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}

Over = Callable[[Collection[str]], Collection[str]]
"""Those of these task ids that no worker has any more."""


def restore_tree(
    store: Store,
    manifest: Manifest,
    attributes: bytes,
    legacy_path: str,
    attempt: str,
    roots: Roots,
    advance: Callable[[int, int], None],
    pace: Pace = unlimited,
) -> bool:
    """Make the directory again as it was; False, with nothing changed, when something is at its path already.

    Everything is built under a temporary name beside it and published by one rename, which never replaces
    anything. Links of the former tree come back as what they pointed to. Raises `StoredBytesMismatchError`
    for stored bytes that are not those of their digest, `RollbackRefusedError` when the place cannot be
    written. A crash leaves a hidden directory beside the place; the job's next attempt removes it, or
    `remove_finished`.

    The directory above is opened once, before anything is written: all names are given through it, so that no
    user who may write there leads the work elsewhere by a link, and it hears of everything that could not be
    written.
    """
    target = _target(legacy_path, roots)
    parent, name = os.path.split(target)
    building = os.path.basename(building_place(target, attempt))
    kept = tree_attributes.unpack(attributes)
    try:
        folder = _opened(os.path.realpath(parent))
        try:
            _remove_leftovers(folder, building)
            for is_last in (False, True):
                try:
                    return _build(store, manifest, kept, folder, building, name, advance, pace)
                except FlushError as error:
                    # Perhaps these, and the kernel says it only once: they are written again.
                    if is_last or error.errno != errno.EIO:
                        raise
                    _log.warning("restoring_again", path=printable(target), reason=str(error))
        finally:
            os.close(folder)
    except OSError as error:
        where = printable(os.fspath(error.filename or target))
        raise RollbackRefusedError(
            f"Cannot restore {printable(target)}: {where}: {error.strerror}"
        ) from error
    raise AssertionError("the last try returns or raises")


def remove_finished(legacy_path: str, roots: Roots, over: Over, *, rehearse: bool = False) -> list[str]:
    """Remove what jobs that are over left beside the place of a directory, unless `rehearse`; their names.
    What cannot go stays.
    """
    removed: list[str] = []
    try:
        folder = open_resolved(
            os.path.realpath(os.path.dirname(_target(legacy_path, roots))), os.O_RDONLY | os.O_DIRECTORY
        )
    except OSError:
        # What hinders here is told by the rebuilding itself.
        return removed
    try:
        found = {name: task for name in os.listdir(folder) if (task := _task_of(name)) is not None}
        # Asked after the list was made: what is in it and has no job now had one that ended.
        ended = over(set(found.values())) if found else ()
        for name, task in found.items():
            if task in ended:
                if not rehearse:
                    _remove_leftover(folder, name)
                removed.append(name)
    except OSError as error:
        _log.warning("leftovers_not_removed", reason=str(error))
    finally:
        os.close(folder)
    return removed


def settle(legacy_path: str) -> None:
    """Wait until a legacy directory that was found there is on the disk, before a row relies on it: another
    job may have rebuilt it, or one around it, a moment ago, and be waiting for that itself, or have died
    while it did.
    """
    try:
        sync_file_system(legacy_path, may_be_read_only=True)
    except OSError as error:
        raise LegacyNotDurableError(
            f"Cannot flush the file system of {printable(legacy_path)}: {error.strerror}"
        ) from error


def rehearse_restore(
    store: Store,
    manifest: Manifest,
    legacy_path: str,
    roots: Roots,
    advance: Callable[[int, int], None],
    pace: Pace = unlimited,
) -> None:
    """Raise what `restore_tree` would, as far as is known without writing: bytes, place, permission."""
    target = _target(legacy_path, roots)
    above = os.path.dirname(target)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        raise RollbackRefusedError(
            f"Cannot restore {printable(target)}: {printable(above)} cannot be written"
        )
    for file in {file.digest: file for file in manifest.files}.values():
        _asked_anew_once(store, file, partial(_read, store, file, pace))
        advance(1, file.size_bytes)


def building_place(target: str, attempt: str) -> str:
    """Where an attempt builds: beside its target, under a name that does not grow with the target's."""
    return os.path.join(os.path.dirname(target), f"{BUILDING}{attempt}")


def _target(legacy_path: str, roots: Roots) -> str:
    target = os.path.normpath(legacy_path)
    parent, name = os.path.split(target)
    check_place(legacy_path, os.path.join(os.path.realpath(parent), name), roots)
    return target


def _opened(parent: str) -> int:
    """The directory at a resolved path, made with those above it if need be; through no link on the way."""
    try:
        return open_resolved(parent, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        above = _opened(os.path.dirname(parent))
    try:
        with suppress(FileExistsError):
            os.mkdir(os.path.basename(parent), dir_fd=above)
        return os.open(os.path.basename(parent), _FOLDER, dir_fd=above)
    finally:
        os.close(above)


def _remove_leftovers(folder: int, building: str) -> None:
    """Remove what earlier attempts of this job left when they died, and what is half removed.

    Not what a later attempt is building: this one may have slept, and not know yet. One that sleeps where its
    directory is removed finds the name gone, and cannot publish what is half removed.
    """
    job = building[: len(BUILDING) + TASK_CHARACTERS]
    own = attempt_of(job, building)
    for name in os.listdir(folder):
        attempt = attempt_of(job, name)
        is_earlier = attempt is not None and own is not None and attempt <= own
        if is_earlier or name.startswith(f"{BUILDING}{REMOVED}"):
            _remove_leftover(folder, name)


def _task_of(name: str) -> str | None:
    """The task id of the job that builds, or built, a directory under this name."""
    task = name.removeprefix(BUILDING)[:TASK_CHARACTERS]
    is_building = name.startswith(BUILDING) and attempt_of(task, name.removeprefix(BUILDING)) is not None
    return task if is_building else None


def _remove_leftover(folder: int, name: str) -> None:
    """Another worker may be removing it, too."""
    place = f"/proc/self/fd/{folder}"
    with suppress(FileNotFoundError):
        remove_tree(f"{place}/{take_away(place, name, BUILDING)}")


def _build(
    store: Store,
    manifest: Manifest,
    attributes: TreeAttributes,
    folder: int,
    building: str,
    name: str,
    advance: Callable[[int, int], None],
    pace: Pace,
) -> bool:
    """Build the directory and publish it; False when something has its name. Raises `FlushError`."""
    os.mkdir(building, 0o700, dir_fd=folder)
    try:
        top = os.open(building, _FOLDER, dir_fd=folder)
        try:
            _fill(store, manifest, attributes, top, advance, pace)
        finally:
            os.close(top)
        with flushing(name):
            sync_file_system(folder)
        return _publish(folder, building, name)
    finally:
        # What cannot be removed now is a leftover: an error here would hide the one that brought us here.
        with suppress(OSError):
            remove_tree(f"/proc/self/fd/{folder}/{building}")


def _fill(
    store: Store,
    manifest: Manifest,
    attributes: TreeAttributes,
    top: int,
    advance: Callable[[int, int], None],
    pace: Pace,
) -> None:
    """Directories, then files, then, deepest first, the modes and times of directories."""
    kept = list(zip(manifest.entries, attributes.entries, strict=True))
    store.ask_anew(file.digest for file in manifest.files)
    for entry, _ in kept:
        if isinstance(entry, Directory):
            pace(0)
            os.mkdir(entry.path, 0o700, dir_fd=top)
    for entry, kept_of_it in kept:
        if isinstance(entry, File):
            _write_file(store, entry, top, kept_of_it, pace)
            advance(1, entry.size_bytes)
    for entry, kept_of_it in reversed(kept):
        if isinstance(entry, Directory):
            _set_attributes(entry.path, kept_of_it, top)
    _set_attributes(".", attributes.root, top)


def _write_file(store: Store, file: File, top: int, attributes: Attributes, pace: Pace) -> None:
    """Copy one blob, proving it on the way: never a link, because the application rewrites legacy files."""

    def copy() -> None:
        try:
            with (
                new_file(file.path, folder=top) as descriptor,
                open(descriptor, "wb", closefd=False) as written,
            ):
                written.writelines(_proved(store, file, pace))
        except StoredBytesMismatchError:
            os.unlink(file.path, dir_fd=top)
            raise

    _asked_anew_once(store, file, copy)
    _set_attributes(file.path, attributes, top)


def _asked_anew_once(store: Store, file: File, work: Callable[[], None]) -> None:
    """A blob that seems bad or gone is looked up again: another worker may have repaired it meanwhile."""
    try:
        work()
    except StoredBytesMismatchError:
        blob = store.blob_path(file.digest)
        refresh(os.path.dirname(blob), blob)
        work()


def _read(store: Store, file: File, pace: Pace) -> None:
    for _ in _proved(store, file, pace):
        pass


def _proved(store: Store, file: File, pace: Pace) -> Iterator[memoryview]:
    """A blob's bytes; raises `StoredBytesMismatchError` by the end unless they are those of its digest."""
    hasher = new_hasher(store.algorithm)
    try:
        for chunk in read_stored(store.blob_path(file.digest), new_buffer(), pace):
            hasher.update(chunk)
            yield chunk
    except (EntryUnreadableError, SourceChangedError) as error:
        check_answers(error)
        raise StoredBytesMismatchError(f"Blob {file.digest} cannot be read: {error}") from error
    if hasher.hexdigest() != file.digest:
        raise StoredBytesMismatchError(f"Blob {file.digest} does not have the bytes its digest promises")


def _set_attributes(path: str, attributes: Attributes, top: int) -> None:
    """Mode and times as they were; user and group, too, where the migrator may give files away (as root)."""
    mode, mtime_ns, user, group = attributes
    if os.geteuid() == 0:
        # Before the mode: a change of owner takes set-id bits away.
        os.chown(path, user, group, dir_fd=top)
    os.chmod(path, mode, dir_fd=top)
    os.utime(path, ns=(mtime_ns, mtime_ns), dir_fd=top)


def _publish(folder: int, building: str, name: str) -> bool:
    """Rename without replacing: an ordinary rename would take the place of an empty directory."""
    try:
        if not rename_without_replacing(building, name, folder):
            return False
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        if not _is_renamed(folder, building, name):
            return False
    try:
        sync_file_system(folder)
    except OSError:
        # The bytes were flushed before; of the name, the next one tells.
        sync_file_system(folder)
    return True


def _is_renamed(folder: int, building: str, name: str) -> bool:
    """Not every file system knows the flag (NFS does not). Without it a directory that comes within this
    instant is replaced if it is empty; anything else still stops the rename.
    """
    place = f"/proc/self/fd/{folder}"
    refresh(f"{place}/.", f"{place}/{name}")
    if os.path.lexists(f"{place}/{name}"):
        return False
    try:
        os.rename(building, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True
