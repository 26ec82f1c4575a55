"""Rows of the ledger as a worker sees its job: the lease, the progress, the outcome. Opens no transaction."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql
from worker.db.texts import as_json, storable
from worker.errors import ROOM, LeaseLostError
from worker.messages import JobRef, Outcome, RunOptions, RunState, Verb

MOST_CRASHES = 3
"""A job whose leases ran out so often is not tried again: it may be what kills its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on one job: valid while `attempt` is the job's number, and was given at `started_at`.

    A database that fails over to a replica which lags behind gives a number a second time; the time it gives
    once. `busy_with` is another run that was processing the same subject when the lease was taken,
    `bytes_per_second` the job's share of the run's limit then. `retries` counts how often the job was handed
    back for a transient error.
    """

    ref: JobRef
    attempt: int
    subject_name: str | None
    path: str | None
    verb: Verb
    dry_run: bool
    asked_for: Mapping[str, Any] | None
    started_at: datetime
    run_created_at: datetime
    retries: int = 0
    busy_with: uuid.UUID | None = None
    bytes_per_second: float | None = None

    @property
    def mark(self) -> str:
        """What tells it from every other lease of the job, for names of files: its number comes first."""
        return f"{self.attempt}-{round(self.started_at.timestamp() * 1_000_000):x}"

    @property
    def options(self) -> RunOptions:
        """What its run was asked for. Read where it is needed only: raises `pydantic.ValidationError`."""
        return RunOptions.model_validate(self.asked_for or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunControl:
    """What is wanted of a running job: the state of its run, and its share of the run's limit."""

    run_state: RunState
    bytes_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """A job whose worker did not renew its lease. `crashes` counts that, too, unless the server was away."""

    lease: Lease
    worker: str
    crashes: int


PROTOCOL = 2
"""How workers divide work and guard it: raised, here and in the ledger's constraint, when those of a release
must not work beside those of the one before.
"""

_BELOW = "exists (select from unnest(cast(:roots as text[])) as root where starts_with(j.path || '/', rtrim(root, '/') || '/'))"
"""Does the job's project lie in one of these roots, by its text?"""

_STARTED = "pg_postmaster_start_time()"
_BACK = f"greatest({_STARTED}, clock_timestamp() - make_interval(secs => cast(:back_s as float8)))"
"""When the server came back: a replica that is promoted has been running for long, so a caller that could not
reach any says how long ago that ended; null counts for nothing.
"""


def _was_away(back: str) -> str:
    """Did the server come back after the lease ran out, or so shortly before that its owner may not be back
    yet?
    """
    return f"{back} > j.lease_until - make_interval(secs => :lease_s / 4)"


def _is_over(back: str) -> str:
    """Has the owner not renewed its lease although it could? After an outage it gets one more lease's
    time.
    """
    return f"""
        case when {_was_away(back)} then {back} + make_interval(secs => :lease_s)
             else j.lease_until end < clock_timestamp()"""


_TRY_ELSEWHERE_S = 2.0
"""How long a job waits that lacked its legacy root on one machine, before another one may get it."""

_UNTIL_RESUMED_S = 100 * 365 * 86_400.0
"""Room comes by the operator, who then resumes the run; reading everything again before would be in vain."""


