"""`kill -9` at every statement of a migration and of a rollback: the project is one thing or the other, and the next run ends it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.conftest import Site
from tests.estate import (
    Project,
    differences,
    make_project,
    readings,
    record_session,
    snapshot_tree,
    split_session,
)
from tests.fidelity.dying import Nursery, nursery
from tests.fidelity.model import POINTERS, by_key
from tests.fidelity.runs import WORK, let_lease_run_out, open_run, run_one
from tests.fidelity.states import Rows, check_legacy, check_migrated, look
from worker.db import ledger
from worker.job import Tools
from worker.messages import JobRef, JobState, Outcome, RunState, Status, Verb

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def dying(_site_of_module: Site) -> Iterator[Nursery]:
    """Bring up workers that die when told to."""
    with nursery(_site_of_module) as started:
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
    """The broker delivers the dead worker's message again, once its lease has run out; what the ledger then says."""
    let_lease_run_out(tools.engine, ref)
    WORK[verb](tools, ref, "the next worker")
    with tools.engine.connect() as conn:
        (job,) = ledger.jobs(conn, ref.run_id)
        assert job.state == JobState.DONE
        assert ledger.find_run(conn, str(ref.run_id)).state is RunState.FINISHED
        return ledger.outcomes(conn, ref.run_id)[ref.project_id]


@pytest.mark.timeout(120)
def test_a_migration_may_die_anywhere(site: Site, tools: Tools, dying: Nursery):
    """Every point of the way that stores the dataset anew."""
    died_in: dict[str, list[str]] = {"legacy": [], "migrated": []}
    read_before: dict[Any, Any] = {}
    for point in count(1):
        project = make(site, point)
        legacy = look(site.engine, project.project_id)
        files = snapshot_tree(Path(str(project.path)))
        with site.engine.connect() as conn:
            read_before |= readings(conn, site.data_dir, project_id=project.project_id)
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

        end = dying.do(Verb.MIGRATE, ref, die_at=point)

        between = look(site.engine, project.project_id)
        if end.statement is None:
            check_migrated(between, legacy)
            break
        if between.is_legacy:
            check_legacy(between, legacy)
            died_in["legacy"].append(end.statement)
        else:
            check_migrated(between, legacy)
            died_in["migrated"].append(end.statement)
        outcome = deliver_again(tools, Verb.MIGRATE, ref)
        assert (outcome.status, outcome.error) == (Status.MIGRATED, None)
        after = look(site.engine, project.project_id)
        check_migrated(after, legacy)
        assert len(after.datasets) == point
        assert snapshot_tree(Path(str(project.path))) == files

    assert len(died_in["legacy"]) > 20, died_in
    assert died_in["migrated"], died_in
    assert any(statement.startswith("insert into project_conversions") for statement in died_in["legacy"])
    assert "commit" in died_in["legacy"]
    with site.engine.connect() as conn:
        assert differences(read_before, readings(conn, site.data_dir)) == []
    _nothing_is_left_over(site)


@pytest.mark.timeout(120)
def test_a_migration_onto_a_dataset_that_is_there_may_die_anywhere(site: Site, tools: Tools, dying: Nursery):
    """The shorter way; a new run ends what the dead worker began, its own message being lost."""
    with site.engine.begin() as conn:
        twin = make_project(conn, site.legacy_root, "twin")
        record_session(conn, twin, "whole", rows=12)
    first = run_one(tools, Verb.MIGRATE, twin.project_id)
    died_in = {"legacy": 0, "migrated": 0}
    for point in count(1):
        with site.engine.begin() as conn:
            project = make_project(conn, site.legacy_root, f"study {point}")
            record_session(conn, project, "whole", rows=12)
        legacy = look(site.engine, project.project_id)
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

        end = dying.do(Verb.MIGRATE, ref, die_at=point)

        between = look(site.engine, project.project_id)
        if end.statement is None:
            break
        died_in["legacy" if between.is_legacy else "migrated"] += 1
        if between.is_legacy:
            check_legacy(between, legacy)
            (again,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
            outcome = WORK[Verb.MIGRATE](tools, again, "another run")
            assert outcome is not None
            assert (outcome.status, outcome.dataset_id) == (Status.MIGRATED, first.dataset_id)
        after = look(site.engine, project.project_id)
        assert [row["dataset_id"] for row in after.label["sessions"]] == [first.dataset_id]
        assert (len(after.refs), after.active, len(after.datasets)) == (1, 1, 1)

    assert died_in["legacy"] > 10
    assert died_in["migrated"] >= 1


@pytest.mark.timeout(120)
def test_a_rollback_may_die_anywhere(site: Site, tools: Tools, dying: Nursery):
    """With a split that a person made in between, which must come through, too."""
    died_in: dict[str, list[str]] = {"migrated": [], "legacy": []}
    for point in count(1):
        project = make(site, point)
        untouched = look(site.engine, project.project_id)
        run_one(tools, Verb.MIGRATE, project.project_id)
        with site.engine.begin() as conn:
            whole = untouched.session("whole")["session_id"]
            split_session(conn, whole, [5], site.data_dir)
        before = look(site.engine, project.project_id)
        legacy = _as_if_it_had_been_legacy_all_the_time(before, untouched, project)
        (ref,) = open_run(site.engine, Verb.ROLLBACK, only=[project.project_id])

        end = dying.do(Verb.ROLLBACK, ref, die_at=point)

        between = look(site.engine, project.project_id)
        if end.statement is None:
            check_legacy(between, legacy)
            break
        if between.is_legacy:
            check_legacy(between, legacy)
            died_in["legacy"].append(end.statement)
        else:
            assert between == before
            died_in["migrated"].append(end.statement)
        outcome = deliver_again(tools, Verb.ROLLBACK, ref)
        assert (outcome.status, outcome.error) == (Status.ROLLED_BACK, None)
        check_legacy(look(site.engine, project.project_id), legacy)

    assert len(died_in["migrated"]) > 15, died_in
    assert died_in["legacy"], died_in


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
