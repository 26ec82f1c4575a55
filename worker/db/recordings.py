"""Rows that remember how many records a recording has, by its content. Opens no transaction."""

import json
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from worker.db.engine import sql


def known_sizes(conn: Connection, sizes: Iterable[int]) -> frozenset[int]:
    """Those of these sizes that some counted recording has: a file of another size is certainly a new one."""
    rows = conn.execute(
        sql("select distinct size_bytes from migration_recording_counts where size_bytes = any(:sizes)"),
        {"sizes": sorted(set(sizes))},
    )
    return frozenset(row.size_bytes for row in rows)


def counts(conn: Connection, digests: Iterable[str]) -> dict[str, int | None]:
    """The records of those of these contents that were counted before."""
    rows = conn.execute(
        sql("select digest, records from migration_recording_counts where digest = any(:digests)"),
        {"digests": sorted(set(digests))},
    )
    return {row.digest: row.records for row in rows}


def remember(conn: Connection, counted: Mapping[str, tuple[int, int | None]]) -> None:
    """Keep size and records by digest; what is known already stays.

    In the order of digests, so that two jobs cannot wait for each other; and without waiting for the disk:
    what a crash takes is counted again.
    """
    if not counted:
        return
    rows = [
        {"digest": digest, "size_bytes": size, "records": records}
        for digest, (size, records) in sorted(counted.items())
    ]
    conn.execute(
        sql("""
            set local synchronous_commit = off;
            insert into migration_recording_counts (digest, size_bytes, records)
            select digest, size_bytes, records
            from jsonb_to_recordset(cast(:rows as jsonb)) as r(digest text, size_bytes bigint, records bigint)
            on conflict (digest) do nothing"""),
        {"rows": json.dumps(rows)},
    )