def take_lease(
    conn: Connection,
    ref: JobRef,
    worker: str,
    lease_s: float,
    verb: Verb | None = None,
    *,
    but_not_in: Sequence[str] = (),
) -> Lease | None:
    """Take a job that waits or whose lease ran out; None when there is nothing to take.

    With `verb`, only a job of a run of that verb: what a message asks for is done only if the ledger says the
    same. `but_not_in` are legacy roots that lack on this machine.

    The conditions on states are worded so that PostgreSQL does not look for the job in the index of open
    jobs, which may hold the whole run; only a running job has a `lease_until`. One statement decides: of any
    number of deliveries exactly one gets the row. The attempt and the time that it returns are what every
    later write of this attempt must still match.
    """
    row = conn.execute(
        sql(f"""
            update migration_jobs j
            set state = 'running', attempt = j.attempt + 1, taken_as = '{PROTOCOL}:' || (j.attempt + 1), crashes = j.crashes + (j.state = 'running' and not {_was_away(_STARTED)})::integer,
                worker = :worker, phase = 'scan', files_done = 0, bytes_done = 0, not_before = null,
                lease_until = clock_timestamp() + make_interval(secs => :lease_s), started_at = clock_timestamp()
            from migration_runs r
            where j.run_id = :run_id and j.subject = :subject and j.subject_id = :subject_id and r.run_id = j.run_id
              and r.state in ('planned', 'running') and r.verb = coalesce(:verb, r.verb)
              and case j.state
                  when 'queued' then coalesce(j.not_before <= clock_timestamp(), true)
                  when 'running' then {_is_over(_STARTED)} and j.crashes + (not {_was_away(_STARTED)})::integer < :most_crashes
                  else false end
              {f"and not {_BELOW}" if but_not_in else ""}
            returning j.attempt, j.subject_name, j.path, j.started_at, j.retries, r.verb, r.dry_run, r.options,
                      r.created_at as run_created_at,
                      (select other.run_id from migration_jobs other join migration_runs their using (run_id)
                       where other.subject = j.subject and other.subject_id = j.subject_id and other.run_id <> j.run_id
                         and other.lease_until > clock_timestamp()
                         and their.verb = r.verb and r.verb <> 'verify' and not (r.dry_run or their.dry_run)
                       limit 1) as busy_with,
                      r.limit_bytes_per_second / case when r.limit_bytes_per_second is not null then
                          (select 1 + count(*) from migration_jobs live where live.run_id = j.run_id
                           and (live.subject, live.subject_id) <> (j.subject, j.subject_id) and live.state = 'running'
                           and live.lease_until > clock_timestamp()) end::float8 as bytes_per_second"""),  # noqa: S608 - constants
        {
            **({"roots": storable(conn, list(but_not_in))} if but_not_in else {}),
            **_job(ref),
            "worker": worker,
            "lease_s": lease_s,
            "verb": verb,
            "most_crashes": MOST_CRASHES,
        },
    ).one_or_none()
    return _lease(ref, row) if row is not None else None


def is_known(conn: Connection, ref: JobRef, verb: Verb) -> bool:
    """Whether the ledger has such a job, in whatever state."""
    known: bool = conn.execute(
        sql("""
            select exists (select from migration_jobs join migration_runs using (run_id)
                           where run_id = :run_id and subject = :subject and subject_id = :subject_id and verb = :verb)"""),
        _job(ref) | {"verb": verb},
    ).scalar_one()
    return known


def renew_lease(
    conn: Connection,
    lease: Lease,
    lease_s: float,
    *,
    phase: str,
    dataset_hash: str | None,
    files_done: int,
    bytes_done: int,
) -> RunControl | None:
    """Keep the job and say how far it is; what is wanted of it by now, or None when another worker has it.

    Without waiting for the disk: a renewal that a crash of the server takes only lets the lease end sooner.
    """
    row = conn.execute(
        sql("""
            set local synchronous_commit = off;
            update migration_jobs j
            set lease_until = clock_timestamp() + make_interval(secs => :lease_s), phase = :phase,
                dataset_hash = :dataset_hash, files_done = :files_done, bytes_done = :bytes_done
            from migration_runs r
            where j.run_id = :run_id and j.subject = :subject and j.subject_id = :subject_id and j.attempt = :attempt
              and j.started_at = :started_at and j.state = 'running'
              and r.run_id = j.run_id
            returning r.state, r.limit_bytes_per_second,
                      case when r.limit_bytes_per_second is not null then
                          (select count(*) from migration_jobs live where live.run_id = j.run_id
                           and live.state = 'running' and live.lease_until > clock_timestamp()) end as sharers"""),
        _held(lease)
        | {
            "lease_s": lease_s,
            "phase": phase,
            "dataset_hash": dataset_hash,
            "files_done": files_done,
            "bytes_done": bytes_done,
        },
    ).one_or_none()
    if row is None:
        return None
    limit = row.limit_bytes_per_second
    return RunControl(
        run_state=RunState(row.state), bytes_per_second=None if limit is None else limit / max(1, row.sharers)
    )


