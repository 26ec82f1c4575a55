"""Moving rows back: what each session of a converted project becomes again, and the one transaction that makes it so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from worker.db import datasets, leases, projects, sessions
from worker.db.engine import when_free
from worker.db.projects import Conversion, Project
from worker.db.sessions import COLUMNS, Session
from worker.errors import NothingToDoError, ProjectChangedError, RollbackRefusedError
from worker.messages import Outcome, Warning_

_PLACE = ("parent_session_data_path", "data_start_offset", "data_end_offset")
"""Which rows of which file: these columns mean something only together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What a rollback writes to a project's sessions, and what it could not bring back."""

    changes: tuple[dict[str, Any], ...]
    warnings: tuple[Warning_, ...] = ()


def plan_return(conversion: Conversion, dataset_path: str | None, rows: Sequence[Session]) -> Return:
    """Decide for every session of a converted project where its rows will be read from again. Pure.

    A session that is where the conversion put it goes back to where it was. One that people led elsewhere since, cut
    otherwise or renamed, and one that they made since, keeps what they wrote; if that leads into the dataset's tree, it is
    led to the same directory of the legacy tree, with its offsets, because the files there are the same.
    """
    recorded = {change["session_id"]: change for change in conversion.before["sessions"]}
    left_alone = {one["session_id"]: one["before"] for one in conversion.before.get("left_alone", ())}
    trees = _trees(conversion, dataset_path)
    changes: list[dict[str, Any]] = []
    for row in rows:
        if left_alone.get(row.session_id) == row.values():
            continue
        values = _values_after(row, recorded.get(row.session_id), trees, conversion)
        if values != row.values():
            changes.append({"session_id": row.session_id, **values})
    return Return(changes=tuple(changes))


def without_references_to_nothing(conn: Connection, plan: Return, rows: Sequence[Session]) -> Return:
    """The plan without ids that the foreign keys do not let back in, because what they refer to is not there (any more).

    Such an id was legal before the keys came, and no reader of Label tells it from an empty column.
    """
    found = sessions.references_to_nothing(conn, plan.changes)
    if not found:
        return plan
    names = {row.session_id: row.session_name for row in rows}
    changes = {change["session_id"]: dict(change) for change in plan.changes}
    warnings = []
    for session_id, column, value in found:
        changes[session_id][column] = None
        message = (
            f"session {names[session_id]}: its former {column} {value} refers to nothing; it stays empty"
        )
        warnings.append(Warning_(session=names[session_id], message=message))
    return Return(changes=tuple(changes.values()), warnings=(*plan.warnings, *warnings))


def revert(engine: Engine, lease: leases.Lease, conversion: Conversion, outcome: Outcome) -> Outcome:
    """Take the project's conversion back and end the job, in one transaction.

    Locks, in the same order as the conversion and giving way like it: the dataset's row, the project's row, its
    sessions. The dataset and its files stay: others may refer to them. Raises `NothingToDoError` when the project is gone
    or back already, `ProjectChangedError` or `RollbackRefusedError` when an edit since would be lost. A crash anywhere
    leaves the project migrated.
    """
    return when_free(lambda: _revert(engine, lease, conversion, outcome))


def _revert(engine: Engine, lease: leases.Lease, conversion: Conversion, outcome: Outcome) -> Outcome:
    with engine.begin() as conn:
        dataset = datasets.lock(conn, conversion.dataset_hash)
        projects.give_way(conn)
        check_still_converted(projects.lock(conn, lease.ref.project_id), conversion, conn)
        check_config(conn, conversion)
        rows = sessions.lock_of_project(conn, conversion.project_id)
        plan = plan_return(conversion, dataset.file_path if dataset is not None else None, rows)
        plan = without_references_to_nothing(conn, plan, rows)
        sessions.write(conn, plan.changes)
        sessions.drop_split_configs(conn, conversion.before["split_config_ids"])
        datasets.drop_reference(conn, conversion.before["ref_id"])
        projects.restore(conn, conversion.conversion_id)
        projects.end_conversion(conn, conversion.conversion_id, lease.ref.run_id)
        reverted = outcome.with_changes(sessions_count=len(rows), warnings=plan.warnings)
        leases.end_job(conn, lease, reverted)
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


def _values_after(
    row: Session, change: Mapping[str, Any] | None, trees: frozenset[str], conversion: Conversion
) -> dict[str, Any]:
    """The session's values once the conversion is taken back."""
    values = row.values()
    if change is None:
        led = _led_back(values, trees, conversion)
        return led if led == values else led | {"raw_session_name": None, "dataset_id": None}
    before, after = change["before"], change["after"]
    former = {
        column: before[column] if values[column] == after[column] else values[column] for column in COLUMNS
    }
    if _is_where_it_was_put(row, change, trees):
        return former | {column: before[column] for column in _PLACE}
    return _led_back(former | {column: values[column] for column in _PLACE}, trees, conversion)


def _is_where_it_was_put(row: Session, change: Mapping[str, Any], trees: frozenset[str]) -> bool:
    """Do its rows still come from where the conversion said, and would they come from where they came from before?"""
    before, after = change["before"], change["after"]
    tree, _, raw_name = (row.parent_session_data_path or "").rpartition("/")
    if tree not in trees or raw_name != after["raw_session_name"]:
        return False
    if (row.data_start_offset, row.data_end_offset) != (after["data_start_offset"], after["data_end_offset"]):
        return False
    # Without a parent path the directory is found by the session's name, which people may have changed.
    return bool(before["parent_session_data_path"]) or row.session_name == raw_name


def _led_back(values: dict[str, Any], trees: frozenset[str], conversion: Conversion) -> dict[str, Any]:
    """The same values with a path into the dataset's tree turned into the one of the legacy tree."""
    tree, _, raw_name = (values["parent_session_data_path"] or "").rpartition("/")
    if tree not in trees:
        return values
    return values | {"parent_session_data_path": f"{conversion.legacy_path.rstrip('/')}/{raw_name}"}


def _trees(conversion: Conversion, dataset_path: str | None) -> frozenset[str]:
    """Where the dataset's tree is now, and where it was when the project was converted."""
    then = {
        change["after"]["parent_session_data_path"].rpartition("/")[0]
        for change in conversion.before["sessions"]
    }
    return frozenset(then | ({dataset_path} if dataset_path is not None else set()))
