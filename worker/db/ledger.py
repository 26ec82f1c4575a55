"""The ledger: runs and jobs from state to state. Opens no transaction; the caller says when it commits."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql
from worker.db.texts import as_json, storable
from worker.errors import ROOM, LeaseLostError, RunNotFoundError
from worker.messages import JobRef, JobState, Outcome, RunOptions, RunState, Subject, Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of a verb over some projects. Times are UTC."""

    run_id: uuid.UUID
    verb: Verb
    dry_run: bool
    state: RunState
    asked_for: Mapping[str, Any] | None
    created_at: datetime
    finished_at: datetime | None
    paused_because: str | None
    limit_bytes_per_second: int | None = None

    @property
    def options(self) -> RunOptions:
        """What it was asked for beside its verb."""
        return RunOptions.model_validate(self.asked_for or {})

    @classmethod
    def from_row(cls, row: Row[Any]) -> "Run":
        """A row of `migration_runs`, of which these columns are asked for: `_RUN`."""
        return cls(
            run_id=row.run_id,
            verb=Verb(row.verb),
            dry_run=row.dry_run,
            state=RunState(row.state),
            asked_for=row.options,
            created_at=row.created_at,
            finished_at=row.finished_at,
            paused_because=row.paused_because,
            limit_bytes_per_second=row.limit_bytes_per_second,
        )


_RUN = """
    r.run_id, r.verb, r.dry_run, r.state, r.options, r.created_at, r.finished_at, r.paused_because,
    r.limit_bytes_per_second"""
"""All of a run but its selection, which may be megabytes."""


