"""What people, reports and metrics read of the ledger: counts, owners, failures, outcomes. Changes
nothing.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql
from worker.db.ledger import Run
from worker.errors import ROOM
from worker.messages import JobRef, JobState, Outcome, RunState, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, counted from its jobs. `subjects` says what they are about, and how many about each;
    `live` counts jobs under a lease that has not run out, `crashes` leases that did, `fenced` attempts that
    came too late, `retries` jobs handed back for a transient error.
    """

    state: RunState
    subjects: Mapping[Subject, int] = field(default_factory=dict)
    jobs: int
    ended: int
    failed: int
    cancelled: int
    running: int
    live: int
    bytes_total: int
    bytes_done: int
    files_done: int = 0
    retries: int = 0
    crashes: int = 0
    fenced: int = 0

    @property
    def waiting(self) -> int:
        """Jobs that have neither ended nor begun."""
        return self.jobs - self.ended - self.running


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentAttempt:
    """A job that a worker runs right now, since when, and how far it is."""

    subject: Subject
    subject_id: int
    subject_name: str | None
    worker: str
    phase: str | None
    attempt: int
    age_s: float
    lease_left_s: float
    files_done: int
    files_total: int | None
    bytes_done: int
    bytes_total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A job that met a transient error and waits to be tried again; `wait_s` is None for one that waits for
    room in the store.
    """

    subject: Subject
    subject_id: int
    subject_name: str | None
    reason: str | None
    retries: int
    wait_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureClass:
    """What failed for one class of errors: how many, what to do, and the first few (id, name and error)."""

    error_class: str | None
    count: int
    remedy: str | None
    examples: Sequence[Mapping[str, Any]]


_OPEN = {JobState.QUEUED, JobState.RUNNING}


def progress(conn: Connection, run_id: uuid.UUID) -> Progress:
    """Count the run's jobs: one pass over their rows, however many there are."""
    run = conn.execute(
        sql("select state from migration_runs where run_id = :run_id"), {"run_id": run_id}
    ).one()
    rows = conn.execute(
        sql("""
            select state, subject, count(*) as jobs, count(*) filter (where lease_until > clock_timestamp()) as live,
                   coalesce(sum(bytes_total), 0)::bigint as bytes_total,
                   coalesce(sum(least(bytes_done, coalesce(bytes_total, bytes_done))), 0)::bigint as bytes_done,
                   coalesce(sum(files_done), 0)::bigint as files_done, sum(retries)::integer as retries,
                   sum(crashes)::integer as crashes, sum(fenced)::integer as fenced
            from migration_jobs where run_id = :run_id group by state, subject order by subject"""),
        {"run_id": run_id},
    ).all()
    of: Counter[JobState] = Counter()
    subjects: Counter[Subject] = Counter()
    for row in rows:
        of[JobState(row.state)] += row.jobs
        subjects[Subject(row.subject)] += row.jobs
    return Progress(
        state=RunState(run.state),
        subjects=subjects,
        jobs=subjects.total(),
        ended=sum(jobs for state, jobs in of.items() if state not in _OPEN),
        failed=of[JobState.FAILED],
        cancelled=of[JobState.CANCELLED],
        running=of[JobState.RUNNING],
        live=sum(row.live for row in rows),
        bytes_total=sum(row.bytes_total for row in rows),
        # Whatever an ended job had is dealt with, also where it failed.
        bytes_done=sum(row.bytes_total if row.state not in _OPEN else row.bytes_done for row in rows),
        files_done=sum(row.files_done for row in rows),
        retries=sum(row.retries for row in rows),
        crashes=sum(row.crashes for row in rows),
        fenced=sum(row.fenced for row in rows),
    )


def current_attempts(conn: Connection, run_id: uuid.UUID) -> list[CurrentAttempt]:
    """Which worker runs which job of the run right now, the longest first."""
    rows = conn.execute(
        sql("""
            select subject, subject_id, subject_name, worker, phase, attempt, files_total, files_done, bytes_total, bytes_done,
                   extract(epoch from clock_timestamp() - started_at)::float8 as age_s,
                   extract(epoch from lease_until - clock_timestamp())::float8 as lease_left_s
            from migration_jobs where run_id = :run_id and state = 'running' order by started_at"""),
        {"run_id": run_id},
    )
    return [CurrentAttempt(**{**row, "subject": Subject(row["subject"])}) for row in rows.mappings()]


def open_jobs(conn: Connection) -> Row[Any]:
    """What is still to be done, over all runs: `waiting` for a worker right now, `running`, and those of them
    that are `dead` (their lease ran out).
    """
    return conn.execute(
        sql("""
            select count(*) filter (where j.state = 'queued' and r.state in ('planned', 'running')
                                    and coalesce(j.not_before <= clock_timestamp(), true)) as waiting,
                   count(*) filter (where j.state = 'running') as running,
                   count(*) filter (where j.state = 'running' and j.lease_until < clock_timestamp()) as dead
            from migration_jobs j join migration_runs r using (run_id) where j.state in ('queued', 'running')""")
    ).one()


