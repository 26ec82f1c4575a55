"""`kill -9` at every statement of a migration and of a rollback: the project is one thing or the other, and
the next run ends it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.estate import (
    Project,
    differences,
    make_project,
    readings,
    record_session,
    snapshot_tree,
    split_session,
)
from tests.support.ledger_rows import jobs_of, recorded_outcomes
from tests.support.model import POINTERS, by_key
from tests.support.points import SOME_OR_ALL, Lives, Walk, lives
from tests.support.runs import WORK, let_lease_run_out, open_run, run_one
from tests.support.sites import Site
from tests.support.states import Rows, check, check_legacy, check_migrated, look
from worker.db import ledger
from worker.jobs.tools import Tools
from worker.messages import JobRef, JobState, Outcome, RunState, Status, Verb

_MIGRATING = (
    "insert into raw_datasets",
    "insert into project_dataset_refs",
    "insert into project_split_configs",
    "insert into project_conversions",
    "update sessions",
    "update projects",
    "update migration_jobs set state",
)
_ROLLING_BACK = (
    "update sessions",
    "delete from project_split_configs",
    "delete from project_dataset_refs",
    "update projects",
    "update project_conversions",
    "update migration_jobs set state",
)
"""What a worker must have died at."""


@pytest.fixture(scope="module")
def dying(module_site: Site) -> Iterator[Lives]:
    """Bring up workers that die when told to."""
    with lives(module_site) as started:
        yield started


def make(site: Site, number: int) -> Project:
    """A project whose content no other has: one whole session, one that is cut, one without a directory."""
    with site.engine.begin() as conn:
        project = make_project(
            conn,
            site.legacy_root,
            f"study {number}",
            analysis_config={"number": number, "dataset_id": "mine"},
        )
        record_session(conn, project, "whole", rows=12, seed=2 * number)
        cut = record_session(conn, project, "cut", rows=15, seed=2 * number + 1)
        split_session(conn, cut.session_id, [7], site.data_dir)
    return project


def deliver_again(tools: Tools, verb: Verb, ref: JobRef) -> Outcome:
    """The broker delivers the dead worker's message again, once its lease has run out, and some worker's
    parent looks for runs that have ended; what the ledger then says.
    """
    let_lease_run_out(tools.engine, ref)
    WORK[verb, ref.subject](tools, ref, "the next worker")
    with tools.engine.begin() as conn:
        ledger.finish_ended_runs(conn)
    with tools.engine.connect() as conn:
        (job,) = jobs_of(conn, ref.run_id)
        assert job.state == JobState.DONE
        assert ledger.find_run(conn, str(ref.run_id)).state is RunState.FINISHED
        return recorded_outcomes(conn, ref.run_id)[ref]


@pytest.mark.parametrize("walk", SOME_OR_ALL)
def test_a_migration_may_be_killed_at_every_statement(site: Site, tools: Tools, dying: Lives, walk: Walk):
    """Every point of the way that stores the dataset anew."""
    died_in: dict[bool, list[str]] = {True: [], False: []}
    read_before: dict[Any, Any] = {}
    points = walk(*_MIGRATING, "update migration_runs")
    for number, point in enumerate(points, start=1):
        project = make(site, number)
        legacy = look(site.engine, project.project_id)
        files = snapshot_tree(Path(str(project.path)))
        with site.engine.connect() as conn:
            read_before |= readings(conn, site.data_dir, project_id=project.project_id)
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

        end = dying.until_death(Verb.MIGRATE, ref, at=point)

        points.learn(end)
        between = look(site.engine, project.project_id)
        check(between, legacy)
        assert end.stopped or not between.is_legacy
        died_in[between.is_legacy].append(end.points[-1])
        outcome = deliver_again(tools, Verb.MIGRATE, ref)
        assert (outcome.status, outcome.error) == (Status.MIGRATED, None)
        after = look(site.engine, project.project_id)
        check_migrated(after, legacy)
        assert len(after.datasets) == number
        assert snapshot_tree(Path(str(project.path))) == files

    for statement in _MIGRATING:
        assert any(statement in one for one in died_in[True]), died_in
    assert any(one.startswith("update migration_runs") for one in died_in[False]), died_in
    with site.engine.connect() as conn:
        assert differences(read_before, readings(conn, site.data_dir)) == []
    _nothing_is_left_over(site)


@pytest.mark.parametrize("walk", SOME_OR_ALL)
def test_a_migration_onto_a_dataset_that_is_there_may_be_killed_at_every_statement(
    site: Site, tools: Tools, dying: Lives, walk: Walk
):
    """The shorter way; a new run ends what the dead worker began, its own message being lost."""
    with site.engine.begin() as conn:
        twin = make_project(conn, site.legacy_root, "twin")
        record_session(conn, twin, "whole", rows=12)
    first = run_one(tools, Verb.MIGRATE, twin.project_id)
    died_in: dict[bool, list[str]] = {True: [], False: []}
    points = walk("update projects")
    for number, point in enumerate(points):
        with site.engine.begin() as conn:
            project = make_project(conn, site.legacy_root, f"study {number}")
            record_session(conn, project, "whole", rows=12)
        legacy = look(site.engine, project.project_id)
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

        end = dying.until_death(Verb.MIGRATE, ref, at=point)

        points.learn(end)
        between = look(site.engine, project.project_id)
        check(between, legacy)
        died_in[between.is_legacy].append(end.points[-1])
        if between.is_legacy:
            # Until then the other run has the project in hand.
            let_lease_run_out(tools.engine, ref)
            (again,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
            outcome = WORK[Verb.MIGRATE, again.subject](tools, again, "another run")
            assert outcome is not None
            assert (outcome.status, outcome.dataset_id) == (Status.MIGRATED, first.dataset_id)
        after = look(site.engine, project.project_id)
        check_migrated(after, legacy)
        assert len(after.datasets) == 1

    assert any(one.startswith("update projects") for one in died_in[True]), died_in
    assert died_in[False]


@pytest.mark.parametrize("walk", SOME_OR_ALL)
def test_a_rollback_may_be_killed_at_every_statement(site: Site, tools: Tools, dying: Lives, walk: Walk):
    """With a split that a person made in between, which must come through, too."""
    died_in: dict[bool, list[str]] = {True: [], False: []}
    points = walk(*_ROLLING_BACK, "update migration_runs")
    for number, point in enumerate(points):
        project = make(site, number)
        untouched = look(site.engine, project.project_id)
        run_one(tools, Verb.MIGRATE, project.project_id)
        with site.engine.begin() as conn:
            whole = untouched.session("whole")["session_id"]
            split_session(conn, whole, [5], site.data_dir)
        before = look(site.engine, project.project_id)
        legacy = _as_if_it_had_been_legacy_all_the_time(before, untouched, project)
        (ref,) = open_run(site.engine, Verb.ROLLBACK, only=[project.project_id])

        end = dying.until_death(Verb.ROLLBACK, ref, at=point)

        points.learn(end)
        between = look(site.engine, project.project_id)
        if between.is_legacy:
            check_legacy(between, legacy)
        else:
            assert end.stopped
            assert between == before
        died_in[between.is_legacy].append(end.points[-1])
        outcome = deliver_again(tools, Verb.ROLLBACK, ref)
        assert (outcome.status, outcome.error) == (Status.ROLLED_BACK, None)
        check_legacy(look(site.engine, project.project_id), legacy)

    for statement in _ROLLING_BACK:
        assert any(one.startswith(statement) for one in died_in[False]), died_in
    assert any(one.startswith("update migration_runs") for one in died_in[True]), died_in


def _as_if_it_had_been_legacy_all_the_time(now: Rows, then: Rows, project: Project) -> Rows:
    """The rows of today with their places of then; what was made since lies in the legacy directory."""
    former = by_key(then.label["sessions"], "session_id")
    sessions = []
    for row in now.label["sessions"]:
        if row["session_id"] in former:
            places = {column: former[row["session_id"]][column] for column in POINTERS}
        else:
            places = {"parent_session_data_path": f"{project.path}/whole"}
        sessions.append(row | places)
    label = now.label | {"projects": then.label["projects"], "sessions": sessions}
    return replace(now, label=label, refs=[], configs=[], active=0)


def _nothing_is_left_over(site: Site) -> None:
    """What dead workers left in staging is gc's; trees and blobs are whole."""
    with site.engine.connect() as conn:
        trees = conn.scalars(text("select file_path from raw_datasets")).all()
    assert {str(path) for path in (site.data_dir / "raw_datasets").iterdir()} == set(trees)