def selection(conn: Connection, run_id: uuid.UUID) -> dict[str, Any]:
    """What a run was asked for, what that left out and why, and what it keeps for its report."""
    found: dict[str, Any] = conn.execute(
        sql("select selection from migration_runs where run_id = :run_id"), {"run_id": run_id}
    ).scalar_one()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as the producer plans it. Sizes are None where the producer cannot see the directory."""

    subject_id: int
    subject_name: str
    path: str | None
    subject: Subject = Subject.PROJECT
    sessions: int | None = None
    files: int | None = None
    size_bytes: int | None = None
    skipped: Outcome | None = None
    wave: int | None = None
    held: bool = False

    @property
    def state(self) -> JobState:
        """Where the job begins: it waits for a worker, or for its wave, or there is nothing to do."""
        if self.skipped:
            return JobState.SKIPPED
        return JobState.HELD if self.held else JobState.QUEUED


def open_run(
    conn: Connection,
    run_id: uuid.UUID,
    verb: Verb,
    *,
    dry_run: bool,
    selection: Mapping[str, Any],
    limit_bytes_per_second: int | None = None,
) -> None:
    """Write a new run, planned."""
    conn.execute(
        sql("""
            insert into migration_runs (run_id, verb, dry_run, selection, limit_bytes_per_second)
            values (:run_id, :verb, :dry_run, cast(:selection as jsonb), :limit)"""),
        {
            "run_id": run_id,
            "verb": verb,
            "dry_run": dry_run,
            "selection": as_json(selection),
            "limit": limit_bytes_per_second,
        },
    )


def add_jobs(conn: Connection, run_id: uuid.UUID, jobs: Sequence[NewJob]) -> None:
    """Write the jobs of a run in one statement; those that are skipped already carry their outcome."""
    rows = [
        {
            "subject": job.subject,
            "subject_id": job.subject_id,
            "subject_name": job.subject_name,
            "path": job.path,
            "state": job.state,
            "wave": job.wave,
            "sessions_total": job.sessions,
            "files_total": job.files,
            "bytes_total": job.size_bytes,
            "outcome": job.skipped.to_json() if job.skipped else None,
        }
        for job in jobs
    ]
    conn.execute(
        sql("""
            insert into migration_jobs (run_id, subject, subject_id, subject_name, path, state, wave, sessions_total, files_total,
                                        bytes_total, outcome, finished_at)
            select :run_id, j.subject, j.subject_id, j.subject_name, j.path, j.state, j.wave, j.sessions_total, j.files_total,
                   j.bytes_total, j.outcome, case when j.outcome is not null then clock_timestamp() end
            from jsonb_to_recordset(cast(:rows as jsonb)) as j(
                subject text, subject_id integer, subject_name text, path text, state text, wave integer, sessions_total integer,
                files_total bigint, bytes_total bigint, outcome jsonb)"""),
        {"run_id": run_id, "rows": as_json(rows)},
    )


def start_run(conn: Connection, run_id: uuid.UUID) -> None:
    """Every waiting job of the run is with the broker: the run is running."""
    conn.execute(
        sql("update migration_runs set state = 'running' where run_id = :run_id and state = 'planned'"),
        {"run_id": run_id},
    )


def cancel_run(conn: Connection, run_id: uuid.UUID, reason: str) -> None:
    """Stop a run: what no worker has taken ends as cancelled, with `reason`. The gate that verifies a wave of
    it stops with it.

    The run first: a job that is being handed back right now has either seen that, or is seen here
    (`lock_state`).
    """
    conn.execute(
        sql("""
            update migration_runs set state = 'cancelled', finished_at = clock_timestamp()
            where run_id = :run_id and state in ('planned', 'running', 'paused')"""),
        {"run_id": run_id},
    )
    end_waiting_jobs_of_cancelled_runs(conn, reason, run_id)
    for gate in gates_at_work(conn, run_id):
        cancel_run(conn, gate, reason)


def end_waiting_jobs_of_cancelled_runs(
    conn: Connection, reason: str, run_id: uuid.UUID | None = None
) -> list[JobRef]:
    """End as cancelled what still waits in a cancelled run, or in all of them: no worker would ever take it.
    Returns these jobs.
    """
    ended: list[JobRef] = []
    # Each by its own index, which holds no other jobs.
    for state in (JobState.QUEUED, JobState.HELD):
        rows = conn.execute(
            sql(f"""
                update migration_jobs
                set state = 'cancelled', finished_at = clock_timestamp(),
                    outcome = jsonb_build_object('subject', subject, 'project_id', project_id, 'project_name', project_name,
                        'dataset_id', case when subject = 'dataset' then subject_id end,
                        'dataset_name', case when subject = 'dataset' then subject_name end,
                        'status', 'cancelled', 'reason', cast(:reason as text), 'original_path', path)
                where run_id in (select run_id from migration_runs
                                 where state = 'cancelled' and run_id = coalesce(:run_id, run_id))
                  and state = '{state}'
                returning run_id, subject, subject_id"""),  # noqa: S608 - constants
            {"run_id": run_id, "reason": reason},
        )
        ended += [JobRef.from_row(row) for row in rows]
    return ended


def lock_state(conn: Connection, run_id: uuid.UUID) -> RunState:
    """The run's state, which no other transaction changes until this one ends. Asked before a job waits.
    Raises `LeaseLostError` when there is no such run any more: a database that was restored, or a replica
    that was promoted, may not have what a worker took from it.
    """
    state = conn.scalar(
        sql("select state from migration_runs where run_id = :run_id for share"), {"run_id": run_id}
    )
    if state is None:
        raise LeaseLostError(f"run {run_id} is not in the database any more")
    return RunState(state)


def gates_at_work(conn: Connection, run_id: uuid.UUID) -> list[uuid.UUID]:
    """The run that verifies a wave of this one right now, if any. What steers a run steers its gate."""
    rows = conn.execute(
        sql("select gate_run_id from migration_waves where run_id = :run_id and state = 'verifying'"),
        {"run_id": run_id},
    )
    return [row.gate_run_id for row in rows]


def pause_run(conn: Connection, run_id: uuid.UUID, reason: str) -> None:
    """Pause a run and its gate, and say why; one that is paused already keeps its first reason."""
    conn.execute(
        sql("""
            update migration_runs set state = 'paused', paused_because = :reason
            where run_id = :run_id and state in ('planned', 'running')"""),
        {"run_id": run_id, "reason": storable(conn, reason)},
    )
    for gate in gates_at_work(conn, run_id):
        pause_run(conn, gate, reason)


def pause_runs_that_only_wait(conn: Connection, root_patience_s: float) -> list[Run]:
    """Pause every run in which nothing happens any more but waiting: for room in the store, which three
    jobs lack or all that are left, or for a worker that has a legacy root, while no job at all has been
    running for so long. Returns these runs. Asks an index in each open run, however many of its jobs wait.
    """
    rows = conn.execute(
        sql(f"""
            with open as materialized (
                select run_id from migration_runs where state in ('planned', 'running')
            ), waiting as (
                select run_id, room.jobs as for_room, root.waits as for_root
                from open cross join lateral (
                    select count(*) as jobs from (
                        select from migration_jobs j
                        where j.run_id = open.run_id and j.state = 'queued' and j.waits_for = '{ROOM}' limit 3) as few) as room
                cross join lateral (
                    select exists (select from migration_jobs j
                                   where j.run_id = open.run_id and j.state = 'queued' and j.waits_for is not null
                                     and j.waits_for <> '{ROOM}'
                                     and j.waits_since < statement_timestamp() - make_interval(secs => :patience)
                                   order by j.waits_since offset 0) as waits) as root
            )
            update migration_runs r
            set state = 'paused',
                paused_because = (select j.phase from migration_jobs j
                                  where j.run_id = r.run_id and j.state = 'queued' and j.waits_for is not null
                                  order by j.waits_since desc limit 1)
            from waiting w
            where r.run_id = w.run_id and r.state in ('planned', 'running') and (w.for_room > 0 or w.for_root)
              and (w.for_room >= 3
                   -- All that is left waits for room.
                   or w.for_room > 0
                      and not exists (select from migration_jobs o where o.run_id = r.run_id and o.state = 'running' offset 0)
                      and not exists (select from migration_jobs o where o.run_id = r.run_id and o.state = 'queued'
                                      and o.waits_for is distinct from '{ROOM}' order by o.queued_at offset 0)
                   -- A root is missing, no worker runs anything, and nothing of the run has ended for so long.
                   or w.for_root
                      and not exists (select from migration_jobs o
                                      where o.state = 'running' and o.lease_until > clock_timestamp() offset 0)
                      and not exists (select from migration_jobs o where o.run_id = r.run_id
                                      and o.finished_at > statement_timestamp() - make_interval(secs => :patience)
                                      order by o.finished_at offset 0))
            returning {_RUN}"""),  # noqa: S608 - a constant
        {"patience": root_patience_s},
    )
    return [Run.from_row(row) for row in rows]


def resume_run(conn: Connection, run_id: uuid.UUID) -> None:
    """Resume a paused run, and its gate. Their waiting jobs need new messages: the old ones may be gone by
    now.
    """
    conn.execute(
        sql("""
            update migration_runs set state = 'running', paused_because = null
            where run_id = :run_id and state = 'paused'"""),
        {"run_id": run_id},
    )
    conn.execute(
        sql("""
            update migration_jobs
            set sent_at = null, waits_for = null, waits_since = null,
                not_before = case when waits_for is null then not_before end
            where run_id = :run_id and state = 'queued'"""),
        {"run_id": run_id},
    )
    for gate in gates_at_work(conn, run_id):
        resume_run(conn, gate)


def retry_failed(
    conn: Connection,
    run_id: uuid.UUID,
    *,
    error_class: str | None = None,
    project_ids: Sequence[int] | None = None,
) -> int:
    """Queue failed jobs again, all or some, as if they had never been tried; returns how many. A finished run
    runs again, a cancelled one does not. Locks the run, then the jobs; a second call at once waits, and finds
    what the first one left.
    """
    # Not `lock_state`: two transactions that share the row and then change it wait for each other.
    state = conn.execute(
        sql("select state from migration_runs where run_id = :run_id for no key update"), {"run_id": run_id}
    ).scalar_one()
    if state == RunState.CANCELLED:
        return 0
    result = conn.execute(
        sql("""
            update migration_jobs
            set state = 'queued', outcome = null, error_class = null, error = null, finished_at = null, sent_at = null,
                retries = 0, crashes = 0, waits_for = null, waits_since = null, queued_at = clock_timestamp()
            where run_id = :run_id and state = 'failed'
              and (cast(:error_class as text) is null or error_class = :error_class)
              and (cast(:project_ids as bigint[]) is null or project_id = any(:project_ids))"""),
        {
            "run_id": run_id,
            "error_class": error_class,
            "project_ids": None if project_ids is None else list(project_ids),
        },
    )
    if result.rowcount:
        conn.execute(
            sql("""
                update migration_runs set state = 'running', finished_at = null
                where run_id = :run_id and state = 'finished'"""),
            {"run_id": run_id},
        )
    return result.rowcount


def failed_last(conn: Connection, verb: Verb, *, dry_run: bool) -> dict[int, uuid.UUID]:
    """The projects whose latest job in a run of this kind has failed, with that run."""
    rows = conn.execute(
        sql("""
            select subject_id, run_id from (
                select distinct on (j.subject_id) j.subject_id, j.run_id, j.state
                from migration_jobs j join migration_runs r using (run_id)
                where r.verb = :verb and r.dry_run = :dry_run and j.outcome is not null and j.subject = 'project'
                order by j.subject_id, r.created_at desc) as latest
            where state = 'failed'"""),
        {"verb": verb, "dry_run": dry_run},
    )
    return {row.subject_id: row.run_id for row in rows}


def limit_run(conn: Connection, run_id: uuid.UUID, bytes_per_second: int | None) -> None:
    """How fast the run's workers together may read from now on, also those of its gate; None: as fast as they
    can.
    """
    conn.execute(
        sql("update migration_runs set limit_bytes_per_second = :limit where run_id = :run_id"),
        {"run_id": run_id, "limit": bytes_per_second},
    )
    for gate in gates_at_work(conn, run_id):
        limit_run(conn, gate, bytes_per_second)


_FINISH_ENDED = """
    update migration_runs r set state = 'finished', finished_at = clock_timestamp()
    where r.state in ('planned', 'running', 'paused')
      -- By the order PostgreSQL finds one in the index, however many jobs there are; by the offset in each run by itself.
      and not exists (select from migration_jobs j where j.run_id = r.run_id and j.state = 'queued'
                      order by j.queued_at offset 0)
      and not exists (select from migration_jobs j where j.run_id = r.run_id and j.state = 'running' offset 0)
      and not exists (select from migration_jobs j where j.run_id = r.run_id and j.state = 'held' offset 0)"""


def finish_ended_runs(conn: Connection) -> None:
    """Close every run whose last job has an outcome: the worker that wrote it may have died since."""
    conn.execute(sql(_FINISH_ENDED))


def finish_run_if_ended(conn: Connection, run_id: uuid.UUID) -> None:
    """Close the run when its last job has an outcome. Call it after that outcome is committed, in a new
    transaction: of two jobs that end at once, the later one then sees both. A run whose producer died before
    it could say that all jobs are sent is closed as well.
    """
    conn.execute(sql(f"{_FINISH_ENDED} and r.run_id = :run_id"), {"run_id": run_id})


def find_run(conn: Connection, reference: str) -> Run:
    """The run that is meant by `latest`, an id, or the beginning of one. The latest is one that people
    opened, not a gate that verifies a wave of it. Raises `RunNotFoundError` when none or several fit.
    """
    if reference == "latest":
        condition, value = "not coalesce(options ? 'gate_of', false)", ""
    else:
        condition, value = "starts_with(run_id::text, :prefix)", reference.lower()
    rows = conn.execute(
        sql(f"select {_RUN} from migration_runs r where {condition} order by created_at desc limit 2"),  # noqa: S608 - constants
        {"prefix": value},
    ).all()
    if not rows:
        raise RunNotFoundError(
            "There is no run yet" if reference == "latest" else f"No run begins with {reference!r}"
        )
    if len(rows) > 1 and reference != "latest":
        raise RunNotFoundError(f"More than one run begins with {reference!r}; give more of the id")
    return Run.from_row(rows[0])


def runs(conn: Connection, limit: int) -> list[Run]:
    """The newest runs first."""
    rows = conn.execute(
        sql(f"select {_RUN} from migration_runs r order by created_at desc limit :limit"),  # noqa: S608 - a constant
        {"limit": limit},
    )
    return [Run.from_row(row) for row in rows]
