"""Rows that say when a blob's bytes were last seen to be right. Opens no transaction."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime

from sqlalchemy import Connection

from worker.db.engine import sql

UNSIGNED = 1 << 64


def fresh(
    conn: Connection, digests: Iterable[str], *, max_age_days: float, or_since: datetime
) -> dict[str, tuple[int, int]]:
    """Inode and time of change of those blobs that were checked within `max_age_days`, or since
    `or_since`.
    """
    rows = conn.execute(
        sql("""
            select digest, inode, mtime_ns from migration_blob_checks
            where digest = any(:digests)
              and (checked_at > clock_timestamp() - make_interval(secs => :age_s) or checked_at >= :since)"""),
        {"digests": sorted(set(digests)), "age_s": max_age_days * 86_400, "since": or_since},
    )
    return {row.digest: (row.inode % UNSIGNED, row.mtime_ns) for row in rows}


def record(conn: Connection, seen: Mapping[str, tuple[int, int]]) -> None:
    """These blobs are right now what their digests say. In the order of digests, so that two jobs cannot wait
    for each other; and without waiting for the disk: what a crash takes is checked again.
    """
    if not seen:
        return
    rows = [
        {"digest": digest, "inode": signed(inode), "mtime_ns": signed(mtime)}
        for digest, (inode, mtime) in sorted(seen.items())
    ]
    conn.execute(
        sql("""
            set local synchronous_commit = off;
            insert into migration_blob_checks (digest, inode, mtime_ns)
            select digest, inode, mtime_ns
            from jsonb_to_recordset(cast(:rows as jsonb)) as r(digest text, inode bigint, mtime_ns bigint)
            order by digest
            on conflict (digest) do update
            set inode = excluded.inode, mtime_ns = excluded.mtime_ns, checked_at = excluded.checked_at"""),
        {"rows": json.dumps(rows)},
    )


def signed(number: int) -> int:
    """The same 64 bits as a bigint: inodes may be numbered from 2^63 on, and times be past 2262."""
    return (number + UNSIGNED // 2) % UNSIGNED - UNSIGNED // 2
