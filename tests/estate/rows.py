"""Inserting what Label inserts: participants, projects, sessions, splits, models, datasets. Commits nothing.

Every function takes a connection inside the caller's transaction, as from `with engine.begin() as
connection:`. A JSON column takes any Python value; None is SQL's NULL, `JSON_NULL` is the JSON value null, a
`str` becomes a JSON string (so that a dumped list is the double-encoded form), and `RawJson` is text that
goes in as it is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from tests.estate.compare import session_row
from tests.estate.files import Form, Recording, write_recording
from worker.sessions_csv import Reader, read

_MADE_HERE = object()


class RawJson(str):
    """Text that is JSON already and must not be dumped once more."""

    __slots__ = ()


JSON_NULL = RawJson("null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A made project. `path` is the text of its row, `directory` where its files are; either may be
    absent.
    """

    project_id: int
    name: str
    path: str | None
    directory: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A made session with its recording."""

    session_id: int
    name: str
    recording: Recording


def make_participant(conn: Connection, code: str | None = None, **columns: Any) -> int:
    """Insert a participant and return the id; without a code one that counts on (P001, P002)."""
    if code is None:
        number = conn.scalar(text("select coalesce(max(participant_id), 0) + 1 from participants"))
        code = f"P{number:03}"
    return _insert(conn, "participants", "participant_id", {"participant_code": code, **columns})


def make_project(
    conn: Connection,
    root: Path,
    name: str,
    *,
    participant_id: int | None = None,
    directory: str | None = None,
    path: Any = _MADE_HERE,
    **columns: Any,
) -> Project:
    """Insert a legacy project and make its directory below `root`, named as Label names it or as `directory`
    says.

    `path` puts another text (or None) into the row and makes no directory. `columns` are further columns of
    `projects`, such as project_type, analysis_config and labelings.
    """
    made = None
    if path is _MADE_HERE:
        plain = re.sub(r"[/\s]", "_", name)[:60]
        made = root / (directory or f"{plain}_P001_20250701_120000")
        made.mkdir(parents=True)
        path = str(made)
    if participant_id is None:
        participant_id = make_participant(conn)
    values = {"project_name": name, "participant_id": participant_id, "path": path, **columns}
    project_id = _insert(
        conn, "projects", "project_id", values, json_columns=("labelings", "analysis_config")
    )
    return Project(project_id=project_id, name=name, path=path, directory=made)


def make_session(
    conn: Connection,
    project_id: int,
    name: str,
    *,
    recording: Recording | None = None,
    parent_path: Path | str | None = None,
    offsets: tuple[int, int] | None = None,
    **columns: Any,
) -> int:
    """Insert a session and return its id. Its times are those of `recording`, unless `columns` say otherwise.

    `columns` are further columns of `sessions`; a new session of Label has status Initial and no bouts.
    """
    start, end = offsets or (None, None)
    values = {
        "project_id": project_id,
        "session_name": name,
        "status": "Initial",
        "bouts": [],
        "start_ns": recording.start_ns if recording else 0,
        "stop_ns": recording.stop_ns if recording else 1,
        "parent_session_data_path": None if parent_path is None else str(parent_path),
        "data_start_offset": start,
        "data_end_offset": end,
        **columns,
    }
    return _insert(conn, "sessions", "session_id", values, json_columns=("bouts",))


def record_session(
    conn: Connection,
    project: Project,
    name: str,
    *,
    rows: int = 40,
    seed: int = 0,
    form: Form = Form.UPLOADED,
    gaps: Sequence[int] = (),
    gyroscope: bool = False,
    **columns: Any,
) -> Session:
    """Write a session directory into the project's and insert its row."""
    assert project.directory is not None
    recording = write_recording(
        project.directory / name, rows=rows, seed=seed, form=form, gaps=gaps, gyroscope=gyroscope
    )
    session_id = make_session(conn, project.project_id, name, recording=recording, **columns)
    return Session(session_id=session_id, name=name, recording=recording)


def split_on_upload(
    conn: Connection, project: Project, name: str, recording: Recording
) -> tuple[int, list[int]]:
    """Insert the rows that an upload with gaps makes: a hidden parent and one child a segment (label
    contract, section 5).

    Returns the parent's id and the children's.
    """
    assert project.path is not None
    children = [
        make_session(
            conn,
            project.project_id,
            _free_name(conn, project.project_id, name),
            recording=recording,
            parent_path=f"{project.path}/{name}",
            offsets=segment,
        )
        for segment in recording.segments
    ]
    parent = make_session(
        conn, project.project_id, name, recording=recording, status="Split", keep=False, is_visible=False
    )
    for child in children:
        make_lineage(conn, child, parent)
    return parent, children


