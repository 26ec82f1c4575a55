"""Progress is told in order, the newest word wins, and nobody waits for a listener that does not answer."""

import threading

from tests.support.waiting import PATIENCE_S
from worker.runtime.latest_call import LatestCall


def test_of_the_words_that_come_while_the_listener_is_deaf_only_the_last_is_told():
    latest = LatestCall()
    told: list[str] = []
    is_deaf, hears = threading.Event(), threading.Event()
    last = threading.Event()

    def first() -> None:
        is_deaf.set()
        hears.wait(PATIENCE_S)
        told.append("first")

    latest.submit(first)
    assert is_deaf.wait(PATIENCE_S)
    for word in ("second", "third"):
        latest.submit(lambda word=word: told.append(word))
    latest.submit(lambda: (told.append("last"), last.set()))
    hears.set()

    assert last.wait(PATIENCE_S)
    assert told == ["first", "last"]


def test_a_word_that_cannot_be_told_does_not_end_the_telling():
    latest = LatestCall()
    failed, told = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise ConnectionError("nobody listens")

    latest.submit(fail)
    assert failed.wait(PATIENCE_S)
    latest.submit(told.set)

    assert told.wait(PATIENCE_S)
