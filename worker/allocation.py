"""Room on disk, as `du` counts it: allocated blocks, and a file with several names once."""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_BLOCK_BYTES = 512


class Allocation:
    """A sum over entries. Only files with several names are remembered."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._linked: defaultdict[int, set[int]] = defaultdict(set)

    def add(self, status: os.stat_result) -> None:
        """Count what `lstat` says of one entry."""
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            # By device: a number alone takes half the memory of a pair, and a store has millions.
            of_device = self._linked[status.st_dev]
            if status.st_ino in of_device:
                return
            of_device.add(status.st_ino)
        self.size_bytes += status.st_blocks * _BLOCK_BYTES


def allocated_below(roots: Iterable[Path]) -> int:
    """What these directories take on disk with all that is in them; no link is followed.

    What vanishes meanwhile does not count, nor does a root that is not there. Raises `OSError` for a
    directory that cannot be listed.
    """
    allocation = Allocation()
    pending = [os.fspath(root) for root in roots]
    while pending:
        with suppress(FileNotFoundError):
            directory = pending.pop()
            allocation.add(os.lstat(directory))
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        with suppress(FileNotFoundError):
                            allocation.add(entry.stat(follow_symlinks=False))
    return allocation.size_bytes
