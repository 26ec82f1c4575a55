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
from worker.messages import JobRef, JobState, RunState, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, counted from its jobs. `subjects` says what they are about, and how many about each;
    `live` counts jobs under a lease that has not run out, `crashes` leases that did, `fenced` attempts that
    came too late, `retries` jobs handed back for a transient error. Of those that wait, `held` are of later
    waves. `gate` is at work while a wave of the run is verified.
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
    held: int = 0
    gate: "GateAtWork | None" = None

    @property
    def busy(self) -> int:
        """Jobs that workers have right now, those of its gate included."""
        return self.live + (self.gate.progress.live if self.gate is not None else 0)

    @property
    def waiting(self) -> int:
        """Jobs that have neither ended nor begun."""
        return self.jobs - self.ended - self.running


@dataclass(frozen=True, slots=True, kw_only=True)
class GateAtWork:
    """The run that verifies a wave, and how far that is."""

    wave: int
    run_id: uuid.UUID
    progress: Progress


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


_OPEN = {JobState.HELD, JobState.QUEUED, JobState.RUNNING}


_NOW = """
    select run_id, subject, state, jobs, retries, crashes, fenced, bytes_total, bytes_done, files_done, 0 as live
    from migration_job_counts
    union all
    select run_id, subject, state, 0, 0, 0, 0, 0, least(bytes_done, coalesce(bytes_total, bytes_done)), files_done,
           (lease_until > clock_timestamp())::integer
    from migration_jobs where state = 'running'"""
"""What is to be added up to the counts of now: of running jobs the triggers count no progress."""


