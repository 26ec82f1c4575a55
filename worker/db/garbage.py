"""What nothing refers to: marks, the last check before something goes, and rows that go and come back. Opens
no transaction.

A mark says since when gc has seen nothing refer to a thing. It is written twice: unripe, committed, and only
then with its time (`ripen`). So every job whose lease is younger than a ripe mark sees that mark when it
removes the marks of what it is to use (`unmark`), and every older one is seen to be running (`_NOT_IN_USE`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection

from worker.db import datasets
from worker.db.engine import sql
from worker.db.retry import GIVE_WAY
from worker.db.texts import as_json

Kind = Literal["dataset", "tree", "manifest", "blob"]

_NOT_IN_USE = """
    not exists (select from migration_jobs j join migration_runs r using (run_id)
                where j.state = 'running' and r.verb in ('migrate', 'adopt') and not r.dry_run and j.started_at <= m.marked_at)"""
"""Has every job ended that brings bytes and may have looked for the marked thing before it had its mark?"""

_TREE = "regexp_replace(rtrim(d.file_path, '/'), '^.*/', '')"


def _read_from(tree: str) -> str:
    """Does a session read from the tree of this name, wherever it is mounted? Asked by an index: all such
    sessions are counted, because PostgreSQL takes them for many, and would look for a first one among all.
    """
    return f"""
        (select count(*) from sessions s
         where string_to_array(s.parent_session_data_path, '/') @> array[{tree}]) > 0"""  # noqa: S608 - an expression


_REFERENCES = {
    "projects": "exists (select from project_dataset_refs r where r.dataset_id = d.dataset_id)",
    "split_configs": "exists (select from project_split_configs c where c.dataset_id = d.dataset_id)",
    "sessions": "exists (select from sessions s where s.dataset_id = d.dataset_id)",
    "rollbacks": """exists (select from project_conversions c join projects p using (project_id)
                    where c.dataset_id = d.dataset_id and c.rolled_back_at is null)""",
}
"""What rows may refer to a dataset by, or need it for."""

_WITHOUT_ROWS = " and ".join(f"not {reference}" for reference in _REFERENCES.values())

_UNREFERENCED = f"{_WITHOUT_ROWS} and not {_read_from(_TREE)}"
"""Does nothing refer to the dataset, and can no rollback need it? A session's path counts by the name of the
tree, which has its digest, because DATA_DIR may be spelled in several ways.
"""

_STORED = """
    (exists (select from project_conversions c where c.dataset_hash = d.dataset_hash)
     or exists (select from migration_indexed_datasets i where i.dataset_hash = d.dataset_hash))"""
"""Did this program store the dataset, for a project, as it was imported, or as it was adopted? Then it is in
the index of blobs before it has a row.
"""

_ADOPTED = """
    exists (select from migration_adoptions a
            where (a.dataset_id, a.dataset_hash) = (d.dataset_id, d.dataset_hash) and a.state <> 'undone')"""

_OURS = f"({_STORED} and not {_ADOPTED})"
"""May a gc take the dataset? What Label registered itself is never taken, also when it was adopted: it stays
until people delete it in Label.
"""


def _unreferenced_of(condition: str) -> str:
    """All datasets that nothing refers to: of those alone that no row names are sessions' paths asked."""
    return f"""
    (select * from (select * from raw_datasets d where {condition} and {_WITHOUT_ROWS} offset 0) as d
     where not {_read_from(_TREE)})"""  # noqa: S608 - constants


_ALL_UNREFERENCED = _unreferenced_of(_OURS)
"""All of ours."""

_LAST_WORD = """
    (select max(c.rolled_back_at) from project_conversions c where c.dataset_id = d.dataset_id
     having bool_and(c.rolled_back_at is not null))"""
"""When the last of its conversions was rolled back; null if the ledger does not say how it became
unreferenced: its projects were deleted.
"""


_SINCE = f"""
    greatest({_LAST_WORD},
             (select m.marked_at from migration_unreferenced m
              where m.kind = 'dataset' and m.name = d.dataset_hash and m.marked_at < 'infinity'))"""  # noqa: S608 - a constant
