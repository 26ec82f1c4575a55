"""Rows of directories that were moved away, and what else has a right to them. Opens no transaction."""

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql

State = Literal["moving", "reclaimed", "undoing", "undone", "purging", "purged"]

ACTIVE: tuple[State, ...] = ("moving", "reclaimed", "undoing")
"""While its row is in one of these states, a project's directory is away, or may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """A legacy directory that a reclaim moved away, alone or with one around it (`carried_by_project_id`)."""

    reclaim_id: int
    conversion_id: int
    project_id: int
    run_id: uuid.UUID
    legacy_path: str
    moved_from: str
    moved_to: str
    carried_by_project_id: int | None
    state: State
    files: int
    size_bytes: int
    reclaimed_at: datetime | None
    tree_attributes: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A migrated project whose directory may be at, in or around another one's."""

    conversion_id: int
    project_id: int
    legacy_path: str
    state: State | None
    moved_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReclaim:
    """A row before the directory is renamed."""

    conversion_id: int
    project_id: int
    legacy_path: str
    carried_by_project_id: int | None
    files: int
    size_bytes: int
    tree_attributes: bytes | None


_SELECT = """
    select reclaim_id, conversion_id, project_id, run_id, legacy_path, moved_from, moved_to, carried_by_project_id,
           state, files, bytes as size_bytes, reclaimed_at, tree_attributes
    from migration_reclaims r"""


def of_project(conn: Connection, project_id: int) -> list[Reclaim]:
    """What is away of a project, or is being removed, or was: the latest first. Not what was moved back."""
    rows = conn.execute(
        sql(f"{_SELECT} where project_id = :id and state <> 'undone' order by reclaim_id desc"),
        {"id": project_id},
    )
    return [_reclaim(row) for row in rows]


def of_conversion(conn: Connection, conversion_id: int) -> Reclaim | None:
    """What became of the directory of one conversion, if a reclaim moved it and it was not moved back."""
    row = conn.execute(
        sql(f"{_SELECT} where conversion_id = :id and state <> 'undone'"),
        {"id": conversion_id},
    ).one_or_none()
    return _reclaim(row) if row is not None else None


def last_move(conn: Connection, conversion_id: int) -> tuple[int, State] | None:
    """The latest row of a conversion's directory, and its state: another one when it was moved meanwhile."""
    row = conn.execute(
        sql("""
            select reclaim_id, state from migration_reclaims
            where conversion_id = :id order by reclaim_id desc limit 1"""),
        {"id": conversion_id},
    ).one_or_none()
    return (row.reclaim_id, row.state) if row is not None else None


def at(conn: Connection, moved_to: str) -> list[Reclaim]:
    """All projects whose directories were moved to one place together, by id; not those moved back."""
    rows = conn.execute(
        sql(f"{_SELECT} where moved_to = :moved_to and state <> 'undone' order by project_id"),
        {"moved_to": moved_to},
    )
    return [_reclaim(row) for row in rows]


def in_states(conn: Connection, states: Collection[State], before_days: float | None = None) -> list[Reclaim]:
    """All that are in one of these states; with `before_days`, reclaimed at least so many days ago, or being
    purged already.
    """
    rows = conn.execute(
        sql(f"""{_SELECT}
            where state = any(:states)
              and (cast(:days as float8) is null or state = 'purging'
                   or reclaimed_at <= clock_timestamp() - make_interval(secs => :days * 86400))
            order by project_id"""),
        {"states": list(states), "days": before_days},
    )
    return [_reclaim(row) for row in rows]


def undone_by(conn: Connection, project_id: int, run_id: uuid.UUID) -> Reclaim | None:
    """What this run has moved back of a project, if it has."""
    row = conn.execute(
        sql(f"""{_SELECT}
            where project_id = :id and state = 'undone' and ended_by_run_id = :run_id
            order by reclaim_id desc limit 1"""),
        {"id": project_id, "run_id": run_id},
    ).one_or_none()
    return _reclaim(row) if row is not None else None


def ended_by(conn: Connection, reclaim_id: int) -> uuid.UUID | None:
    """Which run moved the directory back, or removed it."""
    return conn.execute(
        sql("select ended_by_run_id from migration_reclaims where reclaim_id = :id"), {"id": reclaim_id}
    ).scalar_one_or_none()


def bytes_by_state(conn: Connection) -> dict[str, int]:
    """Allocated bytes of the directories that are moved away, and of those that were removed."""
    row = conn.execute(
        sql("""
            select coalesce(sum(bytes) filter (where state = 'reclaimed'), 0)::bigint as reclaimed,
                   coalesce(sum(bytes) filter (where state = 'purged'), 0)::bigint as purged
            from migration_reclaims""")
    ).one()
    return {"reclaimed": row.reclaimed, "purged": row.purged}


