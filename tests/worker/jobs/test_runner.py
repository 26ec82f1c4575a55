"""One attempt at one job: whatever the work raises, the job has an outcome, waits again, or is somebody
else's.
"""

import itertools
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
from sqlalchemy import Connection, text

from tests.support.ledger_rows import expire, job_of, make_run, must_take, set_run_state
from tests.support.sites import Site
from tests.support.waiting import eventually
from worker import errors
from worker.db import leases, ledger
from worker.errors import (
    ClaimLostError,
    DatabaseUnavailableError,
    DirectoryMissingError,
    MigratorError,
    PermanentError,
    StoreFullError,
    StoreStoppedError,
    TransientError,
)
from worker.jobs.attempt import Attempt
from worker.jobs.reaper import Reaper
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools, connect
from worker.messages import JobRef, Outcome, RunState, Status, Verb


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    with ThreadPoolExecutor(1) as threads:
        yield Tools(settings=site.settings, engine=site.engine, threads=threads)


def ref_of(run_id: uuid.UUID) -> JobRef:
    return JobRef(run_id=run_id, subject_id=1)


def raising(error: BaseException) -> Callable[[Attempt], NoReturn]:
    def work(_job: Attempt) -> NoReturn:
        raise error

    return work


def ending(job: Attempt) -> Outcome:
    """Work that ends as a conversion does, in one transaction with its outcome."""
    outcome = job.outcome(Status.MIGRATED, "done")
    with job.engine.begin() as conn:
        leases.end_job(conn, job.lease, outcome)
    return outcome


def run_state(site: Site, run_id: uuid.UUID) -> tuple[str, str | None]:
    with site.engine.connect() as conn:
        run = ledger.find_run(conn, str(run_id))
    return run.state.value, run.paused_because


def subclasses(kind: type[MigratorError]) -> Iterator[type[MigratorError]]:
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


# Which errors may pass --------------------------------------------------------------------------------------


def test_every_error_says_whether_waiting_can_help():
    neither = {
        one
        for one in subclasses(MigratorError)
        if one.__module__.startswith("worker.") and not issubclass(one, TransientError | PermanentError)
    }

    assert neither == {
        errors.HandBackError,
        errors.WaitsError,
        errors.RootLacksError,
        errors.RoomWaitedForError,
        errors.RunPausedError,
        errors.WorkerStoppingError,
        errors.RunCancelledError,
    }


@pytest.mark.parametrize(
    "kind",
    [
        one
        for one in subclasses(TransientError)
        if not issubclass(one, StoreStoppedError) and one is not StoreStoppedError
    ],
)
def test_a_job_with_a_transient_error_is_retried_later(site: Site, tools: Tools, kind: type[TransientError]):
    run_id = make_run(site.engine)

    assert run_job(tools, ref_of(run_id), "w", raising(kind("not now")), Verb.MIGRATE) is None

    job = job_of(site.engine, run_id)
    if kind is errors.DatabaseUnavailableError:
        # It was away longer than the worker waits: the lease runs out.
        assert job["state"] in {"queued", "running"}
        return
    assert (job["state"], job["retries"], job["phase"]) == ("queued", 1, "not now")
    assert job["not_before"] is not None
    assert run_job(tools, ref_of(run_id), "w", ending, Verb.MIGRATE) is None, "not before its time"


def test_each_retry_waits_longer_and_the_last_one_fails(site: Site, tools: Tools):
    run_id = make_run(site.engine)
    waits = []
    for _ in range(TransientError.retries):
        assert (
            run_job(tools, ref_of(run_id), "w", raising(ClaimLostError("lost again")), Verb.MIGRATE) is None
        )
        with site.engine.begin() as conn:
            waits.append(
                conn.execute(
                    text(
                        "select extract(epoch from not_before - clock_timestamp())::float8 from migration_jobs"
                    )
                ).scalar_one()
            )
            conn.execute(text("update migration_jobs set not_before = clock_timestamp()"))

    outcome = run_job(tools, ref_of(run_id), "w", raising(ClaimLostError("lost again")), Verb.MIGRATE)

    assert outcome is not None
    assert (outcome.status, outcome.error_class, outcome.attempts) == (Status.FAILED, "ClaimLostError", 6)
    assert all(later > 0.9 * earlier for earlier, later in itertools.pairwise(waits))
    assert waits[-1] > 4 * waits[0]
    assert run_state(site, run_id) == ("finished", None)


def test_a_job_with_a_permanent_error_fails_at_once(site: Site, tools: Tools):
    run_id = make_run(site.engine)

    outcome = run_job(
        tools,
        ref_of(run_id),
        "w",
        raising(DirectoryMissingError("Directory does not exist: /x")),
        Verb.MIGRATE,
    )

    assert outcome is not None
    assert (outcome.status, outcome.remedy) == (Status.FAILED, DirectoryMissingError.remedy)
    assert job_of(site.engine, run_id)["retries"] == 0


