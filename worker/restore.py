"""Rebuilding a legacy directory that is gone, from the store: bytes proved by digest, modes, times and owners as they were."""

import ctypes
import errno
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from worker.blobs.digest import Signature, new_buffer, new_hasher, printable, read_chunks
from worker.blobs.manifest import Directory, File, Manifest
from worker.blobs.store import Store, remove_tree, sync_file_system
from worker.errors import (
    EntryUnreadableError,
    RollbackRefusedError,
    SourceChangedError,
    StoredBytesMismatchError,
)
from worker.scan import Roots, check_place
from worker.throttle import Pace, unlimited

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


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

    Everything is built under a temporary name beside it and published by one rename, which never replaces anything. Links of the
    former tree come back as what they pointed to. Raises `StoredBytesMismatchError` for stored bytes that are not
    those of their digest, `RollbackRefusedError` when the place cannot be written. A crash leaves a hidden directory
    beside the place; the job's next attempt removes it.
    """
    target = _target(legacy_path, roots)
    building = building_place(target, attempt)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _remove_leftovers(building)
        os.mkdir(building, 0o700)
        try:
            _fill(store, manifest, json.loads(zlib.decompress(attributes)), building, advance, pace)
            sync_file_system(building)
            return _publish(building, target)
        finally:
            if os.path.lexists(building):
                remove_tree(building)
    except OSError as error:
        where = printable(os.fspath(error.filename or target))
        raise RollbackRefusedError(
            f"Cannot restore {printable(target)}: {where}: {error.strerror}"
        ) from error


def rehearse_restore(
    store: Store,
    manifest: Manifest,
    legacy_path: str,
    roots: Roots,
    advance: Callable[[int, int], None],
    pace: Pace = unlimited,
) -> None:
    """Raise what `restore_tree` would raise, as far as that can be told without writing: bytes, place, permission."""
    target = _target(legacy_path, roots)
    above = os.path.dirname(target)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        raise RollbackRefusedError(
            f"Cannot restore {printable(target)}: {printable(above)} cannot be written"
        )
    for file in {file.digest: file for file in manifest.files}.values():
        for _ in _proved(store, file, pace):
            pass
        advance(1, file.size_bytes)


def building_place(target: str, attempt: str) -> str:
    """Where an attempt builds: beside its target, under a name that does not grow with the target's."""
    return os.path.join(os.path.dirname(target), f".restoring-{attempt}")


def _target(legacy_path: str, roots: Roots) -> str:
    target = os.path.normpath(legacy_path)
    parent, name = os.path.split(target)
    check_place(legacy_path, os.path.join(os.path.realpath(parent), name), roots)
    return target


def _remove_leftovers(building: str) -> None:
    """Remove what earlier attempts of this job left when they died: a sleeping one that wakes up fails, and its lease is gone.

    Not what a later one is building: this attempt may be one that slept, and not know yet.
    """
    parent, name = os.path.split(building)
    job, _, attempt = name.rpartition("-")
    for other in os.listdir(parent):
        same, _, number = other.rpartition("-")
        if same == job and number.isdecimal() and int(number) <= int(attempt):
            remove_tree(os.path.join(parent, other))


def _fill(
    store: Store,
    manifest: Manifest,
    attributes: dict[str, Any],
    building: str,
    advance: Callable[[int, int], None],
    pace: Pace,
) -> None:
    """Directories first, then files, then, deepest first, what would have hindered: modes and times of directories."""
    kept = list(zip(manifest.entries, attributes["entries"], strict=True))
    for entry, _ in kept:
        if isinstance(entry, Directory):
            os.mkdir(f"{building}/{entry.path}", 0o700)
    for entry, kept_of_it in kept:
        if isinstance(entry, File):
            _write_file(store, entry, f"{building}/{entry.path}", kept_of_it, pace)
            advance(1, entry.size_bytes)
    for entry, kept_of_it in reversed(kept):
        if isinstance(entry, Directory):
            _set_attributes(f"{building}/{entry.path}", kept_of_it)
    _set_attributes(building, attributes["root"])


def _write_file(store: Store, file: File, target: str, attributes: Sequence[int], pace: Pace) -> None:
    """Copy one blob, proving it on the way: a copy, never a link, because the application rewrites legacy files."""
    with open(target, "xb") as copy:
        copy.writelines(_proved(store, file, pace))
    _set_attributes(target, attributes)


def _proved(store: Store, file: File, pace: Pace) -> Iterator[memoryview]:
    """A blob's bytes; raises `StoredBytesMismatchError`, at the end at the latest, unless they are those of its digest."""
    blob = store.blob_path(file.digest)
    hasher = new_hasher(store.algorithm)
    try:
        for chunk in read_chunks(blob, Signature.of(os.lstat(blob)), new_buffer(), pace, through_links=True):
            hasher.update(chunk)
            yield chunk
    except (EntryUnreadableError, SourceChangedError, FileNotFoundError) as error:
        raise StoredBytesMismatchError(f"Blob {file.digest} cannot be read: {error}") from error
    if hasher.hexdigest() != file.digest:
        raise StoredBytesMismatchError(f"Blob {file.digest} does not have the bytes its digest promises")


def _set_attributes(path: str, attributes: Sequence[int]) -> None:
    """Mode and times as they were; user and group, too, where the migrator may give files away (as root)."""
    mode, mtime_ns, user, group = attributes
    if os.geteuid() == 0:
        # Before the mode: a change of owner takes set-id bits away.
        os.chown(path, user, group)
    os.chmod(path, mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def _publish(building: str, target: str) -> bool:
    """Rename without replacing: an ordinary rename would take the place of an empty directory."""
    number = _rename_noreplace(building, target)
    if number == errno.EINVAL:
        # Not every file system knows the flag (NFS does not). Without it a directory that comes within this instant is
        # replaced if it is empty; anything else still stops the rename.
        if os.path.lexists(target):
            return False
        os.rename(building, target)
    elif number == errno.EEXIST:
        return False
    elif number:
        raise OSError(number, os.strerror(number), target)
    sync_file_system(os.path.dirname(target))
    return True


def _rename_noreplace(source: str, target: str) -> int:
    """renameat2(2) with RENAME_NOREPLACE; 0, or the number of the error."""
    names = os.fsencode(source), os.fsencode(target)
    failed = _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE)
    return ctypes.get_errno() if failed else 0
