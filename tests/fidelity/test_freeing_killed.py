"""`kill -9` at every statement of what frees space: nothing is half done, the next attempt completes it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.estate import Project, make_project, record_session, snapshot_tree
from tests.support.ledger_rows import recorded_outcomes
from tests.support.points import SOME_OR_ALL, Lives, Walk, lives
from tests.support.runs import WORK, gc, let_lease_run_out, open_run, run_one, verify_datasets
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import THE_STORE, JobRef, Outcome, Status, Subject, Verb
from worker.store.garbage import Garbage


@pytest.fixture(scope="module")
def dying(module_site: Site) -> Iterator[Lives]:
    """Bring up workers that die when told to."""
    with lives(module_site) as started:
        yield started


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What is killed: how a project comes to where it begins, and what the run is asked for."""

    verb: Verb
    done: Status
    options: dict[str, object]
    begin: Callable[[Tools, Project], dict[str, object]]


def _reclaimed(tools: Tools, project: Project) -> dict[str, object]:
    assert run_one(tools, Verb.RECLAIM, project.project_id).status is Status.RECLAIMED
    return {}


def _unreferenced(tools: Tools, project: Project) -> dict[str, object]:
    run_one(tools, Verb.ROLLBACK, project.project_id)
    return {}


def _collected(tools: Tools, project: Project) -> dict[str, object]:
    _unreferenced(tools, project)
    gc(tools)
    (entry,) = Garbage(tools.open_store(create=False)).entries()
    return {"restore_entry": entry.entry_id}


ACTS = {
    "reclaim": Act(verb=Verb.RECLAIM, done=Status.RECLAIMED, options={}, begin=lambda *_: {}),
    "undo": Act(verb=Verb.RECLAIM, done=Status.UNDONE, options={"undo": True}, begin=_reclaimed),
    "purge": Act(
        verb=Verb.RECLAIM,
        done=Status.PURGED,
        options={"purge": True, "grace_days": 0},
        begin=_reclaimed,
    ),
    "gc": Act(verb=Verb.GC, done=Status.COLLECTED, options={"grace_hours": 0}, begin=_unreferenced),
    "restore": Act(verb=Verb.GC, done=Status.RESTORED, options={}, begin=_collected),
}


@pytest.mark.slow
@pytest.mark.parametrize("walk", SOME_OR_ALL)
@pytest.mark.parametrize("name", ACTS)
def test_freeing_may_be_killed_at_every_statement(
    site: Site, tools: Tools, dying: Lives, name: str, walk: Walk
):
    act = ACTS[name]
    points = walk("migration_reclaims set", "into migration_reclaims", "delete from raw_datasets")
    died = 0
    for number, point in enumerate(points, start=1):
        with site.engine.begin() as conn:
            project = make_project(conn, site.legacy_root, f"study {number}")
            record_session(conn, project, "day", rows=12, seed=number)
        home = Path(str(project.path))
        files = snapshot_tree(home)
        run_one(tools, Verb.MIGRATE, project.project_id)
        options = act.options | act.begin(tools, project)
        ref = _open(site, act, project, options)

        end = dying.until_death(act.verb, ref, at=point)

        points.learn(end)
        died += end.stopped
        if name in {"reclaim", "undo"}:
            _is_at_one_place(site, home, files)
        outcome = _deliver_again(tools, act.verb, ref)
        assert (outcome.status, outcome.error) == (act.done, None), (end.points[-1], outcome.reason)
        _check_end(tools, name, project, home, files)

    assert died >= (11 if points.are_all else 8), "it was killed at hardly any statement"
    assert {one.status for one in verify_datasets(tools)} <= {Status.VERIFIED}


def _open(site: Site, act: Act, project: Project, options: dict[str, object]) -> JobRef:
    subject = Subject.STORE if act.verb is Verb.GC else Subject.PROJECT
    only = THE_STORE if subject is Subject.STORE else project.project_id
    (ref,) = open_run(site.engine, act.verb, only=[only], subject=subject, **options)
    return ref


def _deliver_again(tools: Tools, verb: Verb, ref: JobRef) -> Outcome:
    let_lease_run_out(tools.engine, ref)
    WORK[verb, ref.subject](tools, ref, "the next worker")
    with tools.engine.connect() as conn:
        return recorded_outcomes(conn, ref.run_id)[ref]


def _is_at_one_place(site: Site, home: Path, files: object) -> None:
    """Whole at its own place or where it was moved to, and nowhere else."""
    away = [
        path
        for path in (site.legacy_root / ".label-reclaimed").glob("*")
        if path.name.split("-")[0].isdigit()
    ]
    found = [path for path in (home, *away) if path.exists() and snapshot_tree(path) == files]
    assert len(found) == 1, (home.exists(), away)


def _check_end(tools: Tools, name: str, project: Project, home: Path, files: object) -> None:
    """As the act leaves it; and a rollback brings the directory back as it was, a migration the dataset."""
    if name in {"reclaim", "purge"}:
        assert not home.exists()
    if name in {"gc", "restore"}:
        assert run_one(tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED
    back = run_one(tools, Verb.ROLLBACK, project.project_id, restore_files=True)
    assert (back.status, back.error) == (Status.ROLLED_BACK, None)
    assert snapshot_tree(home) == files
    if name not in {"gc", "restore"}:
        return
    gc(tools)
    gc(tools)
    assert not list(Garbage(tools.open_store(create=False)).entries())