"""Since when nothing refers to a dataset. Only one of which the ledger says nothing is marked by gc; one that
was brought back from quarantine is marked then.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreferenced:
    """A dataset that nothing refers to, and since when; None while gc has not marked it yet."""

    dataset_id: int
    dataset_name: str
    dataset_hash: str
    file_path: str
    since: datetime | None
    is_due: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What a gc finds of one dataset. `references`: the kinds of rows that keep it, and `paths` if a session
    reads from its tree. If nothing does, `since` and `is_due` as of `Unreferenced`.
    """

    dataset_id: int
    is_ours: bool
    references: tuple[str, ...]
    since: datetime | None
    is_due: bool


_MOST = 10
_SHARE = 10


def would_trip(count: int, datasets: int, expect: int | None) -> bool:
    """Are so many datasets, more than ten and more than a tenth of all, too many to go unless the operator
    expects just so many?
    """
    return count > _MOST and count * _SHARE > datasets and count != expect


# Marks ------------------------------------------------------------------------------------------------------


def mark(conn: Connection, kind: Kind, names: Iterable[str]) -> None:
    """Mark these things, unripe, unless they have a mark. To be committed before `ripen`."""
    conn.execute(
        sql("""
            insert into migration_unreferenced (kind, name, marked_at)
            select :kind, name, 'infinity' from unnest(cast(:names as text[])) as name order by name
            on conflict do nothing"""),
        {"kind": kind, "names": sorted(set(names))},
    )


def ripen(conn: Connection, kind: Kind, names: Iterable[str]) -> None:
    """Date the marks of these things, which were committed before."""
    conn.execute(
        sql("""
            with unripe as (select name from migration_unreferenced
                            where kind = :kind and name = any(:names) and marked_at = 'infinity'
                            order by name for update)
            update migration_unreferenced m set marked_at = clock_timestamp()
            from unripe where m.kind = :kind and m.name = unripe.name"""),
        {"kind": kind, "names": sorted(set(names))},
    )


def is_any_marked(conn: Connection) -> bool:
    """Is there a mark at all? One that comes later is younger than the lease of the job that asks."""
    found: bool = conn.execute(sql("select exists (select from migration_unreferenced)")).scalar_one()
    return found


def unmark(conn: Connection, kind: Kind, names: Iterable[str]) -> None:
    """These things are to be used. To be committed before it is looked whether they are there: a gc that is
    taking one of them is waited for.
    """
    conn.execute(
        sql("""
            with marked as (select kind, name from migration_unreferenced
                            where kind = :kind and name = any(:names) order by name for update)
            delete from migration_unreferenced m using marked
            where (m.kind, m.name) = (marked.kind, marked.name)"""),
        {"kind": kind, "names": sorted(set(names))},
    )


def lock_due(conn: Connection, kind: Kind, names: Sequence[str], grace_h: float) -> list[str]:
    """Those of these things whose marks are older than the grace time and that no running migration may rely
    on; their marks are locked until the transaction ends, in which they are to go.
    """
    rows = conn.execute(
        sql(f"""
            select m.name from migration_unreferenced m
            where m.kind = :kind and m.name = any(:names)
              and m.marked_at <= clock_timestamp() - make_interval(secs => :grace_s) and {_NOT_IN_USE}
            order by m.name for update of m"""),  # noqa: S608 - a constant
        {"kind": kind, "names": sorted(names), "grace_s": grace_h * 3600},
    )
    return [row.name for row in rows]


def due(conn: Connection, kind: Kind, names: Iterable[str], grace_h: float) -> list[str]:
    """Those of these things that `lock_due` would find, were all marked just now that are not. Locks
    nothing.
    """
    rows = conn.execute(
        sql(f"""
            select m.name from (
                select wanted.name,
                       case when u.marked_at < 'infinity' then u.marked_at else now() end as marked_at
                from unnest(cast(:names as text[])) as wanted(name)
                left join migration_unreferenced u on u.kind = :kind and u.name = wanted.name) m
            where m.marked_at <= now() - make_interval(secs => :grace_s) and {_NOT_IN_USE}
            order by m.name"""),  # noqa: S608 - a constant
        {"kind": kind, "names": sorted(set(names)), "grace_s": grace_h * 3600},
    )
    return [row.name for row in rows]


