"""What a verification of the store asks and notes: what is due, which job reads a blob, who reads a damaged
file, how old the oldest check is. Opens no transaction.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.checks import UNSIGNED
from worker.db.engine import sql

_OURS = """
    select d.dataset_id, d.dataset_name, d.dataset_hash, d.file_path, d.file_size_bytes
    from raw_datasets d
    where cast(d.metadata as jsonb) ? 'digest_algorithm'
       or exists (select from project_conversions c where c.dataset_hash = d.dataset_hash)
       or exists (select from migration_indexed_datasets i where i.dataset_hash = d.dataset_hash)"""
"""The datasets that this program stored."""

_ITEMS = """
    blobs as (
        select b.digest, max(b.size_bytes) as size_bytes
        from migration_dataset_blobs b join raw_datasets d using (dataset_hash) group by b.digest
    ), items as (
        select b.digest as key, b.size_bytes, coalesce(c.checked_at, '-infinity') as at
        from blobs b left join migration_blob_checks c using (digest)
        union all
        select c.digest, b.size_bytes, c.checked_at
        from migration_blob_checks c join blobs b on b.digest = split_part(c.digest, ':', 1)
        where position(':' in c.digest) > 0
    )"""
"""Every blob that a dataset needs, and every copy in a tree that was read once, with when it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Which files are to be read: those that were last read at `before` or earlier, and of these the least
    recently read ones up to the one with this time (None: never read) and key. Without either all are.
    """

    before: datetime | None = None
    until: tuple[datetime | None, str] | None = None

    def values(self) -> dict[str, Any]:
        """The parameters of a statement with `_is_due` in it."""
        at, key = self.until if self.until is not None else (None, None)
        return {"due_before": self.before, "due_at": at, "due_key": key}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """A dataset that this program stored: what of it is due, each blob counted for one dataset only. `files`
    and `size_bytes` are unknown for one that is not in the index yet.
    """

    dataset_id: int
    dataset_name: str
    dataset_hash: str
    file_path: str
    files: int | None
    size_bytes: int | None
    is_due: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much the store holds and when the least recently read of it was read; None: some was never."""

    datasets: int
    files: int
    size_bytes: int
    never_read_bytes: int
    oldest_check: datetime | None


def sample(conn: Connection, percent: float) -> tuple[datetime | None, str] | None:
    """How far so many percent of the store's bytes go, least recently read first (`Due.until`): as many files
    as that takes, so that samples of together 100 percent leave nothing out. None: there is nothing.
    """
    row = conn.execute(
        sql(f"""
            with {_ITEMS}, running as (
                select key, at, sum(size_bytes) over (order by at, key collate "C" rows unbounded preceding) as up_to,
                       sum(size_bytes) over () as total
                from items
            )
            select nullif(at, '-infinity') as at, key from running
            where up_to >= total * cast(:percent as numeric) / 100
            order by running.at, key collate "C" limit 1"""),  # noqa: S608 - a constant
        {"percent": percent},
    ).one_or_none()
    return (row.at, row.key) if row is not None else None


def stored_datasets(conn: Connection, due: Due) -> list[StoredDataset]:
    """Every dataset that this program stored, by id, and what of it is due: its manifest and tree, blobs that
    were not read since, or copies in its tree, which only a look at the tree tells of.
    """
    rows = conn.execute(
        sql(f"""
            with ours as ({_OURS}), needed as (
                select b.dataset_hash, b.size_bytes,
                       row_number() over (partition by b.digest order by o.dataset_id) as place,
                       {_is_due("c.checked_at", "b.digest")} as is_due
                from migration_dataset_blobs b join ours o using (dataset_hash)
                left join migration_blob_checks c using (digest)
            ), counted as (
                select dataset_hash, count(*) filter (where is_due and place = 1) as files,
                       coalesce(sum(size_bytes) filter (where is_due and place = 1), 0)::bigint as size_bytes,
                       bool_or(is_due) as is_due
                from needed group by dataset_hash
            )
            select o.dataset_id, o.dataset_name, o.dataset_hash, o.file_path,
                   case when i.dataset_hash is not null then coalesce(n.files, 0) end as files,
                   case when i.dataset_hash is not null then coalesce(n.size_bytes, 0)
                        else o.file_size_bytes end as size_bytes,
                   i.dataset_hash is null or coalesce(n.is_due, false)
                       or {_is_due("i.checked_at", "''")} as is_due
            from ours o left join migration_indexed_datasets i using (dataset_hash)
            left join counted n using (dataset_hash)
            order by o.dataset_id"""),  # noqa: S608 - a constant
        due.values(),
    )
    return [StoredDataset(**row._mapping) for row in rows]  # noqa: SLF001 - the public name of a row as a mapping


