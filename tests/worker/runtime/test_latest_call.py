"""Calls are made in order, of those that wait only the newest, and their caller never waits."""

import threading

from tests.support.waiting import PATIENCE_S
from worker.runtime.latest_call import LatestCall


def test_of_the_calls_submitted_while_one_hangs_only_the_last_is_made():
    latest = LatestCall()
    made: list[str] = []
    hangs, goes_on = threading.Event(), threading.Event()
    last = threading.Event()

    def first() -> None:
        hangs.set()
        goes_on.wait(PATIENCE_S)
        made.append("first")

    latest.submit(first)
    assert hangs.wait(PATIENCE_S)
    for word in ("second", "third"):
        latest.submit(lambda word=word: made.append(word))
    latest.submit(lambda: (made.append("last"), last.set()))
    goes_on.set()

    assert last.wait(PATIENCE_S)
    assert made == ["first", "last"]


def test_a_call_that_fails_does_not_end_the_thread():
    latest = LatestCall()
    failed, made = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise ConnectionError("no listener")

    latest.submit(fail)
    assert failed.wait(PATIENCE_S)
    latest.submit(made.set)

    assert made.wait(PATIENCE_S)