def running_jobs(conn: Connection) -> list[JobRef]:
    """Every job that a worker runs, or ran when it died."""
    rows = conn.execute(sql("select run_id, subject, subject_id from migration_jobs where state = 'running'"))
    return [JobRef.from_row(row) for row in rows]


def idle_jobs(conn: Connection) -> Iterator[JobRef]:
    """Every job of every run that no worker runs: one that waits, or has ended."""
    rows = conn.execute(
        sql("select run_id, subject, subject_id from migration_jobs where state <> 'running'")
    )
    return (JobRef.from_row(row) for row in rows)


def paused_runs(conn: Connection) -> list[Run]:
    """The runs that stand still until the operator resumes them."""
    rows = conn.execute(sql("select * from migration_runs where state = 'paused' order by created_at"))
    return [Run.from_row(row) for row in rows]


def active_s(conn: Connection, run_id: uuid.UUID) -> float:
    """For how many seconds at least one worker ran a job of the run: not while the run was paused, or no
    worker was there.

    The last attempt of each job counts, from its beginning to its end; what overlaps counts once.
    """
    seconds: float = conn.execute(
        sql("""
            with spans as (
                select started_at as began,
                       coalesce(finished_at, least(lease_until, clock_timestamp())) as until
                from migration_jobs where run_id = :run_id and started_at is not null and state <> 'queued'
            ), numbered as (
                select began, until, max(until) over (order by began, until
                                                      rows between unbounded preceding and 1 preceding) as before
                from spans where until > began
            ), islands as (
                select began, until, count(*) filter (where before is null or began > before)
                                     over (order by began, until rows unbounded preceding) as island
                from numbered
            )
            select coalesce(sum(extract(epoch from length)), 0)::float8
            from (select max(until) - min(began) as length from islands group by island) as active"""),
        {"run_id": run_id},
    ).scalar_one()
    return seconds


def retrying(conn: Connection, run_id: uuid.UUID, limit: int) -> list[Retry]:
    """The jobs that wait to be tried again, the next one first."""
    rows = conn.execute(
        sql("""
            select subject, subject_id, subject_name, phase as reason, retries,
                   case when waits_for is distinct from :room then
                       greatest(0, extract(epoch from not_before - clock_timestamp()))::float8 end as wait_s
            from migration_jobs where run_id = :run_id and state = 'queued' and not_before is not null
            order by not_before limit :limit"""),
        {"run_id": run_id, "limit": limit, "room": ROOM},
    )
    return [Retry(**{**row, "subject": Subject(row["subject"])}) for row in rows.mappings()]


def failures(conn: Connection, run_id: uuid.UUID, examples: int) -> list[FailureClass]:
    """What failed, the most frequent class first."""
    rows = conn.execute(
        sql("""
            select error_class, count(*) as count, min(outcome->>'remedy') as remedy,
                   (array_agg(jsonb_build_object('subject', subject, 'subject_id', subject_id,
                                                 'subject_name', subject_name, 'project_id', project_id,
                                                 'project_name', project_name, 'error', error)
                              order by subject, subject_id)
                    filter (where number <= :examples)) as examples
            from (select *, row_number() over (partition by error_class order by subject, subject_id) as number
                  from migration_jobs where run_id = :run_id and state = 'failed') as failed
            group by error_class order by count desc, error_class"""),
        {"run_id": run_id, "examples": examples},
    )
    return [FailureClass(**row) for row in rows.mappings()]


def outcomes(conn: Connection, run_id: uuid.UUID) -> dict[JobRef, Outcome]:
    """The outcome of every job that has ended."""
    rows = conn.execute(
        sql(
            "select run_id, subject, subject_id, outcome from migration_jobs where run_id = :run_id and outcome is not null"
        ),
        {"run_id": run_id},
    )
    return {JobRef.from_row(row): Outcome.from_json(row.outcome) for row in rows}


def without_outcome(conn: Connection, run_id: uuid.UUID) -> list[Row[Any]]:
    """The jobs of a run that have no outcome: open ones, or such as an ended run has lost sight of."""
    return list(
        conn.execute(
            sql("""
                select run_id, subject, subject_id, subject_name, path, state from migration_jobs
                where run_id = :run_id and outcome is null order by subject, subject_id"""),
            {"run_id": run_id},
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts over the whole ledger. `jobs` has a row for each verb, state and error class; `failed` one for
    each verb and error class of the projects whose latest job, in real runs of that verb, has failed; `runs`
    one for each verb and state; `open` one for all open runs.
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
                select distinct on (r.verb, j.subject, j.subject_id) r.verb, j.state, j.error_class
                from migration_jobs j join migration_runs r using (run_id)
                where not r.dry_run
                order by r.verb, j.subject, j.subject_id, r.created_at desc) as latest
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


def shared_bytes(conn: Connection) -> int:
    """Allocated bytes of legacy directories that came into the store by sharing their blocks."""
    shared: int = conn.execute(
        sql("""
            select coalesce(sum((outcome #>> '{disk,shared}')::bigint), 0)::bigint as size_bytes
            from migration_jobs where outcome @? '$.links ? (@.cloned > 0)'""")
    ).scalar_one()
    return shared
