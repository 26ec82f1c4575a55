"""One byte that a worker's parent shares with its children: has the worker been told to stop? Knows nothing else.

A warm shutdown lets running tasks end, which a big project may do in hours. The children look here instead of being told:
the parent's signals do not reach them, and a write to shared memory is all that a signal handler can do safely.
"""

import mmap

_told = mmap.mmap(-1, 1)
"""Made before the first fork, so that all of them see the same page."""


def tell() -> None:
    """The worker stops: whoever has a job hands it back at the next opportunity."""
    _told[0] = 1


def told() -> bool:
    """Has `tell` been called in this process, its parent, or a sibling?"""
    return _told[0] == 1
