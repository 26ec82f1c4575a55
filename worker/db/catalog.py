"""What people ask about stored datasets: how large, whose, read when, by whom. Changes nothing."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from worker.db.engine import sql
from worker.db.reclaims import ACTIVE

_WHERE = f"""
    case when r.state is null then 'in_place' when r.state in ({", ".join(f"'{state}'" for state in ACTIVE)})
         then 'moved_away' else 'purged' end"""
"""Where the legacy directory of a conversion is, by the row of its reclaim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A dataset at a glance. `projects` refer to it, by a reference or a session.

    `verified_at`: when the least recently read of its blobs was read, or, if that is longer ago, manifest and
    tree were compared; None if something never was. Counted of the legacy directories of projects that were
    converted to it: `in_place`, `moved_away` by a reclaim, `purged`.
    """

    dataset_id: int
    dataset_name: str
    dataset_hash: str
    file_path: str
    size_bytes: int | None
    sessions: int
    projects: int
    stored_at: datetime | None
    verified_at: datetime | None
    in_place: int
    moved_away: int
    purged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The blobs of a dataset, each once: how many, and how much of them no other dataset needs. `blobs` is
    None where they are not in the index.
    """

    blobs: int | None
    size_bytes: int
    own_bytes: int
    never_read_bytes: int
    shared_with: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharer:
    """A project that refers to a dataset. Of one that was converted to it: when, by which run, whether it
    `stored` the dataset or found it there, and where its legacy directory is.
    """

    project_id: int
    project_name: str | None
    sessions: int
    converted_at: datetime | None
    run_id: str | None
    stored: bool | None
    legacy_path: str | None
    legacy: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A session of a project, and which session of which dataset it reads from."""

    dataset_id: int
    project_id: int
    session_name: str
    raw_session_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """When a stored file was last read and found right; `places` counts it and its copies in trees."""

    checked_at: datetime
    places: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """A session of a dataset as it was recorded, and how many of projects' sessions read from it."""

    session_name: str
    files: int | None
    has_labels: bool
    readers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A project: which datasets it refers to, how much content they have, each blob once, and how much of it
    no other project has. Of a migrated one: where its legacy directory is, how much room that took when it
    was migrated (None: not known), and how much of this is the store's by now, block by block.
    """

    project_id: int
    project_name: str | None
    is_legacy: bool
    path: str | None
    dataset_ids: tuple[int, ...]
    size_bytes: int
    own_bytes: int
    legacy: str | None
    allocated_bytes: int | None
    shared_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """The content of all datasets, each blob once; what of it some project refers to; and what only some
    datasets need.
    """

    stored_bytes: int
    referred_bytes: int
    only_these_bytes: int


def entries(conn: Connection, dataset_id: int | None = None) -> list[CatalogEntry]:
    """All datasets by id, or the one with this id: one statement, however many there are."""
    rows = conn.execute(
        sql(f"""
            with d as materialized (
                select * from raw_datasets where cast(:id as bigint) is null or dataset_id = :id
            ), checked as (
                select b.dataset_hash, count(*) as blobs, count(c.checked_at) as checked, min(c.checked_at) as oldest
                from migration_dataset_blobs b left join migration_blob_checks c using (digest)
                where cast(:id as bigint) is null or b.dataset_hash = (select dataset_hash from d)
                group by b.dataset_hash
            ), referring as (
                select dataset_id, count(*) as projects from (
                    select dataset_id, project_id from project_dataset_refs
                    where cast(:id as bigint) is null or dataset_id = :id
                    union select dataset_id, project_id from sessions
                    where dataset_id is not null and (cast(:id as bigint) is null or dataset_id = :id)
                ) as pairs group by dataset_id
            ), legacy as (
                select c.dataset_id, {_WHERE} as place, count(*) as directories
                from project_conversions c
                left join migration_reclaims r on r.conversion_id = c.conversion_id and r.state <> 'undone'
                where c.rolled_back_at is null and (cast(:id as bigint) is null or c.dataset_id = :id)
                group by 1, 2
            ), places as (
                select dataset_id, coalesce(sum(directories) filter (where place = 'in_place'), 0)::integer as in_place,
                       coalesce(sum(directories) filter (where place = 'moved_away'), 0)::integer as moved_away,
                       coalesce(sum(directories) filter (where place = 'purged'), 0)::integer as purged
                from legacy group by dataset_id
            )
            select d.dataset_id, d.dataset_name, d.dataset_hash, d.file_path, d.file_size_bytes as size_bytes,
                   coalesce(d.session_count, 0) as sessions, coalesce(n.projects, 0) as projects,
                   d.upload_timestamp as stored_at,
                   case when i.checked_at is not null and coalesce(k.checked = k.blobs, true)
                        then least(i.checked_at, k.oldest) end as verified_at,
                   coalesce(p.in_place, 0) as in_place, coalesce(p.moved_away, 0) as moved_away,
                   coalesce(p.purged, 0) as purged
            from d left join migration_indexed_datasets i using (dataset_hash)
            left join checked k using (dataset_hash) left join referring n using (dataset_id)
            left join places p using (dataset_id)
            order by d.dataset_id"""),  # noqa: S608 - a constant
        {"id": dataset_id},
    )
    return [CatalogEntry(**row) for row in rows.mappings()]


def holders(conn: Connection) -> list[Holder]:
    """All projects by id, also those that refer to no dataset: one statement, however many there are."""
    rows = conn.execute(
        sql(f"""
            with referring as materialized (
                select project_id, dataset_id from project_dataset_refs
                union select project_id, dataset_id from sessions where dataset_id is not null
            ), had as (
                select project_id, array_agg(dataset_id order by dataset_id) as dataset_ids
                from referring group by project_id
            ), held as materialized (
                select r.project_id, b.digest, max(b.size_bytes) as size_bytes
                from referring r join raw_datasets d using (dataset_id)
                join migration_dataset_blobs b using (dataset_hash) group by r.project_id, b.digest
            ), counted as (
                select digest, count(*) as projects from held group by digest
            ), sized as (
                select h.project_id, sum(h.size_bytes)::bigint as size_bytes,
                       coalesce(sum(h.size_bytes) filter (where n.projects = 1), 0)::bigint as own_bytes
                from held h join counted n using (digest) group by h.project_id
            ), given as (
                select c.conversion_id, sum((j.outcome #>> '{{disk,freed}}')::bigint)::bigint as freed
                from project_conversions c join migration_jobs j on j.subject = 'project' and j.subject_id = c.project_id
                where c.rolled_back_at is null and j.outcome->>'status' = 'shared' and j.finished_at >= c.converted_at
                group by c.conversion_id
            ), found as (
                select project_id, p.project_name, coalesce(p.legacy_path, p.path) as path,
                       p.project_id is not null and coalesce(p.project_type, 'legacy') = 'legacy' as is_legacy,
                       coalesce(h.dataset_ids, '{{}}') as dataset_ids
                from projects p full join had h using (project_id)
            )
            select f.project_id, f.project_name, f.is_legacy, coalesce(c.legacy_path, f.path) as path, f.dataset_ids,
                   coalesce(s.size_bytes, 0) as size_bytes, coalesce(s.own_bytes, 0) as own_bytes,
                   case when c.conversion_id is not null then {_WHERE} end as legacy,
                   (j.outcome #>> '{{disk,legacy}}')::bigint as allocated_bytes,
                   coalesce((j.outcome #>> '{{disk,shared}}')::bigint, 0) + coalesce(g.freed, 0) as shared_bytes
            from found f left join sized s using (project_id)
            left join (select * from project_conversions where rolled_back_at is null) as c using (project_id)
            left join migration_reclaims r on r.conversion_id = c.conversion_id and r.state <> 'undone'
            left join migration_jobs j on j.run_id = c.run_id and j.subject = 'project' and j.subject_id = c.project_id
            left join given g on g.conversion_id = c.conversion_id
            order by f.project_id"""),  # noqa: S608 - a constant
    )
    return [Holder(**dict(row) | {"dataset_ids": tuple(row["dataset_ids"])}) for row in rows.mappings()]


def amounts(conn: Connection, referred: Collection[int], these: Collection[int]) -> Amounts:
    """How much the index says is stored, and of it what the `referred` datasets have, and what none but
    `these` need.
    """
    row = conn.execute(
        sql("""
            with needed as (
                select max(b.size_bytes) as size_bytes, bool_or(d.dataset_id = any(:referred)) as is_referred,
                       bool_and(d.dataset_id = any(:these)) as only_these
                from migration_dataset_blobs b join raw_datasets d using (dataset_hash) group by b.digest
            )
            select coalesce(sum(size_bytes), 0)::bigint as stored_bytes,
                   coalesce(sum(size_bytes) filter (where is_referred), 0)::bigint as referred_bytes,
                   coalesce(sum(size_bytes) filter (where only_these), 0)::bigint as only_these_bytes
            from needed"""),
        {"referred": sorted(referred), "these": sorted(these)},
    ).one()
    return Amounts(**row._mapping)  # noqa: SLF001 - the public name of a row as a mapping


def content(conn: Connection, dataset_hash: str) -> Content:
    """What the index says of a dataset's blobs."""
    row = conn.execute(
        sql("""
            select case when exists (select from migration_indexed_datasets i where i.dataset_hash = :hash)
                        then count(*) end as blobs,
                   coalesce(sum(b.size_bytes), 0)::bigint as size_bytes,
                   coalesce(sum(b.size_bytes) filter (where not o.shared), 0)::bigint as own_bytes,
                   coalesce(sum(b.size_bytes) filter (where c.digest is null), 0)::bigint as never_read_bytes
            from migration_dataset_blobs b left join migration_blob_checks c using (digest)
            cross join lateral (select exists (
                select from migration_dataset_blobs other join raw_datasets d using (dataset_hash)
                where other.digest = b.digest and other.dataset_hash <> :hash) as shared) as o
            where b.dataset_hash = :hash"""),
        {"hash": dataset_hash},
    ).one()
    others = conn.execute(
        sql("""
            select distinct d.dataset_id from migration_dataset_blobs b
            join migration_dataset_blobs other using (digest)
            join raw_datasets d on d.dataset_hash = other.dataset_hash
            where b.dataset_hash = :hash and other.dataset_hash <> :hash order by 1"""),
        {"hash": dataset_hash},
    )
    return Content(**row._mapping, shared_with=tuple(other.dataset_id for other in others))  # noqa: SLF001 - the public name of a row as a mapping


def of_project(conn: Connection, project_id: int) -> list[int]:
    """The datasets that a project refers to, by a reference or a session."""
    rows = conn.execute(
        sql("""
            select dataset_id from project_dataset_refs where project_id = :id
            union select dataset_id from sessions where project_id = :id and dataset_id is not null order by 1"""),
        {"id": project_id},
    )
    return [row.dataset_id for row in rows]


def sharers(conn: Connection, dataset_id: int) -> list[Sharer]:
    """The projects that refer to a dataset, or could be rolled back from it, by id."""
    rows = conn.execute(
        sql(f"""
            with reading as (
                select project_id, count(*)::integer as sessions from sessions where dataset_id = :id group by project_id
            ), converted as (
                select * from project_conversions where dataset_id = :id and rolled_back_at is null
            )
            select found.project_id, p.project_name, coalesce(s.sessions, 0) as sessions, c.converted_at, c.run_id::text as run_id,
                   (j.outcome->>'dataset_created')::boolean as stored, c.legacy_path,
                   case when c.conversion_id is not null then {_WHERE} end as legacy
            from (select project_id from project_dataset_refs where dataset_id = :id
                  union select project_id from reading union select project_id from converted) as found
            left join projects p using (project_id) left join reading s using (project_id)
            left join converted c using (project_id)
            left join migration_reclaims r on r.conversion_id = c.conversion_id and r.state <> 'undone'
            left join migration_jobs j
                on j.run_id = c.run_id and j.subject = 'project' and j.subject_id = c.project_id
            order by found.project_id"""),  # noqa: S608 - a constant
        {"id": dataset_id},
    )
    return [Sharer(**row) for row in rows.mappings()]


def stored_by(conn: Connection, dataset_hash: str) -> int | None:
    """The project whose job stored a dataset, the latest one if it was stored again; also one that was rolled
    back, or deleted. None if no job of ours did.
    """
    return conn.execute(
        sql("""
            select c.project_id from project_conversions c
            join migration_jobs j on j.run_id = c.run_id and j.subject = 'project' and j.subject_id = c.project_id
            where c.dataset_hash = :hash and (j.outcome->>'dataset_created')::boolean
            order by c.conversion_id desc limit 1"""),
        {"hash": dataset_hash},
    ).scalar_one_or_none()


def sessions(conn: Connection, dataset_id: int) -> list[StoredSession]:
    """The sessions of a dataset as they were recorded, by name."""
    rows = conn.execute(
        sql("""
            select r.session_name, r.file_count as files, r.original_labels_json is not null as has_labels,
                   coalesce(n.readers, 0) as readers
            from raw_dataset_sessions r
            left join (select raw_session_name, count(*)::integer as readers from sessions where dataset_id = :id
                       group by raw_session_name) as n on n.raw_session_name = r.session_name
            where r.dataset_id = :id order by r.session_name"""),
        {"id": dataset_id},
    )
    return [StoredSession(**row) for row in rows.mappings()]


# By digest --------------------------------------------------------------------------------------------------

_END = "g"
"""What stands behind every hexadecimal digit, and behind a colon, whatever the collation."""


def digests_beginning(conn: Connection, prefix: str, limit: int) -> tuple[int, list[str]]:
    """How many digests that rows know begin so, of blobs and of datasets, and the first few of them."""
    row = conn.execute(
        sql("""
            with found as (
                select digest from migration_dataset_blobs where digest >= :prefix and digest < :prefix || :end
                union select dataset_hash from raw_datasets where dataset_hash >= :prefix and dataset_hash < :prefix || :end
                union select dataset_hash from migration_dataset_blobs
                where dataset_hash >= :prefix and dataset_hash < :prefix || :end
            ), fitting as (select digest from found where starts_with(digest, :prefix))
            select (select count(*) from fitting) as number,
                   array(select digest from fitting order by digest limit :limit) as first"""),
        {"prefix": prefix, "end": _END, "limit": limit},
    ).one()
    return row.number, row.first


def dataset_of(conn: Connection, dataset_hash: str) -> int | None:
    """The id of the dataset with this digest."""
    return conn.execute(
        sql("select dataset_id from raw_datasets where dataset_hash = :hash"), {"hash": dataset_hash}
    ).scalar_one_or_none()


def last_check(conn: Connection, digest: str) -> Check | None:
    """When a blob and its copies in trees were last read: the one that was read longest ago."""
    row = conn.execute(
        sql("""
            select min(checked_at) as checked_at, count(*)::integer as places from migration_blob_checks
            where digest >= :digest and digest < :digest || :end and split_part(digest, ':', 1) = :digest"""),
        {"digest": digest, "end": _END},
    ).one()
    return Check(checked_at=row.checked_at, places=row.places) if row.places else None


def projects_of(conn: Connection, dataset_ids: Collection[int]) -> dict[int, list[int]]:
    """The projects that refer to each of these datasets, by a reference or a session."""
    rows = conn.execute(
        sql("""
            select dataset_id, project_id from project_dataset_refs where dataset_id = any(:ids)
            union select dataset_id, project_id from sessions where dataset_id = any(:ids) order by 1, 2"""),
        {"ids": sorted(dataset_ids)},
    )
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(row.dataset_id, []).append(row.project_id)
    return found


def readers(conn: Connection, raw_sessions: Collection[tuple[int, str]]) -> list[Reader]:
    """The sessions of projects that read from these sessions of datasets."""
    rows = conn.execute(
        sql("""
            select s.dataset_id, s.project_id, s.session_name, s.raw_session_name
            from unnest(cast(:ids as integer[]), cast(:names as text[])) as wanted(dataset_id, raw_session_name)
            join sessions s using (dataset_id, raw_session_name)
            order by s.dataset_id, s.project_id, s.session_id"""),
        {"ids": [number for number, _ in raw_sessions], "names": [name for _, name in raw_sessions]},
    )
    return [Reader(**row) for row in rows.mappings()]
