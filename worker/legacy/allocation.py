"""Room on disk, as `du` counts it: allocated blocks, and a file with several names once."""

import os
import stat

_BLOCK_BYTES = 512


class Allocation:
    """A sum over entries. Only files with several names are remembered."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, status: os.stat_result) -> None:
        """Count what `lstat` says of one entry."""
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            identity = status.st_dev, status.st_ino
            if identity in self._linked:
                return
            self._linked.add(identity)
        self.size_bytes += status.st_blocks * _BLOCK_BYTES
