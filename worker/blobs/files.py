"""Files and directories of a store, one at a time: written, named, linked or copied. Knows no layout and no digest."""

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from worker.blobs.digest import BIG_BYTES, BIG_CHUNK_BYTES, printable
from worker.errors import StoreBrokenError, StoreFullError, StoreUnusableError

_FICLONE = 0x40049409
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""What file systems without hard links answer."""

_SYNC_FILE_RANGE_WRITE = 2
_RWF_DONTCACHE = 0x80
_WRITE_BACK_BYTES = 8 << 20

_libc = ctypes.CDLL(None, use_errno=True)

Placement = Literal["hard", "reflink", "copy"]


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn operating-system errors on the store into errors that name it."""
    try:
        yield
    except OSError as error:
        where = printable(os.fspath(error.filename or path))
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StoreFullError(f"No space left in the store: {where}") from error
        if error.errno in {errno.EIO, errno.EROFS}:
            raise StoreBrokenError(f"Cannot write to the store: {where}: {error.strerror}") from error
        if error.errno == errno.EXDEV:
            # One file system that is mounted twice has one device number; only to link or to move tells.
            raise StoreUnusableError(
                f"{where} can be neither moved nor linked: dataset_store and raw_datasets are on different mounts, and need one"
            ) from error
        raise StoreUnusableError(f"Cannot write to the store: {where}: {error.strerror}") from error


# Looking -------------------------------------------------------------------------------------------------------


def is_directory(path: str) -> bool:
    """Is it a directory itself, and not a link to one?"""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


# Making and naming ---------------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a directory that the application can enter, whatever the worker's umask is."""
    if os.path.isdir(path):
        return
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(0o755)


def give_name(staged: str, final: str) -> None:
    """Give a staged file its final name; raises `FileExistsError` when something has it.

    Where the file system refuses links, by a rename: of two at once the later one then replaces an equal file.
    """
    try:
        os.link(staged, final)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final) from error
        os.rename(staged, final)


def has_one_more_name(path: str, name: str) -> bool:
    """Link a file, if that can be done; a directory cannot be linked, nor a file that has all the links it can have."""
    try:
        os.link(path, name)
    except OSError:
        return False
    return True


def place(blob: str, target: str) -> Placement:
    """Give a blob one more name; where the file system refuses links, share its blocks, or copy them."""
    try:
        os.link(blob, target)
    except OSError as error:
        if error.errno not in NO_LINKS | {errno.EMLINK}:
            raise
    else:
        return "hard"
    with open(blob, "rb") as source, open(target, "xb") as copy:
        placement: Placement = "reflink"
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
        except OSError:
            placement = "copy"
            shutil.copyfileobj(source, copy, 1 << 20)
        os.fchmod(copy.fileno(), 0o444)
    return placement


def sync_file(path: str) -> None:
    """Wait until one file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Writing -------------------------------------------------------------------------------------------------------


class Writer:
    """Writes a new file from its beginning to its end, so that little is left to flush when it is synced.

    Where the kernel can (RWF_DONTCACHE, Linux 6.14), written pages go to disk at once and are dropped: nobody reads a
    blob soon, and filling memory that was never used costs more than writing. Elsewhere the disk is told to begin on
    each window while the next is written (sync_file_range(2)); that is only a hint, durability is `Store.sync`'s.
    """

    def __init__(self, descriptor: int, path: str, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._offset = 0
        self._flags = _RWF_DONTCACHE if size_bytes >= BIG_BYTES else 0
        if size_bytes >= BIG_BYTES:
            with writing(path):
                _reserve(descriptor, size_bytes)

    def __call__(self, chunk: memoryview) -> None:
        """Write the next part."""
        with writing(self._path):
            while chunk:
                written = self._write(chunk)
                self._offset += written
                chunk = chunk[written:]
        if not self._flags and self._offset % _WRITE_BACK_BYTES < BIG_CHUNK_BYTES:
            start = max(0, self._offset - 2 * _WRITE_BACK_BYTES)
            _libc.sync_file_range(
                self._descriptor,
                ctypes.c_int64(start),
                ctypes.c_int64(self._offset - start),
                _SYNC_FILE_RANGE_WRITE,
            )

    def _write(self, chunk: memoryview) -> int:
        try:
            return os.pwritev(self._descriptor, [chunk], self._offset, self._flags)
        except OSError as error:
            if not self._flags or error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
            self._flags = 0
            return self._write(chunk)


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Ask for all blocks at once: fewer extents, and a full disk is noticed before hours of copying."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