def since(conn: Connection, kind: Kind, names: Sequence[str]) -> dict[str, datetime]:
    """Since when things are marked; an unripe mark says nothing yet."""
    rows = conn.execute(
        sql("""
            select name, marked_at from migration_unreferenced
            where kind = :kind and name = any(:names) and marked_at < 'infinity'"""),
        {"kind": kind, "names": sorted(names)},
    )
    return {row.name: row.marked_at for row in rows}


# Datasets ---------------------------------------------------------------------------------------------------


def unreferenced(conn: Connection, grace_h: float) -> list[Unreferenced]:
    """The datasets of ours that nothing refers to; due are those that have been so for `grace_h` hours, one
    that has no mark yet if that is 0.
    """
    rows = conn.execute(
        sql(f"""
            with found as (
                select d.dataset_id, d.dataset_name, d.dataset_hash, d.file_path, {_SINCE} as since
                from {_ALL_UNREFERENCED} as d)
            select *, coalesce(since <= clock_timestamp() - make_interval(secs => :grace_s), :grace_s = 0) as is_due
            from found order by dataset_id"""),  # noqa: S608 - constants
        {"grace_s": grace_h * 3600},
    )
    return [Unreferenced(**row) for row in rows.mappings()]


def without_references(conn: Connection) -> frozenset[int]:
    """Every dataset that nothing refers to, also those that Label registered itself."""
    rows = conn.execute(sql(f"select dataset_id from {_unreferenced_of('true')} as d"))  # noqa: S608 - constants
    return frozenset(row.dataset_id for row in rows)


def fate_of(conn: Connection, dataset_id: int, grace_h: float) -> Fate | None:
    """What a gc with this grace time finds of one dataset, by the conditions of `unreferenced`."""
    references = ", ".join(f"{condition} as {name}" for name, condition in _REFERENCES.items())
    row = conn.execute(
        sql(f"""
            with found as (
                select d.dataset_id, {_OURS} as is_ours, {_SINCE} as since,
                       {references}, {_read_from(_TREE)} as paths
                from raw_datasets d where d.dataset_id = :id)
            select *, coalesce(since <= clock_timestamp() - make_interval(secs => :grace_s), :grace_s = 0) as is_due
            from found"""),  # noqa: S608 - constants
        {"id": dataset_id, "grace_s": grace_h * 3600},
    ).one_or_none()
    if row is None:
        return None
    named = row._mapping  # noqa: SLF001 - the public name of a row as a mapping
    return Fate(
        dataset_id=row.dataset_id,
        is_ours=row.is_ours,
        references=tuple(name for name in (*_REFERENCES, "paths") if named[name]),
        since=row.since,
        is_due=row.is_due,
    )


def count_unreferenced(conn: Connection) -> int:
    """The datasets of ours that nothing refers to, however long."""
    count: int = conn.execute(
        sql(f"select count(*) from {_ALL_UNREFERENCED} as d")  # noqa: S608 - constants
    ).scalar_one()
    return count


def count_datasets(conn: Connection) -> int:
    """All datasets, ours and Label's own."""
    count: int = conn.execute(sql("select count(*) from raw_datasets")).scalar_one()
    return count


def forget_referenced(conn: Connection) -> None:
    """Remove the marks of datasets that something refers to again, or that are gone, and of manifests that
    have a dataset.
    """
    conn.execute(
        sql(f"""
            delete from migration_unreferenced m
            where m.kind = 'dataset'
              and not exists (select from raw_datasets d where d.dataset_hash = m.name and {_UNREFERENCED})
               or m.kind = 'manifest' and exists (select from raw_datasets d where d.dataset_hash = m.name)""")  # noqa: S608 - a constant
    )


