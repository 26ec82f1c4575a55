"""A worker's children are forked while no other thread of it is at work: they would get its locks, and nobody
to release them.
"""

import os
import threading

import pytest
from celery.worker import WorkController
from celery.worker.components import Pool

from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker import app, bootsteps
from worker.runtime import fork_guard


def fork() -> int:
    """Fork a child that takes and leaves the guard itself, and give its status."""
    child = os.fork()
    if not child:
        with fork_guard.at_work():
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_waits_for_a_thread_at_work_and_the_child_can_work_too():
    working, go_on, forked = threading.Event(), threading.Event(), threading.Event()
    codes: list[int] = []

    def work() -> None:
        with fork_guard.at_work():
            working.set()
            go_on.wait(PATIENCE_S)

    def fork_beside() -> None:
        codes.append(fork())
        forked.set()

    threading.Thread(target=work, daemon=True).start()
    assert working.wait(PATIENCE_S)
    threading.Thread(target=fork_beside, daemon=True).start()

    assert not forked.wait(0.3), "it waits"
    go_on.set()
    assert forked.wait(PATIENCE_S)
    assert codes == [7]
    with fork_guard.at_work():
        pass


def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fork_guard, "_LIMIT_S", 0.05)
    end = threading.Event()
    working = threading.Event()

    def work() -> None:
        with fork_guard.at_work():
            working.set()
            end.wait(PATIENCE_S)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert working.wait(PATIENCE_S)
    child = os.fork()
    if not child:
        os._exit(7)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    end.set()
    thread.join(PATIENCE_S)


def test_the_reaper_starts_when_the_first_children_are_there(site: Site, monkeypatch: pytest.MonkeyPatch):
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    app._worker_app.cache_clear()
    try:
        steps = [type(step) for step in WorkController(app=app.app, concurrency=1).blueprint.order]
    finally:
        app._worker_app.cache_clear()

    assert steps.index(Pool) < steps.index(bootsteps.Reaping)