def progress(conn: Connection, run_id: uuid.UUID) -> Progress:
    """Add up the run's counts, and what its running jobs have done: however many jobs it has."""
    run = conn.execute(
        sql("""
            select r.state, w.wave, w.gate_run_id from migration_runs r
            left join migration_waves w on w.run_id = r.run_id and w.state = 'verifying'
            where r.run_id = :run_id"""),
        {"run_id": run_id},
    ).one()
    rows = conn.execute(
        sql(f"""
            select state, subject, sum(jobs)::integer as jobs, sum(live)::integer as live,
                   sum(bytes_total)::bigint as bytes_total, sum(bytes_done)::bigint as bytes_done,
                   sum(files_done)::bigint as files_done, sum(retries)::integer as retries,
                   sum(crashes)::integer as crashes, sum(fenced)::integer as fenced
            from ({_NOW}) as now where run_id = :run_id
            group by state, subject having sum(jobs) > 0 order by subject"""),  # noqa: S608 - a constant
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
        bytes_done=sum(row.bytes_done for row in rows),
        files_done=sum(row.files_done for row in rows),
        retries=sum(row.retries for row in rows),
        crashes=sum(row.crashes for row in rows),
        fenced=sum(row.fenced for row in rows),
        held=of[JobState.HELD],
        gate=None
        if run.gate_run_id is None
        else GateAtWork(wave=run.wave, run_id=run.gate_run_id, progress=progress(conn, run.gate_run_id)),
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

    The last attempt of each job counts, from its beginning to its end; what overlaps counts once: from the
    last end backwards, each adds the time before all that ended later had begun.
    """
    seconds: float = conn.execute(
        sql("""
            with spans as (
                select started_at as began, finished_at as until from migration_jobs
                where run_id = :run_id and finished_at is not null and started_at < finished_at
                union all
                select started_at, least(lease_until, clock_timestamp()) from migration_jobs
                where run_id = :run_id and state = 'running' and started_at < least(lease_until, clock_timestamp())
            ), added as (
                select began, least(until, min(began) over (
                           order by until desc, began rows between unbounded preceding and 1 preceding)) as until
                from spans
            )
            select coalesce(sum(extract(epoch from until - began)) filter (where until > began), 0)::float8 from added"""),
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
    """What failed, the most frequent class first; what to do is that of the first few."""
    rows = conn.execute(
        sql("""
            select error_class, count, first.remedy, first.examples
            from (select error_class, sum(jobs)::bigint as count from migration_job_counts
                  where run_id = :run_id and state = 'failed' group by error_class having sum(jobs) > 0) as failed
            cross join lateral (
                select min(outcome->>'remedy') as remedy,
                       jsonb_agg(jsonb_build_object('subject', subject, 'subject_id', subject_id,
                                                    'subject_name', subject_name, 'project_id', project_id,
                                                    'project_name', project_name, 'error', error)
                                 order by subject, subject_id) as examples
                from (select * from migration_jobs j
                      where j.run_id = :run_id and j.state = 'failed'
                        and coalesce(j.error_class, '') = coalesce(failed.error_class, '')
                      order by j.subject, j.subject_id limit :examples) as few) as first
            order by count desc, error_class"""),
        {"run_id": run_id, "examples": examples},
    )
    return [FailureClass(**row) for row in rows.mappings()]


def jobs_after(
    conn: Connection, run_id: uuid.UUID, after: tuple[Subject, int] | None, limit: int
) -> Sequence[Row[Any]]:
    """The next of a run's jobs by subject and id, with their outcomes as JSON: None of those that have not
    ended.
    """
    subject, subject_id = after or ("", 0)
    return conn.execute(
        sql("""
            select run_id, subject, subject_id, subject_name, path, state, outcome from migration_jobs
            where run_id = :run_id and (subject, subject_id) > (:subject, :subject_id)
            order by subject, subject_id limit :limit"""),
        {"run_id": run_id, "subject": subject, "subject_id": subject_id, "limit": limit},
    ).all()


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


_FAILED_LAST = """
    select r.verb, j.error_class, count(*) as projects
    from migration_jobs j join migration_runs r using (run_id)
    where j.state = 'failed' and not r.dry_run
      and not exists (select from migration_jobs later join migration_runs l using (run_id)
                      where later.subject = j.subject and later.subject_id = j.subject_id
                        and l.verb = r.verb and not l.dry_run and (l.created_at, l.run_id) > (r.created_at, r.run_id))
    group by r.verb, j.error_class order by 1, 2"""
"""Of each failed job is asked whether its project has a later one: as many questions as jobs have failed."""


def figures(conn: Connection) -> Figures:
    """Count runs and jobs: four statements, however many there are. Of ended runs and jobs that did not fail
    only the kept counts are read.
    """
    jobs = conn.execute(
        sql("""
            select r.verb, r.dry_run, c.state, c.error_class, sum(c.jobs)::bigint as jobs, sum(c.retries)::bigint as retries,
                   sum(c.crashes)::bigint as crashes, sum(c.fenced)::bigint as fenced
            from migration_job_counts c join migration_runs r using (run_id)
            group by r.verb, r.dry_run, c.state, c.error_class having sum(c.jobs) > 0 order by 1, 2, 3, 4""")
    ).all()
    failed = conn.execute(sql(_FAILED_LAST)).all()
    runs = conn.execute(
        sql("""
            select verb, dry_run, state, count(*) as runs from migration_runs
            group by verb, dry_run, state order by 1, 2, 3""")
    ).all()
    still_open = conn.execute(
        sql(f"""
            with open_runs as materialized (
                select run_id from migration_runs where state in ('planned', 'running', 'paused')
            ), sums as (
                select coalesce(sum(bytes_total), 0)::bigint as bytes_total, coalesce(sum(bytes_done), 0)::bigint as bytes_done
                from ({_NOW}) as now where run_id in (select run_id from open_runs)
            )
            select bytes_total, bytes_done,
                   (select count(distinct worker) from migration_jobs
                    where state = 'running' and lease_until > clock_timestamp()
                      and run_id in (select run_id from open_runs)) as workers,
                   coalesce(extract(epoch from clock_timestamp() - (
                       select min(oldest.queued_at) from open_runs cross join lateral (
                           select queued_at from migration_jobs j where j.run_id = open_runs.run_id and j.state = 'queued'
                           order by queued_at limit 1) as oldest)), 0)::float8 as oldest_waiting_s
            from sums""")  # noqa: S608 - a constant
    ).one()
    return Figures(jobs=jobs, failed=failed, runs=runs, open=still_open)


def shared_bytes(conn: Connection) -> int:
    """Allocated bytes of legacy directories that came into the store by sharing their blocks."""
    shared: int = conn.execute(
        sql("select coalesce(sum(shared_bytes), 0)::bigint from migration_job_counts")
    ).scalar_one()
    return shared
