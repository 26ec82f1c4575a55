"""`kill -9`, or the plug pulled, at every call of the store step: the project is one thing or the other, and
the next run ends it.

With the plug go the bytes that no sync had put on the disk; names stay. That is what a file system with a
journal may do, at its worst: a file of the right size that holds nothing.
"""

from collections.abc import Callable

import pytest

from tests.faults.child import Children
from tests.faults.lost_writes import lose_what_was_not_synced
from tests.faults.stories import STORIES, Story, first_of_each_kind, some_kinds
from tests.support.ledger_rows import recorded_outcomes
from tests.support.runs import WORK, let_lease_run_out, run_one
from tests.support.shim import Act, Fault
from tests.support.sites import Site
from tests.support.studies import mode
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, Verb


def cut_off(told: Story, point: int, *, plug: bool) -> str:
    """Let a worker die before one of its calls, look at what it left, and let the next one end it; the call's
    name.
    """
    ref, end = told.start(Fault(act=Act.KILL_BEFORE, at=point))
    assert end.died
    if plug:
        lose_what_was_not_synced(end.calls)

    told.check_between()

    told.check_end(go_on(told.tools, ref, in_another_run=point % 4 < 2))
    return end.calls[-1].name


def go_on(tools: Tools, ref: JobRef, *, in_another_run: bool) -> Outcome | None:
    """The dead worker's message is delivered again, or lost, and the project enqueued once more."""
    let_lease_run_out(tools.engine, ref)
    with tools.engine.connect() as conn:
        ended = recorded_outcomes(conn, ref.run_id).get(ref)
    if ended is not None:
        return ended
    if in_another_run:
        return run_one(tools, Verb.MIGRATE, ref.subject_id)
    return WORK[Verb.MIGRATE, ref.subject](tools, ref, "the next worker")


@pytest.mark.parametrize("story", STORIES)
def test_a_store_step_that_is_cut_off_is_ended_by_the_next_run(
    site: Site, tools: Tools, watched: Children, story: Callable[[Site, Tools, Children], Story]
):
    """At the first calls of some kinds, and with the plug pulled, which takes all that a kill takes and
    more.
    """
    told = story(site, tools, watched)
    calls = [call for call in told.calls() if told.is_told_here(call)]
    assert len(first_of_each_kind(calls)) >= 8

    died_at = [cut_off(told, point, plug=True) for point in some_kinds(calls)]

    assert len(died_at) >= 3
    assert "syncfs" in died_at


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("end", ["killed", "plug pulled"])
@pytest.mark.parametrize("story", STORIES)
def test_a_store_step_may_be_cut_off_at_every_call(
    site: Site, tools: Tools, watched: Children, story: Callable[[Site, Tools, Children], Story], end: str
):
    told = story(site, tools, watched)
    points = [call.number for call in told.calls()]
    assert points == list(range(1, len(points) + 1))

    for point in points:
        cut_off(told, point, plug=end == "plug pulled")


@pytest.mark.parametrize("end", [pytest.param("killed", marks=pytest.mark.long), "plug pulled"])
def test_a_new_store_may_be_cut_off_at_every_call(site: Site, watched: Children, end: str):
    """Whoever comes next makes what is missing, and the store has one description for ever."""
    first = watched.open_store(site.data_dir / "whole")
    points = [call.number for call in first.counted]
    assert len(points) >= 15
    for point in points:
        folder = site.data_dir / f"{end} {point}"

        died = watched.open_store(folder, Fault(act=Act.KILL_BEFORE, at=point))

        assert died.died
        if end == "plug pulled":
            lose_what_was_not_synced(died.calls)
        opened = watched.open_store(folder).answer["id"]
        assert opened is not None
        assert watched.open_store(folder).answer["id"] == opened
        for made in ("raw_datasets", *(f"dataset_store/{name}" for name in ("blobs", "staging"))):
            assert mode(folder / made) == 0o755, made
