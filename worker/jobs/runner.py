"""One attempt at one job, whatever its verb: lease, heartbeat, the work, and an outcome that is always recorded."""

import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

from sqlalchemy import Connection, Engine

from worker.db import leases, ledger
from worker.db.engine import autocommit, when_there
from worker.errors import (
    DatabaseUnavailableError,
    DirectoryMissingError,
    HandBackError,
    LeaseLostError,
    LegacyPathMissingError,
    MigratorError,
    NothingToDoError,
    OutOfMemoryError,
    RootLacksError,
    RunCancelledError,
    StoreElsewhereError,
    StoreStoppedError,
    TransientError,
    UnexpectedError,
    WaitsError,
)
from worker.jobs.heartbeat import Heartbeat
from worker.jobs.tools import Tools
from worker.legacy.ingest import Stored
from worker.messages import ByteCounts, FileCounts, JobRef, LinkCounts, Outcome, RunState, Status, Verb
from worker.runtime import log
from worker.store.store import Store

_log = log.get(__name__)

_PATIENCE_S = 600.0
"""How long a worker waits for PostgreSQL before it lets a message go; the ledger has the job sent again later."""

_LONGEST_WAIT_S = 60.0
"""The longest wait before a job is tried again that met something passing."""


_ASIDE_S = 1.0
"""How long a worker that may not take a job leaves the queue to others."""


@dataclass
class Job:
    """One attempt: its lease and the heartbeat beside it; the store is opened when it is first asked for."""

    tools: Tools
    lease: leases.Lease
    heartbeat: Heartbeat
    worker: str
    stored: Stored | None = None
    """What it has brought into the store so far, for the outcome of a job that fails all the same."""

    @property
    def files_seen(self) -> int:
        """How many files the project's directory has; 0 until it has been listed."""
        return self.heartbeat.progress.files_total

    @files_seen.setter
    def files_seen(self, count: int) -> None:
        self.heartbeat.progress.files_total = count

    @cached_property
    def store(self) -> Store:
        """The store of DATA_DIR. Only a migration makes one; a rollback may have to do without any."""
        migrates = self.lease.verb is Verb.MIGRATE
        return self.tools.open_store(create=migrates and not self.lease.dry_run)

    @property
    def engine(self) -> Engine:
        """The process's engine."""
        return self.tools.engine

    def pace(self, size_bytes: int) -> None:
        """To be called after each chunk: waits as the worker's and the run's limits want, and raises when it is time to stop.

        With 0, in loops and waits that read nothing, it only listens.
        """
        self.tools.pace(size_bytes)
        if size_bytes:
            self.tools.limit.wait(size_bytes, self.heartbeat.listen)
            self.heartbeat.keep_pace(size_bytes)
        else:
            self.heartbeat.listen()

    def check_root(self, path: str) -> None:
        """Of a path at which nothing is: raise `RootLacksError` if that is this machine's fault, not the project's."""
        root = self.tools.lacking.of(path, self.tools.roots)
        if root is not None:
            raise RootLacksError(self.tools.lacking.words(root), waits_for=root)

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


def run_job(
    tools: Tools, ref: JobRef, worker: str, work: Callable[[Job], Outcome], verb: Verb
) -> Outcome | None:
    """Take the job's lease, do `work`, see that its outcome is in the ledger; None when the job is not ours to do, or was
    handed back. `verb` is what `work` does: a job whose run is of another verb is not ours, whoever sent its message.

    `work` ends the job itself when it succeeds, in the transaction of what it changed; every error it raises is
    recorded here. Twice, or at once: one caller gets the lease, the others None. Dying anywhere: the lease runs out and
    whoever takes the job next begins it again. Without a database: waits for it.
    """
    if tools.stopping():
        _write(tools, autocommit, lambda conn: leases.want_message(conn, ref))
        return None

    lacking = tools.lacking.now()

    def take() -> leases.Lease | None:
        with autocommit(tools.engine) as conn:
            return leases.take_lease(
                conn, ref, worker, tools.settings.granted_lease_s, verb, but_not_in=lacking
            )

    lease = when_there(take, _PATIENCE_S, tools.stopping)
    if lease is None:
        if not _left_to_others(tools, ref, worker, lacking):
            _say_why_not(tools, ref, verb)
        return None
    with log.bound(run=str(ref.run_id), project=ref.project_id, attempt=lease.attempt):
        outcome = _attempt(tools, lease, worker, work)
        if outcome is not None:
            _log.info(
                "job_ended", status=outcome.status.value, reason=outcome.reason, seconds=outcome.duration_s
            )
    return outcome


