"""Rows, trees and readings as values that can be compared before and after. Changes nothing."""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import Connection, text

from worker.errors import SessionUnreadableError
from worker.sessions_csv import Reader, SessionRow, read

LABEL_TABLES = ("participants", "projects", "sessions", "session_lineage", "models")
CONVERTED_TABLES = (
    *LABEL_TABLES,
    "raw_datasets",
    "raw_dataset_sessions",
    "project_dataset_refs",
    "project_split_configs",
    "project_conversions",
)
"""All that a conversion or its rollback may write but the ledger's rows of runs and jobs."""
"""The tables that are Label's own and hold what people did."""

_AS_TEXT = {"json", "jsonb", "timestamp with time zone", "timestamp without time zone"}

Reading = pd.DataFrame | None
"""What a reader gets of a session; None: nothing, it is unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a tree. `content` is a file's SHA-256, a link's target, or empty; directories have size
    0.
    """

    kind: str
    mode: int
    mtime_ns: int
    links: int
    size_bytes: int
    content: bytes


def dump(conn: Connection, tables: Sequence[str] = LABEL_TABLES) -> dict[str, list[dict[str, Any]]]:
    """Every column of every row, ordered by key. JSON and timestamps are their exact text."""
    return {table: _dump_table(conn, table) for table in tables}


def _dump_table(conn: Connection, table: str) -> list[dict[str, Any]]:
    columns = conn.execute(
        text(
            "select attname as column_name, format_type(atttypid, null) from pg_attribute"
            " where attrelid = cast(:table as regclass) and attnum > 0 and not attisdropped order by attnum"
        ),
        {"table": table},
    ).all()
    selected = ", ".join(f"{name}::text as {name}" if kind in _AS_TEXT else name for name, kind in columns)
    rows = conn.execute(text(f"select {selected} from {table} order by {columns[0].column_name}"))
    return [dict(row) for row in rows.mappings()]


def snapshot_tree(path: Path | bytes) -> dict[bytes, Entry]:
    """Every entry at and below `path` by its relative name in bytes (`.` is `path` itself); links are not
    followed.
    """
    root = os.fsencode(path)
    entries = {b".": _entry(root)}
    pending = [b""]
    while pending:
        folder = pending.pop()
        for name in sorted(os.listdir(os.path.join(root, folder))):
            relative = os.path.join(folder, name)
            entries[relative] = _entry(os.path.join(root, relative))
            if entries[relative].kind == "directory":
                pending.append(relative)
    return entries


def _entry(path: bytes) -> Entry:
    status = os.lstat(path)
    kind, content, size = "special", b"", status.st_size
    if stat.S_ISDIR(status.st_mode):
        kind, size = "directory", 0
    elif stat.S_ISLNK(status.st_mode):
        kind, content = "link", os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        kind = "file"
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        links=status.st_nlink,
        size_bytes=size,
        content=content,
    )


def session_row(conn: Connection, session_id: int) -> SessionRow:
    """What Label knows of a session when it looks for its rows."""
    return _session_rows(conn, "where session_id = :session_id", {"session_id": session_id})[0]


def _session_rows(conn: Connection, condition: str, values: Mapping[str, Any]) -> list[SessionRow]:
    rows = conn.execute(
        text(
            "select s.session_id, s.session_name, p.path as project_path, s.parent_session_data_path,"
            " s.data_start_offset, s.data_end_offset, s.start_ns, s.stop_ns, s.dataset_id, s.raw_session_name,"
            " d.file_path as dataset_file_path"
            " from sessions s join projects p using (project_id) left join raw_datasets d using (dataset_id)"
            f" {condition} order by s.session_id"
        ),
        values,
    )
    return [SessionRow(**row) for row in rows.mappings()]


def readings(
    conn: Connection, data_dir: Path, *, project_id: int | None = None
) -> dict[tuple[int, Reader], Reading]:
    """What each reader of Label gets for each session that there is, or that one project has."""
    condition = "" if project_id is None else "where s.project_id = :project_id"
    return {
        (row.session_id, reader): _reading(row, reader, data_dir)
        for row in _session_rows(conn, condition, {"project_id": project_id})
        for reader in Reader
    }


def _reading(row: SessionRow, reader: Reader, data_dir: Path) -> Reading:
    try:
        return read(row, reader, data_dir)
    except SessionUnreadableError:
        return None


def differences(
    before: Mapping[tuple[int, Reader], Reading], after: Mapping[tuple[int, Reader], Reading]
) -> list[str]:
    """One line for each session and reader whose rows are not what they were."""
    return [
        f"session {session_id}, {reader}: {_rows(old)} before, {_rows(after.get((session_id, reader)))} after"
        for (session_id, reader), old in before.items()
        if not _is_same(old, after.get((session_id, reader)))
    ]


def _is_same(one: Reading, other: Reading) -> bool:
    if one is None or other is None:
        return one is other
    return one.equals(other)


def _rows(reading: Reading) -> str:
    return "unreadable" if reading is None else f"{len(reading)} rows"
