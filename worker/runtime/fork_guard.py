"""Keeps a process from forking while a thread of it is at work. Knows nothing of the work.

A child gets every lock as it was, and of the threads only the one that forked: whatever another thread held at that moment
(the lock of a module that is just being imported, of a stream that is written to) stays locked in the child for ever.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE_S = 5.0
"""How long a fork waits. A thread that waits for a server that is silent holds up the worker no longer."""

_at_work = threading.Lock()
_waited_for = threading.local()


@contextmanager
def at_work() -> Iterator[None]:
    """Inside this block no other thread forks. One block at a time; work in it is short."""
    with _at_work:
        yield


def _before() -> None:
    _waited_for.it = _at_work.acquire(timeout=_PATIENCE_S)


def _after() -> None:
    if _waited_for.it:
        _at_work.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
