"""The way back: which projects go, and which do not."""

import pytest
from sqlalchemy import Connection

from producer.runs import migrated_projects
from tests.estate import (
    Project,
    make_dataset,
    make_project,
    make_session,
    write_recording,
)
from tests.estate.compare import LABEL_TABLES
from tests.fidelity.rolled_back import TABLES, look, make, sql
from tests.support.ledger_rows import jobs_of
from tests.support.runs import do, open_run, run, run_one
from tests.support.sites import Site
from worker.db import ledger
from worker.errors import UsageError
from worker.jobs.tools import Tools
from worker.messages import Status, Verb


def _by_others(conn: Connection, site: Site) -> tuple[Project, Project]:
    """A project that was made in Label from a dataset, and one that the reference tool migrated."""
    tree = site.data_dir / "raw_datasets" / "others"
    recording = write_recording(tree / "s", rows=10)
    made = make_project(
        conn,
        site.legacy_root,
        "made in Label",
        path=None,
        project_type="dataset_based",
        analysis_config={"created_with": "dataset_based_workflow"},
    )
    dataset_id = make_dataset(conn, tree, "d" * 64, project_id=made.project_id)
    make_session(
        conn,
        made.project_id,
        "s",
        recording=recording,
        parent_path=tree / "s",
        dataset_id=dataset_id,
        raw_session_name="s",
    )
    reference = make_project(
        conn,
        site.legacy_root,
        "reference tool",
        path=None,
        legacy_path=str(site.legacy_root / "was here"),
        project_type="dataset_based",
        analysis_config={"migrated_from": "legacy", "dataset_id": dataset_id},
    )
    sql(
        conn,
        "insert into project_dataset_refs (project_id, dataset_id) values (:project_id, :dataset_id)",
        project_id=reference.project_id,
        dataset_id=dataset_id,
    )
    return made, reference


def test_only_projects_that_this_program_converted_are_rolled_back(site: Site, tools: Tools):
    """In a run over all, one of the reference tool is named as skipped with the remedy; one made in Label is
    not ours at all.
    """
    project = make(site)
    with site.engine.begin() as conn:
        made, reference = _by_others(conn, site)
    before = look(site.engine)
    run_one(tools, Verb.MIGRATE, project.project_id)

    opened = migrated_projects.rollback(
        site.settings, site.engine, dry_run=False, project_ids=(), restore_files=False
    )

    assert [job.subject_id for job in opened.jobs if job.skipped is None] == [project.project_id]
    skipped = {job.subject_id: job.skipped for job in opened.jobs if job.skipped is not None}
    assert skipped.keys() == {reference.project_id}
    assert "no before-image" in skipped[reference.project_id].reason
    assert skipped[reference.project_id].remedy == "Roll it back with the tool that migrated it."
    with site.engine.connect() as conn:
        jobs = {job.project_id for job in jobs_of(conn, opened.run_id)}
    assert made.project_id not in jobs
    refs = [ledger.JobRef(run_id=opened.run_id, subject_id=number) for number in jobs]
    do(tools, Verb.ROLLBACK, refs)
    after = look(site.engine)
    for table in (*LABEL_TABLES, "project_dataset_refs"):
        assert (table, after[table]) == (table, before[table])


def test_an_id_that_cannot_be_rolled_back_is_refused_and_no_run_is_opened(site: Site):
    with site.engine.begin() as conn:
        made, reference = _by_others(conn, site)
    legacy = make(site)
    before = look(site.engine, (*TABLES, "migration_runs", "migration_jobs"))
    ids = [made.project_id, reference.project_id, legacy.project_id, 0, -3, 999]

    with pytest.raises(UsageError) as caught:
        migrated_projects.rollback(
            site.settings, site.engine, dry_run=False, project_ids=ids, restore_files=False
        )

    for number, reason in (
        (made.project_id, "dataset-based, but never was a legacy project"),
        (reference.project_id, "migrated by another tool, which kept no before-image"),
        (legacy.project_id, "not migrated"),
        (0, "ids begin at 1"),
        (-3, "ids begin at 1"),
        (999, "no such project"),
    ):
        assert f"{number} ({reason})" in str(caught.value)
    assert look(site.engine, (*TABLES, "migration_runs", "migration_jobs")) == before


def _delete(conn: Connection, project: Project) -> None:
    """As Label deletes a project."""
    sql(
        conn,
        "delete from session_lineage where child_session_id in (select session_id from sessions where project_id = :id)"
        " or parent_session_id in (select session_id from sessions where project_id = :id)",
        id=project.project_id,
    )
    sql(conn, "delete from sessions where project_id = :id", id=project.project_id)
    sql(conn, "delete from projects where project_id = :id", id=project.project_id)


@pytest.mark.parametrize("when", ["before the run", "before the job"])
def test_a_project_that_was_deleted_since_is_skipped(site: Site, tools: Tools, when: str):
    project, other = make(site), make(site, "other", seed=50)
    run(tools, Verb.MIGRATE)
    if when == "before the run":
        with site.engine.begin() as conn:
            _delete(conn, project)
    refs = open_run(site.engine, Verb.ROLLBACK)
    if when == "before the job":
        with site.engine.begin() as conn:
            _delete(conn, project)

    outcomes = do(tools, Verb.ROLLBACK, refs)

    assert outcomes[project.project_id].status is Status.SKIPPED
    assert "deleted since it was migrated" in outcomes[project.project_id].reason
    assert outcomes[other.project_id].status is Status.ROLLED_BACK


def test_rolling_back_twice_finds_nothing_to_do(site: Site, tools: Tools):
    project = make(site)
    run(tools, Verb.MIGRATE)
    first, second = open_run(site.engine, Verb.ROLLBACK), open_run(site.engine, Verb.ROLLBACK)
    do(tools, Verb.ROLLBACK, first)
    before = look(site.engine)

    outcomes = do(tools, Verb.ROLLBACK, second)

    assert outcomes[project.project_id].status is Status.SKIPPED
    assert do(tools, Verb.ROLLBACK, first) == {}
    assert look(site.engine) == before


@pytest.mark.parametrize(
    "change",
    ["path = '/somewhere'", "legacy_path = '/somewhere'", "legacy_path = null", "project_type = 'legacy'"],
)
def test_a_project_whose_row_another_program_converted_is_not_touched(site: Site, tools: Tools, change: str):
    project = make(site)
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, f"update projects set {change}")
    before = look(site.engine)

    outcome = run_one(tools, Verb.ROLLBACK, project.project_id)

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "RollbackRefusedError")
    assert look(site.engine) == before
