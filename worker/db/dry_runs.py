"""What the jobs of a dry run found, and how long jobs took. Opens no transaction, and knows no content,
only digests.
"""

import json
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql
from worker.messages import JobRef


def note_new_content(conn: Connection, ref: JobRef, sizes: Mapping[str, int]) -> None:
    """A dry run met content that the store does not have: the lowest project id becomes its owner."""
    rows = [{"digest": digest, "size_bytes": size} for digest, size in sorted(sizes.items())]
    conn.execute(
        sql("""
            insert into migration_dry_run_blobs (run_id, digest, size_bytes, project_id)
            select :run_id, b.digest, b.size_bytes, :project_id
            from jsonb_to_recordset(cast(:rows as jsonb)) as b(digest text, size_bytes bigint)
            on conflict on constraint migration_dry_run_blobs_pkey
            do update set project_id = least(migration_dry_run_blobs.project_id, excluded.project_id)"""),
        {"run_id": ref.run_id, "project_id": ref.subject_id, "rows": json.dumps(rows)},
    )


def new_content_by_project(conn: Connection, run_id: uuid.UUID) -> dict[int, tuple[int, int]]:
    """Files and bytes that each project of a dry run would be the first to store."""
    rows = conn.execute(
        sql("""
            select project_id, count(*) as files, sum(size_bytes)::bigint as bytes
            from migration_dry_run_blobs where run_id = :run_id group by project_id"""),
        {"run_id": run_id},
    )
    return {row.project_id: (row.files, row.bytes) for row in rows}


def latest_about(conn: Connection, project_ids: Collection[int]) -> Row[Any] | None:
    """Of the last twenty dry runs of a migration that have ended the one that found most of these projects
    ready, the newest of them: `run_id` and `finished_at`; None where none did, or its content is forgotten
    by now (a gc).
    """
    return conn.execute(
        sql("""
            with ended as materialized (
                select run_id, created_at, finished_at from migration_runs
                where verb = 'migrate' and dry_run and state = 'finished' order by created_at desc limit 20
            ), covering as (
                select e.*, (select count(*) from migration_jobs j
                             where j.run_id = e.run_id and j.subject = 'project' and j.state = 'done'
                               and j.subject_id = any(:ids)) as projects,
                       not exists (select from migration_jobs j
                                   where j.run_id = e.run_id and j.state = 'done'
                                     and (j.outcome #>> '{bytes,stored}')::bigint > 0)
                       or exists (select from migration_dry_run_blobs b where b.run_id = e.run_id) as is_known
                from ended e
            )
            select run_id, finished_at from covering where projects > 0 and is_known
            order by projects desc, created_at desc limit 1"""),
        {"ids": sorted(project_ids)},
    ).one_or_none()


def found(conn: Connection, run_id: uuid.UUID) -> list[Row[Any]]:
    """What a dry run found of each project; `first_bytes` of what it would be the first to store, `new_bytes`
    and `new_files` of those that no dataset has got since.
    """
    rows = conn.execute(
        sql("""
            with owned as (
                select b.project_id, b.size_bytes,
                       not exists (select from migration_dataset_blobs d where d.digest = b.digest) as is_new
                from migration_dry_run_blobs b where b.run_id = :run_id
            ), of_project as (
                select project_id, sum(size_bytes)::bigint as first_bytes, count(*) filter (where is_new) as new_files,
                       coalesce(sum(size_bytes) filter (where is_new), 0)::bigint as new_bytes
                from owned group by project_id
            )
            select j.subject_id as project_id, j.state = 'done' as ready, j.path,
                   j.outcome ->> 'dataset_hash' as dataset_hash,
                   coalesce((j.outcome #>> '{bytes,stored}')::bigint, 0)
                   + coalesce((j.outcome #>> '{bytes,reused}')::bigint, 0) as read_bytes,
                   coalesce(o.first_bytes, 0) as first_bytes, coalesce(o.new_bytes, 0) as new_bytes,
                   coalesce(o.new_files, 0) as new_files,
                   coalesce((j.outcome ->> 'sessions_count')::bigint, 0) as sessions,
                   coalesce((j.outcome #>> '{disk,legacy}')::bigint, 0) as allocated_bytes
            from migration_jobs j left join of_project o on o.project_id = j.subject_id
            where j.run_id = :run_id and j.subject = 'project' order by j.subject_id"""),
        {"run_id": run_id},
    )
    return list(rows)


def has_lost_content_since(conn: Connection, run_id: uuid.UUID) -> bool:
    """Did a gc run since this dry run? What the dry run met in the store may be gone."""
    found: bool = conn.execute(
        sql("""
            select exists (select from migration_runs g join migration_runs d on d.run_id = :run_id
                           where g.verb = 'gc' and not g.dry_run and g.created_at > d.created_at)"""),
        {"run_id": run_id},
    ).scalar_one()
    return found


def paces(conn: Connection, dry_run_id: uuid.UUID | None, latest: int) -> list[Row[Any]]:
    """How long the jobs took of the latest migrations that have ended, and of one dry run: sums for each
    run over the jobs that did their work; `work` is what a job read or copied, whichever is more.
    """
    rows = conn.execute(
        sql("""
            with wanted as materialized (
                select run_id, dry_run from migration_runs where run_id = :dry_run_id
                union all
                (select run_id, dry_run from migration_runs
                 where verb = 'migrate' and not dry_run and state = 'finished' order by created_at desc limit :latest)
            ), jobs as (
                select w.run_id, w.dry_run, j.worker, (j.outcome ->> 'duration_s')::float8 as seconds,
                       greatest(coalesce((j.outcome #>> '{bytes,stored}')::bigint, 0),
                                coalesce((j.outcome #>> '{bytes,stored}')::bigint, 0)
                                + coalesce((j.outcome #>> '{bytes,reused}')::bigint, 0)
                                - coalesce((j.outcome #>> '{bytes,remembered}')::bigint, 0)) as work
                from wanted w join migration_jobs j using (run_id)
                where j.subject = 'project' and j.state = 'done' and j.outcome ->> 'duration_s' is not null
            )
            select run_id, dry_run, count(*) as jobs, sum(work)::bigint as work, sum(seconds) as seconds,
                   sum(work::float8 * work) as work_squared, sum(work * seconds) as work_seconds,
                   count(distinct worker) as workers
            from jobs group by run_id, dry_run"""),
        {"dry_run_id": dry_run_id, "latest": latest},
    )
    return list(rows)