def take_rows(conn: Connection, dataset_hash: str, grace_h: float) -> dict[str, Any] | None:
    """Lock a dataset's row, and if still nothing refers to it, for as long as `grace_h` hours, remove it with
    its sessions and its part of the index; what was there, to bring it back. None otherwise.

    Gives way to people. The caller has the dataset's claim.
    """
    row = conn.execute(
        sql(f"""
            {GIVE_WAY}
            select d.dataset_id from raw_datasets d
            where d.dataset_hash = :hash and {_OURS} for update"""),  # noqa: S608 - constants
        {"hash": dataset_hash},
    ).one_or_none()
    if row is None:
        return None
    # Asked under the lock, in a statement of its own: a conversion that held it before has committed by now.
    kept = conn.execute(
        sql(f"""
            select to_jsonb(d) as dataset,
                   coalesce((select jsonb_agg(to_jsonb(s) order by s.raw_session_id) from raw_dataset_sessions s
                             where s.dataset_id = d.dataset_id), '[]') as sessions
            from raw_datasets d
            where d.dataset_id = :id and {_UNREFERENCED}
              and {_SINCE} <= clock_timestamp() - make_interval(secs => :grace_s)"""),  # noqa: S608 - constants
        {"id": row.dataset_id, "grace_s": grace_h * 3600},
    ).one_or_none()
    if kept is None:
        return None
    conn.execute(sql("delete from raw_dataset_sessions where dataset_id = :id"), {"id": row.dataset_id})
    conn.execute(sql("delete from raw_datasets where dataset_id = :id"), {"id": row.dataset_id})
    forget_index(conn, dataset_hash)
    return {"dataset": kept.dataset, "sessions": kept.sessions}


def put_rows_back(conn: Connection, kept: Mapping[str, Any]) -> int:
    """Write a dataset's rows as `take_rows` found them, with their ids; the dataset's id.

    Raises `SequenceBehindError` when its id is another dataset's by now, `DatabaseRefusedError` when its
    digest or place is.
    """
    dataset_id: int = conn.execute(
        sql("""
            insert into raw_datasets select * from jsonb_populate_record(null::raw_datasets, cast(:row as jsonb))
            returning dataset_id"""),
        {"row": as_json(kept["dataset"])},
    ).scalar_one()
    conn.execute(
        sql("""
            insert into raw_dataset_sessions
            select * from jsonb_populate_recordset(null::raw_dataset_sessions, cast(:rows as jsonb))"""),
        {"rows": as_json(kept["sessions"])},
    )
    return dataset_id


def id_of(conn: Connection, dataset_hash: str) -> int | None:
    """The id of the dataset with this digest, if there is one."""
    return conn.execute(
        sql("select dataset_id from raw_datasets where dataset_hash = :hash"), {"hash": dataset_hash}
    ).scalar_one_or_none()


# Blobs, manifests, trees ------------------------------------------------------------------------------------


def forget_index(conn: Connection, dataset_hash: str) -> None:
    """Nothing needs blobs for this dataset any more."""
    for table in ("migration_indexed_datasets", "migration_dataset_blobs"):
        conn.execute(sql(f"delete from {table} where dataset_hash = :hash"), {"hash": dataset_hash})  # noqa: S608 - constants


def indexed_without_row(conn: Connection, own_run: Any) -> list[str]:
    """The digests that the index has and no dataset; none while another job runs: it may be storing one."""
    rows = conn.execute(
        sql("""
            select i.dataset_hash from migration_indexed_datasets i
            where not exists (select from raw_datasets d where d.dataset_hash = i.dataset_hash)
              and not exists (select from migration_jobs where state = 'running' and run_id <> :own_run)
            order by i.dataset_hash"""),
        {"own_run": own_run},
    )
    return [row.dataset_hash for row in rows]


def needed(conn: Connection, digests: Iterable[str], but_for: Iterable[str] = ()) -> frozenset[str]:
    """Those of these blobs that some dataset of the index needs, apart from these datasets."""
    rows = conn.execute(
        sql("""
            select distinct digest from migration_dataset_blobs
            where digest = any(:digests) and dataset_hash <> all(cast(:but_for as text[]))"""),
        {"digests": sorted(set(digests)), "but_for": sorted(but_for)},
    )
    return frozenset(row.digest for row in rows)