def test_a_full_store_pauses_the_run(site: Site, tools: Tools):
    run_id = make_run(site.engine)

    assert run_job(tools, ref_of(run_id), "w", raising(StoreFullError("No space left")), Verb.MIGRATE) is None

    assert run_state(site, run_id) == ("paused", "No space left")
    job = job_of(site.engine, run_id)
    assert (job["state"], job["retries"], job["not_before"]) == ("queued", 0, None)


@pytest.mark.parametrize(
    ("error", "error_class"),
    [(MemoryError(), "OutOfMemoryError"), (ZeroDivisionError("by zero"), "UnexpectedError")],
)
def test_an_unexpected_error_becomes_an_outcome(site: Site, tools: Tools, error: Exception, error_class: str):
    run_id = make_run(site.engine)

    outcome = run_job(tools, ref_of(run_id), "w", raising(error), Verb.MIGRATE)

    assert outcome is not None
    assert (outcome.status, outcome.error_class) == (Status.FAILED, error_class)
    assert job_of(site.engine, run_id)["state"] == "failed"


def test_options_that_cannot_be_read_fail_only_the_job_that_asks_for_them(site: Site, tools: Tools):
    """Taking the lease does not ask: neither that nor the reaper's look may fail for one damaged row."""
    run_id = make_run(site.engine)
    with site.engine.begin() as conn:
        conn.execute(text("""update migration_runs set selection = '{"options": {"sample": "all"}}'"""))

    def asking(attempt: Attempt) -> NoReturn:
        raise AssertionError(attempt.lease.options)

    outcome = run_job(tools, ref_of(run_id), "w", asking, Verb.MIGRATE)

    assert outcome is not None
    assert outcome.status is Status.FAILED
    assert outcome.reason.startswith("ValidationError: ")


def test_a_process_that_is_forced_to_exit_hands_its_job_back(site: Site, tools: Tools):
    run_id = make_run(site.engine)

    with pytest.raises(SystemExit):
        run_job(tools, ref_of(run_id), "w", raising(SystemExit(1)), Verb.MIGRATE)

    job = job_of(site.engine, run_id)
    assert (job["state"], job["crashes"], job["sent_at"]) == ("queued", 0, None)


def test_a_process_that_is_forced_to_exit_exits_although_its_lease_is_lost(site: Site, tools: Tools):
    run_id = make_run(site.engine)

    def asleep(_attempt: Attempt) -> NoReturn:
        expire(site.engine, run_id)
        must_take(site.engine, run_id, worker="another")
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        run_job(tools, ref_of(run_id), "w", asleep, Verb.MIGRATE)

    job = job_of(site.engine, run_id)
    assert (job["state"], job["worker"], job["fenced"]) == ("running", "another", 1)


# What the operator and the worker want ----------------------------------------------------------------------


def busy(job: Attempt) -> Outcome:
    """Work of many files that goes on until it is stopped."""
    eventually(lambda: job.heartbeat.advance(1, 10) is not None, "somebody stops this work")
    raise AssertionError


def deep_in_a_file(job: Attempt) -> Outcome:
    """Work that never comes to the end of its file."""
    eventually(lambda: job.pace(10) is not None, "somebody stops this work")
    raise AssertionError


@pytest.mark.parametrize("work", [busy, deep_in_a_file])
@pytest.mark.parametrize(("state", "expected"), [("paused", "queued"), ("cancelled", "cancelled")])
def test_work_stops_when_its_run_is_paused_or_cancelled(
    site: Site, tools: Tools, work: Callable[[Attempt], Outcome], state: str, expected: str
):
    run_id = make_run(site.engine)

    def told(job: Attempt) -> Outcome:
        set_run_state(site.engine, run_id, state)
        return work(job)

    outcome = run_job(tools, ref_of(run_id), "w", told, Verb.MIGRATE)

    job = job_of(site.engine, run_id)
    assert (job["state"], job["crashes"], job["fenced"]) == (expected, 0, 0)
    assert (outcome.status if outcome else None) == (Status.CANCELLED if state == "cancelled" else None)


@pytest.mark.parametrize("work", [busy, deep_in_a_file])
def test_work_stops_when_its_worker_is_asked_to_stop(site: Site, work: Callable[[Attempt], Outcome]):
    run_id = make_run(site.engine)
    told: list[int] = []

    def telling(job: Attempt) -> Outcome:
        told.append(1)
        return work(job)

    with ThreadPoolExecutor(1) as threads:
        tools = Tools(
            settings=site.settings, engine=site.engine, threads=threads, stopping=lambda: bool(told)
        )
        assert run_job(tools, ref_of(run_id), "w", telling, Verb.MIGRATE) is None
        assert job_of(site.engine, run_id)["state"] == "queued"

        assert run_job(tools, ref_of(run_id), "w", ending, Verb.MIGRATE) is None, "it takes no more jobs"

    job = job_of(site.engine, run_id)
    assert (job["state"], job["attempt"], job["sent_at"]) == ("queued", 1, None)


