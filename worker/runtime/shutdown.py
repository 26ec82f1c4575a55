"""One byte that a worker's parent shares with its children: does the worker stop? Knows nothing else.

A warm shutdown lets running tasks end, which a big project may do in hours. The children read the byte
instead: the parent's signals do not reach them, and a write to shared memory is all that a signal handler can
do safely.
"""

import mmap

_stops = mmap.mmap(-1, 1)
"""Made before the first fork, so that parent and children see the same page."""


def begin() -> None:
    """The worker stops: a child that has a job hands it back at its next file or chunk."""
    _stops[0] = 1


def has_begun() -> bool:
    """Has `begin` been called in this process, its parent, or a sibling?"""
    return _stops[0] == 1