def split_session(conn: Connection, session_id: int, cuts: Sequence[int], data_dir: Path) -> list[int]:
    """Split a session as a person does in Label, before each of its rows in `cuts`; return the children's
    ids.

    Offsets are absolute in the root file. A session with a parent path but without offsets has children
    without offsets. Children inherit `keep`, the verified flags, and the bouts that begin in them.
    """
    row = session_row(conn, session_id)
    times = read(row, Reader.SPLIT, data_dir)["ns_since_reboot"]
    old = conn.execute(
        text("select project_id, keep, verified, bouts from sessions where session_id = :id"),
        {"id": session_id},
    ).one()
    parent_path = row.parent_session_data_path or f"{row.project_path}/{row.session_name}"
    counts_rows = row.data_start_offset is not None or row.parent_session_data_path is None
    first = row.data_start_offset or 0
    borders = [0, *cuts, len(times)]
    children = []
    for start, end in pairwise(borders):
        start_ns, stop_ns = int(times[start]), int(times[end - 1])
        bouts = [
            bout
            for bout in old.bouts or []
            if isinstance(bout, dict) and start_ns <= bout["start"] <= stop_ns
        ]
        child = make_session(
            conn,
            old.project_id,
            _free_name(conn, old.project_id, row.session_name),
            parent_path=parent_path,
            offsets=(first + start, first + end) if counts_rows else None,
            start_ns=start_ns,
            stop_ns=stop_ns,
            keep=old.keep,
            verified=old.verified,
            bouts=bouts,
        )
        make_lineage(conn, child, session_id)
        children.append(child)
    conn.execute(
        text("update sessions set status = 'Split', keep = false, is_visible = false where session_id = :id"),
        {"id": session_id},
    )
    return children


def make_lineage(conn: Connection, child_id: int, parent_id: int) -> int:
    """Record that one session was cut from another."""
    return _insert(
        conn, "session_lineage", "id", {"child_session_id": child_id, "parent_session_id": parent_id}
    )


def make_model(conn: Connection, name: str, **columns: Any) -> int:
    """Insert a model; the migrator has no business with it."""
    values = {
        "name": name,
        "py_filename": "model.py",
        "pt_filename": "model.pt",
        "class_name": "Model",
        **columns,
    }
    return _insert(conn, "models", "model_id", values, json_columns=("model_settings",))


def make_dataset(conn: Connection, directory: Path, digest: str, *, project_id: int | None = None) -> int:
    """Insert the rows of a dataset whose tree is at `directory`, and the reference of a project to it."""
    sessions = sorted(entry for entry in directory.iterdir() if entry.is_dir())
    dataset_id = _insert(
        conn,
        "raw_datasets",
        "dataset_id",
        {
            "dataset_name": directory.name,
            "dataset_hash": digest,
            "file_path": str(directory),
            "session_count": len(sessions),
        },
    )
    for session in sessions:
        values = {"dataset_id": dataset_id, "session_name": session.name, "session_path": str(session)}
        _insert(conn, "raw_dataset_sessions", "raw_session_id", values)
    if project_id is not None:
        _insert(conn, "project_dataset_refs", "ref_id", {"project_id": project_id, "dataset_id": dataset_id})
    return dataset_id


def _free_name(conn: Connection, project_id: int, name: str) -> str:
    """The name with the smallest suffix that no session of the project has (label contract, section 5)."""
    query = text("select session_name from sessions where project_id = :project_id")
    taken = set(conn.scalars(query, {"project_id": project_id}))
    number = 1
    while f"{name}.{number}" in taken:
        number += 1
    return f"{name}.{number}"


def _insert(
    conn: Connection,
    table: str,
    key: str,
    values: Mapping[str, Any],
    *,
    json_columns: Sequence[str] = (),
) -> int:
    """Insert one row and return its key. Table and column names are ours, values are bound."""
    bound = {name: _json(value) if name in json_columns else value for name, value in values.items()}
    marks = ", ".join(f"cast(:{name} as jsonb)" if name in json_columns else f":{name}" for name in bound)
    statement = f"insert into {table} ({', '.join(bound)}) values ({marks}) returning {key}"
    return int(conn.execute(text(statement), bound).scalar_one())


def _json(value: Any) -> str | None:
    if value is None or isinstance(value, RawJson):
        return value
    return json.dumps(value, ensure_ascii=False)
