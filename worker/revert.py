"""Moving rows back: what each session of a converted project becomes again, and the one transaction that makes it so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from worker.db import datasets, ledger, projects, sessions
from worker.db.projects import Conversion, Project
from worker.db.sessions import COLUMNS, Session
from worker.errors import NothingToDoError, ProjectChangedError, RollbackRefusedError
from worker.messages import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What a rollback writes to a project's sessions. `moved` counts those that people made since the migration."""

    changes: tuple[dict[str, Any], ...]
    moved: int


def plan_return(conversion: Conversion, dataset_path: str | None, rows: Sequence[Session]) -> Return:
    """Decide for every session of a converted project where its rows will be read from again. Pure.

    A column that still has the conversion's value gets its former one; a column that people changed since keeps theirs.
    Whatever then still leads into the dataset's tree was made since (a session that people split): it is led to the
    same directory of the legacy tree, with its offsets, because the files there are the same.
    """
    recorded = {change["session_id"]: change for change in conversion.before["sessions"]}
    trees = _trees(conversion, dataset_path)
    changes: list[dict[str, Any]] = []
    moved = 0
    for row in rows:
        values = _former(row, recorded.get(row.session_id))
        led = _led_back(values, trees, conversion)
        moved += led != values
        if led != row.values():
            changes.append({"session_id": row.session_id, **led})
    return Return(changes=tuple(changes), moved=moved)


def revert(engine: Engine, lease: ledger.Lease, conversion: Conversion, outcome: Outcome) -> Outcome:
    """Take the project's conversion back and end the job, in one transaction.

    Locks, in the same order as the conversion: the dataset's row, the project's row, its sessions. The dataset and its
    files stay: others may refer to them. Raises `NothingToDoError` when the project is gone or back already,
    `ProjectChangedError` or `RollbackRefusedError` when an edit since would be lost. A crash anywhere leaves the project
    migrated.
    """
    with engine.begin() as conn:
        dataset = datasets.lock(conn, conversion.dataset_hash)
        check_still_converted(projects.lock(conn, lease.ref.project_id), conversion, conn)
        check_config(conn, conversion)
        rows = sessions.of_project(conn, conversion.project_id)
        plan = plan_return(conversion, dataset.file_path if dataset is not None else None, rows)
        sessions.write(conn, plan.changes)
        sessions.drop_split_configs(conn, conversion.before["split_config_ids"])
        datasets.drop_reference(conn, conversion.before["ref_id"])
        projects.restore(conn, conversion.conversion_id)
        projects.end_conversion(conn, conversion.conversion_id, lease.ref.run_id)
        reverted = outcome.with_changes(sessions_count=len(rows))
        ledger.end_job(conn, lease, reverted)
    return reverted


def check_still_converted(project: Project | None, conversion: Conversion, conn: Connection) -> None:
    """The project as its conversion left it, apart from what people may edit."""
    number = conversion.project_id
    if project is None:
        raise NothingToDoError(f"project {number}: deleted since it was migrated")
    current = projects.active_conversions(conn, [number]).get(number)
    if current is None or current.conversion_id != conversion.conversion_id:
        raise NothingToDoError(f"project {number}: rolled back already by another run")
    if project.is_legacy or project.path is not None or project.legacy_path != conversion.legacy_path:
        raise ProjectChangedError(
            f"project {number}: its row is not as the migration left it "
            f"(type {project.project_type!r}, path {project.path!r}, legacy path {project.legacy_path!r})"
        )


def check_config(conn: Connection, conversion: Conversion) -> None:
    """Refuse to put a former `analysis_config` that was no object over keys that people added since."""
    added = projects.added_to_config(conn, conversion.conversion_id)
    if added:
        raise RollbackRefusedError(
            f"project {conversion.project_id}: its former analysis_config was not an object, and these keys were added "
            f"or changed since, which would be lost: {', '.join(added)}",
            tuple(f"analysis_config.{key}" for key in added),
        )


def _former(row: Session, change: Mapping[str, Any] | None) -> dict[str, Any]:
    """The session's values with everything the conversion wrote taken back."""
    values = row.values()
    if change is None:
        return values
    before, after = change["before"], change["after"]
    return {
        column: before[column] if values[column] == after[column] else values[column] for column in COLUMNS
    }


def _led_back(values: dict[str, Any], trees: frozenset[str], conversion: Conversion) -> dict[str, Any]:
    """The same values with a path into the dataset's tree turned into the one of the legacy tree."""
    tree, _, raw_name = (values["parent_session_data_path"] or "").rpartition("/")
    if tree not in trees:
        return values
    return values | {
        "parent_session_data_path": f"{conversion.legacy_path.rstrip('/')}/{raw_name}",
        "raw_session_name": None,
        "dataset_id": None,
    }


def _trees(conversion: Conversion, dataset_path: str | None) -> frozenset[str]:
    """Where the dataset's tree is now, and where it was when the project was converted."""
    then = {
        change["after"]["parent_session_data_path"].rpartition("/")[0]
        for change in conversion.before["sessions"]
    }
    return frozenset(then | ({dataset_path} if dataset_path is not None else set()))