def begin(
    conn: Connection, run_id: uuid.UUID, moved_from: str, moved_to: str, moved: Iterable[NewReclaim]
) -> list[int]:
    """Write that a directory is about to be renamed, for each project that it is of; the rows' ids."""
    return [
        conn.execute(
            sql("""
                insert into migration_reclaims (conversion_id, project_id, run_id, legacy_path, moved_from, moved_to,
                                                carried_by_project_id, state, files, bytes, tree_attributes)
                values (:conversion_id, :project_id, :run_id, :legacy_path, :moved_from, :moved_to, :carried_by, 'moving',
                        :files, :bytes, :attributes)
                returning reclaim_id"""),
            {
                "conversion_id": one.conversion_id,
                "project_id": one.project_id,
                "run_id": run_id,
                "legacy_path": one.legacy_path,
                "moved_from": moved_from,
                "moved_to": moved_to,
                "carried_by": one.carried_by_project_id,
                "files": one.files,
                "bytes": one.size_bytes,
                "attributes": one.tree_attributes,
            },
        ).scalar_one()
        for one in moved
    ]


def lock(conn: Connection, reclaim_ids: Sequence[int], state: State) -> bool:
    """Lock these rows until the transaction ends; are all of them still in this state?"""
    rows = conn.execute(
        sql("""
            select state from migration_reclaims where reclaim_id = any(:ids) order by reclaim_id for update"""),
        {"ids": list(reclaim_ids)},
    ).all()
    return len(rows) == len(set(reclaim_ids)) and all(row.state == state for row in rows)


def set_state(conn: Connection, reclaim_ids: Sequence[int], state: State, run_id: uuid.UUID) -> None:
    """Where the directory of these rows is from now on, and which run saw to it."""
    conn.execute(
        sql("""
            update migration_reclaims
            set state = cast(:state as text),
                reclaimed_at = case when :state = 'reclaimed' then coalesce(reclaimed_at, clock_timestamp()) else reclaimed_at end,
                ended_at = case when :state in ('undone', 'purged') then clock_timestamp() else ended_at end,
                ended_by_run_id = case when :state in ('undone', 'purged') then cast(:run_id as uuid) else ended_by_run_id end
            where reclaim_id = any(:ids)"""),
        {"ids": list(reclaim_ids), "state": state, "run_id": run_id},
    )


def blocks_rollback(conn: Connection, conversion_id: int, *, purged_seen: bool) -> bool:
    """Is, or may, the directory of this conversion be away, other than a rollback has seen? Asked in its last
    transaction.
    """
    state = conn.execute(
        sql("""
            select state from migration_reclaims where conversion_id = :id and state <> 'undone' for update"""),
        {"id": conversion_id},
    ).scalar_one_or_none()
    return state is not None and not (purged_seen and state in {"purging", "purged"})


# Who else has a right to a directory ------------------------------------------------------------------------


def neighbours(conn: Connection) -> list[Neighbour]:
    """Every project with an active conversion, and whether its directory was moved away."""
    rows = conn.execute(
        sql("""
            select c.conversion_id, c.project_id, c.legacy_path, r.state, r.moved_to
            from project_conversions c
            left join migration_reclaims r on r.conversion_id = c.conversion_id and r.state <> 'undone'
            where c.rolled_back_at is null order by c.project_id""")
    )
    return [Neighbour(**row) for row in rows.mappings()]


def projects_of_run(conn: Connection, run_id: uuid.UUID) -> frozenset[int]:
    """The projects that a run has jobs for."""
    rows = conn.execute(
        sql("select subject_id from migration_jobs where run_id = :run_id and subject = 'project'"),
        {"run_id": run_id},
    )
    return frozenset(row.subject_id for row in rows)


def legacy_places(conn: Connection) -> list[tuple[int, str]]:
    """Id and path of every legacy project that has a path."""
    rows = conn.execute(
        sql("""
            select project_id, path from projects
            where (project_type is null or project_type = 'legacy') and path <> '' order by project_id""")
    )
    return [(row.project_id, row.path) for row in rows]


def unjudged_session(conn: Connection, project_id: int, tree: str) -> str | None:
    """A session of a migrated project that reads from elsewhere than its dataset's tree, of this name, if
    there is one: its conversion left it alone, or people pointed it there.
    """
    return conn.execute(
        sql("""
            select session_name from sessions
            where project_id = :id and parent_session_data_path <> ''
              and strpos(parent_session_data_path || '/', '/' || :tree || '/') = 0
            order by session_id limit 1"""),
        {"id": project_id, "tree": tree},
    ).scalar_one_or_none()


def session_paths(conn: Connection) -> list[Row[Any]]:
    """Where sessions read from: `project_id`, `session_name`, `path`. Not those that read from the tree of a
    dataset that this program made: there are no links in it.
    """
    return list(
        conn.execute(
            sql("""
                select s.project_id, s.session_name,
                       coalesce(nullif(s.parent_session_data_path, ''), p.path || '/' || s.session_name) as path
                from sessions s left join projects p using (project_id)
                where (s.parent_session_data_path <> '' or p.path <> '')
                  and not exists (
                      select from raw_datasets d join project_conversions c using (dataset_id)
                      where d.dataset_id = s.dataset_id
                        and strpos(s.parent_session_data_path || '/',
                                   '/' || regexp_replace(rtrim(d.file_path, '/'), '^.*/', '') || '/') > 0)
                order by s.session_id""")
        )
    )


def _reclaim(row: Row[Any]) -> Reclaim:
    named = dict(row._mapping)  # noqa: SLF001 - the public name of a row as a mapping
    attributes = named["tree_attributes"]
    return Reclaim(**named | {"tree_attributes": bytes(attributes) if attributes is not None else None})
