"""What becomes of an attempt: a value for each way it can end, and the rules that choose it. Writes
nothing.
"""

from dataclasses import dataclass

from worker.db.leases import MOST_CRASHES
from worker.errors import (
    DatabaseUnavailableError,
    HandBackError,
    LeaseLostError,
    MigratorError,
    NothingToDoError,
    OutOfMemoryError,
    RunCancelledError,
    StoreElsewhereError,
    StoreStoppedError,
    TransientError,
    UnexpectedError,
    WaitsError,
    WorkerCrashedError,
)
from worker.messages import Outcome, RunState, Status

_LONGEST_WAIT_S = 60.0
"""The longest wait before a job is tried again that met a transient error."""

Result = Outcome | Exception | SystemExit
"""What the work returned or raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The job has ended: the work wrote its outcome in the transaction of what it changed."""

    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The job ends, skipped, cancelled or, with an `error`, failed; its outcome is still to be written."""

    status: Status
    reason: str
    error: MigratorError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedBack:
    """The job waits again, for the next worker that gets its message."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TryLater:
    """The job met a transient error: it waits `wait_s` before it may be taken, for the `retry`-th time."""

    reason: str
    wait_s: float
    retry: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitsFor:
    """The job cannot be done here or now: it waits for a legacy root or for room, and no try is counted."""

    waits_for: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaused:
    """The store takes nothing: each project would fail, so the run is paused, and the job waits."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost:
    """Another worker has the job: nothing of this attempt may be written but that it was too late."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToItsLease:
    """There is no database to write to: the lease runs out, and another worker begins the job again."""

    reason: str


Waiting = HandedBack | TryLater | WaitsFor | RunPaused
"""The job waits again. In a cancelled run no worker would ever take it: there it ends as `CANCELLED`."""

Ending = Done | Ended | Waiting | LeaseLost | LeftToItsLease

CANCELLED = Ended(status=Status.CANCELLED, reason="The run was cancelled")


def after(result: Result, worker: str, retries: int, jitter: float) -> Ending:  # noqa: PLR0911 - one for each case
    """What becomes of a job whose work returned or raised this, after it was tried again `retries` times.

    `worker` is named where its machine is at fault. `jitter`, from 0.5 to 1, keeps jobs that failed together
    from coming back together.
    """
    match result:
        case Outcome():
            return Done(outcome=result)
        case LeaseLostError():
            return LeaseLost(reason=str(result))
        case WaitsError():
            return WaitsFor(waits_for=result.waits_for, reason=f"{worker}: {result}")
        case HandBackError():
            return HandedBack(reason=str(result))
        case StoreElsewhereError():
            return RunPaused(reason=f"{worker}: {result}")
        case StoreStoppedError():
            return RunPaused(reason=str(result))
        case TransientError() if retries < result.retries:
            wait_s = min(_LONGEST_WAIT_S, 2.0**retries) * jitter
            return TryLater(reason=str(result), wait_s=wait_s, retry=retries + 1)
        case SystemExit():
            return HandedBack(reason="the worker is made to stop")
        case _:
            return _ended_by(result)


def after_failed_write(error: LeaseLostError | DatabaseUnavailableError) -> LeaseLost | LeftToItsLease:
    """What becomes of a job whose ending could not be written."""
    match error:
        case LeaseLostError():
            return LeaseLost(reason=str(error))
        case _:
            return LeftToItsLease(reason=str(error))


def after_crash(crashes: int, run_state: RunState) -> Ended | HandedBack:
    """What becomes of a job whose worker did not renew its lease, for the `crashes`-th time."""
    if run_state is RunState.CANCELLED:
        return CANCELLED
    if crashes >= MOST_CRASHES:
        return _failed(WorkerCrashedError(f"crashed its worker {crashes} times"))
    return HandedBack(reason="its worker died")


def _ended_by(error: Exception) -> Ended:
    match error:
        case NothingToDoError():
            return Ended(status=Status.SKIPPED, reason=str(error))
        case RunCancelledError():
            return Ended(status=Status.CANCELLED, reason=str(error))
        case MigratorError():
            return _failed(error)
        case MemoryError():
            # Celery would stop the whole worker at this one, and its message would go on to kill the next.
            return _failed(OutOfMemoryError("The worker ran out of memory"))
        case _:
            unexpected = UnexpectedError(f"{type(error).__name__}: {error}")
            unexpected.__cause__ = error
            return _failed(unexpected)


def _failed(error: MigratorError) -> Ended:
    return Ended(status=Status.FAILED, reason=str(error), error=error)
