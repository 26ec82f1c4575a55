"""Rows of the ledger: runs, jobs, their leases and outcomes. Opens no transaction; the caller says when it commits."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql
from worker.db.texts import as_json, storable
from worker.errors import ROOM, UsageError
from worker.messages import JobRef, JobState, Outcome, RunState, Verb

_OPEN = {JobState.QUEUED, JobState.RUNNING}

_LOST_AFTER_S = 30.0
"""How long a message may be on its way before it counts as lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of a verb over some projects. Times are UTC."""

    run_id: uuid.UUID
    verb: Verb
    dry_run: bool
    state: RunState
    selection: Mapping[str, Any]
    created_at: datetime
    finished_at: datetime | None
    paused_because: str | None
    limit_bytes_per_second: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as the producer plans it. Sizes are None where the producer cannot see the directory."""

    project_id: int
    project_name: str
    path: str | None
    sessions: int | None = None
    files: int | None = None
    size_bytes: int | None = None
    skipped: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A job that needs a message."""

    ref: JobRef
    verb: Verb
    project_name: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, counted from its jobs. `live` counts jobs under a lease that has not run out, `crashes` leases that
    did, `fenced` attempts that came too late, `retries` jobs handed back for something passing.
    """

    state: RunState
    jobs: int
    ended: int
    failed: int
    running: int
    live: int
    bytes_total: int
    bytes_done: int
    files_done: int = 0
    retries: int = 0
    crashes: int = 0
    fenced: int = 0


# Runs -----------------------------------------------------------------------------------------------------------------


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
            "project_id": job.project_id,
            "project_name": job.project_name,
            "path": job.path,
            "state": JobState.SKIPPED if job.skipped else JobState.QUEUED,
            "sessions_total": job.sessions,
            "files_total": job.files,
            "bytes_total": job.size_bytes,
            "outcome": job.skipped.to_json() if job.skipped else None,
        }
        for job in jobs
    ]
    conn.execute(
        sql("""
            insert into migration_jobs (run_id, project_id, project_name, path, state, sessions_total, files_total,
                                        bytes_total, outcome, finished_at)
            select :run_id, j.project_id, j.project_name, j.path, j.state, j.sessions_total, j.files_total, j.bytes_total,
                   j.outcome, case when j.outcome is not null then clock_timestamp() end
            from jsonb_to_recordset(cast(:rows as jsonb)) as j(
                project_id integer, project_name text, path text, state text, sessions_total integer, files_total bigint,
                bytes_total bigint, outcome jsonb)"""),
        {"run_id": run_id, "rows": as_json(rows)},
    )


def note_sent(conn: Connection, refs: Sequence[JobRef], epoch: str) -> None:
    """The messages of these jobs are with the broker, in the life of it that `epoch` names."""
    conn.execute(
        sql("""
            update migration_jobs j set sent_at = clock_timestamp(), sent_epoch = :epoch
            from jsonb_to_recordset(cast(:refs as jsonb)) as sent(run_id uuid, project_id integer)
            where j.run_id = sent.run_id and j.project_id = sent.project_id and j.state = 'queued'"""),
        {
            "epoch": epoch,
            "refs": json.dumps([{"run_id": str(ref.run_id), "project_id": ref.project_id} for ref in refs]),
        },
    )


def start_run(conn: Connection, run_id: uuid.UUID) -> None:
    """Every waiting job of the run is with the broker: the run is running."""
    conn.execute(
        sql("update migration_runs set state = 'running' where run_id = :run_id and state = 'planned'"),
        {"run_id": run_id},
    )


def never_sent(conn: Connection, limit: int) -> list[Waiting]:
    """Waiting jobs that have no message, largest first, locked until the transaction ends: they were handed back, or their
    time has come, or whoever opened the run died before he had sent them.
    """
    return _waiting(
        conn,
        """j.sent_at is null
           and (j.attempt > 0 or j.waits_for is not null or j.queued_at < clock_timestamp() - :patience)""",
        {"limit": limit},
    )


