"""What is predicted of a project without a job is what a dry run's job of the same verb then says."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from tests.estate import make_project, make_session
from tests.support.runs import gc, migrate_all, run, run_one, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.db import history
from worker.jobs import predictions
from worker.jobs.predictions import Prediction
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb

OLDER_THAN_DAYS = 7.0


def _nothing(_tools: Tools, _path: Path) -> None:
    pass


def _a_directory_that_is_gone(_tools: Tools, path: Path) -> None:
    shutil.rmtree(path)


def _a_file_in_its_place(_tools: Tools, path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a directory")


def _a_root_without_its_mount(_tools: Tools, path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()


def _reclaimed(tools: Tools, _path: Path) -> None:
    run_one(tools, Verb.RECLAIM, 1)


def _reclaimed_and_its_place_taken(tools: Tools, path: Path) -> None:
    run_one(tools, Verb.RECLAIM, 1)
    path.mkdir()


def _reclaimed_and_lost(tools: Tools, path: Path) -> None:
    run_one(tools, Verb.RECLAIM, 1)
    shutil.rmtree(path.parent / ".label-reclaimed" / os.listdir(path.parent / ".label-reclaimed")[0])


def _purged(tools: Tools, _path: Path) -> None:
    run_one(tools, Verb.RECLAIM, 1)
    run_one(tools, Verb.RECLAIM, 1, purge=True, grace_days=0)


def _a_move_that_died(tools: Tools, path: Path) -> None:
    """Its job was killed after the rename."""
    run_one(tools, Verb.RECLAIM, 1)
    _do(tools, "update migration_reclaims set state = 'moving', reclaimed_at = null")
    assert not path.exists()


def _migrated_lately(tools: Tools, _path: Path) -> None:
    _do(tools, "update project_conversions set converted_at = clock_timestamp()")


def _a_legacy_project_in_it(tools: Tools, path: Path) -> None:
    with tools.engine.begin() as conn:
        make_project(conn, path, "within", path=str(path / "day 1"))


def _a_session_that_reads_from_it(tools: Tools, path: Path) -> None:
    with tools.engine.begin() as conn:
        make_session(conn, _another(conn), "elsewhere", parent_path=path / "day 1")


def _rolled_back(tools: Tools, _path: Path) -> None:
    run_one(tools, Verb.ROLLBACK, 1)


def _deleted(tools: Tools, _path: Path) -> None:
    _do(tools, "delete from projects where project_id = 1")


def _a_row_that_others_changed(tools: Tools, _path: Path) -> None:
    _do(tools, "update projects set legacy_path = '/elsewhere' where project_id = 1")


def _another(conn: Connection) -> int:
    number: int = conn.execute(text("select max(project_id) from projects")).scalar_one()
    return number


def _do(tools: Tools, statement: str) -> None:
    with tools.engine.begin() as conn:
        conn.execute(text(statement))


BACK, AWAY, SKIPPED, FAILED = Status.WOULD_ROLL_BACK, Status.WOULD_RECLAIM, Status.SKIPPED, Status.FAILED
SITUATIONS: dict[Callable[[Tools, Path], None], tuple[Status | None, Status | None]] = {
    _nothing: (BACK, AWAY),
    _a_directory_that_is_gone: (FAILED, SKIPPED),
    _a_file_in_its_place: (FAILED, SKIPPED),
    _a_root_without_its_mount: (None, None),
    _reclaimed: (BACK, SKIPPED),
    _reclaimed_and_its_place_taken: (FAILED, SKIPPED),
    _reclaimed_and_lost: (FAILED, SKIPPED),
    _purged: (FAILED, SKIPPED),
    _a_move_that_died: (BACK, AWAY),
    _migrated_lately: (BACK, SKIPPED),
    _a_legacy_project_in_it: (BACK, SKIPPED),
    _a_session_that_reads_from_it: (BACK, SKIPPED),
    _rolled_back: (SKIPPED, SKIPPED),
    _deleted: (SKIPPED, SKIPPED),
    _a_row_that_others_changed: (FAILED, FAILED),
}
"""What a rollback and a reclaim would come to; None: the job would wait."""


@pytest.fixture
def first(site: Site) -> Path:
    """Two projects to be migrated, of different content; where the first one's directory is."""
    place = plain_study(site, "first", 1)
    plain_study(site, "second", 2)
    return place


@pytest.mark.parametrize("bring_about", SITUATIONS, ids=lambda one: one.__name__.strip("_"))
def test_what_is_predicted_is_what_a_dry_run_says(
    site: Site, first: Path, bring_about: Callable[[Tools, Path], None]
):
    with tools_of(site) as tools:
        migrate_all(site, tools)
        _do(tools, "update project_conversions set converted_at = converted_at - interval '8 days'")
        bring_about(tools, first)
        rollback = predictions.of_rollback(site.engine, site.settings, 1)
        reclaim = predictions.of_reclaim(site.engine, site.settings, 1, OLDER_THAN_DAYS)

        rolled_back = run(tools, Verb.ROLLBACK, dry_run=True).get(1)
        reclaimed = run(tools, Verb.RECLAIM, dry_run=True, older_than_days=OLDER_THAN_DAYS).get(1)

    assert (rollback.status, reclaim.status) == SITUATIONS[bring_about]
    _check_agrees(rollback, rolled_back)
    _check_agrees(reclaim, reclaimed)


def _check_agrees(predicted: Prediction, outcome: Outcome | None) -> None:
    """No outcome: the run has no job for the project, or the job waits."""
    if outcome is None:
        assert predicted.status in {None, Status.SKIPPED}
        return
    assert predicted.status is outcome.status
    if predicted.error_class is not None:
        assert predicted.words == (outcome.error or outcome.reason)


def test_projects_that_go_together_are_named(site: Site, first: Path):
    with site.engine.begin() as conn:
        make_project(conn, site.legacy_root, "the same", path=str(first))
    with tools_of(site) as tools:
        migrate_all(site, tools)

        predicted = predictions.of_reclaim(site.engine, site.settings, 3, 0)

    assert predicted.status is Status.WOULD_RECLAIM
    assert predicted.words.endswith("/.label-reclaimed/1-RUN, together with project 1")
    assert "not all were read since the conversion" in (predicted.then or "")


@pytest.mark.parametrize("rolled_back", [True, False])
def test_a_gc_takes_what_is_predicted(site: Site, *, rolled_back: bool):
    plain_study(site, "one", 1)
    with tools_of(site) as tools:
        migrated = migrate_all(site, tools)
        if rolled_back:
            run_one(tools, Verb.ROLLBACK, 1)
        with site.engine.connect() as conn:
            datasets = history.converted_datasets(conn, 1)
            (predicted,) = predictions.of_gc(conn, 1, datasets, 0)
        taken = gc(tools).garbage

    assert datasets == [migrated[0].dataset_id]
    assert predicted.only_this is not rolled_back
    assert (not predicted.fate.references and predicted.fate.is_due) is rolled_back
    assert [entry.dataset_id for entry in taken] == datasets * rolled_back