@pytest.mark.parametrize(
    "error", [errors.RunPausedError("held"), ClaimLostError("lost"), StoreFullError("full")]
)
def test_a_job_that_is_to_wait_in_a_run_that_is_being_cancelled_ends_instead(
    site: Site, tools: Tools, error: MigratorError
):
    """Nobody would ever take it. The cancellation is under way, and not to be seen yet, when the job is
    handed back.
    """
    run_id = make_run(site.engine)
    with site.engine.connect() as operator, ThreadPoolExecutor(1) as worker:

        def held(_job: Attempt) -> NoReturn:
            ledger.cancel_run(operator, run_id, "by the operator")
            raise error

        done = worker.submit(run_job, tools, ref_of(run_id), "w", held, Verb.MIGRATE)
        eventually(lambda: somebody_waits(site), "the worker waits for the operator's transaction")
        operator.commit()
        outcome = done.result(30)

    assert outcome is not None
    assert outcome.status is Status.CANCELLED
    assert job_of(site.engine, run_id)["state"] == "cancelled"


def test_a_cancellation_waits_for_a_job_that_is_being_handed_back(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """The other order: the job was told that its run goes on, and is about to wait again."""
    run_id = make_run(site.engine)
    told = ledger.lock_state

    def cancel() -> None:
        with site.engine.begin() as operator:
            ledger.cancel_run(operator, run_id, "by the operator")

    with ThreadPoolExecutor(1) as operator:
        cancelling: list[Future[None]] = []

        def told_then_cancelled(conn: Connection, of: uuid.UUID) -> RunState:
            state = told(conn, of)
            cancelling.append(operator.submit(cancel))
            eventually(lambda: somebody_waits(site) or cancelling[0].done(), "the operator cancels")
            return state

        monkeypatch.setattr(ledger, "lock_state", told_then_cancelled)
        run_job(tools, ref_of(run_id), "w", raising(errors.RunPausedError("held")), Verb.MIGRATE)
        cancelling[0].result(30)

    assert run_state(site, run_id)[0] == "cancelled"
    assert job_of(site.engine, run_id)["state"] == "cancelled"


def somebody_waits(site: Site) -> bool:
    with site.engine.connect() as conn:
        return bool(conn.execute(text("select count(*) from pg_locks where not granted")).scalar())


def test_an_attempt_that_came_too_late_is_counted_and_changes_nothing(site: Site, tools: Tools):
    run_id = make_run(site.engine)

    def asleep(job: Attempt) -> Outcome:
        expire(site.engine, run_id)
        other = must_take(site.engine, run_id, worker="another")
        with site.engine.begin() as conn:
            leases.end_job(conn, other, job.outcome(Status.MIGRATED, "by another"))
        return ending(job)

    assert run_job(tools, ref_of(run_id), "w", asleep, Verb.MIGRATE) is None

    job = job_of(site.engine, run_id)
    assert (job["outcome"]["reason"], job["fenced"], job["attempt"]) == ("by another", 1, 2)
    assert job["crashes"] == 0, "it lives, so it did not crash"


def test_a_project_that_another_run_processes_is_skipped_with_that_run_s_id(site: Site, tools: Tools):
    first, second = make_run(site.engine), make_run(site.engine)
    must_take(site.engine, first)

    outcome = run_job(
        tools, ref_of(second), "w", raising(AssertionError("not to be worked on")), Verb.MIGRATE
    )

    assert outcome is not None
    assert (outcome.status, outcome.reason) == (
        Status.SKIPPED,
        f"project 1 is being processed by run {first}",
    )


@pytest.mark.parametrize("options", [{"dry_run": True}, {}])
def test_a_dry_run_and_a_dead_worker_hinder_no_other_run(site: Site, tools: Tools, options: dict[str, Any]):
    first, second = make_run(site.engine, **options), make_run(site.engine)
    must_take(site.engine, first)
    if not options:
        expire(site.engine, first)

    outcome = run_job(tools, ref_of(second), "w", ending, Verb.MIGRATE)

    assert outcome is not None
    assert outcome.status is Status.MIGRATED


@pytest.mark.parametrize("error", [TransientError("not now"), StoreFullError("full"), None])
def test_a_job_whose_run_is_gone_with_an_earlier_database_ends_quietly(
    site: Site, tools: Tools, error: MigratorError | None
):
    run_id = make_run(site.engine)

    def work(job: Attempt) -> Outcome:
        with site.engine.begin() as conn:
            conn.execute(text("delete from migration_runs"))
        if error is not None:
            raise error
        return ending(job)

    assert run_job(tools, ref_of(run_id), "w", work, Verb.MIGRATE) is None


@pytest.mark.parametrize("whose", ["a worker's", "its parent's"])
def test_an_idle_transaction_ends_with_the_lease(site: Site, whose: str):
    settings = site.settings.model_copy(update={"lease_s": 1.0})
    engine = connect(settings, "asleep") if whose == "a worker's" else Reaper(settings)._engine
    lock = text("select pg_advisory_xact_lock(1)")
    try:
        with engine.connect() as asleep:
            asleep.execute(lock)

            with site.engine.begin() as other:
                other.execute(text("set local lock_timeout = '10s'"))
                other.execute(lock)

            with pytest.raises(DatabaseUnavailableError):
                asleep.execute(lock)
    finally:
        engine.dispose()
