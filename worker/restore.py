"""Rebuilding a legacy directory that is gone, from the store: bytes proved by digest, modes and times as they were."""

import ctypes
import errno
import json
import os
import zlib
from collections.abc import Callable

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
) -> bool:
    """Make the directory again as it was; False, with nothing changed, when something is at its path already.

    Everything is built under a temporary name beside it and published by one rename, which never replaces anything. Links of the
    former tree come back as what they pointed to. Raises `StoredBytesMismatchError` for stored bytes that are not
    those of their digest, `RollbackRefusedError` when the place cannot be written.
    """
    target = os.path.normpath(legacy_path)
    parent = os.path.dirname(target)
    check_place(legacy_path, os.path.join(os.path.realpath(parent), os.path.basename(target)), roots)
    building = os.path.join(parent, f".{os.path.basename(target)[:200]}.restoring-{attempt}")
    try:
        os.makedirs(parent, exist_ok=True)
        os.mkdir(building, 0o700)
        try:
            _fill(store, manifest, json.loads(zlib.decompress(attributes)), building, advance)
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


def _fill(
    store: Store,
    manifest: Manifest,
    attributes: dict[str, list[list[int]]],
    building: str,
    advance: Callable[[int, int], None],
) -> None:
    """Directories first, then files, then, deepest first, what would have hindered: modes and times of directories."""
    kept = list(zip(manifest.entries, attributes["entries"], strict=True))
    for entry, _ in kept:
        if isinstance(entry, Directory):
            os.mkdir(f"{building}/{entry.path}", 0o700)
    for entry, (mode, mtime_ns) in kept:
        if isinstance(entry, File):
            _write_file(store, entry, f"{building}/{entry.path}", mode, mtime_ns)
            advance(1, entry.size_bytes)
    for entry, (mode, mtime_ns) in reversed(kept):
        if isinstance(entry, Directory):
            _set_attributes(f"{building}/{entry.path}", mode, mtime_ns)
    root_mode, root_mtime_ns = attributes["root"]
    _set_attributes(building, int(root_mode), int(root_mtime_ns))  # type: ignore[call-overload]


def _write_file(store: Store, file: File, target: str, mode: int, mtime_ns: int) -> None:
    """Copy one blob, proving it on the way: a copy, never a link, because the application rewrites legacy files."""
    blob = store.blob_path(file.digest)
    hasher = new_hasher(store.algorithm)
    with open(target, "xb") as copy:
        try:
            for chunk in read_chunks(blob, Signature.of(os.lstat(blob)), new_buffer()):
                hasher.update(chunk)
                copy.write(chunk)
        except (EntryUnreadableError, SourceChangedError, FileNotFoundError) as error:
            raise StoredBytesMismatchError(f"Blob {file.digest} cannot be read: {error}") from error
    if hasher.hexdigest() != file.digest:
        raise StoredBytesMismatchError(f"Blob {file.digest} does not have the bytes its digest promises")
    _set_attributes(target, mode, mtime_ns)


def _set_attributes(path: str, mode: int, mtime_ns: int) -> None:
    os.chmod(path, mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def _publish(building: str, target: str) -> bool:
    """Rename without replacing: an ordinary rename would take the place of an empty directory."""
    if (
        _libc.renameat2(_AT_FDCWD, os.fsencode(building), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        != 0
    ):
        number = ctypes.get_errno()
        if number == errno.EEXIST:
            return False
        raise OSError(number, os.strerror(number), target)
    sync_file_system(os.path.dirname(target))
    return True