def hand_back(
    conn: Connection, lease: Lease, *, retry_in_s: float | None = None, reason: str | None = None
) -> None:
    """Give a job up so that it waits again: at once, or, when it met a transient error, which `reason` says,
    not before `retry_in_s`.

    The caller has made sure that the run is not cancelled (`ledger.lock_state`): no worker would ever take
    the job. Raises `LeaseLostError` when the job is not ours any more.
    """
    result = conn.execute(
        sql("""
            update migration_jobs
            set state = 'queued', lease_until = null, phase = :reason, sent_at = null,
                waits_for = null, waits_since = null,
                retries = retries + (cast(:retry_in_s as float8) is not null)::integer,
                not_before = clock_timestamp() + make_interval(secs => :retry_in_s)
            where run_id = :run_id and subject = :subject and subject_id = :subject_id and attempt = :attempt
              and started_at = :started_at and state = 'running'"""),
        _held(lease) | {"retry_in_s": retry_in_s, "reason": storable(conn, reason)},
    )
    _check_held(lease, result.rowcount)


def wait_for(conn: Connection, lease: Lease, what: str, reason: str) -> None:
    """Give a job up that cannot be done here or now, without counting a try: it waits for a legacy root, that
    is, for another worker, or for room in the store, that is, for the operator. Raises as `hand_back`, and
    asks the same of its caller.
    """
    result = conn.execute(
        sql("""
            update migration_jobs
            set state = 'queued', lease_until = null, phase = :reason, sent_at = null, waits_for = :what,
                waits_since = case when waits_for = :what then waits_since else clock_timestamp() end,
                not_before = clock_timestamp() + make_interval(secs => :for_s)
            where run_id = :run_id and subject = :subject and subject_id = :subject_id and attempt = :attempt
              and started_at = :started_at and state = 'running'"""),
        _held(lease)
        | {
            "what": storable(conn, what),
            "for_s": _UNTIL_RESUMED_S if what == ROOM else _TRY_ELSEWHERE_S,
            "reason": storable(conn, reason),
        },
    )
    _check_held(lease, result.rowcount)


def leave_to_others(conn: Connection, ref: JobRef, root: str, reason: str) -> bool:
    """Let a waiting job wait on for a worker that has its legacy root; was it one in this root?"""
    result = conn.execute(
        sql(f"""
            update migration_jobs j
            set phase = :reason, sent_at = null, waits_for = :root,
                waits_since = case when waits_for = :root then waits_since else clock_timestamp() end,
                not_before = clock_timestamp() + make_interval(secs => :for_s)
            where run_id = :run_id and subject = :subject and subject_id = :subject_id and state = 'queued'
              and coalesce(not_before <= clock_timestamp(), true) and {_BELOW}"""),  # noqa: S608 - a constant
        {
            **_job(ref),
            "root": storable(conn, root),
            "roots": [storable(conn, root)],
            "for_s": _TRY_ELSEWHERE_S,
            "reason": storable(conn, reason),
        },
    )
    return result.rowcount == 1


def want_message(conn: Connection, ref: JobRef) -> None:
    """The job's message was not followed: if the job waits, it needs another one."""
    conn.execute(
        sql("""
            update migration_jobs set sent_at = null
            where run_id = :run_id and subject = :subject and subject_id = :subject_id and state = 'queued'"""),
        _job(ref),
    )


def note_fenced(conn: Connection, lease: Lease) -> None:
    """Count an attempt that found out that its job is not its own any more: it lives, so what was taken for
    its crash was none.
    """
    conn.execute(
        sql("""
            update migration_jobs set fenced = fenced + 1, crashes = greatest(0, crashes - 1)
            where run_id = :run_id and subject = :subject and subject_id = :subject_id"""),
        _job(lease.ref),
    )


