"""What the tests of rollbacks make and look at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from tests.estate import (
    Form,
    Project,
    dump,
    make_lineage,
    make_project,
    make_session,
    record_session,
    split_on_upload,
    split_session,
    write_labels,
    write_recording,
)
from tests.estate.compare import CONVERTED_TABLES
from tests.support.model import Row
from tests.support.sites import Site
from worker.messages import Outcome, Status

TABLES = (*CONVERTED_TABLES, "dataset_claims")
"""All that is not the ledger's: what a rehearsal or a refused rollback must not change."""

STAMPS = ("created_at", "updated_at", "split_timestamp", "watch_assigned_at")
"""What the database's clock writes into a new row."""

CONFIG = {"window_s": 60, "notes": "Prüfung", "nested": {"b": [1, 2.50], "a": None}}


def study(conn: Connection, root: Path, name: str = "study", *, seed: int = 0, **columns: Any) -> Project:
    """A project with whole sessions, one cut by an upload, one by a person, and one without a directory."""
    project = make_project(conn, root, name, **columns)
    assert project.directory is not None
    record_session(conn, project, "whole", rows=60, seed=seed + 1, bouts=[{"start": 1, "end": 2}])
    recording = write_recording(
        project.directory / "cut", rows=50, seed=seed + 2, form=Form.GAPPED, gaps=[20, 35]
    )
    split_on_upload(conn, project, "cut", recording)
    by_hand = record_session(conn, project, "by hand", rows=80, seed=seed + 3, keep=True, verified=1)
    split_session(conn, by_hand.session_id, [30], root)
    old = record_session(conn, project, "old", rows=40, seed=seed + 4, status="Split", keep=False)
    child = make_session(
        conn,
        project.project_id,
        "old.1",
        parent_path=old.recording.path.parent,
        start_ns=old.recording.start_ns,
        stop_ns=old.recording.stop_ns,
    )
    make_lineage(conn, child, old.session_id)
    make_session(conn, project.project_id, "gone", keep=True, bouts=[{"start": 3, "end": 4}])
    write_labels(project.directory / "whole", [[1, 2, "smoking"]])
    return project


def make(site: Site, name: str = "study", **columns: Any) -> Project:
    """The same, committed."""
    with site.engine.begin() as conn:
        return study(conn, site.legacy_root, name, **columns)


def make_small(site: Site, name: str, **columns: Any) -> Project:
    """A project with one session."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name, **columns)
        record_session(conn, project, "s", rows=5, seed=len(name))
    return project


def statuses(outcomes: Mapping[int, Outcome]) -> set[Status]:
    """How jobs ended."""
    return {outcome.status for outcome in outcomes.values()}


def look(engine: Engine, tables: tuple[str, ...] = TABLES) -> dict[str, list[Row]]:
    """Rows as they are now."""
    with engine.connect() as conn:
        return dump(conn, tables)


def one(conn: Connection, project: Project, name: str) -> int:
    """The id of a session."""
    query = text("select session_id from sessions where project_id = :id and session_name = :name")
    return int(conn.execute(query, {"id": project.project_id, "name": name}).scalar_one())


def sql(conn: Connection, statement: str, **values: Any) -> None:
    """A statement as a person's."""
    conn.execute(text(statement), values)