def without_index(conn: Connection) -> list[str]:
    """The digests of our datasets whose blobs the index does not list: no blob is known to be loose then."""
    rows = conn.execute(
        sql(f"""
            select d.dataset_hash from raw_datasets d
            where ({_STORED} or {_ADOPTED})
              and not exists (select from migration_indexed_datasets i where i.dataset_hash = d.dataset_hash)
            order by d.dataset_id""")  # noqa: S608 - a constant
    )
    return [row.dataset_hash for row in rows]


def registered(conn: Connection) -> tuple[frozenset[str], frozenset[str]]:
    """The digests of all datasets, and the names of the directories that rows point to."""
    rows = conn.execute(sql("select dataset_hash, file_path from raw_datasets")).all()
    names = (row.file_path.rstrip("/").rpartition("/")[2] for row in rows)
    return frozenset(row.dataset_hash for row in rows), frozenset(names)


def is_used(conn: Connection, tree: str) -> bool:
    """Does a dataset's row point to the directory of this name among the trees, or does a session read from
    it?
    """
    read: bool = conn.execute(
        sql(f"select {_read_from('cast(:name as text)')}"),
        {"name": tree},
    ).scalar_one()
    return read or datasets.is_registered(conn, tree)


# The ledger -------------------------------------------------------------------------------------------------

_PRUNED = {
    "migration_dry_run_blobs": """
        delete from migration_dry_run_blobs b using migration_runs r
        where b.run_id = r.run_id and r.state in ('finished', 'cancelled')
          and r.finished_at < clock_timestamp() - make_interval(secs => :grace_s)""",
    "migration_blob_readers": """
        delete from migration_blob_readers b using migration_runs r
        where b.run_id = r.run_id and r.state in ('finished', 'cancelled')""",
    # A job that waits for a claim may have made sure of its row just now.
    "dataset_claims": """
        delete from dataset_claims c using (
            select dataset_hash from dataset_claims
            where claimed_at < clock_timestamp() - make_interval(secs => :grace_s)
              and coalesce(expires_at < clock_timestamp(), true)
              and not exists (select from migration_jobs where state = 'running' and run_id <> :own_run)
            order by dataset_hash for update skip locked) old
        where c.dataset_hash = old.dataset_hash""",
    "migration_remembered_digests": """
        delete from migration_remembered_digests r
        where not exists (select from projects p where p.project_id = r.project_id)""",
    "migration_dataset_blobs": """
        delete from migration_dataset_blobs b
        where not exists (select from migration_indexed_datasets i where i.dataset_hash = b.dataset_hash)
          and not exists (select from migration_jobs where state = 'running' and run_id <> :own_run)
          and not exists (select from raw_datasets d where d.dataset_hash = b.dataset_hash)""",
}
"""What no job needs any more: contents that ended dry runs have met, who read what in ended verifications,
claims that no job holds, digests of files of projects that are gone, parts of an index that was never
completed.
"""


def prune(conn: Connection, table: str, grace_h: float, own_run: Any) -> int:
    """Remove from one table of the ledger what no job needs any more; how many rows. One of `PRUNABLE`."""
    values = {"grace_s": grace_h * 3600, "own_run": own_run}
    statement = _PRUNED[table]
    return conn.execute(
        sql(statement), {name: value for name, value in values.items() if f":{name}" in statement}
    ).rowcount


PRUNABLE = tuple(_PRUNED)


def checked_digests(conn: Connection, after: str, limit: int) -> list[str]:
    """Some of the keys of checks, in their order: `digest` for a blob, `digest:inode` for a copy."""
    rows = conn.execute(
        sql("select digest from migration_blob_checks where digest > :after order by digest limit :limit"),
        {"after": after, "limit": limit},
    )
    return [row.digest for row in rows]


def forget_checks(conn: Connection, keys: Sequence[str]) -> int:
    """Remove the checks of blobs that are gone."""
    return conn.execute(
        sql("delete from migration_blob_checks where digest = any(:keys)"), {"keys": sorted(keys)}
    ).rowcount
