"""Keeps a process from forking while one of its threads is inside a block. Knows nothing of the work.

A child gets every lock as it was, and of the threads only the one that forked: what another thread held at
that moment (the lock of a module that is being imported, of a stream that is written to) stays locked in the
child for ever.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LIMIT_S = 5.0
"""How long a fork waits at most: a thread that waits for a silent server must not hold up the worker."""

_at_work = threading.Lock()
_acquired = threading.local()


@contextmanager
def at_work() -> Iterator[None]:
    """Inside this block no other thread forks. One block at a time; work in it is short."""
    with _at_work:
        yield


def _before() -> None:
    _acquired.now = _at_work.acquire(timeout=_LIMIT_S)


def _after() -> None:
    if _acquired.now:
        _at_work.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
