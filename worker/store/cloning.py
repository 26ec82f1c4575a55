"""New files that share the blocks of others, where the file system can (XFS, Btrfs, bcachefs, NFS 4.2):
FICLONE, ioctl_ficlone(2). Knows no store.
"""

import errno
import fcntl
import os

from worker.store.digest import Signature

_FICLONE = 0x40049409

CLONE_BYTES = 4096
"""A smaller file takes one block at the most, or lies in the file system's own records: it is copied."""

_NOT_BETWEEN_THESE = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS}
"""What two file systems answer that share no blocks, whichever file is asked for."""


class Cloner:
    """Clones files into one file system, and remembers which devices it cannot clone from."""

    def __init__(self) -> None:
        self._refusing: set[int] = set()

    def may_clone(self, signature: Signature) -> bool:
        """Is this file worth asking for, and its device not known to refuse?"""
        return signature.size_bytes >= CLONE_BYTES and signature.device not in self._refusing

    def clone(self, source: int, target: int) -> bool:
        """Let an open new file have the bytes of another open one by sharing its blocks; False, with the new
        file empty, where that cannot be done.

        Not every file can that is where others can: one that is being swapped to, or one that Btrfs writes in
        place. The kernel flushes the source first: what is shared is what its readers saw at one moment.
        """
        try:
            share_blocks(source, target)
        except OSError as error:
            if error.errno in _NOT_BETWEEN_THESE:
                self._refusing.add(os.fstat(source).st_dev)
            # A clone that was cut off may have some of the bytes.
            os.ftruncate(target, 0)
            return False
        return True


def share_blocks(source: int, target: int) -> None:
    """Make an open file a clone of another one. Raises `OSError` as ioctl_ficlone(2) says."""
    fcntl.ioctl(target, _FICLONE, source)