def lost(conn: Connection, epoch: str, *, queue_is_empty: bool, limit: int) -> list[Waiting]:
    """Waiting jobs whose message is lost, as `never_sent`. Looks at every waiting job: to be asked when there is a reason.

    The message went to an earlier life of the broker. Or the queue is empty, and the job still waits: then it was lost on
    its way, or somebody has just taken it out; half a minute later it is the former, and one too many is harmless.
    """
    return _waiting(
        conn,
        """j.sent_at is not null and (j.sent_epoch is distinct from :epoch
                                       or :queue_is_empty and j.sent_at < clock_timestamp() - :patience)""",
        {"limit": limit, "epoch": epoch, "queue_is_empty": queue_is_empty},
    )


def _waiting(conn: Connection, condition: str, values: dict[str, Any]) -> list[Waiting]:
    rows = conn.execute(
        sql(f"""
            select j.run_id, j.project_id, j.project_name, j.bytes_total as size_bytes, r.verb
            from migration_jobs j join migration_runs r using (run_id)
            where j.state = 'queued' and r.state in ('planned', 'running')
              and coalesce(j.not_before <= clock_timestamp(), true) and {condition}
            order by j.bytes_total desc nulls last, j.project_id limit :limit for update of j skip locked"""),  # noqa: S608 - constants
        values | {"patience": timedelta(seconds=_LOST_AFTER_S)},
    )
    return [
        Waiting(
            ref=JobRef(run_id=row.run_id, project_id=row.project_id),
            verb=Verb(row.verb),
            project_name=row.project_name,
            size_bytes=row.size_bytes,
        )
        for row in rows
    ]


def cancel_run(conn: Connection, run_id: uuid.UUID, reason: str) -> None:
    """Stop a run: what no worker has taken ends as cancelled, with `reason`.

    The run first: a job that is being handed back right now has either seen that, or is seen here (`hold_state`).
    """
    conn.execute(
        sql("""
            update migration_runs set state = 'cancelled', finished_at = clock_timestamp()
            where run_id = :run_id and state in ('planned', 'running', 'paused')"""),
        {"run_id": run_id},
    )
    end_waiting_jobs_of_cancelled_runs(conn, reason, run_id)


def end_waiting_jobs_of_cancelled_runs(
    conn: Connection, reason: str, run_id: uuid.UUID | None = None
) -> list[JobRef]:
    """End as cancelled what still waits in a cancelled run, or in any: no worker would ever take it. Which jobs these were."""
    rows = conn.execute(
        sql("""
            update migration_jobs
            set state = 'cancelled', finished_at = clock_timestamp(),
                outcome = jsonb_build_object('project_id', project_id, 'project_name', project_name,
                    'status', 'cancelled', 'reason', cast(:reason as text), 'original_path', path)
            where run_id in (select run_id from migration_runs
                             where state = 'cancelled' and run_id = coalesce(:run_id, run_id))
              and state = 'queued'
            returning run_id, project_id"""),
        {"run_id": run_id, "reason": reason},
    )
    return [JobRef(run_id=row.run_id, project_id=row.project_id) for row in rows]


def hold_state(conn: Connection, run_id: uuid.UUID) -> RunState:
    """The run's state, which nobody changes until the transaction ends: for whoever is about to let a job wait."""
    row = conn.execute(
        sql("select state from migration_runs where run_id = :run_id for share"), {"run_id": run_id}
    ).one()
    return RunState(row.state)


def pause_run(conn: Connection, run_id: uuid.UUID, reason: str) -> None:
    """Hold a run, and say why; one that is held already keeps its first reason."""
    conn.execute(
        sql("""
            update migration_runs set state = 'paused', paused_because = :reason
            where run_id = :run_id and state in ('planned', 'running')"""),
        {"run_id": run_id, "reason": storable(conn, reason)},
    )


