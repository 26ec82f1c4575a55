"""Counts over the whole ledger, for whoever watches from afar. Opens no transaction, changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """`jobs` has a row for each verb, state and error class; `failed` one for each verb
    and error class of the projects whose latest job, in real runs of that verb, has failed; `runs` one for each verb and state; `open` one for all open runs.
    """

    jobs: Sequence[Row[Any]]
    failed: Sequence[Row[Any]]
    runs: Sequence[Row[Any]]
    open: Row[Any]


def figures(conn: Connection) -> Figures:
    """Count runs and jobs: four statements, however many there are."""
    jobs = conn.execute(
        sql("""
            select r.verb, r.dry_run, j.state, j.error_class, count(*) as jobs, sum(j.retries)::bigint as retries,
                   sum(j.crashes)::bigint as crashes, sum(j.fenced)::bigint as fenced
            from migration_jobs j join migration_runs r using (run_id)
            group by r.verb, r.dry_run, j.state, j.error_class order by 1, 2, 3, 4""")
    ).all()
    failed = conn.execute(
        sql("""
            select verb, error_class, count(*) as projects from (
                select distinct on (r.verb, j.project_id) r.verb, j.state, j.error_class
                from migration_jobs j join migration_runs r using (run_id)
                where not r.dry_run
                order by r.verb, j.project_id, r.created_at desc) as latest
            where state = 'failed' group by verb, error_class order by 1, 2""")
    ).all()
    runs = conn.execute(
        sql("""
            select verb, dry_run, state, count(*) as runs from migration_runs
            group by verb, dry_run, state order by 1, 2, 3""")
    ).all()
    still_open = conn.execute(
        sql("""
            select coalesce(sum(j.bytes_total), 0)::bigint as bytes_total,
                   coalesce(sum(case when j.state in ('queued', 'running')
                                     then least(j.bytes_done, coalesce(j.bytes_total, j.bytes_done))
                                     else j.bytes_total end), 0)::bigint as bytes_done,
                   count(distinct j.worker) filter (where j.lease_until > clock_timestamp()) as workers,
                   coalesce(extract(epoch from clock_timestamp() - min(j.queued_at)
                                    filter (where j.state = 'queued')), 0)::float8 as oldest_waiting_s
            from migration_jobs j join migration_runs r using (run_id)
            where r.state in ('planned', 'running', 'paused')""")
    ).one()
    return Figures(jobs=jobs, failed=failed, runs=runs, open=still_open)
