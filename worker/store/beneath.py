"""Opening a resolved path without following a symbolic link anywhere on the way. Knows no store, no tree and
no root.

A path that was resolved and found inside an allowed directory stays inside only while none of its directories
becomes a link. A comparison of texts cannot see that; the kernel can, at the moment of opening: `openat2`
(Linux 5.6) with RESOLVE_NO_SYMLINKS. Where a kernel or a sandbox does not have it, the path is opened one
directory after the other.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

PATH_MOST_BYTES = 4095
"""The longest path that one system call takes (PATH_MAX counts the NUL, too)."""

_OPENAT2 = 437
"""The same number on every architecture that CPython is built for on Linux."""

_AT_FDCWD = -100
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ON_THE_WAY = os.O_PATH | _DIRECTORY


class _How(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)


def open_resolved(path: str, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> int:
    """A descriptor of what is at `path`, a link nowhere on the way and not at its end; `flags` and `mode` as
    of `os.open`.

    The path may be longer than one system call takes. With `dir_fd` it is relative and cannot leave that
    directory. Raises `OSError`: ELOOP or ENOTDIR where a directory has become a link, otherwise what
    `os.open` raises; `ValueError` for a path with `..`, which is not resolved.
    """
    name = os.fsencode(path)
    if b".." in name and b".." in name.split(b"/"):
        raise ValueError(f"not a resolved path: {path!r}")
    if len(name) <= PATH_MOST_BYTES:
        return _open(name, flags, mode, dir_fd)
    here = dir_fd
    try:
        while len(name) > PATH_MOST_BYTES:
            cut = name.rfind(b"/", 1, PATH_MOST_BYTES + 1)
            if cut < 0:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
            below = _open(name[:cut], _ON_THE_WAY, 0, here)
            if here is not None and here != dir_fd:
                os.close(here)
            here, name = below, name[cut + 1 :]
        return _open(name, flags, mode, here)
    finally:
        if here is not None and here != dir_fd:
            os.close(here)


@contextmanager
def directory(path: str, *, dir_fd: int | None = None) -> Iterator[int]:
    """The directory at a resolved path, open for listing and for calls that take a `dir_fd`. Errors as
    `open_resolved`.
    """
    descriptor = open_resolved(path, os.O_RDONLY | _DIRECTORY, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def status_of(path: str) -> os.stat_result:
    """What `os.lstat` says of a resolved path, but reached without a link on the way. Errors as
    `open_resolved`.
    """
    descriptor = open_resolved(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _open(name: bytes, flags: int, mode: int, dir_fd: int | None) -> int:
    if not _has_openat2():
        return _open_step_by_step(name, flags, mode, dir_fd)
    return _openat2(name, flags, mode, dir_fd)


@cache
def _has_openat2() -> bool:
    """Has the kernel this call, and does no sandbox forbid it?"""
    try:
        os.close(_openat2(b"/", _ON_THE_WAY, 0, None))
    except OSError:
        return False
    return True


@cache
def _how(flags: int, mode: int, resolve: int) -> _How:
    return _How(flags | os.O_CLOEXEC, mode, resolve)


def _openat2(name: bytes, flags: int, mode: int, dir_fd: int | None) -> int:
    start, resolve = _AT_FDCWD, _RESOLVE_NO_SYMLINKS
    if dir_fd is not None:
        start, resolve = dir_fd, resolve | _RESOLVE_BENEATH
    how = _how(flags, mode if flags & os.O_CREAT else 0, resolve)
    while True:
        descriptor: int = _syscall(_OPENAT2, start, name, how, ctypes.sizeof(how))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), os.fsdecode(name))


def _open_step_by_step(name: bytes, flags: int, mode: int, dir_fd: int | None) -> int:
    """The same without openat2: each directory by its own name in the one above it."""
    if dir_fd is None:
        here = os.open(b"/" if name.startswith(b"/") else b".", _ON_THE_WAY)
    elif name.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(name))
    else:
        here = os.dup(dir_fd)
    try:
        *above, last = name.strip(b"/").split(b"/")
        for step in above:
            below = os.open(step, _ON_THE_WAY, dir_fd=here)
            os.close(here)
            here = below
        return os.open(last or b".", flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=here)
    finally:
        os.close(here)