def pause_runs_that_only_wait(conn: Connection, root_patience_s: float) -> list[Run]:
    """Pause every run in which nothing goes on any more but waiting: for room in the store, which three projects lack or all
    that are left, or for a worker that has a legacy root, while no job at all has been at work for so long. Which these were.
    """
    rows = conn.execute(
        sql("""
            update migration_runs r
            set state = 'paused',
                paused_because = (select j.phase from migration_jobs j
                                  where j.run_id = r.run_id and j.state = 'queued' and j.waits_for is not null
                                  order by j.waits_since desc limit 1)
            from (select run_id, count(*) filter (where waits_for = :room) as for_room,
                         count(*) filter (where waits_for <> :room) as for_roots, count(*) as waiting,
                         min(waits_since) filter (where waits_for <> :room) as since
                  from migration_jobs where state = 'queued' and waits_for is not null group by run_id) as w
            where r.run_id = w.run_id and r.state in ('planned', 'running')
              and (w.for_room >= 3
                   or w.for_room > 0 and not exists (
                       select from migration_jobs o where o.run_id = r.run_id
                       and (o.state = 'running' or o.state = 'queued' and o.waits_for is distinct from :room))
                   or w.since < clock_timestamp() - make_interval(secs => :patience)
                      and not exists (select from migration_jobs o
                                      where o.state = 'running' and o.lease_until > clock_timestamp())
                      and not exists (
                          select from migration_jobs o where o.run_id = r.run_id
                          and o.finished_at > clock_timestamp() - make_interval(secs => :patience)))
            returning r.*"""),
        {"room": ROOM, "patience": root_patience_s},
    )
    return [_run(row) for row in rows]


def resume_run(conn: Connection, run_id: uuid.UUID) -> None:
    """Let a held run go on. Its waiting jobs need new messages: the old ones may have come to nothing meanwhile."""
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


def retry_failed(
    conn: Connection,
    run_id: uuid.UUID,
    *,
    error_class: str | None = None,
    project_ids: Sequence[int] | None = None,
) -> int:
    """Let failed jobs wait again, all or some, as if they had never been tried; how many. A finished run runs again, a
    cancelled one does not. Locks the run, then the jobs; a second call at once waits, and finds what the first one left.
    """
    # Not `hold_state`: two who share the row and then want to change it wait for each other.
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
            select project_id, run_id from (
                select distinct on (j.project_id) j.project_id, j.run_id, j.state
                from migration_jobs j join migration_runs r using (run_id)
                where r.verb = :verb and r.dry_run = :dry_run and j.outcome is not null
                order by j.project_id, r.created_at desc) as latest
            where state = 'failed'"""),
        {"verb": verb, "dry_run": dry_run},
    )
    return {row.project_id: row.run_id for row in rows}


def limit_run(conn: Connection, run_id: uuid.UUID, bytes_per_second: int | None) -> None:
    """How fast the run's workers together may read from now on; None: as fast as they can."""
    conn.execute(
        sql("update migration_runs set limit_bytes_per_second = :limit where run_id = :run_id"),
        {"run_id": run_id, "limit": bytes_per_second},
    )


def waiting(conn: Connection, run_id: uuid.UUID) -> list[NewJob]:
    """The jobs of a run that wait for a worker, in the order of sending."""
    rows = conn.execute(
        sql("""
            select project_id, project_name, path, sessions_total as sessions, files_total as files,
                   bytes_total as size_bytes
            from migration_jobs where run_id = :run_id and state = 'queued'
            order by bytes_total desc nulls last, project_id"""),
        {"run_id": run_id},
    )
    return [NewJob(**row._mapping) for row in rows]  # noqa: SLF001 - the public name of a row as a mapping


def finish_ended_runs(conn: Connection) -> None:
    """Close every run whose last job has an outcome: whoever wrote it may have died before he could do that."""
    conn.execute(
        sql("""
            update migration_runs r set state = 'finished', finished_at = clock_timestamp()
            where r.state in ('planned', 'running', 'paused')
              and not exists (select from migration_jobs j
                              where j.run_id = r.run_id and j.state in ('queued', 'running'))""")
    )


def finish_run_if_ended(conn: Connection, run_id: uuid.UUID) -> None:
    """Close the run when its last job has an outcome. Call it after that outcome is committed, in a new transaction:
    of two jobs that end at once, the later one then sees both. A run whose producer died before it could say that all
    jobs are sent is closed as well.
    """
    conn.execute(
        sql("""
            update migration_runs r set state = 'finished', finished_at = clock_timestamp()
            where r.run_id = :run_id and r.state in ('planned', 'running', 'paused')
              and not exists (select from migration_jobs j
                              where j.run_id = r.run_id and j.state in ('queued', 'running'))"""),
        {"run_id": run_id},
    )


