"""The ledger: one holder a job, late ones refused, and every question about a run answered from its rows."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

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
    set_run_state,
    take,
)
from worker.db import dry_runs, leases, ledger, overview
from worker.db.leases import Lease
from worker.db.ledger import NewJob
from worker.errors import DatabaseRefusedError, LeaseLostError, RunNotFoundError
from worker.messages import FileCounts, JobRef, RunOptions, RunState, Status, Verb


def renew(engine: Engine, lease: Lease, phase: str = "hash", **done: Any) -> bool:
    with engine.begin() as conn:
        return leases.renew_lease(
            conn,
            lease,
            LEASE_S,
            phase=phase,
            **{"dataset_hash": None, "files_done": 0, "bytes_done": 0} | done,
        )


def finish(engine: Engine, run_id: uuid.UUID) -> str:
    """Close the run if it has ended; its state."""
    with engine.begin() as conn:
        ledger.finish_run_if_ended(conn, run_id)
    return state_of(engine, run_id)


def state_of(engine: Engine, run_id: uuid.UUID) -> str:
    with engine.connect() as conn:
        return ledger.find_run(conn, str(run_id)).state.value


# Taking a lease -------------------------------------------------------------------------------------------------


def test_a_lease_says_what_is_to_be_done(database: Engine):
    run_id = make_run(database, [7], dry_run=True)

    lease = must_take(database, run_id, 7, "worker@host")

    assert lease.ref == JobRef(run_id=run_id, project_id=7)
    assert (lease.attempt, lease.project_name, lease.path) == (1, "study 7", "/studies/7")
    assert (lease.verb, lease.dry_run, lease.options) == (Verb.MIGRATE, True, RunOptions(limit=5))
    assert abs(datetime.now(UTC) - lease.started_at) < timedelta(minutes=1)
    job = job_of(database, run_id, 7)
    assert (job["state"], job["worker"], job["attempt"]) == ("running", "worker@host", 1)
    assert (
        timedelta(seconds=LEASE_S - 5)
        < job["lease_until"] - lease.started_at
        <= timedelta(seconds=LEASE_S + 1)
    )


def test_of_many_deliveries_at_once_exactly_one_gets_the_lease(database: Engine):
    with processes(database, 8) as engines:
        for _ in range(5):
            run_id = make_run(database)

            leases = at_once(engines, lambda engine, run_id=run_id: take(engine, run_id))

            assert [lease.attempt for lease in leases if lease is not None] == [1]


def test_of_many_who_find_a_lease_run_out_exactly_one_takes_it_over(database: Engine):
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
def test_no_job_of_a_held_or_cancelled_run_is_taken(database: Engine, run_state: str):
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


# Holding and losing it ------------------------------------------------------------------------------------------


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


def test_a_holder_whose_lease_was_taken_over_can_neither_renew_nor_end_the_job(database: Engine):
    run_id = make_run(database)
    old = must_take(database, run_id, worker="asleep")
    expire(database, run_id)
    new = must_take(database, run_id, worker="awake")
    before = job_of(database, run_id)

    assert not renew(database, old)
    with pytest.raises(LeaseLostError, match="project 1: attempt 1 is not the holder any more"):
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


def test_of_an_old_and_a_new_holder_who_end_at_once_the_new_one_does(database: Engine):
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
        assert overview.outcomes(conn, run_id) == {7: failed}


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
        found = overview.outcomes(conn, run_id)[1]
    assert (found.reason, found.error, found.differences) == (kept, kept, (kept,))


# Runs -----------------------------------------------------------------------------------------------------------


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


def test_a_held_run_is_finished_when_its_last_job_ends(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)
    set_run_state(database, run_id, "paused")
    end(database, lease)

    assert finish(database, run_id) == "finished"


def test_a_run_whose_producer_died_before_it_was_marked_as_sent_is_finished_all_the_same(database: Engine):
    run_id = make_run(database, sent=False)
    end(database, must_take(database, run_id))

    assert finish(database, run_id) == "finished"


def test_a_run_whose_jobs_are_all_skipped_is_finished_at_once(database: Engine):
    run_id = make_run(database, [1], sent=False, skipped=outcome(status=Status.SKIPPED))

    assert finish(database, run_id) == "finished"
    with database.connect() as conn:
        assert overview.outcomes(conn, run_id)[1].status is Status.SKIPPED


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
        cancelled = overview.outcomes(conn, run_id)[3]
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
    assert found.selection == {"options": {"limit": 5}}
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
        ledger.add_jobs(conn, run_id, [NewJob(project_id=1, project_name="twice", path="/x")])


def test_texts_of_people_are_kept_as_they_are(database: Engine):
    name = 'it\'s "größe" 研究 🙂 \\ %s :x {0}'
    run_id = make_run(database, [1], project_name=name, path=f"/{name}")

    lease = must_take(database, run_id)

    assert (lease.project_name, lease.path) == (name, f"/{name}")


# Progress -------------------------------------------------------------------------------------------------------


def test_progress_is_counted_from_the_jobs(database: Engine):
    run_id = make_run(database, [1, 2, 3, 4, 5], size_bytes=100)
    end(database, must_take(database, run_id, 1))
    end(database, must_take(database, run_id, 2), outcome(2, Status.FAILED))
    must_take(database, run_id, 3)
    expire(database, run_id)
    renew(database, must_take(database, run_id, 4), bytes_done=150)

    with database.connect() as conn:
        now = overview.progress(conn, run_id)

    assert (now.state, now.jobs, now.ended, now.failed) == (RunState.RUNNING, 5, 2, 1)
    assert (now.running, now.live) == (2, 1)
    # What grew since it was planned does not count for more than was planned.
    assert (now.bytes_total, now.bytes_done) == (500, 300)


def test_a_run_without_jobs_and_jobs_of_unknown_size_have_progress_too(database: Engine):
    empty, unknown = make_run(database, []), make_run(database, [1])
    renew(database, must_take(database, unknown), bytes_done=70)

    with database.connect() as conn:
        none, some = overview.progress(conn, empty), overview.progress(conn, unknown)

    assert (none.jobs, none.ended, none.bytes_total, none.bytes_done) == (0, 0, 0, 0)
    assert (some.jobs, some.bytes_total, some.bytes_done) == (1, 0, 70)


def test_jobs_are_listed_by_project_with_their_age(database: Engine):
    run_id = make_run(database, [3, 1, 2])
    must_take(database, run_id, 2, "worker@host")

    with database.connect() as conn:
        rows = overview.jobs(conn, run_id)

    assert [row.project_id for row in rows] == [1, 2, 3]
    assert (rows[1].worker, rows[1].state) == ("worker@host", "running")
    assert 0 <= rows[1].age_s < 60
    assert rows[0].age_s is None


def test_the_one_who_stores_a_dataset_is_named_to_those_who_wait(database: Engine):
    run_id = make_run(database, [1, 2])
    lease = must_take(database, run_id, 1, "worker@host")
    asking = JobRef(run_id=run_id, project_id=2)

    def holder() -> str | None:
        with database.connect() as conn:
            return leases.holder_of_dataset(conn, "ab" * 32, asking)

    renew(database, lease, "hash", dataset_hash="ab" * 32)
    assert holder() is None
    renew(database, lease, "store", dataset_hash="ab" * 32)
    assert holder() == "project 1 on worker@host"
    with database.connect() as conn:
        assert leases.holder_of_dataset(conn, "ab" * 32, lease.ref) is None
    end(database, lease)
    assert holder() is None


# Dry runs -------------------------------------------------------------------------------------------------------


def test_the_lowest_project_that_holds_a_new_content_owns_it_whatever_the_order(database: Engine):
    run_id = make_run(database, [1, 2, 3], dry_run=True)
    other_run = make_run(database, [1], dry_run=True)
    sizes = {"aa": 10, "bb": 20, "cc": 40}

    with database.begin() as conn:
        for number, digests in ((2, ["aa", "bb"]), (3, ["bb", "cc"]), (1, ["bb"]), (1, ["bb"])):
            ref = JobRef(run_id=run_id, project_id=number)
            dry_runs.note_new_content(conn, ref, {digest: sizes[digest] for digest in digests})
        dry_runs.note_new_content(conn, JobRef(run_id=other_run, project_id=1), {"aa": 10})
        dry_runs.note_new_content(conn, JobRef(run_id=run_id, project_id=1), {})

        assert dry_runs.new_content_by_project(conn, run_id) == {1: (1, 20), 2: (1, 10), 3: (1, 40)}
        assert dry_runs.new_content_by_project(conn, other_run) == {1: (1, 10)}


def test_projects_that_note_the_same_contents_at_once_do_not_block_each_other_for_ever(database: Engine):
    count = 6
    run_id = make_run(database, list(range(1, count + 1)), dry_run=True)
    digests = [f"{number:064x}" for number in range(300)]
    orders = [digests, digests[::-1]]

    with processes(database, count) as engines:
        numbers = {id(engine): number for number, engine in enumerate(engines, start=1)}

        def note(engine: Engine) -> None:
            number = numbers[id(engine)]
            with engine.begin() as conn:
                ref = JobRef(run_id=run_id, project_id=number)
                dry_runs.note_new_content(conn, ref, dict.fromkeys(orders[number % 2], 1))

        at_once(engines, note)

    with database.connect() as conn:
        assert dry_runs.new_content_by_project(conn, run_id) == {1: (300, 300)}


def test_what_a_run_noted_goes_with_the_run(database: Engine):
    run_id = make_run(database, [1], dry_run=True)
    with database.begin() as conn:
        dry_runs.note_new_content(conn, JobRef(run_id=run_id, project_id=1), {"aa": 1})

        conn.execute(text("delete from migration_runs where run_id = :id"), {"id": run_id})

        assert conn.scalar(text("select count(*) from migration_dry_run_blobs")) == 0
        assert conn.scalar(text("select count(*) from migration_jobs")) == 0


def test_thousands_of_jobs_are_written_at_once(database: Engine):
    run_id = make_run(database, list(range(1, 5001)), size_bytes=2**33)

    with database.connect() as conn:
        now = overview.progress(conn, run_id)

    assert (now.jobs, now.bytes_total) == (5000, 5000 * 2**33)
    assert job_of(database, run_id, 5000)["state"] == "queued"
