"""A dataset-based project as a file that Label imports, and this program without loss. Changes no row of
Label's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from producer.projects import label_hashes, project_file
from producer.projects.project_file import EXPORT_TYPE, VERSION
from worker.db import exchange, verifications
from worker.db.exchange import LinkedDataset, WholeProject
from worker.errors import UsageError

_PLACES = ("session_id", "project_id", "parent_session_data_path", "split_config_id")
"""Columns that mean something on one server only; a place is said by dataset and directory instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The file's content, and what cannot travel."""

    document: Mapping[str, Any]
    warnings: Sequence[str]


def export(engine: Engine, project_id: int) -> Exported:
    """Read a project, and Label's hash of each of its datasets, which is computed where it is not remembered.

    Raises `UsageError` for a project that is not there or refers to no dataset, `StoreUnusableError` where
    a tree has to be read that this machine does not have.
    """
    with engine.connect() as conn:
        found = exchange.read(conn, project_id)
        of_label = verifications.registered_by_label(conn)
    if found is None:
        raise UsageError(f"There is no project {project_id}.")
    if found.row.get("project_type") != "dataset_based" or not found.datasets:
        raise UsageError(
            f"Project {project_id} owns its directory and refers to no dataset: migrate it first, "
            f"producer enqueue --project-id {project_id}"
        )
    hashes = {
        one.dataset_id: _label_hash(engine, one, registered_by_label=one.dataset_id in of_label)
        for one in found.datasets
    }
    sessions = [_whole_session(row, found.datasets) for row in found.sessions]
    document = _document(found, hashes, sessions)
    # What would not be imported again is not written.
    project_file.check(json.loads(json.dumps(document)), f"the export of project {project_id}")
    return Exported(document=document, warnings=list(_warnings(found, hashes, sessions)))


def _warnings(
    found: WholeProject, hashes: Mapping[int, str | None], sessions: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for one in found.datasets:
        if hashes[one.dataset_id] is None:
            yield (
                f"dataset {one.dataset_id} ({one.dataset_name}) has a name that is not UTF-8: Label has no hash for it, and "
                f"only this program can import the project"
            )
    for row, whole in zip(found.sessions, sessions, strict=True):
        if row.get("parent_session_data_path") and whole["directory"] is None:
            yield (
                f"session {row['session_name']} reads from no dataset of the project and arrives without a recording: "
                f"{row['parent_session_data_path']}"
            )


def _label_hash(engine: Engine, one: LinkedDataset, *, registered_by_label: bool) -> str | None:
    if one.has_label_hash:
        return one.label_hash
    if registered_by_label:
        return one.dataset_hash
    return label_hashes.of_tree(engine, one.dataset_id, one.dataset_hash, one.file_path)


# The document -----------------------------------------------------------------------------------------------


def _document(
    found: WholeProject, hashes: Mapping[int, str | None], sessions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    row = found.row
    config = _json(row.get("analysis_config"))
    visible = [_label_session(one) for one in found.sessions if one.get("keep") is None or one["keep"]]
    return {
        "export_version": VERSION,
        "export_timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "export_type": EXPORT_TYPE,
        "project": {
            "project_id": row["project_id"],
            "project_name": row["project_name"],
            "project_type": row["project_type"],
            "analysis_config": config if isinstance(config, dict) else {},
            "participant": {
                "participant_id": row.get("participant_id"),
                "participant_code": found.participant_code,
            },
        },
        "datasets": [
            {
                "dataset_id": one.dataset_id,
                "dataset_name": one.dataset_name,
                "dataset_hash": hashes[one.dataset_id],
                "session_count": one.session_count,
                "description": one.description,
                "metadata": _json(one.metadata),
            }
            for one in found.datasets
        ],
        "labelings": list(_shown_labelings(_json(row.get("labelings")))),
        "sessions": visible,
        "session_count": len(visible),
        "total_bouts": sum(len(one["bouts"]) for one in visible),
        "migrator": {
            "version": 1,
            "datasets": [
                {
                    "dataset_id": one.dataset_id,
                    "dataset_hash": one.dataset_hash,
                    "label_hash": hashes[one.dataset_id],
                }
                for one in found.datasets
            ],
            "sessions": list(sessions),
            "lineage": [dict(one) for one in found.lineage],
            "labelings": row.get("labelings"),
        },
    }


def _label_session(row: Mapping[str, Any]) -> dict[str, Any]:
    """As Label writes it."""
    bouts = _json(row.get("bouts"))
    parent = row.get("parent_session_data_path")
    return {
        "session_id": row["session_id"],
        "session_name": row["session_name"],
        "status": row.get("status"),
        "verified": bool(row.get("verified")),
        "start_ns": row["start_ns"],
        "stop_ns": row["stop_ns"],
        "dataset_id": row.get("dataset_id"),
        "raw_session_name": row.get("raw_session_name"),
        "bouts": bouts if isinstance(bouts, list) else [],
        "virtual_split_info": {
            "parent_data_path": parent,
            "data_start_offset": row.get("data_start_offset"),
            "data_end_offset": row.get("data_end_offset"),
            "is_virtual_split": parent is not None,
        },
    }


def _whole_session(row: Mapping[str, Any], datasets: Sequence[LinkedDataset]) -> dict[str, Any]:
    dataset_id, directory = _place(row, datasets)
    return {
        "session_id": row["session_id"],
        "columns": {name: value for name, value in row.items() if name not in _PLACES},
        "dataset_id": dataset_id,
        "directory": directory,
    }


def _place(row: Mapping[str, Any], datasets: Sequence[LinkedDataset]) -> tuple[int | None, str | None]:
    """In which dataset, and which directory of it, a session has its recording."""
    above, _, directory = (row.get("parent_session_data_path") or "").rstrip("/").rpartition("/")
    for one in datasets:
        if directory and above == one.file_path.rstrip("/"):
            return one.dataset_id, directory
    return None, None


def _shown_labelings(labelings: Any) -> Iterator[Any]:
    """Those that people did not hide; an entry may be an object, one in a string, or a name."""
    for one in labelings if isinstance(labelings, list) else ():
        entry = _json(one) if isinstance(one, str) and one.lstrip().startswith("{") else one
        if not (isinstance(entry, dict) and entry.get("is_deleted")):
            yield one


def _json(value: Any) -> Any:
    """A value that may be JSON in a string, as a column of text or an old row has it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
