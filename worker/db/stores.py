"""The row that names the one store of this database. Opens no transaction and knows no file."""

from dataclasses import dataclass

from sqlalchemy import Connection

from worker.db.engine import sql
from worker.db.retry import GIVE_WAY

_NAMING = 0x6C61_6265_6C00_0001
"""The key of the advisory lock under which a store is named: a number that nothing else here uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What the row says: a store's id, or None where the operator wants the next migration to name one; and
    by which algorithm its digests are made, if that was noted.
    """

    store_id: str | None
    digest: str | None


def named(conn: Connection) -> Named | None:
    """The store that this database names; None in a database that never named one."""
    row = conn.execute(sql("select store_id::text as store_id, digest from migration_store")).one_or_none()
    return Named(store_id=row.store_id, digest=row.digest) if row is not None else None


def lock_naming(conn: Connection) -> None:
    """Let one at a time find or make the store that is to be named, until the transaction ends. Gives way."""
    conn.execute(sql(f"{GIVE_WAY} select pg_advisory_xact_lock(:key)"), {"key": _NAMING})


def name(conn: Connection, store_id: str, digest: str) -> None:
    """From now on this database's store is that one."""
    conn.execute(
        sql("""
            insert into migration_store (store_id, digest) values (cast(:id as uuid), :digest)
            on conflict (only_row) do update
            set store_id = excluded.store_id, digest = excluded.digest, named_at = excluded.named_at"""),
        {"id": store_id, "digest": digest},
    )


def stored_lately(conn: Connection, limit: int) -> list[str]:
    """The digests of datasets that projects refer to, the latest first: what the store must hold."""
    rows = conn.execute(
        sql("select dataset_hash from project_conversions order by conversion_id desc limit :limit"),
        {"limit": limit},
    )
    return [row.dataset_hash for row in rows]
