"""Projects whose rows another program took back: Label's own rollback tool, or a person by SQL."""

import pytest
from sqlalchemy import text

from tests.estate import (
    differences,
    dump,
    make_project,
    readings,
    record_session,
    split_session,
    write_labels,
)
from tests.estate.compare import Reading
from tests.estate.rows import Project
from tests.support.runs import run_one
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb
from worker.sessions_csv import Reader

BY_LABEL = """
    delete from project_dataset_refs where project_id = :id;
    update projects set path = legacy_path, legacy_path = null, project_type = 'legacy', analysis_config = null
    where project_id = :id"""
BY_HAND = "update projects set path = legacy_path, project_type = null where project_id = :id"
ELSEWHERE = "update projects set path = legacy_path || '/', legacy_path = null, project_type = 'legacy' where project_id = :id"


def migrated_and_taken_back(site: Site, tools: Tools, how: str) -> tuple[Project, list[dict[str, object]]]:
    """The project, and its sessions as they were before it was migrated."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study", analysis_config={"a": 1})
        record_session(conn, project, "whole", rows=40, seed=1)
        cut = record_session(conn, project, "cut", rows=30, seed=2)
        split_session(conn, cut.session_id, [12], site.data_dir)
        before = dump(conn, ("sessions",))["sessions"]
    assert run_one(tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED
    with site.engine.begin() as conn:
        conn.execute(text(how), {"id": project.project_id})
    return project, before


def sessions(site: Site) -> list[dict[str, object]]:
    with site.engine.connect() as conn:
        return dump(conn, ("sessions",))["sessions"]


def active(site: Site) -> int:
    with site.engine.connect() as conn:
        query = text("select count(*) from project_conversions where rolled_back_at is null")
        return int(conn.execute(query).scalar_one())


def read(site: Site) -> dict[tuple[int, Reader], Reading]:
    with site.engine.connect() as conn:
        return readings(conn, site.data_dir)


def said(outcome: Outcome) -> str:
    return " ".join(warning.message for warning in outcome.warnings)


@pytest.mark.parametrize("how", [BY_LABEL, BY_HAND])
def test_a_project_taken_back_by_other_means_is_migrated_again_and_rolled_back(
    site: Site, tools: Tools, how: str
) -> None:
    project, before = migrated_and_taken_back(site, tools, how)
    was_read = read(site)

    foretold = run_one(tools, Verb.MIGRATE, project.project_id, dry_run=True)
    assert active(site) == 1
    outcome = run_one(tools, Verb.MIGRATE, project.project_id)

    assert (foretold.status, outcome.status) == (Status.WOULD_MIGRATE, Status.MIGRATED), outcome.error
    assert "returned to legacy by another program" in said(outcome)
    assert said(foretold) == said(outcome)
    assert active(site) == 1
    assert differences(was_read, read(site)) == []
    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.ROLLED_BACK
    assert sessions(site) == before


@pytest.mark.parametrize("how", [BY_LABEL, BY_HAND])
def test_a_rollback_removes_what_the_other_program_left(site: Site, tools: Tools, how: str) -> None:
    project, before = migrated_and_taken_back(site, tools, how)
    with site.engine.connect() as conn:
        row = dump(conn, ("projects",))

    verified = run_one(tools, Verb.VERIFY, project.project_id)
    foretold = run_one(tools, Verb.ROLLBACK, project.project_id, dry_run=True)
    outcome = run_one(tools, Verb.ROLLBACK, project.project_id)

    assert verified.status is Status.SKIPPED
    assert "returned to legacy by another program" in verified.reason
    assert (foretold.status, outcome.status) == (Status.WOULD_ROLL_BACK, Status.ROLLED_BACK), outcome.error
    assert "its row had been returned to legacy by another program" in said(outcome)
    assert sessions(site) == before
    with site.engine.connect() as conn:
        assert dump(conn, ("projects",)) == row
    assert active(site) == 0


def test_a_project_whose_directory_changed_since_keeps_what_its_sessions_read(
    site: Site, tools: Tools
) -> None:
    project, _ = migrated_and_taken_back(site, tools, BY_LABEL)
    assert project.directory is not None
    write_labels(project.directory / "whole", [[1, 2, "new"]])
    was_read = read(site)

    outcome = run_one(tools, Verb.MIGRATE, project.project_id)

    assert outcome.status is Status.MIGRATED, outcome.error
    assert "stay there" in said(outcome)
    assert differences(was_read, read(site)) == []
    assert active(site) == 1


def test_a_project_that_is_legacy_at_another_path_has_nothing_to_roll_back(site: Site, tools: Tools) -> None:
    project, _ = migrated_and_taken_back(site, tools, ELSEWHERE)

    outcome = run_one(tools, Verb.ROLLBACK, project.project_id)

    assert outcome.status is Status.SKIPPED
    assert "returned to legacy by another program, at another path" in outcome.reason
