"""Rows that remember how many records a recording has, by its content. Opens no transaction."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import Connection

from worker.db.engine import sql


def known(conn: Connection, beginnings: Iterable[tuple[int, str]]) -> frozenset[tuple[int, str]]:
    """Those of these sizes and digests of beginnings that some counted recording has, too: one that has
    neither is certainly a new one. However many recordings of a size there are: the beginning has times.
    """
    wanted = sorted(set(beginnings))
    rows = conn.execute(
        sql("""
            select distinct size_bytes, head from migration_recording_counts
            join unnest(cast(:sizes as bigint[]), cast(:heads as text[])) as wanted (size_bytes, head)
                 using (size_bytes, head)"""),
        {"sizes": [size for size, _ in wanted], "heads": [head for _, head in wanted]},
    )
    return frozenset((row.size_bytes, row.head) for row in rows)


def counts(conn: Connection, digests: Iterable[str]) -> dict[str, int | None]:
    """The records of those of these contents that were counted before."""
    rows = conn.execute(
        sql("select digest, records from migration_recording_counts where digest = any(:digests)"),
        {"digests": sorted(set(digests))},
    )
    return {row.digest: row.records for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A recording whose records were counted: None if pandas cannot read it, or it has none. `head` is the
    digest of its beginning, where that was asked for.
    """

    size_bytes: int
    head: str | None
    records: int | None


def remember(conn: Connection, counted: Mapping[str, Counted]) -> None:
    """Keep size and records by digest; what is known already stays, and gets its beginning if it had none.

    In the order of digests, so that two jobs cannot wait for each other; and without waiting for the disk:
    what a crash takes is counted again.
    """
    if not counted:
        return
    rows = [{"digest": digest} | asdict(one) for digest, one in sorted(counted.items())]
    conn.execute(
        sql("""
            set local synchronous_commit = off;
            insert into migration_recording_counts as known (digest, size_bytes, head, records)
            select digest, size_bytes, head, records
            from jsonb_to_recordset(cast(:rows as jsonb)) as r(digest text, size_bytes bigint, head text, records bigint)
            on conflict (digest) do update set head = excluded.head
            where known.head is null and excluded.head is not null"""),
        {"rows": json.dumps(rows)},
    )
