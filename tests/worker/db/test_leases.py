"""Leases: one worker a job, late ones refused, an outcome written whole or not at all."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, text

from tests.support.ledger_rows import (
    LEASE_S,
    at_once,
    end,
    expire,
    job_of,
    make_run,
    must_take,
    outcome,
    processes,
    recorded_outcomes,
    renew,
    set_run_state,
    take,
)
from worker.db import leases, ledger
from worker.errors import LeaseLostError
from worker.messages import FileCounts, JobRef, RunOptions, Status, Verb

# A database that went back ----------------------------------------------------------------------------------


def _forget_the_lease(database: Engine, run_id: uuid.UUID) -> None:
    """What a failover does to a lease that had not reached the replica."""
    with database.begin() as conn:
        conn.execute(
            text("""
                set local session_replication_role = replica;
                update migration_jobs set state = 'queued', attempt = 0, worker = null, lease_until = null,
                                          started_at = null, taken_as = null
                where run_id = :run_id"""),
            {"run_id": run_id},
        )


def test_a_lease_that_a_failover_lost_is_not_the_one_that_gets_its_number(database: Engine):
    run_id = make_run(database)
    lost = must_take(database, run_id, worker="first")
    _forget_the_lease(database, run_id)

    again = must_take(database, run_id, worker="second")

    assert (lost.attempt, again.attempt) == (1, 1)
    assert lost.mark != again.mark
    assert not renew(database, lost)
    assert renew(database, again)
    for write in (
        lambda conn: leases.end_job(conn, lost, outcome()),
        lambda conn: leases.hand_back(conn, lost),
        lambda conn: leases.wait_for(conn, lost, "room", "none"),
    ):
        with pytest.raises(LeaseLostError), database.begin() as conn:
            write(conn)
    end(database, again)
    assert job_of(database, run_id)["state"] == "done"


# Taking a lease ---------------------------------------------------------------------------------------------


def test_a_lease_has_all_that_its_job_needs(database: Engine):
    run_id = make_run(database, [7], dry_run=True)

    lease = must_take(database, run_id, 7, "worker@host")

    assert lease.ref == JobRef(run_id=run_id, subject_id=7)
    assert (lease.attempt, lease.subject_name, lease.path) == (1, "study 7", "/studies/7")
    assert (lease.verb, lease.dry_run, lease.options) == (Verb.MIGRATE, True, RunOptions(limit=5))
    assert abs(datetime.now(UTC) - lease.started_at) < timedelta(minutes=1)
    job = job_of(database, run_id, 7)
    assert (job["state"], job["worker"], job["attempt"]) == ("running", "worker@host", 1)
    assert (
        timedelta(seconds=LEASE_S - 5)
        < job["lease_until"] - lease.started_at
        <= timedelta(seconds=LEASE_S + 1)
    )


def test_what_a_run_left_out_does_not_travel_with_its_leases_and_lines(database: Engine):
    """It may be a hundred thousand entries."""
    run_id = make_run(database)
    asked: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *about: asked.append(about[2]))

    must_take(database, run_id)
    expire(database, run_id)
    with database.begin() as conn:
        (dead,) = leases.expired(conn, 10, LEASE_S)
        assert dead.lease.options.limit == 5
        assert ledger.find_run(conn, "latest").options.limit == 5
        assert len(ledger.runs(conn, 10)) == 1
        ledger.pause_runs_that_only_wait(conn, 0)

    assert len(asked) >= 5
    assert [statement for statement in asked if "selection" in statement or "r.*" in statement] == []


def test_of_many_deliveries_at_once_exactly_one_gets_the_lease(database: Engine):
    with processes(database, 8) as engines:
        for _ in range(5):
            run_id = make_run(database)

            leases = at_once(engines, lambda engine, run_id=run_id: take(engine, run_id))

            assert [lease.attempt for lease in leases if lease is not None] == [1]


def test_of_many_that_find_a_lease_run_out_exactly_one_takes_it_over(database: Engine):
    run_id = make_run(database)
    must_take(database, run_id)
    with processes(database, 8) as engines:
        for attempt in range(2, leases.MOST_CRASHES + 1):
            expire(database, run_id)

            taken = at_once(engines, lambda engine: take(engine, run_id))

            assert [lease.attempt for lease in taken if lease is not None] == [attempt]


def test_a_second_delivery_finds_nothing_and_changes_nothing(database: Engine):
    run_id = make_run(database)
    must_take(database, run_id, worker="first")
    before = job_of(database, run_id)

    assert take(database, run_id, worker="second") is None
    assert job_of(database, run_id) == before


@pytest.mark.parametrize("status", [Status.MIGRATED, Status.SKIPPED, Status.FAILED, Status.CANCELLED])
def test_a_job_that_ended_is_not_done_again(database: Engine, status: Status):
    run_id = make_run(database)
    end(database, must_take(database, run_id), outcome(status=status))
    before = job_of(database, run_id)

    assert take(database, run_id) is None
    assert job_of(database, run_id) == before


@pytest.mark.parametrize("run_state", ["paused", "cancelled"])
def test_no_job_of_a_paused_or_cancelled_run_is_taken(database: Engine, run_state: str):
    run_id = make_run(database)
    set_run_state(database, run_id, run_state)

    assert take(database, run_id) is None


def test_a_job_may_be_taken_before_its_run_is_marked_as_sent(database: Engine):
    run_id = make_run(database, sent=False)

    assert must_take(database, run_id).attempt == 1


def test_jobs_that_do_not_exist_are_not_taken(database: Engine):
    run_id = make_run(database)

    assert take(database, run_id, 99) is None
    assert take(database, uuid.uuid4()) is None


def test_project_names_and_paths_are_kept_as_they_are(database: Engine):
    name = 'it\'s "größe" 研究 🙂 \\ %s :x {0}'
    run_id = make_run(database, [1], subject_name=name, path=f"/{name}")

    lease = must_take(database, run_id)

    assert (lease.subject_name, lease.path) == (name, f"/{name}")


# Holding and losing it --------------------------------------------------------------------------------------


def test_renewing_lengthens_the_lease_and_records_progress(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)
    expire(database, run_id)

    assert renew(database, lease, "store", dataset_hash="ab" * 32, files_done=3, bytes_done=2**40)

    job = job_of(database, run_id)
    assert job["lease_until"] > datetime.now(UTC) + timedelta(seconds=LEASE_S - 20)
    assert (job["phase"], job["dataset_hash"]) == ("store", "ab" * 32)
    assert (job["files_done"], job["bytes_done"]) == (3, 2**40)
    assert take(database, run_id) is None


def test_a_worker_whose_lease_was_taken_over_can_neither_renew_nor_end_the_job(database: Engine):
    run_id = make_run(database)
    old = must_take(database, run_id, worker="asleep")
    expire(database, run_id)
    new = must_take(database, run_id, worker="awake")
    before = job_of(database, run_id)

    assert not renew(database, old)
    with pytest.raises(LeaseLostError, match="project 1: attempt 1 has lost its lease"):
        end(database, old)

    assert job_of(database, run_id) == before
    assert renew(database, new)
    end(database, new)
    assert job_of(database, run_id)["state"] == "done"


def test_a_job_that_ended_cannot_be_ended_again_nor_renewed(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)
    end(database, lease, outcome(reason="the first"))

    assert not renew(database, lease)
    with pytest.raises(LeaseLostError):
        end(database, lease, outcome(reason="the second"))

    assert job_of(database, run_id)["outcome"]["reason"] == "the first"


def test_of_an_old_and_a_new_owner_that_end_at_once_the_new_one_does(database: Engine):
    run_id = make_run(database)
    old = must_take(database, run_id)
    expire(database, run_id)
    new = must_take(database, run_id)

    def end_either(engine: Engine) -> bool:
        try:
            end(engine, old if engine is engines[0] else new, outcome(reason=str(engine is engines[0])))
        except LeaseLostError:
            return False
        return True

    with processes(database, 2) as engines:
        assert at_once(engines, end_either) == [False, True]
    assert job_of(database, run_id)["outcome"]["reason"] == "False"


def test_the_outcome_is_written_with_what_it_reports_or_not_at_all(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)

    with database.connect() as conn:
        leases.end_job(conn, lease, outcome())
        conn.rollback()

    assert job_of(database, run_id)["state"] == "running"
    end(database, lease)


def test_an_outcome_is_kept_whole_and_its_head_in_columns(database: Engine):
    run_id = make_run(database, [7])
    lease = must_take(database, run_id, 7)
    failed = outcome(
        7,
        Status.FAILED,
        error="bad",
        error_class="EntryRefusedError",
        dataset_hash="cd" * 32,
        files=FileCounts(left=5),
    )

    end(database, lease, failed)

    job = job_of(database, run_id, 7)
    assert (job["state"], job["error"], job["error_class"]) == ("failed", "bad", "EntryRefusedError")
    assert (job["lease_until"], job["phase"], job["dataset_hash"]) == (None, None, "cd" * 32)
    assert job["finished_at"] >= job["started_at"]
    assert job["files_done"] == 5
    with database.connect() as conn:
        assert recorded_outcomes(conn, run_id) == {JobRef(run_id=run_id, subject_id=7): failed}


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("cannot read /caf\udce9", "cannot read /caf\\udce9"),
        ("a null \0 byte", "a null \\x00 byte"),
        ("größe 研究 🙂 \\u0000", "größe 研究 🙂 \\u0000"),
    ],
    ids=["a name that is not UTF-8", "a null byte", "everything else"],
)
def test_a_message_of_any_bytes_does_not_cost_a_job_its_outcome(database: Engine, message: str, kept: str):
    run_id = make_run(database)
    lease = must_take(database, run_id)

    end(database, lease, outcome(status=Status.FAILED, reason=message, error=message, differences=(message,)))

    assert job_of(database, run_id)["error"] == kept
    with database.connect() as conn:
        found = recorded_outcomes(conn, run_id)[JobRef(run_id=run_id, subject_id=1)]
    assert (found.reason, found.error, found.differences) == (kept, kept, (kept,))


def test_the_job_that_stores_a_dataset_is_named_to_those_that_wait(database: Engine):
    run_id = make_run(database, [1, 2])
    lease = must_take(database, run_id, 1, "worker@host")
    asking = JobRef(run_id=run_id, subject_id=2)

    def holder() -> str | None:
        with database.connect() as conn:
            return leases.job_that_stores(conn, "ab" * 32, asking)

    renew(database, lease, "hash", dataset_hash="ab" * 32)
    assert holder() is None
    renew(database, lease, "store", dataset_hash="ab" * 32)
    assert holder() == "project 1 on worker@host"
    with database.connect() as conn:
        assert leases.job_that_stores(conn, "ab" * 32, lease.ref) is None
    end(database, lease)
    assert holder() is None
