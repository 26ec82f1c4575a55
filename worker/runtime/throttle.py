"""Reading no faster than a limit: a budget of bytes that fills with time. Knows no file and no network."""

import threading
import time
from collections.abc import Callable

Pace = Callable[[int], None]
"""Called with the bytes just read, by any thread; returns when more may be read. 0: only a check for
a stop.
"""

_STEP_S = 0.2
"""How long a wait goes on before `listen` is asked again whether it is still wanted."""


def unlimited(_size_bytes: int) -> None:
    """No limit."""


class Throttle:
    """Lets `bytes_per_second` pass on average, for all threads that share it; without a limit, everything.

    Each call books its bytes and waits until so many have been let pass. What was not used is not saved up
    beyond a second, so that a pause is not followed by a burst.
    """

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._booked = 0.0
        self._passed = 0.0
        self._at = time.monotonic()
        self._never = threading.Event()

    def limit(self, bytes_per_second: float | None) -> None:
        """From now on let so many pass; None takes the limit away. Booked bytes wait at the new rate."""
        with self._lock:
            self._let_pass()
            self._rate = bytes_per_second

    def wait(self, size_bytes: int, listen: Callable[[], None]) -> None:
        """Book `size_bytes` and wait for them. `listen` is called at each step; it may raise to end it."""
        booked = self._book(size_bytes)
        while (left_s := self._left_s(booked)) > 0:
            listen()
            self._never.wait(min(left_s, _STEP_S))

    def _book(self, size_bytes: int) -> float:
        if self._rate is None:
            return 0.0
        with self._lock:
            self._let_pass()
            self._booked += size_bytes
            return self._booked

    def _left_s(self, booked: float) -> float:
        """Seconds until all that was booked up to there has passed, as the limit is now."""
        if self._rate is None:
            return 0.0
        with self._lock:
            self._let_pass()
            # Lifted since it was asked for first, all has passed: then the rate does not matter.
            return (booked - self._passed) / (self._rate or 1.0)

    def _let_pass(self) -> None:
        """Count what has passed since this was called last. The caller has the lock."""
        now = time.monotonic()
        if self._rate is None:
            self._passed = self._booked
        else:
            self._passed = min(self._passed + (now - self._at) * self._rate, self._booked + self._rate)
        self._at = now
