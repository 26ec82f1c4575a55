"""What becomes of a job for each thing that its work may return or raise: one table, and no database."""

import pytest

from worker import errors
from worker.db.leases import MOST_CRASHES
from worker.jobs.endings import (
    CANCELLED,
    Done,
    Ended,
    Ending,
    HandedBack,
    LeaseLost,
    LeftToItsLease,
    Result,
    RunPaused,
    TryLater,
    WaitsFor,
    after,
    after_crash,
    after_failed_write,
)
from worker.messages import Outcome, RunState, Status

DONE = Outcome(project_id=1, project_name="study", status=Status.MIGRATED, reason="stored")
MISSING = errors.DirectoryMissingError("Directory does not exist: /x")
NO_DATABASE = errors.DatabaseUnavailableError("away")


@pytest.mark.parametrize(
    ("result", "ending"),
    [
        (DONE, Done(outcome=DONE)),
        (errors.NothingToDoError("gone"), Ended(status=Status.SKIPPED, reason="gone")),
        (
            errors.RunCancelledError("by the operator"),
            Ended(status=Status.CANCELLED, reason="by the operator"),
        ),
        (MISSING, Ended(status=Status.FAILED, reason=str(MISSING), error=MISSING)),
        (errors.RunPausedError("paused"), HandedBack(reason="paused")),
        (errors.WorkerStoppingError("stops"), HandedBack(reason="stops")),
        (SystemExit(1), HandedBack(reason="the worker is made to stop")),
        (
            errors.RootLacksError("/lab is empty", "/lab"),
            WaitsFor(waits_for="/lab", reason="w: /lab is empty"),
        ),
        (errors.RoomWaitedForError("2 TB"), WaitsFor(waits_for=errors.ROOM, reason="w: 2 TB")),
        (errors.StoreFullError("full"), RunPaused(reason="full")),
        (errors.StoreSyncError("not flushed"), RunPaused(reason="not flushed")),
        (errors.StoreElsewhereError("no store"), RunPaused(reason="w: no store")),
        (errors.LeaseLostError("too late"), LeaseLost(reason="too late")),
        (errors.ClaimLostError("lost"), TryLater(reason="lost", wait_s=0.5, retry=1)),
        (NO_DATABASE, TryLater(reason="away", wait_s=0.5, retry=1)),
    ],
)
def test_each_result_of_the_work_has_its_ending(result: Result, ending: Ending):
    assert after(result, "w", retries=0, jitter=0.5) == ending


@pytest.mark.parametrize(
    ("result", "error", "reason"),
    [
        (MemoryError(), errors.OutOfMemoryError, "The worker ran out of memory"),
        (ZeroDivisionError("by zero"), errors.UnexpectedError, "ZeroDivisionError: by zero"),
    ],
)
def test_an_error_that_is_not_the_migrator_s_fails_the_job(
    result: Exception, error: type[errors.MigratorError], reason: str
):
    ending = after(result, "w", retries=0, jitter=0.5)

    assert isinstance(ending, Ended)
    assert (ending.status, ending.reason, type(ending.error)) == (Status.FAILED, reason, error)


def test_an_unexpected_error_keeps_its_cause_for_the_log():
    cause = ZeroDivisionError("by zero")

    ending = after(cause, "w", retries=0, jitter=0.5)

    assert isinstance(ending, Ended)
    assert ending.error is not None
    assert ending.error.__cause__ is cause


@pytest.mark.parametrize(
    ("retries", "wait_s"), [(0, 1.0), (1, 2.0), (4, 16.0), (5, 32.0), (6, 60.0), (9, 60.0)]
)
def test_each_wait_is_twice_as_long_up_to_a_minute(retries: int, wait_s: float):
    class PatientError(errors.TransientError):
        retries = 10

    expected = TryLater(reason="not now", wait_s=wait_s, retry=retries + 1)
    assert after(PatientError("not now"), "w", retries, jitter=1.0) == expected


def test_a_transient_error_fails_the_job_after_its_last_retry():
    error = errors.ClaimLostError("lost again")

    ending = after(error, "w", error.retries, jitter=1.0)

    assert ending == Ended(status=Status.FAILED, reason="lost again", error=error)


def test_a_store_that_takes_nothing_pauses_the_run_however_often():
    assert after(errors.StoreFullError("full"), "w", retries=99, jitter=1.0) == RunPaused(reason="full")


def test_an_ending_that_cannot_be_written_leaves_the_job_to_others():
    assert after_failed_write(errors.LeaseLostError("too late")) == LeaseLost(reason="too late")
    assert after_failed_write(NO_DATABASE) == LeftToItsLease(reason="away")


def test_a_job_whose_worker_died_waits_again_until_it_killed_too_many():
    assert after_crash(MOST_CRASHES - 1, RunState.RUNNING) == HandedBack(reason="its worker died")
    assert after_crash(MOST_CRASHES, RunState.CANCELLED) == CANCELLED

    ending = after_crash(MOST_CRASHES, RunState.RUNNING)

    assert isinstance(ending, Ended)
    assert (ending.status, ending.reason) == (Status.FAILED, f"crashed its worker {MOST_CRASHES} times")
    assert isinstance(ending.error, errors.WorkerCrashedError)