def _left_to_others(tools: Tools, ref: JobRef, worker: str, lacking: Sequence[str]) -> bool:
    """Was nothing taken because the job's legacy root lacks here? Then the job waits for another worker, and so does this one
    for a moment: it would take every message as fast as it comes, and those who have the root would find none.
    """
    for root in lacking:
        reason = f"{worker}: {tools.lacking.words(root)}"
        with autocommit(tools.engine) as conn:
            left = leases.leave_to_others(conn, ref, root, reason)
        if left:
            _log.info("left_to_others", run=str(ref.run_id), project=ref.project_id, reason=reason)
            _pause_if_only_waiting(tools)
            _step_aside(tools)
            return True
    return False


def _step_aside(tools: Tools) -> None:
    until = time.monotonic() + _ASIDE_S
    never = threading.Event()
    while not tools.stopping() and (left_s := until - time.monotonic()) > 0:
        never.wait(min(0.2, left_s))


def _say_why_not(tools: Tools, ref: JobRef, verb: Verb) -> None:
    """Nothing to take: mostly somebody else has it or had it. A message may also speak of what the ledger never heard of."""
    with autocommit(tools.engine) as conn:
        known = leases.is_known(conn, ref, verb)
    if known:
        _log.info("duplicate_delivery", run=str(ref.run_id), project=ref.project_id)
    else:
        reason = f"the ledger has no such job to {verb.value}"
        _log.warning("message_refused", run=str(ref.run_id), project=ref.project_id, reason=reason)


def _attempt(
    tools: Tools, lease: leases.Lease, worker: str, work: Callable[[Job], Outcome]
) -> Outcome | None:
    """One attempt, and what becomes of the job: an outcome, or it waits again; only a lost lease leaves nothing to write."""
    try:
        return _ended(tools, lease, worker, work)
    except LeaseLostError as error:
        _log.warning("lease_lost", reason=str(error))
        _write(tools, autocommit, lambda conn: leases.note_fenced(conn, lease))
    except DatabaseUnavailableError as error:
        # The database was away longer than the lease lasts: somebody else begins the job again.
        _log.warning("job_left_to_its_lease", reason=str(error))
    return None


def _ended(tools: Tools, lease: leases.Lease, worker: str, work: Callable[[Job], Outcome]) -> Outcome | None:
    """Do the work; its outcome, which is in the ledger by then, or None for a job that waits again."""
    heartbeat = Heartbeat(
        tools.engine, lease, tools.settings.granted_lease_s, tools.stopping, tools.on_progress
    )
    job = Job(tools, lease, heartbeat, worker)
    outcome: Outcome | None = None
    try:
        outcome = _work(job, work)
    except LeaseLostError:
        raise
    except WaitsError as error:
        _log.warning("handed_back", reason=str(error))
        outcome = _let_wait(tools, lease, worker, _waiting_for(lease, error.waits_for, f"{worker}: {error}"))
        _pause_if_only_waiting(tools)
    except HandBackError as error:
        _log.info("handed_back", reason=str(error))
        outcome = _let_wait(tools, lease, worker)
    except StoreStoppedError as error:
        outcome = _hold_the_run(tools, lease, worker, error)
    except SystemExit:
        # The worker stops and has no more patience.
        _log.info("handed_back", reason="the worker is made to stop")
        _let_wait(tools, lease, worker)
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence: no job without an outcome
        if isinstance(error, TransientError) and lease.retries < error.retries:
            outcome = _try_later(tools, lease, worker, error)
        else:
            ended = _outcome_of(job, error)
            _write(tools, autocommit, lambda conn: leases.end_job(conn, lease, ended))
            outcome = ended
    if outcome is not None:
        _write(tools, autocommit, lambda conn: ledger.finish_run_if_ended(conn, lease.ref.run_id))
    return outcome


def _work(job: Job, work: Callable[[Job], Outcome]) -> Outcome:
    lease = job.lease
    if lease.busy_with is not None:
        raise NothingToDoError(f"project {lease.ref.project_id}: run {lease.busy_with} has it in hand")
    with job.heartbeat:
        # Who writes to the store opens it before anything else: a sync covers only what was written after that. A verification
        # reads its trees; a rollback may have to do without.
        if lease.verb is not Verb.ROLLBACK:
            _ = job.store
        if lease.verb is Verb.MIGRATE and lease.attempt > 1:
            _clear_staging_of_former(job)
        try:
            return work(job)
        except (DirectoryMissingError, LegacyPathMissingError):
            job.check_root(lease.path or "")
            raise


def _clear_staging_of_former(job: Job) -> None:
    """Remove what earlier attempts left when they died: a second message may bring the job here before any reaper looks."""
    try:
        job.store.clear_staging(job.lease.ref.task_id, job.lease.attempt - 1)
    except MigratorError as error:
        # One that is only asleep may wake up and write there again; it cleans up itself when it finds its lease gone.
        _log.warning("staging_not_cleared", reason=str(error))


