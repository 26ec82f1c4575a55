"""Which datasets need which blob: a complete index of all manifests, made from them and rebuildable. Opens no
transaction.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from worker.db.engine import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A dataset that needs a blob. `dataset_id` is None for one that has no row (any more)."""

    dataset_hash: str
    dataset_id: int | None
    file_path: str | None


def not_indexed(conn: Connection, hashes: Iterable[str]) -> frozenset[str]:
    """Those of these datasets whose blobs are not in the index, or not all of them."""
    rows = conn.execute(
        sql("""
            select wanted.hash from unnest(cast(:hashes as text[])) as wanted(hash)
            where not exists (select from migration_indexed_datasets i where i.dataset_hash = wanted.hash)"""),
        {"hashes": sorted(set(hashes))},
    )
    return frozenset(row.hash for row in rows)


_ADD = """
    insert into migration_dataset_blobs (dataset_hash, digest, size_bytes)
    select :dataset_hash, r.digest, r.size_bytes
    from jsonb_to_recordset(cast(:rows as jsonb)) as r(digest text, size_bytes bigint)
    order by r.digest
    on conflict do nothing"""
_MARK_INDEXED = """
    insert into migration_indexed_datasets (dataset_hash) values (:dataset_hash)
    on conflict do nothing"""


def add(conn: Connection, dataset_hash: str, sizes: Mapping[str, int]) -> None:
    """The dataset needs these blobs, of which it may have said so before: a portion of its manifest."""
    conn.execute(sql(_ADD), {"dataset_hash": dataset_hash, "rows": _as_rows(sizes)})


def add_all(conn: Connection, dataset_hash: str, sizes: Mapping[str, int]) -> None:
    """The dataset needs these blobs and no others: all of its manifest, in one text."""
    conn.execute(sql(f"{_ADD}; {_MARK_INDEXED}"), {"dataset_hash": dataset_hash, "rows": _as_rows(sizes)})


def _as_rows(sizes: Mapping[str, int]) -> str:
    return json.dumps([{"digest": digest, "size_bytes": size} for digest, size in sorted(sizes.items())])


def mark_indexed(conn: Connection, dataset_hash: str) -> None:
    """Every blob of the dataset is in the index now."""
    conn.execute(sql(_MARK_INDEXED), {"dataset_hash": dataset_hash})


def sizes(conn: Connection, dataset_hash: str) -> dict[str, int]:
    """The blobs of a dataset as the index has them, with their sizes: for one whose manifest is damaged."""
    rows = conn.execute(
        sql("select digest, size_bytes from migration_dataset_blobs where dataset_hash = :hash"),
        {"hash": dataset_hash},
    )
    return {row.digest: row.size_bytes for row in rows}


def users(conn: Connection, digests: Iterable[str]) -> dict[str, list[User]]:
    """The datasets that need each of these blobs, in the order of their ids."""
    rows = conn.execute(
        sql("""
            select b.digest, b.dataset_hash, d.dataset_id, d.file_path
            from migration_dataset_blobs b left join raw_datasets d using (dataset_hash)
            where b.digest = any(:digests)
            order by b.digest, d.dataset_id, b.dataset_hash"""),
        {"digests": sorted(set(digests))},
    )
    found: dict[str, list[User]] = {}
    for row in rows:
        found.setdefault(row.digest, []).append(
            User(dataset_hash=row.dataset_hash, dataset_id=row.dataset_id, file_path=row.file_path)
        )
    return found


def mark_whole(conn: Connection, dataset_hash: str) -> None:
    """The dataset's manifest and the entries of its tree were just found as they should be."""
    conn.execute(
        sql("""
            update migration_indexed_datasets set checked_at = clock_timestamp()
            where dataset_hash = :hash"""),
        {"hash": dataset_hash},
    )


def of_sizes(conn: Connection, sizes: Iterable[int]) -> dict[int, list[str]]:
    """The digests of what datasets need, by size, of these sizes."""
    rows = conn.execute(
        sql("""
            select size_bytes, array_agg(distinct digest) as digests from migration_dataset_blobs
            where size_bytes = any(:sizes) group by size_bytes"""),
        {"sizes": sorted(set(sizes))},
    )
    return {row.size_bytes: row.digests for row in rows}
