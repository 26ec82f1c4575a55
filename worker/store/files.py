"""Files and directories of a store, one at a time: written, named, linked or copied. Knows no layout and no
digest.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from worker.errors import StoreBrokenError, StoreFullError, StoreSyncError, StoreUnusableError
from worker.store.cloning import share_blocks
from worker.store.digest import BIG_BYTES, BIG_CHUNK_BYTES, printable
from worker.store.syscalls import (
    SYNCFS_TELLS_ERRORS,
    begin_write_back,
    exchange,
    refresh,
    reserve,
)

NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""What file systems without hard links answer."""

FULL = {errno.ENOSPC, errno.EDQUOT}
BROKEN = {
    *(errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.EUCLEAN),
    *(errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
"""What a disk or a server of files says of itself, and not of the one thing that was asked for."""

_RWF_DONTCACHE = 0x80
_WRITE_BACK_BYTES = 8 << 20

Placement = Literal["hard", "reflink", "copy"]


class FlushError(OSError):
    """What fsync(2), syncfs(2) or close(2) said: it may concern bytes that any program wrote long before."""


@contextmanager
def flushing(path: str | Path) -> Iterator[None]:
    """Mark operating-system errors as those of a flush, and name the file."""
    try:
        yield
    except OSError as error:
        raise FlushError(error.errno, error.strerror, os.fspath(path)) from error


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn operating-system errors on the store into errors that name it."""
    try:
        yield
    except OSError as error:
        where = printable(os.fspath(error.filename or path))
        if error.errno in FULL:
            raise StoreFullError(f"No space left in the store: {where}") from error
        if error.errno == errno.EIO and isinstance(error, FlushError):
            raise StoreSyncError(f"Cannot write to the store: {where}: {error.strerror}") from error
        if error.errno in BROKEN:
            raise StoreBrokenError(f"Cannot write to the store: {where}: {error.strerror}") from error
        if error.errno == errno.EXDEV:
            # One file system that is mounted twice has one device number; only to link or to move tells.
            raise StoreUnusableError(
                f"{where} can be neither moved nor linked: dataset_store and raw_datasets are on different mounts, and need one"
            ) from error
        raise StoreUnusableError(f"Cannot write to the store: {where}: {error.strerror}") from error


def check_answers(error: BaseException) -> None:
    """Raise `StoreBrokenError` if what lies behind an error with a stored file is a disk or server that does
    not answer.

    EIO is not among it: a sector that cannot be read is one file's.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in BROKEN - {errno.EIO}:
        raise StoreBrokenError(f"Cannot read the store: {error}") from error


# Looking ----------------------------------------------------------------------------------------------------


def fresh_status(path: str) -> os.stat_result | None:
    """What is at a path, asked anew from its directory on: to be asked before "gone" or "bad" is believed."""
    refresh(os.path.dirname(path), path)
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_directory(path: str) -> bool:
    """Is it a directory itself, and not a link to one?"""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


# Making and naming ------------------------------------------------------------------------------------------


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

    Where the file system refuses links, by a rename: of two at once the later one then replaces an equal
    file.
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
    """Link a file, if that can be done; a directory cannot be linked, nor a file that has all the links it
    can have.
    """
    try:
        os.link(path, name)
    except OSError:
        return False
    return True


def put_in_place(good: str, final: str, aside: str) -> None:
    """Let a good thing take a name in one moment, whatever has it; what had it is at `aside` then.

    A file has both names for an instant, or both change names; where the file system can do neither, the name
    is absent for a moment. Raises `FileNotFoundError` when nothing has the name.
    """
    if not is_directory(good) and has_one_more_name(final, aside):
        os.rename(good, final)
    elif exchange(good, final):
        os.rename(good, aside)
    else:
        os.rename(final, aside)
        os.rename(good, final)


def place(blob: str, target: str, *, durably: bool = False) -> Placement:
    """Give a blob one more name; where the file system refuses links, share its blocks, or copy them, on
    request `durably`.
    """
    try:
        os.link(blob, target)
    except OSError as error:
        if error.errno not in NO_LINKS | {errno.EMLINK}:
            raise
    else:
        return "hard"
    with open(blob, "rb") as source, new_file(target, durably=durably) as copy:
        placement: Placement = "reflink"
        try:
            share_blocks(source.fileno(), copy)
        except OSError:
            placement = "copy"
            with open(copy, "wb", closefd=False) as writing_to:
                shutil.copyfileobj(source, writing_to, 1 << 20)
        os.fchmod(copy, 0o444)
    return placement


@contextmanager
def new_file(path: str, *, folder: int | None = None, durably: bool = False) -> Iterator[int]:
    """A descriptor that writes a new file, open for the block; `folder` is what the path is relative to.

    Closing tells of bytes that could not be written, too (NFS and quotas, close(2)), so it is a part of
    writing. Writable by its mode until the end: an NFS client cannot take up a file again, after its server
    was restarted, that is read-only. At the end of the block what was written is on the disk, if that is
    asked for (`durably`) or the kernel's syncfs(2) reports no errors.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        yield descriptor
        if durably or not SYNCFS_TELLS_ERRORS:
            with flushing(path):
                os.fsync(descriptor)
    except BaseException:
        # What ended the writing is what matters; these bytes are not used.
        with suppress(OSError):
            os.close(descriptor)
        raise
    with flushing(path):
        os.close(descriptor)


# Writing ----------------------------------------------------------------------------------------------------


class Writer:
    """Writes a new file from its beginning to its end, so that little is left to flush when it is synced.

    Where the kernel can (RWF_DONTCACHE, Linux 6.14), written pages go to disk at once and are dropped: a blob
    is not read soon, and filling memory that was never used costs more than writing. Elsewhere the disk is
    told to begin on each window while the next is written (sync_file_range(2)); that is only a hint,
    durability is `Store.sync`'s.

    With `holes`, of a source that has some, parts of zeros are not written: they take no room here either.
    """

    def __init__(self, descriptor: int, path: str, size_bytes: int, *, holes: bool = False) -> None:
        self._descriptor = descriptor
        self._path = path
        self._offset = 0
        self._flags = _RWF_DONTCACHE if size_bytes >= BIG_BYTES else 0
        self._holes = holes
        if holes:
            with writing(path):
                os.ftruncate(descriptor, size_bytes)
        elif size_bytes >= BIG_BYTES:
            with writing(path):
                # Fewer extents, and a full disk is noticed before hours of copying.
                reserve(descriptor, size_bytes)

    def __call__(self, chunk: memoryview) -> None:
        """Write the next part."""
        if self._holes and _is_zero(chunk):
            self._offset += len(chunk)
            return
        with writing(self._path):
            while chunk:
                written = self._write(chunk)
                self._offset += written
                chunk = chunk[written:]
        if not self._flags and self._offset % _WRITE_BACK_BYTES < BIG_CHUNK_BYTES:
            start = max(0, self._offset - 2 * _WRITE_BACK_BYTES)
            begin_write_back(self._descriptor, start, self._offset - start)

    def _write(self, chunk: memoryview) -> int:
        try:
            return os.pwritev(self._descriptor, [chunk], self._offset, self._flags)
        except OSError as error:
            if not self._flags or error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
            self._flags = 0
            return self._write(chunk)


_ZEROS = bytes(BIG_CHUNK_BYTES)


def _is_zero(chunk: memoryview) -> bool:
    return not chunk[0] and not chunk[-1] and chunk.tobytes() == _ZEROS[: len(chunk)]


def allocated(path: str, size_bytes: int) -> int:
    """How many bytes of a file take room on its disk: without its holes, which stay holes in the store."""
    try:
        return min(size_bytes, os.lstat(path).st_blocks * 512)
    except OSError:
        return size_bytes
