"""What each session of a converted project becomes again, and writing that. Opens no transaction, reads no
file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from worker.db import datasets, sessions
from worker.db.projects import Conversion
from worker.db.sessions import COLUMNS, Session
from worker.messages import Warning_

_PLACE = ("parent_session_data_path", "data_start_offset", "data_end_offset")
"""Which rows of which file: these columns mean something only together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What a rollback writes to a project's sessions, and what it could not bring back."""

    changes: tuple[dict[str, Any], ...]
    warnings: tuple[Warning_, ...] = ()


def plan_return(conversion: Conversion, dataset_path: str | None, rows: Sequence[Session]) -> Return:
    """Decide for every session of a converted project where its rows will be read from again. Pure.

    A session that is where the conversion put it goes back to where it was. One that people led elsewhere
    since, cut otherwise or renamed, and one that they made since, keeps what they wrote; if that leads into
    the dataset's tree, it is led to the same directory of the legacy tree, with its offsets, because the
    files there are the same.
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
    """The plan without ids that the foreign keys do not let back in, because what they refer to is not there
    (any more).

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


def put_sessions_back(
    conn: Connection, conversion: Conversion, dataset_path: str | None, rows: Sequence[Session]
) -> Return:
    """Write what `plan_return` decides, and remove the split configs and the reference that the conversion
    made.

    The caller has locked the project's row and these sessions.
    """
    plan = without_references_to_nothing(conn, plan_return(conversion, dataset_path, rows), rows)
    sessions.write(conn, plan.changes)
    sessions.drop_split_configs(conn, conversion.before["split_config_ids"])
    datasets.drop_reference(conn, conversion.before["ref_id"])
    return plan


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
    """Do its rows still come from where the conversion said, and would they come from where they came from
    before?
    """
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
