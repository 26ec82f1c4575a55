"""Reading no faster than a limit: a budget of bytes that fills with time. Knows neither files nor networks."""

import threading
import time
from collections.abc import Callable

Pace = Callable[[int], None]
"""Called with the bytes just read, by any thread; returns when the next may be read."""


def unlimited(_size_bytes: int) -> None:
    """No limit."""


class Throttle:
    """Lets `bytes_per_second` pass on average, for all threads that share it; without a limit, everything.

    Each call books its bytes and waits until their time has come. What was not used is not saved up beyond a
    second, so that a pause is not followed by a burst.
    """

    def __init__(self, bytes_per_second: float | None) -> None:
        self._seconds_per_byte = 0.0
        self._lock = threading.Lock()
        self._free_at = time.monotonic()
        self._never = threading.Event()
        self.limit(bytes_per_second)

    def limit(self, bytes_per_second: float | None) -> None:
        """From now on let so many pass; None takes the limit away. What is booked already is waited for."""
        self._seconds_per_byte = 1 / bytes_per_second if bytes_per_second is not None else 0.0

    def __call__(self, size_bytes: int) -> None:
        """Book `size_bytes` and wait for them."""
        wait_s = self.book(size_bytes)
        if wait_s > 0:
            self._never.wait(wait_s)

    def book(self, size_bytes: int) -> float:
        """Book `size_bytes`; how many seconds to wait before the next may be read."""
        if not self._seconds_per_byte:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - 1) + size_bytes * self._seconds_per_byte
            return self._free_at - now


def pace(bytes_per_second: int | None) -> Pace:
    """A throttle, or none."""
    return Throttle(bytes_per_second) if bytes_per_second is not None else unlimited
