"""Runs: how they end, how they are cancelled, and how they are found."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.support.ledger_rows import (
    at_once,
    end,
    job_of,
    make_run,
    must_take,
    outcome,
    processes,
    recorded_outcomes,
    set_run_state,
    take,
)
from worker.db import ledger
from worker.db.ledger import NewJob
from worker.errors import DatabaseRefusedError, RunNotFoundError
from worker.messages import JobRef, RunState, Status, Verb


def finish(engine: Engine, run_id: uuid.UUID) -> str:
    """Close the run if it has ended; its state."""
    with engine.begin() as conn:
        ledger.finish_run_if_ended(conn, run_id)
    return state_of(engine, run_id)


def state_of(engine: Engine, run_id: uuid.UUID) -> str:
    with engine.connect() as conn:
        return ledger.find_run(conn, str(run_id)).state.value


def test_a_run_is_finished_by_its_last_job_only(database: Engine):
    run_id = make_run(database, [1, 2])

    assert finish(database, run_id) == "running"
    end(database, must_take(database, run_id, 1))
    lease = must_take(database, run_id, 2)
    assert finish(database, run_id) == "running"
    end(database, lease, outcome(2, Status.FAILED))
    assert finish(database, run_id) == "finished"
    with database.connect() as conn:
        assert ledger.find_run(conn, str(run_id)).finished_at is not None


def test_when_the_last_two_jobs_end_at_once_the_run_is_finished(database: Engine):
    with processes(database, 2) as engines:
        for _ in range(10):
            run_id = make_run(database, [1, 2])
            leases = {
                id(engine): must_take(database, run_id, number) for number, engine in enumerate(engines, 1)
            }

            def end_and_finish(engine: Engine, leases: Any = leases, run_id: uuid.UUID = run_id) -> None:
                end(engine, leases[id(engine)])
                with engine.begin() as conn:
                    ledger.finish_run_if_ended(conn, run_id)

            at_once(engines, end_and_finish)

            assert state_of(database, run_id) == "finished"


def test_a_paused_run_is_finished_when_its_last_job_ends(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)
    set_run_state(database, run_id, "paused")
    end(database, lease)

    assert finish(database, run_id) == "finished"


def test_a_run_whose_producer_died_before_marking_it_as_sent_is_finished(database: Engine):
    run_id = make_run(database, sent=False)
    end(database, must_take(database, run_id))

    assert finish(database, run_id) == "finished"


def test_a_run_whose_jobs_are_all_skipped_is_finished_at_once(database: Engine):
    run_id = make_run(database, [1], sent=False, skipped=outcome(status=Status.SKIPPED))

    assert finish(database, run_id) == "finished"
    with database.connect() as conn:
        assert recorded_outcomes(conn, run_id)[JobRef(run_id=run_id, subject_id=1)].status is Status.SKIPPED


def test_a_cancelled_run_stays_cancelled(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)
    with database.begin() as conn:
        ledger.cancel_run(conn, run_id, "by hand")
    end(database, lease)

    assert finish(database, run_id) == "cancelled"


def test_cancelling_ends_what_waits_and_leaves_what_runs_and_what_ended(database: Engine):
    run_id = make_run(database, [1, 2, 3])
    end(database, must_take(database, run_id, 1))
    must_take(database, run_id, 2)

    with database.begin() as conn:
        ledger.cancel_run(conn, run_id, "it's enough")

    assert [job_of(database, run_id, number)["state"] for number in (1, 2, 3)] == [
        "done",
        "running",
        "cancelled",
    ]
    with database.connect() as conn:
        cancelled = recorded_outcomes(conn, run_id)[JobRef(run_id=run_id, subject_id=3)]
    assert (cancelled.status, cancelled.reason) == (Status.CANCELLED, "it's enough")
    assert (cancelled.project_name, cancelled.original_path) == ("study 3", "/studies/3")


def test_a_lease_and_a_cancellation_at_once_leave_one_winner(database: Engine):
    with processes(database, 2) as engines:
        for _ in range(10):
            run_id = make_run(database)

            def take_or_cancel(engine: Engine, run_id: uuid.UUID = run_id) -> bool:
                if engine is engines[0]:
                    return take(engine, run_id) is not None
                with engine.begin() as conn:
                    ledger.cancel_run(conn, run_id, "by hand")
                return True

            taken, _ = at_once(engines, take_or_cancel)

            assert job_of(database, run_id)["state"] == ("running" if taken else "cancelled")


def test_a_run_is_found_by_its_id_by_any_beginning_of_it_and_as_the_latest(database: Engine):
    first = make_run(database, run_id=uuid.UUID("abcd0000-0000-4000-8000-000000000001"))
    second = make_run(database, run_id=uuid.UUID("abce0000-0000-4000-8000-000000000002"))

    with database.connect() as conn:
        for reference in (str(first), "abcd", "ABCD0000-", str(first).upper()):
            assert ledger.find_run(conn, reference).run_id == first
        assert ledger.find_run(conn, "latest").run_id == second
        assert [run.run_id for run in ledger.runs(conn, 10)] == [second, first]
        assert [run.run_id for run in ledger.runs(conn, 1)] == [second]
        found = ledger.find_run(conn, "abce")
    assert (found.verb, found.dry_run, found.state) == (Verb.MIGRATE, False, RunState.RUNNING)
    assert found.options.limit == 5
    assert found.finished_at is None


@pytest.mark.parametrize("reference", ["abc", "a"])
def test_a_beginning_that_several_runs_have_is_refused(database: Engine, reference: str):
    for last in (1, 2):
        make_run(database, run_id=uuid.UUID(f"abc{last}0000-0000-4000-8000-000000000000"))

    with (
        database.connect() as conn,
        pytest.raises(
            RunNotFoundError, match=f"^More than one run begins with '{reference}'; give more of the id$"
        ),
    ):
        ledger.find_run(conn, reference)


@pytest.mark.parametrize(
    "reference", ["beef", "%", "_", "abcd'; drop table migration_runs; --", "Latest!", "run"]
)
def test_a_beginning_that_no_run_has_is_refused(database: Engine, reference: str):
    make_run(database, run_id=uuid.UUID("abcd0000-0000-4000-8000-000000000000"))

    with database.connect() as conn, pytest.raises(RunNotFoundError, match=r"^No run begins with ") as raised:
        ledger.find_run(conn, reference)

    assert repr(reference) in str(raised.value)


def test_the_latest_of_no_runs_is_refused(database: Engine):
    with database.connect() as conn, pytest.raises(RunNotFoundError, match=r"^There is no run yet$"):
        ledger.find_run(conn, "latest")


def test_a_project_has_one_job_a_run(database: Engine):
    run_id = make_run(database, [1])

    with pytest.raises(DatabaseRefusedError), database.begin() as conn:
        ledger.add_jobs(conn, run_id, [NewJob(subject_id=1, subject_name="twice", path="/x")])
