"""Removing directories that attempts left, by descriptors: a link that comes into the way is removed, never
followed.
"""

import os
import stat
import uuid
from collections.abc import Container
from contextlib import suppress
from itertools import islice

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 10_000
"""So many names of a directory are kept at a time."""

_BUSY = ".nfs"
"""How NFS names a file that was removed while a program had it open: it goes by itself when that program
closes it.
"""

BUILDING = ".restoring-"
"""How a legacy directory that is being rebuilt is called beside its place, and stays so when its worker
dies.
"""

REMOVED = "removed-"
"""How a thing is called that was taken away from its maker and is being removed: any worker that finds one
removes it.
"""


def take_away(folder: str, name: str, prefix: str = "") -> str:
    """Give something another name in its directory before it is removed; that name.

    Its maker may only be asleep: what wakes up finds its own name gone, and cannot publish what is half
    removed.
    """
    new = f"{prefix}{REMOVED}{uuid.uuid4().hex}"
    os.rename(f"{folder}/{name}", f"{folder}/{new}")
    return new


def remove_tree(path: str) -> None:
    """Remove a directory and everything in it; read-only directories are opened first. A file or a link is
    just removed.

    Never more than three descriptors, however deep the tree is: what lies deeper is moved up before it is
    emptied. What a program has open on NFS stays until it is closed, and the directory with it.
    """
    above, name = os.path.split(path.rstrip("/"))
    parent = os.open(above or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _remove(parent, name)
    finally:
        os.close(parent)


def _remove(parent: int, name: str) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    top = _open(parent, name)
    try:
        stuck: set[str] = set()
        # What is moved up while the rest is removed is there at the next look.
        while found := _entries(top, but=stuck):
            stuck |= {entry for entry, is_directory in found if _stays(top, entry, is_directory=is_directory)}
    finally:
        os.close(top)
    if not stuck:
        os.rmdir(name, dir_fd=parent)


def _entries(folder: int, *, but: Container[str]) -> list[tuple[str, bool]]:
    """Names, and which of them are directories themselves: some thousand at a time, there may be a
    million.
    """
    with os.scandir(folder) as entries:
        left = (
            (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name not in but
        )
        return list(islice(left, _AT_ONCE))


def _stays(top: int, name: str, *, is_directory: bool) -> bool:
    """Remove one entry of the top directory, with what is in it moved up first; does something of it have to
    stay?
    """
    if not is_directory:
        return _unlink(top, name)
    folder = _open(top, name)
    stuck: set[str] = set()
    try:
        while found := _entries(folder, but=stuck):
            for inner, is_inner_directory in found:
                if is_inner_directory:
                    # A directory that its owner may not write to cannot be moved to another one.
                    os.close(_open(folder, inner))
                    os.rename(inner, f"{REMOVED}{uuid.uuid4().hex}", src_dir_fd=folder, dst_dir_fd=top)
                elif _unlink(folder, inner):
                    stuck.add(inner)
    finally:
        os.close(folder)
    if not stuck:
        os.rmdir(name, dir_fd=top)
    return bool(stuck)


def _unlink(folder: int, name: str) -> bool:
    """Remove a file; does it have to stay, because a program has it open on NFS?"""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        if not name.startswith(_BUSY):
            raise
        return True
    return False


def _open(parent: int, name: str) -> int:
    """A directory, writable for its owner from now on; raises `NotADirectoryError` for a link, whatever it
    leads to.
    """
    try:
        folder = os.open(name, _FLAGS, dir_fd=parent)
    except PermissionError:
        # One that its owner may not even list: by what it is, not by its name.
        itself = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{itself}", 0o700)
        finally:
            os.close(itself)
        return os.open(name, _FLAGS, dir_fd=parent)
    try:
        os.fchmod(folder, 0o700)
    except OSError:
        with suppress(OSError):
            os.close(folder)
        raise
    return folder
