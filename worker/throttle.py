"""Reading no faster than a limit: a budget of bytes that fills with time. Knows neither files nor networks."""

import threading
import time
from collections.abc import Callable

Pace = Callable[[int], None]
"""Called with the bytes just read, by any thread; returns when the next may be read."""


def unlimited(_size_bytes: int) -> None:
    """No limit."""


class Throttle:
    """Lets `bytes_per_second` pass on average, for all threads of the process together.

    Each call books its bytes and waits until their time has come. What was not used is not saved up beyond a
    second, so that a pause is not followed by a burst.
    """

    def __init__(self, bytes_per_second: int) -> None:
        self._seconds_per_byte = 1 / bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()
        self._never = threading.Event()

    def __call__(self, size_bytes: int) -> None:
        """Book `size_bytes` and wait for them."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - 1) + size_bytes * self._seconds_per_byte
            wait_s = self._free_at - now
        if wait_s > 0:
            self._never.wait(wait_s)


def pace(bytes_per_second: int | None) -> Pace:
    """A throttle, or none."""
    return Throttle(bytes_per_second) if bytes_per_second is not None else unlimited
