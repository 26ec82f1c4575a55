"""Rows of the ledger as whoever works on a job sees them: its lease, its progress, its outcome. Opens no transaction."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from worker.errors import LeaseLostError
from worker.messages import JobRef, Outcome, Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on one job: valid while `attempt` is the job's number."""

    ref: JobRef
    attempt: int
    project_name: str | None
    path: str | None
    verb: Verb
    dry_run: bool
    options: Mapping[str, Any]
    started_at: datetime
    run_created_at: datetime


def take_lease(conn: Connection, ref: JobRef, worker: str, lease_s: float) -> Lease | None:
    """Take a job that waits or whose holder's lease ran out; None when there is nothing to take.

    One statement decides: of any number of deliveries exactly one gets the row. The attempt it returns is the fencing
    number that every later write of this holder must still match.
    """
    row = conn.execute(
        text("""
            update migration_jobs j
            set state = 'running', attempt = j.attempt + 1, worker = :worker, phase = 'scan', files_done = 0, bytes_done = 0,
                lease_until = clock_timestamp() + make_interval(secs => :lease_s), started_at = clock_timestamp()
            from migration_runs r
            where j.run_id = :run_id and j.project_id = :project_id and r.run_id = j.run_id
              and r.state in ('planned', 'running')
              and (j.state = 'queued' or j.state = 'running' and j.lease_until < clock_timestamp())
            returning j.attempt, j.project_name, j.path, j.started_at, r.verb, r.dry_run, r.selection,
                      r.created_at as run_created_at"""),
        {"run_id": ref.run_id, "project_id": ref.project_id, "worker": worker, "lease_s": lease_s},
    ).one_or_none()
    if row is None:
        return None
    return Lease(
        ref=ref,
        attempt=row.attempt,
        project_name=row.project_name,
        path=row.path,
        verb=Verb(row.verb),
        dry_run=row.dry_run,
        options=row.selection,
        started_at=row.started_at,
        run_created_at=row.run_created_at,
    )


def renew_lease(
    conn: Connection,
    lease: Lease,
    lease_s: float,
    *,
    phase: str,
    dataset_hash: str | None,
    files_done: int,
    bytes_done: int,
) -> bool:
    """Hold on to the job and say how far it is; False when somebody else has it.

    Without waiting for the disk: a renewal that a crash of the server takes only lets the lease end sooner.
    """
    conn.execute(text("set local synchronous_commit = off"))
    result = conn.execute(
        text("""
            update migration_jobs
            set lease_until = clock_timestamp() + make_interval(secs => :lease_s), phase = :phase,
                dataset_hash = :dataset_hash, files_done = :files_done, bytes_done = :bytes_done
            where run_id = :run_id and project_id = :project_id and attempt = :attempt and state = 'running'"""),
        _held(lease)
        | {
            "lease_s": lease_s,
            "phase": phase,
            "dataset_hash": dataset_hash,
            "files_done": files_done,
            "bytes_done": bytes_done,
        },
    )
    return result.rowcount == 1


def hand_back(conn: Connection, lease: Lease) -> None:
    """Give a job up so that it waits again. Raises `LeaseLostError` when the job is not ours any more."""
    result = conn.execute(
        text("""
            update migration_jobs set state = 'queued', lease_until = null, phase = null
            where run_id = :run_id and project_id = :project_id and attempt = :attempt and state = 'running'"""),
        _held(lease),
    )
    if result.rowcount != 1:
        raise LeaseLostError(
            f"project {lease.ref.project_id}: attempt {lease.attempt} is not the holder any more"
        )


def end_job(conn: Connection, lease: Lease, outcome: Outcome) -> None:
    """Write a job's outcome, in the transaction of what it reports. Raises `LeaseLostError` when the job is not ours any more."""
    result = conn.execute(
        text("""
            update migration_jobs
            set state = :state, outcome = cast(:outcome as jsonb), error_class = :error_class, error = :error,
                dataset_hash = :dataset_hash, phase = null, lease_until = null, finished_at = clock_timestamp(),
                files_done = :files, bytes_done = :bytes
            where run_id = :run_id and project_id = :project_id and attempt = :attempt and state = 'running'"""),
        _held(lease)
        | {
            "state": outcome.status.job_state,
            "outcome": json.dumps(_storable(outcome.to_json())),
            "error_class": outcome.error_class,
            "error": _storable(outcome.error),
            "dataset_hash": outcome.dataset_hash,
            "files": outcome.files.total,
            "bytes": outcome.bytes.read,
        },
    )
    if result.rowcount != 1:
        raise LeaseLostError(
            f"project {lease.ref.project_id}: attempt {lease.attempt} is not the holder any more"
        )


def holder_of_dataset(conn: Connection, dataset_hash: str, except_for: JobRef) -> str | None:
    """Who is storing this dataset right now, for a message of whoever waits."""
    return conn.execute(
        text("""
            select format('project %s on %s', project_id, worker) from migration_jobs
            where dataset_hash = :hash and state = 'running' and phase = 'store'
              and (run_id, project_id) <> (:run_id, :project_id)
            order by started_at limit 1"""),
        {"hash": dataset_hash, "run_id": except_for.run_id, "project_id": except_for.project_id},
    ).scalar()


def _storable(value: Any) -> Any:
    """The same JSON value in texts that PostgreSQL can hold: a name of any bytes in a message must not cost a job its
    outcome.
    """
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
        case dict():
            return {key: _storable(one) for key, one in value.items()}
        case list():
            return [_storable(one) for one in value]
        case _:
            return value


def _held(lease: Lease) -> dict[str, Any]:
    return {"run_id": lease.ref.run_id, "project_id": lease.ref.project_id, "attempt": lease.attempt}