def find_run(conn: Connection, reference: str) -> Run:
    """The run that a person means by `latest`, an id, or the beginning of one. Raises `UsageError` when none or several fit."""
    if reference == "latest":
        condition, value = "true", ""
    else:
        condition, value = "starts_with(run_id::text, :prefix)", reference.lower()
    rows = conn.execute(
        sql(f"select * from migration_runs where {condition} order by created_at desc limit 2"),  # noqa: S608 - a constant
        {"prefix": value},
    ).all()
    if not rows:
        raise UsageError(
            "There is no run yet" if reference == "latest" else f"No run begins with {reference!r}"
        )
    if len(rows) > 1 and reference != "latest":
        raise UsageError(f"More than one run begins with {reference!r}; give more of the id")
    return _run(rows[0])


def runs(conn: Connection, limit: int) -> list[Run]:
    """The newest runs first."""
    rows = conn.execute(
        sql("select * from migration_runs order by created_at desc limit :limit"), {"limit": limit}
    )
    return [_run(row) for row in rows]


def progress(conn: Connection, run_id: uuid.UUID) -> Progress:
    """Count the run's jobs: one pass over their rows, however many there are."""
    run = conn.execute(
        sql("select state from migration_runs where run_id = :run_id"), {"run_id": run_id}
    ).one()
    rows = conn.execute(
        sql("""
            select state, count(*) as jobs, count(*) filter (where lease_until > clock_timestamp()) as live,
                   coalesce(sum(bytes_total), 0)::bigint as bytes_total,
                   coalesce(sum(least(bytes_done, coalesce(bytes_total, bytes_done))), 0)::bigint as bytes_done,
                   coalesce(sum(files_done), 0)::bigint as files_done, sum(retries)::integer as retries, sum(crashes)::integer as crashes, sum(fenced)::integer as fenced
            from migration_jobs where run_id = :run_id group by state"""),
        {"run_id": run_id},
    ).all()
    of = {row.state: row for row in rows}
    ended = [row for row in rows if row.state not in _OPEN]
    return Progress(
        state=RunState(run.state),
        jobs=sum(row.jobs for row in rows),
        ended=sum(row.jobs for row in ended),
        failed=of[JobState.FAILED].jobs if JobState.FAILED in of else 0,
        running=of[JobState.RUNNING].jobs if JobState.RUNNING in of else 0,
        live=sum(row.live for row in rows),
        bytes_total=sum(row.bytes_total for row in rows),
        # Whatever an ended job had is dealt with, also where it failed.
        bytes_done=sum(row.bytes_total if row.state not in _OPEN else row.bytes_done for row in rows),
        files_done=sum(row.files_done for row in rows),
        retries=sum(row.retries for row in rows),
        crashes=sum(row.crashes for row in rows),
        fenced=sum(row.fenced for row in rows),
    )


def holders(conn: Connection, run_id: uuid.UUID) -> list[Row[Any]]:
    """The jobs that workers have right now: who, since when, how far."""
    return list(
        conn.execute(
            sql("""
                select project_id, project_name, worker, phase, attempt, files_total, files_done, bytes_total, bytes_done,
                       extract(epoch from clock_timestamp() - started_at)::float8 as age_s,
                       extract(epoch from lease_until - clock_timestamp())::float8 as lease_left_s
                from migration_jobs where run_id = :run_id and state = 'running' order by started_at"""),
            {"run_id": run_id},
        )
    )


def open_jobs(conn: Connection) -> Row[Any]:
    """What is still to be done, over all runs: `waiting` for a worker right now, `running`, and those of them that are `dead`
    (their lease ran out).
    """
    return conn.execute(
        sql("""
            select count(*) filter (where j.state = 'queued' and r.state in ('planned', 'running')
                                    and coalesce(j.not_before <= clock_timestamp(), true)) as waiting,
                   count(*) filter (where j.state = 'running') as running,
                   count(*) filter (where j.state = 'running' and j.lease_until < clock_timestamp()) as dead
            from migration_jobs j join migration_runs r using (run_id) where j.state in ('queued', 'running')""")
    ).one()