def registered_by_label(conn: Connection) -> dict[int, str]:
    """The datasets that Label registered itself, by id, with their names: nothing promises their bytes."""
    rows = conn.execute(
        sql(f"""
            select dataset_id, dataset_name from raw_datasets
            where dataset_id not in (select dataset_id from ({_OURS}) as ours) order by dataset_id""")  # noqa: S608 - a constant
    )
    return {row.dataset_id: row.dataset_name for row in rows}


def opened_on(conn: Connection, dataset_ids: Collection[int]) -> dict[str, Any]:
    """What the store holds when a verification of these datasets is opened, and how old the oldest check is
    of all, and of what none of them has: what its report needs to say how much was covered. JSON values.
    """
    whole, elsewhere = coverage(conn), coverage(conn, without=dataset_ids)
    return {
        "datasets": whole.datasets,
        "bytes_total": whole.size_bytes,
        "oldest_check": _text(whole.oldest_check),
        "bytes_elsewhere": elsewhere.size_bytes,
        "oldest_check_elsewhere": _text(elsewhere.oldest_check),
    }


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def of_projects(conn: Connection, project_ids: Collection[int]) -> dict[int, set[int]]:
    """The datasets that these projects refer to, by project."""
    rows = conn.execute(
        sql("""
            select project_id, dataset_id from project_dataset_refs where project_id = any(:ids)
            union select project_id, dataset_id from sessions
            where project_id = any(:ids) and dataset_id is not null"""),
        {"ids": sorted(project_ids)},
    )
    found: dict[int, set[int]] = {}
    for row in rows:
        found.setdefault(row.project_id, set()).add(row.dataset_id)
    return found


def not_due(
    conn: Connection, keys: Iterable[str], due: Due, *, since: datetime
) -> dict[str, tuple[int, int]]:
    """Those of these files that need not be read, with inode and time of change of their last check: they
    are not due, or were read since the run was opened (`since`).
    """
    rows = conn.execute(
        sql(f"""
            select digest, inode, mtime_ns from migration_blob_checks
            where digest = any(:keys)
              and (checked_at >= :since or not {_is_due("checked_at", "digest")})"""),  # noqa: S608 - a constant
        {"keys": sorted(set(keys)), "since": since, **due.values()},
    )
    return {row.digest: (row.inode % UNSIGNED, row.mtime_ns) for row in rows}


def _is_due(checked_at: str, key: str) -> str:
    """The condition by which a file is due that was checked then; a constant name of a column each."""
    return f"""(coalesce({checked_at}, '-infinity') <= coalesce(cast(:due_before as timestamptz), 'infinity')
        and (cast(:due_key as text) is null
             or (coalesce({checked_at}, '-infinity'), {key} collate "C")
                <= (coalesce(cast(:due_at as timestamptz), '-infinity'), cast(:due_key as text) collate "C")))"""


def read_by(
    conn: Connection, run_id: uuid.UUID, dataset_id: int, due: Collection[str], files: Collection[str]
) -> tuple[frozenset[str], dict[str, int]]:
    """Decide which files of those that are due the dataset's job is to read: those that no other job of the
    run has taken. And which of all its files other datasets' jobs have taken. A later attempt finds what an
    earlier one took. Without waiting for the disk: what a crash of the server takes is read once more.
    """
    wanted = {"run_id": run_id, "dataset_id": dataset_id, "keys": sorted(due)}
    conn.execute(
        sql("""
            set local synchronous_commit = off;
            insert into migration_blob_readers (run_id, digest, dataset_id)
            select :run_id, key, :dataset_id from unnest(cast(:keys as text[])) as key order by key
            on conflict do nothing"""),
        wanted,
    )
    rows = conn.execute(
        sql("""
            select digest, dataset_id from migration_blob_readers
            where run_id = :run_id and digest = any(:keys)"""),
        wanted | {"keys": sorted(files)},
    ).all()
    mine = frozenset(row.digest for row in rows if row.dataset_id == dataset_id)
    return mine & frozenset(due), {row.digest: row.dataset_id for row in rows if row.dataset_id != dataset_id}


