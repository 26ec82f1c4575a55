"""Work on many files by the threads of a process, each with a buffer of its own. Knows no tree."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from worker.store.digest import BIG_BYTES, BIG_CHUNK_BYTES, CHUNK_BYTES, new_buffer

T = TypeVar("T")

Advance = Callable[[int, int], None]
"""Called with files and bytes done since the last call; may raise to stop the work at a file boundary."""

_MOST_THREADS = 64
"""More a worker process never has (HASH_THREADS)."""

_FEW = 8
"""So many files, if they are small, are not worth other threads."""

_local = threading.local()


def buffer_for(size_bytes: int) -> memoryview:
    """This thread's own buffer for files of this size, made once."""
    name, length = ("big", BIG_CHUNK_BYTES) if size_bytes >= BIG_BYTES else ("small", CHUNK_BYTES)
    if not hasattr(_local, name):
        setattr(_local, name, new_buffer(length))
    buffer: memoryview = getattr(_local, name)
    return buffer


def for_each(
    threads: ThreadPoolExecutor, call: Callable[[T], None], items: Sequence[T], size_bytes: int
) -> None:
    """Call with each item; the first error keeps back what has not begun and waits for what has.

    Each thread takes the next item when it is free: a task an item would cost more than hashing a small file,
    and memory for all of them at once. `size_bytes` is what there is to read in all.
    """
    if len(items) <= _FEW and size_bytes <= CHUNK_BYTES:
        # Done before another thread has begun.
        for item in items:
            call(item)
        return
    rest = iter(items)
    failed = threading.Event()

    def work() -> None:
        # To take the next item is one step of the interpreter, which no other thread can come between.
        for item in rest:
            if failed.is_set():
                return
            try:
                call(item)
            except BaseException:
                failed.set()
                raise

    tasks = [threads.submit(work) for _ in range(min(len(items), _MOST_THREADS))]
    try:
        wait(tasks)
    finally:
        # Whatever ends the waiting ends the work, too: no thread is left working when this returns.
        failed.set()
        wait(tasks)
    for task in tasks:
        task.result()