def _outcome_of(job: Job, error: Exception) -> Outcome:
    """How a job ends that raised an error."""
    match error:
        case NothingToDoError():
            return job.outcome(Status.SKIPPED, str(error))
        case RunCancelledError():
            return job.outcome(Status.CANCELLED, str(error))
        case MigratorError():
            return _failed(job, error)
        case MemoryError():
            # Celery would stop the whole worker at this one, and its message would go on to kill the next.
            return _failed(job, OutOfMemoryError("The worker ran out of memory"))
        case _:
            _log.error("unexpected_error", exc_info=error)
            return _failed(job, UnexpectedError(f"{type(error).__name__}: {error}"))


def _try_later(tools: Tools, lease: leases.Lease, worker: str, error: TransientError) -> Outcome | None:
    """Each time after a longer wait, and not all at the same moment."""
    wait_s = min(_LONGEST_WAIT_S, 2.0**lease.retries) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    _log.warning("trying_later", reason=str(error), wait_s=round(wait_s, 1), retry=lease.retries + 1)
    return _let_wait(
        tools,
        lease,
        worker,
        lambda conn: leases.hand_back(conn, lease, retry_in_s=wait_s, reason=str(error)),
    )


def _hold_the_run(tools: Tools, lease: leases.Lease, worker: str, error: StoreStoppedError) -> Outcome | None:
    """A full, broken or missing store would fail one project after the other: the run waits instead, and this job with it."""
    # What one machine lacks is put right there.
    reason = f"{worker}: {error}" if isinstance(error, StoreElsewhereError) else str(error)
    _log.error("run_paused", reason=reason)
    return _let_wait(tools, lease, worker, pause_because=reason)


def _waiting_for(lease: leases.Lease, what: str, reason: str) -> Callable[[Connection], None]:
    return lambda conn: leases.wait_for(conn, lease, what, reason)


def _pause_if_only_waiting(tools: Tools) -> None:
    def write(conn: Connection) -> None:
        for run in ledger.pause_runs_that_only_wait(conn, tools.settings.root_patience_s):
            _log.error("run_paused", run=str(run.run_id), reason=run.paused_because)

    _write(tools, autocommit, write)


def _let_wait(
    tools: Tools,
    lease: leases.Lease,
    worker: str,
    hand_back: Callable[[Connection], None] | None = None,
    *,
    pause_because: str | None = None,
) -> Outcome | None:
    """Hand the job back, in this way if one is given, and with the run paused if there is a reason; a worker's parent sends its
    message as soon as its run may go on. In a run that was cancelled meanwhile nobody would: there the job ends as cancelled, with
    this outcome. An attempt that is not the job's any more pauses nothing: its files may be gone because another one removed them.
    """
    cancelled = _outcome(lease, worker, Status.CANCELLED, "The run was cancelled")
    ended: list[Outcome] = []

    def write(conn: Connection) -> None:
        ended.clear()
        if pause_because is not None:
            ledger.pause_run(conn, lease.ref.run_id, pause_because)
        if ledger.hold_state(conn, lease.ref.run_id) is RunState.CANCELLED:
            leases.end_job(conn, lease, cancelled)
            ended.append(cancelled)
        elif hand_back is not None:
            hand_back(conn)
        else:
            leases.hand_back(conn, lease)

    _write(tools, Engine.begin, write)
    return ended[0] if ended else None


def _write(
    tools: Tools,
    opened: Callable[[Engine], AbstractContextManager[Connection]],
    write: Callable[[Connection], None],
) -> None:
    """Write as soon as there is a database: an attempt that gives up before its lease is over loses its work to an outage. `opened` says whether it is a single statement
    (`autocommit`) or a transaction (`Engine.begin`), whose locks last until its end.
    """

    def transaction() -> None:
        with opened(tools.engine) as conn:
            write(conn)

    when_there(transaction, _PATIENCE_S, tools.stopping)


def _failed(job: Job, error: MigratorError) -> Outcome:
    """With what was stored all the same: it takes room, and the next attempt finds it."""
    stored = job.stored or Stored(files=FileCounts(), bytes=ByteCounts(), links=LinkCounts())
    left = max(0, job.files_seen - stored.files.total)
    return job.outcome(Status.FAILED, str(error)).with_changes(
        error_class=error.error_class,
        error=str(error),
        remedy=error.remedy,
        files=replace(stored.files, left=left),
        bytes=stored.bytes,
        links=stored.links,
        differences=error.differences,
    )


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