def expired(conn: Connection, limit: int, lease_s: float, *, back_s: float | None = None) -> list[Expired]:
    """Jobs whose leases of `lease_s` ran out, locked until the transaction ends; those that another reaper
    has locked are left to it. A lease that ran out while the server was away counts as no crash. `back_s`:
    so long ago the caller could not reach it.
    """
    rows = conn.execute(
        sql(f"""
            select j.run_id, j.subject, j.subject_id, j.attempt, j.subject_name, j.path, j.started_at, j.retries, j.worker,
                   j.crashes + (not {_was_away(_BACK)})::integer as crashes, r.verb, r.dry_run, r.options,
                   r.created_at as run_created_at, null as busy_with, null as bytes_per_second
            from migration_jobs j join migration_runs r using (run_id)
            where j.state = 'running' and {_is_over(_BACK)}
            order by j.lease_until limit :limit for update of j skip locked"""),  # noqa: S608 - constants
        {"limit": limit, "lease_s": lease_s, "back_s": back_s},
    )
    return [
        Expired(
            lease=_lease(JobRef.from_row(row), row),
            worker=row.worker,
            crashes=row.crashes,
        )
        for row in rows
    ]


def hand_back_for(conn: Connection, dead: Expired) -> None:
    """Let a job wait again whose worker has died. The caller has it locked."""
    conn.execute(
        sql("""
            update migration_jobs
            set state = 'queued', lease_until = null, phase = null, sent_at = null, crashes = :crashes
            where run_id = :run_id and subject = :subject and subject_id = :subject_id and attempt = :attempt
              and started_at = :started_at and state = 'running'"""),
        _held(dead.lease) | {"crashes": dead.crashes},
    )


def end_job(conn: Connection, lease: Lease, outcome: Outcome) -> None:
    """Write a job's outcome, in the transaction of what it reports. Raises `LeaseLostError`."""
    result = conn.execute(
        sql("""
            update migration_jobs
            set state = :state, outcome = cast(:outcome as jsonb), error_class = :error_class, error = :error,
                dataset_hash = :dataset_hash, phase = null, lease_until = null, finished_at = clock_timestamp(),
                files_done = :files, bytes_done = :bytes
            where run_id = :run_id and subject = :subject and subject_id = :subject_id and attempt = :attempt
              and started_at = :started_at and state = 'running'"""),
        _held(lease)
        | {
            "state": outcome.status.job_state,
            "outcome": as_json(storable(conn, outcome.to_json())),
            "error_class": outcome.error_class,
            "error": storable(conn, outcome.error),
            "dataset_hash": outcome.dataset_hash,
            "files": outcome.files.total,
            "bytes": outcome.bytes.read,
        },
    )
    _check_held(lease, result.rowcount)


def job_that_stores(conn: Connection, dataset_hash: str, except_for: JobRef) -> str | None:
    """Which job is storing this dataset right now, for the message of a job that waits for it."""
    return conn.execute(
        sql("""
            select format('%s %s on %s', subject, subject_id, worker) from migration_jobs
            where dataset_hash = :hash and state = 'running' and phase = 'store'
              and (run_id, subject, subject_id) <> (:run_id, :subject, :subject_id)
            order by started_at limit 1"""),
        _job(except_for) | {"hash": dataset_hash},
    ).scalar()


def _check_held(lease: Lease, rows: int) -> None:
    if rows != 1:
        raise LeaseLostError(f"{lease.ref.words}: attempt {lease.attempt} has lost its lease")


def _held(lease: Lease) -> dict[str, Any]:
    return _job(lease.ref) | {"attempt": lease.attempt, "started_at": lease.started_at}


def _job(ref: JobRef) -> dict[str, Any]:
    return {"run_id": ref.run_id, "subject": ref.subject, "subject_id": ref.subject_id}


def _lease(ref: JobRef, row: Row[Any]) -> Lease:
    return Lease(
        ref=ref,
        attempt=row.attempt,
        subject_name=row.subject_name,
        path=row.path,
        verb=Verb(row.verb),
        dry_run=row.dry_run,
        asked_for=row.options,
        started_at=row.started_at,
        run_created_at=row.run_created_at,
        retries=row.retries,
        busy_with=row.busy_with,
        bytes_per_second=row.bytes_per_second,
    )
