"""What a migration makes of rows, said once more in plain Python from the label contract, 6.1. Knows no code
of ours.

Rows are those of `tests.estate.dump`: a dict a row, JSON and times as their exact text.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd

Row = dict[str, Any]

POINTERS = (
    "parent_session_data_path",
    "raw_session_name",
    "dataset_id",
    "data_start_offset",
    "data_end_offset",
    "split_config_id",
)
"""The columns of sessions that a migration may change; all others are what people made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What a project's directory holds: its immediate subdirectories, and the records of each one's recording
    (None: none).
    """

    names: frozenset[str]
    records: Mapping[str, int | None]

    @staticmethod
    def of(path: str) -> "Tree":
        """Look with other eyes than the migrator's: links followed, records counted by pandas alone."""
        names = frozenset(entry.name for entry in os.scandir(path) if entry.is_dir())
        return Tree(names=names, records={name: _records(Path(path, name)) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """Rows as a migration leaves them. `segments` are those of each raw session that has virtual children."""

    project: Row
    sessions: list[Row]
    untouched: set[int]
    segments: dict[str, list[Row]] = field(default_factory=dict)


def migrated(
    project: Row,
    sessions: Sequence[Row],
    tree: Tree,
    dataset: Row,
    *,
    written: Mapping[str, Any],
    config_ids: Mapping[str, int],
) -> Migrated:
    """Rows of a legacy project after its migration. `written` are the keys that go into analysis_config,
    `config_ids` the ids that the split configs got, by raw session.
    """
    result = Migrated(
        project=project
        | {
            "path": None,
            "legacy_path": project["path"],
            "project_type": "dataset_based",
            "analysis_config": merged(project["analysis_config"], written),
        },
        sessions=[],
        untouched=set(),
    )
    for row in sessions:
        parent = row["parent_session_data_path"]
        raw = own_directory(parent, project["path"]) if parent else row["session_name"]
        if raw is None or raw not in tree.names:
            result.untouched.add(row["session_id"])
            result.sessions.append(row)
            continue
        moved = row | {
            "parent_session_data_path": f"{dataset['file_path']}/{raw}",
            "raw_session_name": raw,
            "dataset_id": dataset["dataset_id"],
        }
        if parent:
            moved["split_config_id"] = config_ids[raw]
            segment = {
                "session_name": row["session_name"],
                "start": row["data_start_offset"],
                "end": row["data_end_offset"],
            }
            result.segments.setdefault(raw, []).append(segment)
        elif tree.records.get(raw):
            moved |= {"data_start_offset": 0, "data_end_offset": tree.records[raw]}
        result.sessions.append(moved)
    return result


def own_directory(parent: str, project_path: str) -> str | None:
    """The one component by which an absolute path goes below the project's; None when it is anything else."""
    inside, prefix = _parts(parent), _parts(project_path)
    if not parent.startswith("/") or inside[: len(prefix)] != prefix:
        return None
    rest = _parts(os.path.normpath("/".join(inside[len(prefix) :])))
    return rest[0] if len(rest) == 1 and rest[0] != ".." else None


def merged(former: str | None, written: Mapping[str, Any]) -> Any:
    """The value of analysis_config with the migration's keys: an object keeps its own, anything else is
    replaced.
    """
    value = parsed(former)
    return (value if isinstance(value, dict) else {}) | parsed(json.dumps(written))


def parsed(text: str | None) -> Any:
    """JSON with every digit of its numbers; None for SQL's NULL and for JSON's."""
    return None if text is None else json.loads(text, parse_float=Decimal)


def by_key(rows: Iterable[Row], key: str) -> dict[Any, Row]:
    """Rows by one of their columns, which no two have in common."""
    return {row[key]: row for row in rows}


def grouped(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    """Rows by one of their columns, in their order."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]


def _records(directory: Path) -> int | None:
    try:
        return len(pd.read_csv(directory / "accelerometer_data.csv")) or None
    except (ValueError, OSError):
        return None