def active_s(conn: Connection, run_id: uuid.UUID) -> float:
    """For how many seconds at least one worker had a job of the run: not while it was paused, and not while no worker was there.

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


def running_jobs(conn: Connection) -> list[JobRef]:
    """Every job that some worker has, or had when it died."""
    rows = conn.execute(sql("select run_id, project_id from migration_jobs where state = 'running'"))
    return [JobRef(run_id=row.run_id, project_id=row.project_id) for row in rows]


def idle_jobs(conn: Connection) -> Iterator[JobRef]:
    """Every job of every run that no worker has: one that waits, or has ended."""
    rows = conn.execute(sql("select run_id, project_id from migration_jobs where state <> 'running'"))
    return (JobRef(run_id=row.run_id, project_id=row.project_id) for row in rows)


def held_runs(conn: Connection) -> list[Run]:
    """The runs that stand still until somebody lets them go on."""
    rows = conn.execute(sql("select * from migration_runs where state = 'paused' order by created_at"))
    return [_run(row) for row in rows]


def retrying(conn: Connection, run_id: uuid.UUID, limit: int) -> list[Row[Any]]:
    """Jobs that met something passing and wait to be tried again; `wait_s` is None for one that waits for room in the store."""
    return list(
        conn.execute(
            sql("""
                select project_id, project_name, phase as reason, retries,
                       case when waits_for is distinct from :room then
                           greatest(0, extract(epoch from not_before - clock_timestamp()))::float8 end as wait_s
                from migration_jobs where run_id = :run_id and state = 'queued' and not_before is not null
                order by not_before limit :limit"""),
            {"run_id": run_id, "limit": limit, "room": ROOM},
        )
    )


def failures(conn: Connection, run_id: uuid.UUID, examples: int) -> list[Row[Any]]:
    """What failed, by class, most frequent first: how many, what to do, and the first few."""
    return list(
        conn.execute(
            sql("""
                select error_class, count(*) as jobs, min(outcome->>'remedy') as remedy,
                       (array_agg(jsonb_build_object('project_id', project_id, 'project_name', project_name, 'error', error)
                                  order by project_id) filter (where number <= :examples)) as examples
                from (select *, row_number() over (partition by error_class order by project_id) as number
                      from migration_jobs where run_id = :run_id and state = 'failed') as failed
                group by error_class order by jobs desc, error_class"""),
            {"run_id": run_id, "examples": examples},
        )
    )


def jobs(conn: Connection, run_id: uuid.UUID) -> list[Row[Any]]:
    """Every job of a run, for people: what it is, who has it, how far it is, how it ended."""
    return list(
        conn.execute(
            sql("""
                select project_id, project_name, path, state, attempt, worker, lease_until, phase, dataset_hash,
                       sessions_total, files_total, bytes_total, files_done, bytes_done, error_class, error, outcome,
                       started_at, finished_at,
                       extract(epoch from clock_timestamp() - started_at)::float8 as age_s
                from migration_jobs where run_id = :run_id order by project_id"""),
            {"run_id": run_id},
        )
    )


def outcomes(conn: Connection, run_id: uuid.UUID) -> dict[int, Outcome]:
    """The outcome of every job that has ended, by project."""
    rows = conn.execute(
        sql("select project_id, outcome from migration_jobs where run_id = :run_id and outcome is not null"),
        {"run_id": run_id},
    )
    return {row.project_id: Outcome.from_json(row.outcome) for row in rows}


def without_outcome(conn: Connection, run_id: uuid.UUID) -> list[Row[Any]]:
    """The jobs of a run that have no outcome: open ones, or such as an ended run has lost sight of."""
    return list(
        conn.execute(
            sql("""
                select project_id, project_name, path, state from migration_jobs
                where run_id = :run_id and outcome is null order by project_id"""),
            {"run_id": run_id},
        )
    )


# Dry runs -------------------------------------------------------------------------------------------------------------


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
        {"run_id": ref.run_id, "project_id": ref.project_id, "rows": json.dumps(rows)},
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


def _run(row: Row[Any]) -> Run:
    return Run(
        run_id=row.run_id,
        verb=Verb(row.verb),
        dry_run=row.dry_run,
        state=RunState(row.state),
        selection=row.selection,
        created_at=row.created_at,
        finished_at=row.finished_at,
        paused_because=row.paused_because,
        limit_bytes_per_second=row.limit_bytes_per_second,
    )
