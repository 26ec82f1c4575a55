"""Calls of Linux that Python has no function for: flushing, asking anew, swapping names, reserving. Knows no
store.
"""

import ctypes
import errno
import os
import re
import struct

_libc = ctypes.CDLL(None, use_errno=True)

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF
_STATX_BYTES = 256
_STATFS_BYTES = 256
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_NFS = 0x6969
_LOCAL = {
    *(0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x858458F6),  # ext, XFS, Btrfs, tmpfs, ramfs
    *(0x2FC12FC1, 0xF2F52010, 0x794C7630, 0xCA451A4E, 0x73717368),  # ZFS, F2FS, overlay, bcachefs, squashfs
}
"""What statfs(2) calls file systems that no other machine writes to."""

_remote: dict[int, bool] = {}
_GIVEN_UP = {errno.EIO, errno.EROFS, errno.EUCLEAN, errno.ESHUTDOWN}
_NO_RESERVE = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}

_ERRORS_SINCE = (5, 8)


def syncfs_tells_errors(release: str | None = None) -> bool:
    """Does this kernel's syncfs(2) report bytes that could not be written back? Since Linux 5.8; before, only
    fsync(2) does.
    """
    match = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    return match is None or (int(match[1]), int(match[2])) >= _ERRORS_SINCE


SYNCFS_TELLS_ERRORS = syncfs_tells_errors()
"""Asked once: a kernel does not change under a process."""


class OpenFolder:
    """A directory that stays open for as long as this lives.

    The kernel tells of bytes that it could not write back once to each descriptor that was open at that time
    (syncfs(2)). One that is opened later hears nothing if some other worker's sync was told before: it would
    take lost bytes for durable. So open it before anything is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self.descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def renew(self) -> None:
        """Take a fresh descriptor: the old one may be stale, and what it was told it is not told again."""
        fresh = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        old, self.descriptor = self.descriptor, fresh
        _close_quietly(old)

    def __del__(self) -> None:
        # Opening may have failed.
        if hasattr(self, "descriptor"):
            _close_quietly(self.descriptor)


def _close_quietly(descriptor: int) -> None:
    """Close a descriptor that nothing was written through: whatever close(2) says concerns other files, and
    sync tells it.
    """
    try:
        os.close(descriptor)
    except OSError:
        return


def sync_file_system(directory: str | int, *, may_be_read_only: bool = False) -> None:
    """Wait until everything written to the file system that holds a directory is on the disk (syncfs(2)).

    By a descriptor that was open before anything was written, an error in writing back is certain to be told.
    Raises for a file system that takes no more, too, though not for a read-only mount if that is to be
    expected.
    """
    if isinstance(directory, str):
        folder = OpenFolder(directory)
        sync_file_system(folder.descriptor, may_be_read_only=may_be_read_only)
        return
    if _libc.syncfs(directory) != 0:
        raise _error()
    _check_takes_more(directory, may_be_read_only=may_be_read_only)


def _check_takes_more(folder: int, *, may_be_read_only: bool) -> None:
    """Raise if the file system has given up. An ext4 whose journal could not be written says so to those who
    wait at that moment; each later one is told that all is flushed, while nothing reaches the disk any
    more.

    A file without a name shows it. Where none can be made for want of a right, of room or of support (NFS),
    that proves nothing.
    """
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder))
    except OSError as error:
        is_read_only = error.errno == errno.EROFS and os.fstatvfs(folder).f_flag & os.ST_RDONLY
        if error.errno in _GIVEN_UP and not (is_read_only and may_be_read_only):
            raise


def refresh(*paths: str) -> None:
    """Have a network file system ask its server what is at these paths, from the outermost in
    (AT_STATX_FORCE_SYNC, statx(2)).

    What its cache says of names and attributes may be a minute old: absent where something is, or the file
    before it was replaced. A directory that is asked anew has its entries looked up again.
    """
    for path in paths:
        _statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW)


def refresh_descriptor(descriptor: int) -> None:
    """The same for an open file: what fstat(2) says next is what the server says."""
    _statx(descriptor, b"", _AT_EMPTY_PATH)


def _statx(folder: int, path: bytes, flags: int) -> None:
    """What it finds, or fails with, is asked for by the next call; a C library without statx(2) asks
    nothing.
    """
    call = getattr(_libc, "statx", None)
    if call is not None:
        buffer = ctypes.create_string_buffer(_STATX_BYTES)
        call(folder, path, flags | _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer)


def is_remote(descriptor: int, device: int) -> bool:
    """May another machine change what is open here, on this device? Asked once a device; what is not known to
    be local is remote.
    """
    known = _remote.get(device)
    if known is None:
        buffer = ctypes.create_string_buffer(_STATFS_BYTES)
        is_known = _libc.fstatfs(descriptor, buffer) == 0
        known = _remote[device] = not is_known or _kind(buffer) not in _LOCAL
    return known


def _kind(buffer: "ctypes.Array[ctypes.c_char]") -> int:
    (kind,) = struct.unpack_from("l", buffer.raw)
    return int(kind) & 0xFFFFFFFF


def is_nfs(path: str) -> bool:
    """Is it on NFS? There a file that is replaced or removed while it is open leaves a name `.nfs…`
    behind.
    """
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        raise _error(path)
    return _kind(buffer) == _NFS


def rename_without_replacing(source: str, target: str, folder: int, to_folder: int | None = None) -> bool:
    """Rename within a directory, or into another one; False when something has the target's name already
    (renameat2(2)).

    Not every file system knows the flag (NFS does not): raises an `OSError` with EINVAL there.
    """
    names = os.fsencode(source), os.fsencode(target)
    into = folder if to_folder is None else to_folder
    if _libc.renameat2(folder, names[0], into, names[1], _RENAME_NOREPLACE) == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        return False
    raise _error(target)


def exchange(one: str, other: str) -> bool:
    """Let two things change names in one moment (RENAME_EXCHANGE); False where the file system cannot (NFS
    cannot).
    """
    names = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in _NO_EXCHANGE:
        return False
    raise _error(one)


def reserve(descriptor: int, size_bytes: int) -> None:
    """Ask for all blocks of a file at once, where the file system can (fallocate(2)).

    Not posix_fallocate(3): where the file system cannot, the C library writes a byte into every block
    instead.
    """
    while _libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)) != 0:
        number = ctypes.get_errno()
        if number in _NO_RESERVE:
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def begin_write_back(descriptor: int, start: int, size_bytes: int) -> None:
    """Let the disk begin on a part of a file (sync_file_range(2)): a hint, whose failure changes nothing."""
    _libc.sync_file_range(
        descriptor, ctypes.c_int64(start), ctypes.c_int64(size_bytes), _SYNC_FILE_RANGE_WRITE
    )


def _error(path: str | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), *([path] if path is not None else []))
