"""One attempt at one job, whatever its verb: lease, heartbeat, the work, and an outcome that is always recorded."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine

from worker import log
from worker.blobs.store import Store
from worker.db import leases, ledger
from worker.errors import (
    LeaseLostError,
    MigratorError,
    NothingToDoError,
    OutOfMemoryError,
    StoreStoppedError,
    UnexpectedError,
)
from worker.heartbeat import Heartbeat
from worker.messages import FileCounts, JobRef, Outcome, Status
from worker.scan import Roots
from worker.settings import Settings
from worker.throttle import Pace, unlimited

_log = log.get(__name__)


@dataclass(frozen=True)
class Tools:
    """What a worker process needs for any job; made once a process, never shared across a fork."""

    settings: Settings
    engine: Engine
    threads: ThreadPoolExecutor
    pace: Pace = unlimited

    @property
    def roots(self) -> Roots:
        """Where projects may lie, and where they may not."""
        return Roots(
            allowed=self.settings.legacy_roots, store=(self.settings.datasets_dir, self.settings.store_dir)
        )

    def open_store(self, *, create: bool) -> Store:
        """The store of DATA_DIR; made on first use unless this is a rehearsal."""
        return Store.open(
            self.settings.store_dir, self.settings.datasets_dir, self.settings.store_digest, create=create
        )


@dataclass(frozen=True)
class Job:
    """One attempt: its lease, the heartbeat beside it, and the store it works on."""

    tools: Tools
    lease: leases.Lease
    heartbeat: Heartbeat
    store: Store
    worker: str

    @property
    def engine(self) -> Engine:
        """The process's engine."""
        return self.tools.engine

    @property
    def project_id(self) -> int:
        """The job's project."""
        return self.lease.ref.project_id

    @property
    def run_id(self) -> uuid.UUID:
        """The job's run."""
        return self.lease.ref.run_id

    @property
    def attempt_name(self) -> str:
        """A name for this attempt's own files: unique, so that a cleanup removes only what this attempt made."""
        return f"{self.lease.ref.task_id}-{self.lease.attempt}"

    def outcome(self, status: Status, reason: str) -> Outcome:
        """An outcome of this attempt that ends now."""
        return _outcome(self.lease, self.worker, status, reason)


def run_job(tools: Tools, ref: JobRef, worker: str, work: Callable[[Job], Outcome]) -> Outcome | None:
    """Take the job's lease, do `work`, see that its outcome is in the ledger; None when the job is not ours to do.

    `work` ends the job itself when it succeeds, in the transaction of what it changed; every error it raises is
    recorded here. Twice, or at once: one caller gets the lease, the others None. Dying anywhere: the lease runs out and
    whoever takes the job next begins it again.
    """
    with tools.engine.begin() as conn:
        lease = leases.take_lease(conn, ref, worker, tools.settings.lease_s)
    if lease is None:
        _log.info("duplicate_delivery", run=str(ref.run_id), project=ref.project_id)
        # The holder may have died between the last outcome and the end of the run.
        with tools.engine.begin() as conn:
            ledger.finish_run_if_ended(conn, ref.run_id)
        return None
    with log.bound(run=str(ref.run_id), project=ref.project_id, attempt=lease.attempt):
        outcome = _attempt(tools, lease, worker, work)
        if outcome is not None:
            with tools.engine.begin() as conn:
                ledger.finish_run_if_ended(conn, ref.run_id)
            _log.info(
                "job_ended", status=outcome.status.value, reason=outcome.reason, seconds=outcome.duration_s
            )
    return outcome


def _attempt(
    tools: Tools, lease: leases.Lease, worker: str, work: Callable[[Job], Outcome]
) -> Outcome | None:
    """Do the work and record how it ended; only a lost lease leaves nothing to record."""
    heartbeat = Heartbeat(tools.engine, lease, tools.settings.lease_s)
    try:
        with heartbeat:
            store = tools.open_store(create=not lease.dry_run)
            return work(Job(tools, lease, heartbeat, store, worker))
    except LeaseLostError as error:
        _log.warning("lease_lost", reason=str(error))
        return None
    except NothingToDoError as error:
        return _record(tools, lease, _outcome(lease, worker, Status.SKIPPED, str(error)))
    except StoreStoppedError as error:
        _hold_the_run(tools, lease, error)
        return None
    except MigratorError as error:
        failure = error
    except MemoryError:
        # Celery would stop the whole worker at this one, and its message would go on to kill the next.
        failure = OutOfMemoryError("The worker ran out of memory")
    except Exception as error:  # noqa: BLE001 - the last line of defence: no job without an outcome
        _log.exception("unexpected_error")
        failure = UnexpectedError(f"{type(error).__name__}: {error}")
    return _record(tools, lease, _failed(lease, worker, failure, heartbeat.files_seen))


def _hold_the_run(tools: Tools, lease: leases.Lease, error: StoreStoppedError) -> None:
    """A full or broken store would fail one project after the other: the run waits instead, and this job with it."""
    _log.error("run_paused", reason=str(error))
    try:
        with tools.engine.begin() as conn:
            ledger.pause_run(conn, lease.ref.run_id, str(error))
            leases.hand_back(conn, lease)
    except LeaseLostError as lost:
        _log.warning("lease_lost", reason=str(lost))


def _failed(lease: leases.Lease, worker: str, error: MigratorError, files_seen: int) -> Outcome:
    return _outcome(lease, worker, Status.FAILED, str(error)).with_changes(
        error_class=error.error_class,
        error=str(error),
        remedy=error.remedy,
        files=FileCounts(left=files_seen),
        differences=error.differences,
    )


def _record(tools: Tools, lease: leases.Lease, outcome: Outcome) -> Outcome | None:
    try:
        with tools.engine.begin() as conn:
            leases.end_job(conn, lease, outcome)
    except LeaseLostError as error:
        _log.warning("lease_lost", reason=str(error))
        return None
    return outcome


def _outcome(lease: leases.Lease, worker: str, status: Status, reason: str) -> Outcome:
    """An outcome with what the lease knows; ends now."""
    now = datetime.now(UTC)
    return Outcome(
        project_id=lease.ref.project_id,
        project_name=lease.project_name,
        status=status,
        reason=reason,
        original_path=lease.path,
        worker=worker,
        attempts=lease.attempt,
        started_at=lease.started_at,
        finished_at=now,
        duration_s=round(max(0.0, (now - lease.started_at).total_seconds()), 3),
    )
