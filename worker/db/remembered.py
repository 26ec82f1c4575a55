"""Rows that remember the digests of a project's legacy files: one a project, or some of a large one. Opens no
transaction and knows nothing of what is in them.
"""

from collections.abc import Collection

from sqlalchemy import Connection

from worker.db.engine import sql


def load(conn: Connection, project_id: int, algorithm: str) -> dict[int, bytes]:
    """What was remembered of a project's files by this digest algorithm, by part, oldest first."""
    rows = conn.execute(
        sql("""
            select part, entries from migration_remembered_digests
            where project_id = :project and algorithm = :algorithm order by part"""),
        {"project": project_id, "algorithm": algorithm},
    )
    return {row.part: bytes(row.entries) for row in rows}


def keep(
    conn: Connection,
    project_id: int,
    part: int,
    algorithm: str,
    entries: bytes,
    *,
    instead_of: Collection[int] = (),
) -> None:
    """Keep a part, in the place of one of the same number and of those named.

    Without waiting for the disk: what a crash takes is read again.
    """
    conn.execute(
        sql("""
            set local synchronous_commit = off;
            delete from migration_remembered_digests where project_id = :project and part = any(:others);
            insert into migration_remembered_digests (project_id, part, algorithm, entries)
            values (:project, :part, :algorithm, :entries)
            on conflict (project_id, part) do update
            set algorithm = excluded.algorithm, entries = excluded.entries, written_at = clock_timestamp()"""),
        {
            "project": project_id,
            "part": part,
            "algorithm": algorithm,
            "entries": entries,
            "others": sorted(set(instead_of) - {part}),
        },
    )
