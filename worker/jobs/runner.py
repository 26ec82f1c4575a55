"""Runs one attempt at one job, whatever its verb: takes the lease, does the work, records the outcome."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Connection, Engine

from worker.db import leases, ledger
from worker.db.engine import autocommit
from worker.db.leases import Lease
from worker.errors import (
    DatabaseUnavailableError,
    DirectoryMissingError,
    LeaseLostError,
    LegacyPathMissingError,
    MigratorError,
    NothingToDoError,
    UnexpectedError,
)
from worker.jobs import endings
from worker.jobs.attempt import Attempt
from worker.jobs.endings import (
    Done,
    Ended,
    Ending,
    HandedBack,
    LeaseLost,
    LeftToItsLease,
    Result,
    RunPaused,
    TryLater,
    Waiting,
    WaitsFor,
)
from worker.jobs.outcomes import outcome_of
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, RunState, Verb
from worker.runtime import log

_log = log.get(__name__)

_ASIDE_S = 1.0
"""How long a worker that may not take a job leaves the queue to others."""

Work = Callable[[Attempt], Outcome]
"""A verb's work. It ends the job itself when it succeeds, in the transaction of what it changed."""


def run_job(tools: Tools, ref: JobRef, worker: str, work: Work, verb: Verb) -> Outcome | None:
    """Take the job's lease, do `work`, see that its outcome is in the ledger; None when the job is not ours
    to do, or waits again. `verb` is what `work` does: a job whose run is of another verb is not ours,
    whatever its message says.

    Twice, or at once: one caller gets the lease, the others None. Dying anywhere: the lease runs out, and the
    worker that takes the job next begins it again. Without a database: waits for it.
    """
    if tools.stopping():
        tools.write(autocommit, lambda conn: leases.want_message(conn, ref))
        return None
    lease = _take(tools, ref, worker, verb)
    if lease is None:
        return None
    with log.bound(run=str(ref.run_id), subject=ref.words, attempt=lease.attempt):
        outcome = _run(Attempt(tools, lease, worker), work)
        if outcome is not None:
            _log.info(
                "job_ended", status=outcome.status.value, reason=outcome.reason, seconds=outcome.duration_s
            )
    return outcome


# Taking the job ---------------------------------------------------------------------------------------------


def _take(tools: Tools, ref: JobRef, worker: str, verb: Verb) -> Lease | None:
    """The job's lease; None, and why in the log, when there is nothing to take here."""
    lacking = tools.lacking.now()
    lease_s = tools.settings.granted_lease_s
    lease = tools.write(
        autocommit,
        lambda conn: leases.take_lease(conn, ref, worker, lease_s, verb, but_not_in=lacking),
    )
    if lease is None and not _left_to_others(tools, ref, worker, lacking):
        _say_why_not(tools, ref, verb)
    return lease


def _left_to_others(tools: Tools, ref: JobRef, worker: str, lacking: Sequence[str]) -> bool:
    """Was nothing taken because the job's legacy root lacks here? Then the job waits for another worker, and
    so does this one for a moment: it would take every message as fast as it comes, and workers that have the
    root would find none.
    """
    for root in lacking:
        reason = f"{worker}: {tools.lacking.words(root)}"
        with autocommit(tools.engine) as conn:
            left = leases.leave_to_others(conn, ref, root, reason)
        if left:
            _log.info("left_to_others", run=str(ref.run_id), subject=ref.words, reason=reason)
            _pause_runs_that_only_wait(tools)
            _step_aside(tools)
            return True
    return False


def _step_aside(tools: Tools) -> None:
    until = time.monotonic() + _ASIDE_S
    never = threading.Event()
    while not tools.stopping() and (left_s := until - time.monotonic()) > 0:
        never.wait(min(0.2, left_s))


def _say_why_not(tools: Tools, ref: JobRef, verb: Verb) -> None:
    """Log why nothing was taken: another worker has the job or had it, or the ledger has no such job."""
    with autocommit(tools.engine) as conn:
        known = leases.is_known(conn, ref, verb)
    if known:
        _log.info("duplicate_delivery", run=str(ref.run_id), subject=ref.words)
    else:
        reason = f"the ledger has no such job to {verb.value}"
        _log.warning("message_refused", run=str(ref.run_id), subject=ref.words, reason=reason)


# The attempt ------------------------------------------------------------------------------------------------


def _run(attempt: Attempt, work: Work) -> Outcome | None:
    """Do the work, and see that what becomes of the job is in the ledger; its outcome if it has ended."""
    result = _result(attempt, work)
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    outcome = _settle(attempt, endings.after(result, attempt.worker, attempt.lease.retries, jitter))
    if isinstance(result, SystemExit):
        # The worker has no more patience.
        raise result
    return outcome


def _result(attempt: Attempt, work: Work) -> Result:
    """What the work returned or raised."""
    try:
        return _do(attempt, work)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the last line of defence: no job without an ending
        return error


