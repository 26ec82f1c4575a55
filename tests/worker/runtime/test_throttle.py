"""A limit is felt at once, when it comes and when it goes, and a wait for it can be ended."""

import threading
import time

import pytest

from worker.runtime.throttle import Throttle

SOON_S = 10.0


def deaf() -> None:
    """Nothing to hear."""


def waiting(throttle: Throttle, size_bytes: int, listened: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=throttle.wait, args=(size_bytes, listened.set), daemon=True)
    thread.start()
    assert listened.wait(SOON_S)
    return thread


@pytest.mark.parametrize("limit", [None, 1e12])
def test_a_limit_that_is_lifted_or_raised_ends_the_waits_for_what_was_booked(limit: float | None):
    throttle = Throttle(1.0)
    threads = [waiting(throttle, 1 << 20, threading.Event()) for _ in range(3)]

    throttle.limit(limit)

    for thread in threads:
        thread.join(SOON_S)
        assert not thread.is_alive()


def test_a_wait_ends_when_its_listener_raises():
    def told() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Throttle(1.0).wait(1 << 20, told)


def test_a_throttle_keeps_its_average_and_saves_up_no_more_than_a_second():
    throttle = Throttle(1000.0)
    throttle._at -= 60
    begin = time.monotonic()

    for _ in range(13):
        throttle.wait(100, deaf)

    assert 0.25 < time.monotonic() - begin < SOON_S
