"""`kill -9` at every statement of an adoption and of its undo: the dataset is what it was before or what it
is to become, its sessions read the same at any moment, and the next attempt completes it.
"""

from collections.abc import Iterator

import pytest

from tests.support.ledger_rows import recorded_outcomes
from tests.support.points import SOME_OR_ALL, Lives, Walk, lives
from tests.support.registered import Registered, register
from tests.support.runs import WORK, gc, let_lease_run_out, open_run, run, verify_datasets
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, Status, Subject, Verb


@pytest.fixture(scope="module")
def dying(module_site: Site) -> Iterator[Lives]:
    """Bring up workers that die when told to."""
    with lives(module_site) as started:
        yield started


def job(site: Site, one: Registered, *, undo: bool) -> JobRef:
    options = {"undo": True} if undo else {}
    (ref,) = open_run(site.engine, Verb.ADOPT, only=[one.dataset_id], subject=Subject.DATASET, **options)
    return ref


def deliver_again(tools: Tools, ref: JobRef) -> Outcome:
    let_lease_run_out(tools.engine, ref)
    WORK[Verb.ADOPT, Subject.DATASET](tools, ref, "the next worker")
    with tools.engine.connect() as conn:
        return recorded_outcomes(conn, ref.run_id)[ref]


def begin(tools: Tools, site: Site, number: int, *, undo: bool) -> Registered:
    one = register(site, f"walk {number}", number, rows=12)
    if undo:
        (adopted,) = run(tools, Verb.ADOPT, only=[one.dataset_id], subject=Subject.DATASET).values()
        assert adopted.status is Status.ADOPTED
    return one


def check_rows(one: Registered) -> None:
    """Those before or those after, whatever the directories are."""
    is_before = one.rows_now() == one.rows
    assert is_before or one.state() in {"adopted", "undoing"}


@pytest.mark.slow
@pytest.mark.parametrize("walk", SOME_OR_ALL)
@pytest.mark.parametrize("name", ["adopt", "undo"])
def test_an_adoption_may_be_killed_at_every_statement(
    site: Site, tools: Tools, dying: Lives, name: str, walk: Walk
):
    undo = name == "undo"
    points, died = walk("migration_adoptions set", "update raw_datasets"), 0
    for number, point in enumerate(points, start=1):
        one = begin(tools, site, number, undo=undo)
        ref = job(site, one, undo=undo)

        end = dying.until_death(Verb.ADOPT, ref, at=point)

        points.learn(end)
        died += end.stopped
        one.check_read()
        check_rows(one)
        outcome = deliver_again(tools, ref)
        assert (outcome.status, outcome.error) == (Status.UNDONE if undo else Status.ADOPTED, None), (
            end.points[-1]
        )
        (one.check_untouched if undo else one.check_adopted)()

    assert died >= (21 if points.are_all else 12), "it was killed at hardly any statement"
    if not undo:
        assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


@pytest.mark.slow
@pytest.mark.parametrize("walk", SOME_OR_ALL)
@pytest.mark.parametrize("name", ["adopt", "undo"])
def test_what_a_dead_adoption_left_a_gc_settles(
    site: Site, tools: Tools, dying: Lives, name: str, walk: Walk
):
    undo = name == "undo"
    points, seen = walk("migration_adoptions set", "update raw_datasets"), set[str | None]()
    for number, point in enumerate(points, start=1):
        one = begin(tools, site, number, undo=undo)
        ref = job(site, one, undo=undo)
        end = dying.until_death(Verb.ADOPT, ref, at=point)
        points.learn(end)
        # Of each, or the next gc waits for a claim of a dead worker until it gives up.
        let_lease_run_out(site.engine, ref)
        state = one.state()
        if state in seen:
            continue
        seen.add(state)

        gc(tools, grace_hours=24)

        (one.check_adopted if one.state() == "adopted" else one.check_untouched)()

    assert seen >= ({"adopted", "undoing", "clearing"} if undo else {None, "adopting"})