def _do(attempt: Attempt, work: Work) -> Outcome:
    lease = attempt.lease
    if lease.busy_with is not None:
        raise NothingToDoError(f"{attempt.lease.ref.words} is being processed by run {lease.busy_with}")
    with attempt.heartbeat:
        # The store is opened before anything else is done: a sync covers only what was written after that. A
        # verification reads its trees; a rollback may have to do without.
        if lease.verb is not Verb.ROLLBACK:
            _ = attempt.store
        if lease.verb is not Verb.ROLLBACK and lease.attempt > 1:
            _clear_staging_of_former(attempt)
        try:
            return work(attempt)
        except (DirectoryMissingError, LegacyPathMissingError):
            attempt.check_root(lease.path or "")
            raise


def _clear_staging_of_former(attempt: Attempt) -> None:
    """Remove what earlier attempts left when they died: the job may come here before any reaper looks."""
    try:
        attempt.store.clear_staging(attempt.lease.ref.task_id, attempt.lease.attempt - 1)
    except MigratorError as error:
        # One that is only asleep may wake up and write there again; it cleans up itself when it finds its
        # lease gone.
        _log.warning("staging_not_cleared", reason=str(error))


# What becomes of the job ------------------------------------------------------------------------------------


def _settle(attempt: Attempt, ending: Ending) -> Outcome | None:
    """Write what becomes of the job, and what follows for its run; the outcome if the job has ended."""
    _say(ending)
    try:
        outcome = _write(attempt, ending)
        if isinstance(ending, WaitsFor):
            _pause_runs_that_only_wait(attempt.tools)
        if outcome is not None:
            attempt.tools.write(autocommit, lambda conn: ledger.finish_run_if_ended(conn, attempt.run_id))
    except (LeaseLostError, DatabaseUnavailableError) as error:
        return _settle(attempt, endings.after_failed_write(error))
    return outcome


def _write(attempt: Attempt, ending: Ending) -> Outcome | None:
    """Write an ending as soon as there is a database; the outcome if the job has ended."""
    lease, write = attempt.lease, attempt.tools.write
    match ending:
        case Done(outcome=outcome):
            return outcome
        case Ended():
            ended = outcome_of(
                ending, lease, attempt.worker, stored=attempt.stored, files_seen=attempt.files_seen
            )
            write(autocommit, lambda conn: leases.end_job(conn, lease, ended))
            return ended
        case LeaseLost():
            write(autocommit, lambda conn: leases.note_fenced(conn, lease))
            return None
        case LeftToItsLease():
            return None
        case _:
            return write(Engine.begin, partial(_let_wait, attempt, ending))


def _let_wait(attempt: Attempt, ending: Waiting, conn: Connection) -> Outcome | None:
    """Let the job wait again; the worker's parent sends its message as soon as its run may go on. In a run
    that was cancelled meanwhile no worker would ever take it: there it ends as cancelled, with this outcome.

    Locks the run's row, then the job's. An attempt that is not the job's any more pauses nothing, because the
    whole transaction is taken back: its files may be gone because another attempt removed them.
    """
    lease = attempt.lease
    if isinstance(ending, RunPaused):
        ledger.pause_run(conn, attempt.run_id, ending.reason)
    if ledger.lock_state(conn, attempt.run_id) is RunState.CANCELLED:
        cancelled = outcome_of(endings.CANCELLED, lease, attempt.worker)
        leases.end_job(conn, lease, cancelled)
        return cancelled
    match ending:
        case TryLater():
            leases.hand_back(conn, lease, retry_in_s=ending.wait_s, reason=ending.reason)
        case WaitsFor():
            leases.wait_for(conn, lease, ending.waits_for, ending.reason)
        case HandedBack() | RunPaused():
            leases.hand_back(conn, lease)
    return None


def _say(ending: Ending) -> None:
    match ending:
        case Ended(error=UnexpectedError() as error):
            _log.error("unexpected_error", exc_info=error.__cause__ or error)
        case HandedBack(reason=reason):
            _log.info("handed_back", reason=reason)
        case WaitsFor(reason=reason):
            _log.warning("handed_back", reason=reason)
        case TryLater(reason=reason):
            _log.warning("trying_later", reason=reason, wait_s=round(ending.wait_s, 1), retry=ending.retry)
        case RunPaused(reason=reason):
            _log.error("run_paused", reason=reason)
        case LeaseLost(reason=reason):
            _log.warning("lease_lost", reason=reason)
        case LeftToItsLease(reason=reason):
            _log.warning("job_left_to_its_lease", reason=reason)
        case _:
            pass


def _pause_runs_that_only_wait(tools: Tools) -> None:
    def write(conn: Connection) -> None:
        for run in ledger.pause_runs_that_only_wait(conn, tools.settings.root_patience_s):
            _log.error("run_paused", run=str(run.run_id), reason=run.paused_because)

    tools.write(autocommit, write)
