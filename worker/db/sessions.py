"""Rows of Label's `sessions` and of `project_split_configs`. Opens no transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from worker.db.engine import sql
from worker.db.projects import Project
from worker.db.texts import as_json

COLUMNS = (
    "parent_session_data_path",
    "raw_session_name",
    "dataset_id",
    "data_start_offset",
    "data_end_offset",
    "split_config_id",
)
"""The columns that say where a session's rows are: all that a conversion may change."""

_OF_A_PROJECT = ("project_id", "project_name", "path", "legacy_path", "project_type")

_OF_PROJECT = """
    select session_id, session_name, parent_session_data_path, raw_session_name, dataset_id, data_start_offset,
           data_end_offset, split_config_id
    from sessions where project_id = :id order by session_id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session's name and where its rows are."""

    session_id: int
    session_name: str
    parent_session_data_path: str | None
    raw_session_name: str | None
    dataset_id: int | None
    data_start_offset: int | None
    data_end_offset: int | None
    split_config_id: int | None

    def values(self) -> dict[str, Any]:
        """The values of `COLUMNS`."""
        return {column: getattr(self, column) for column in COLUMNS}


def of_project(conn: Connection, project_id: int) -> list[Session]:
    """The project's sessions in the order of their ids. Locks nothing and waits for no lock."""
    rows = conn.execute(sql(_OF_PROJECT), {"id": project_id})
    return [Session(**row._mapping) for row in rows]  # noqa: SLF001 - the public name of a row as a mapping


def with_project(conn: Connection, project_id: int) -> tuple[Project | None, list[Session]]:
    """The project and its sessions, in one round trip; None and nothing when it is not there. Locks
    nothing.
    """
    rows = conn.execute(
        sql("""
            select p.project_id, p.project_name, p.path, p.legacy_path, p.project_type, s.session_id, s.session_name,
                   s.parent_session_data_path, s.raw_session_name, s.dataset_id, s.data_start_offset, s.data_end_offset,
                   s.split_config_id
            from projects p left join sessions s using (project_id)
            where p.project_id = :id order by s.session_id"""),
        {"id": project_id},
    ).all()
    if not rows:
        return None, []
    project = Project(**{name: getattr(rows[0], name) for name in _OF_A_PROJECT})
    columns = ("session_id", "session_name", *COLUMNS)
    found = [row for row in rows if row.session_id is not None]
    return project, [Session(**{name: getattr(row, name) for name in columns}) for row in found]


def lock_of_project(conn: Connection, project_id: int) -> list[Session]:
    """The same, locked until the transaction ends. The caller has locked the project's row, so none can
    come.
    """
    rows = conn.execute(sql(f"{_OF_PROJECT} for update"), {"id": project_id})
    return [Session(**row._mapping) for row in rows]  # noqa: SLF001 - as above


def time_ranges(conn: Connection, project_id: int) -> dict[int, tuple[int, int]]:
    """First and last time of each session, in nanoseconds since its watch booted."""
    rows = conn.execute(
        sql("select session_id, start_ns, stop_ns from sessions where project_id = :id"), {"id": project_id}
    )
    return {row.session_id: (row.start_ns, row.stop_ns) for row in rows}


def write(conn: Connection, changes: Sequence[Mapping[str, Any]]) -> None:
    """Set `COLUMNS` of many sessions in one statement; each change holds them all and `session_id`."""
    if not changes:
        return
    # The ids once more: from JSON alone PostgreSQL cannot tell how few they are, and would read the whole
    # table.
    conn.execute(
        sql("""
            update sessions s
            set parent_session_data_path = c.parent_session_data_path, raw_session_name = c.raw_session_name,
                dataset_id = c.dataset_id, data_start_offset = c.data_start_offset, data_end_offset = c.data_end_offset,
                split_config_id = c.split_config_id
            from jsonb_to_recordset(cast(:changes as jsonb)) as c(
                session_id bigint, parent_session_data_path text, raw_session_name text, dataset_id bigint,
                data_start_offset bigint, data_end_offset bigint, split_config_id bigint)
            where s.session_id = c.session_id and s.session_id = any(:ids)"""),
        {"changes": as_json(list(changes)), "ids": [change["session_id"] for change in changes]},
    )


def references_to_nothing(
    conn: Connection, changes: Sequence[Mapping[str, Any]]
) -> list[tuple[int, str, int]]:
    """What `write` could not write because of the foreign keys: session, column, and the id that is not
    there.
    """
    referring = [
        change
        for change in changes
        if change["dataset_id"] is not None or change["split_config_id"] is not None
    ]
    if not referring:
        return []
    rows = conn.execute(
        sql("""
            with c as (
                select * from jsonb_to_recordset(cast(:changes as jsonb)) as c(
                    session_id bigint, dataset_id bigint, split_config_id bigint))
            select c.session_id, 'dataset_id', c.dataset_id from c
            where c.dataset_id is not null
              and not exists (select from raw_datasets d where d.dataset_id = c.dataset_id)
            union all
            select c.session_id, 'split_config_id', c.split_config_id from c
            where c.split_config_id is not null
              and not exists (select from project_split_configs p where p.config_id = c.split_config_id)
            order by 1, 2"""),
        {"changes": as_json(referring)},
    )
    return [(row[0], row[1], row[2]) for row in rows]


def add_split_configs(
    conn: Connection, project_id: int, dataset_id: int, parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    """One row for each raw session that has virtual children; the new ids by raw session name."""
    if not parameters:
        return {}
    rows = [{"name": name, "parameters": value} for name, value in parameters.items()]
    inserted = conn.execute(
        sql("""
            insert into project_split_configs (project_id, dataset_id, raw_session_name, split_strategy, split_parameters)
            select :project_id, :dataset_id, c.name, 'custom', c.parameters
            from jsonb_to_recordset(cast(:rows as jsonb)) as c(name text, parameters jsonb)
            returning config_id, raw_session_name"""),
        {"project_id": project_id, "dataset_id": dataset_id, "rows": as_json(rows)},
    )
    return {row.raw_session_name: row.config_id for row in inserted}


def drop_split_configs(conn: Connection, config_ids: Sequence[int]) -> None:
    """Remove these rows, after every session has let go of them."""
    if not config_ids:
        return
    ids = {"ids": list(config_ids)}
    conn.execute(sql("update sessions set split_config_id = null where split_config_id = any(:ids)"), ids)
    conn.execute(sql("delete from project_split_configs where config_id = any(:ids)"), ids)
