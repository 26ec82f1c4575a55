"""What the ledger tells of one project: its jobs, those of its datasets, who shares them. Changes nothing."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from worker.db.engine import sql
from worker.messages import JobState, Subject, Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class PastJob:
    """A job, with its outcome as JSON if it has ended. `at`: when it ended, else when it was queued."""

    at: datetime
    run_id: str
    verb: Verb
    dry_run: bool
    subject: Subject
    subject_id: int
    subject_name: str | None
    state: JobState
    phase: str | None
    worker: str | None
    outcome: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedContent:
    """A project that has some of the same blobs, and how much of them, each counted once."""

    project_id: int
    project_name: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How much content the datasets of a project have, how much of it no other project has, and who has the
    rest, the most first.
    """

    size_bytes: int
    own_bytes: int
    others: tuple[SharedContent, ...]


def converted_datasets(conn: Connection, project_id: int) -> list[int]:
    """The datasets that a project was ever converted to, the latest last."""
    rows = conn.execute(
        sql("""
            select dataset_id from project_conversions where project_id = :id
            group by dataset_id order by max(conversion_id)"""),
        {"id": project_id},
    )
    return [row.dataset_id for row in rows]


def jobs(conn: Connection, project_id: int, dataset_ids: Collection[int]) -> list[PastJob]:
    """The jobs of a project, of its datasets, and each gc that found one of these, in the order of time."""
    rows = conn.execute(
        sql("""
            select coalesce(j.finished_at, j.queued_at) as at, run_id::text as run_id, r.verb, r.dry_run, j.subject,
                   j.subject_id, j.subject_name, j.state, j.phase, j.worker, j.outcome
            from migration_jobs j join migration_runs r using (run_id)
            where j.subject = 'project' and j.subject_id = :id
               or j.subject = 'dataset' and j.subject_id = any(:datasets)
               or j.subject = 'store' and exists (
                   select from jsonb_array_elements(j.outcome->'garbage') as found
                   where (found->>'dataset_id')::integer = any(:datasets))
            order by 1, r.created_at"""),
        {"id": project_id, "datasets": sorted(dataset_ids)},
    )
    return [
        PastJob(
            **row
            | {
                "verb": Verb(row["verb"]),
                "subject": Subject(row["subject"]),
                "state": JobState(row["state"]),
            }
        )
        for row in (dict(found) for found in rows.mappings())
    ]


_HELD = """
    with mine as (
        select b.digest, max(b.size_bytes) as size_bytes
        from migration_dataset_blobs b join raw_datasets d using (dataset_hash)
        where d.dataset_id = any(:datasets) group by b.digest
    ), holding as (
        select distinct m.digest, m.size_bytes, d.dataset_id
        from mine m join migration_dataset_blobs b using (digest) join raw_datasets d using (dataset_hash)
    ), referring as (
        select project_id, dataset_id from project_dataset_refs
        where dataset_id in (select dataset_id from holding)
        union select project_id, dataset_id from sessions where dataset_id in (select dataset_id from holding)
    ), held as (
        select distinct r.project_id, h.digest, h.size_bytes
        from holding h join referring r using (dataset_id) where r.project_id <> :id
    )"""
"""The content of a project's datasets (`mine`), and which other projects have how much of it (`held`)."""


def sharing(conn: Connection, project_id: int, dataset_ids: Collection[int]) -> Sharing:
    """How much of the content of a project's datasets other projects have as well."""
    whole, *others = conn.execute(
        sql(f"""{_HELD}
            select cast(null as integer) as project_id, null as project_name,
                   coalesce(sum(size_bytes), 0)::bigint as size_bytes,
                   coalesce(sum(size_bytes) filter (where digest not in (select digest from held)), 0)::bigint as own_bytes
            from mine
            union all
            select project_id, p.project_name, sum(size_bytes)::bigint, 0
            from held left join projects p using (project_id) group by project_id, p.project_name
            order by project_id nulls first"""),  # noqa: S608 - a constant
        {"id": project_id, "datasets": sorted(dataset_ids)},
    ).all()
    return Sharing(
        size_bytes=whole.size_bytes,
        own_bytes=whole.own_bytes,
        others=tuple(
            SharedContent(project_id=one.project_id, project_name=one.project_name, size_bytes=one.size_bytes)
            for one in sorted(others, key=lambda one: (-one.size_bytes, one.project_id))
        ),
    )