def readers_of(conn: Connection, session_names: Mapping[int, Collection[str]]) -> tuple[list[int], list[str]]:
    """The projects that refer to these datasets, and the sessions that read from the raw sessions named for
    each, as `project id: session name`.
    """
    projects = conn.execute(
        sql("""
            select project_id from project_dataset_refs where dataset_id = any(:ids)
            union select project_id from sessions where dataset_id = any(:ids) order by 1"""),
        {"ids": sorted(session_names)},
    )
    ids = [row.project_id for row in projects]
    rows = conn.execute(
        sql("""
            select project_id, session_name, dataset_id, raw_session_name from sessions
            where dataset_id = any(:ids) and raw_session_name = any(:names)
            order by project_id, session_id"""),
        {
            "ids": sorted(session_names),
            "names": sorted({name for names in session_names.values() for name in names}),
        },
    )
    sessions = [
        f"{row.project_id}: {row.session_name}"
        for row in rows
        if row.raw_session_name in session_names[row.dataset_id]
    ]
    return ids, sessions


def legacy_directories(conn: Connection, hashes: Iterable[str]) -> dict[str, list[str]]:
    """Where directories with the content of these datasets were, and are or may be again, by dataset: those
    of all projects that were converted, also where a reclaim moved them.
    """
    rows = conn.execute(
        sql("""
            select distinct c.dataset_hash, c.legacy_path, r.legacy_path as resolved, r.moved_from, r.moved_to
            from project_conversions c
            left join migration_reclaims r
                on r.conversion_id = c.conversion_id and r.state in ('moving', 'reclaimed', 'undoing')
            where c.dataset_hash = any(:hashes) order by 1, 2"""),
        {"hashes": sorted(set(hashes))},
    )
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.dataset_hash, []).extend(_places(row))
    return found


def _places(row: Row[Any]) -> list[str]:
    places = [row.legacy_path]
    if row.moved_to is not None:
        # Of a project that was carried along the directory around it was renamed.
        places.append(row.moved_to + row.resolved.rstrip("/").removeprefix(row.moved_from.rstrip("/")))
    return places


def oldest_check(conn: Connection, digests: Collection[str]) -> datetime | None:
    """When the least recently read of these blobs was read; None if one of them never was."""
    row = conn.execute(
        sql("""
            select count(*) as checked, min(checked_at) as oldest from migration_blob_checks
            where digest = any(:digests)"""),
        {"digests": sorted(digests)},
    ).one()
    return row.oldest if row.checked == len(digests) else None


def coverage(conn: Connection, without: Collection[int] = ()) -> Coverage:
    """How much the store holds, each blob once, and how old its oldest check is; of datasets but these, and
    what they share with these.
    """
    row = conn.execute(
        sql(f"""
            with {_ITEMS}
            select (select count(*) from migration_indexed_datasets i join raw_datasets d using (dataset_hash))
                       as datasets,
                   count(*) as files, coalesce(sum(size_bytes), 0)::bigint as size_bytes,
                   coalesce(sum(size_bytes) filter (where at = '-infinity'), 0)::bigint as never_read_bytes,
                   case when bool_or(at = '-infinity') then null else min(at) end as oldest_check
            from items
            where not exists (select from migration_dataset_blobs b join raw_datasets d using (dataset_hash)
                              where b.digest = split_part(key, ':', 1) and d.dataset_id = any(:without))"""),  # noqa: S608 - a constant
        {"without": sorted(without)},
    ).one()
    return Coverage(**row._mapping)  # noqa: SLF001 - the public name of a row as a mapping
