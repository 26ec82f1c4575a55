"""The thread beside a job: it holds on to lease and claim through all that passes, and tells the work when
either is lost.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from tests.support.claims import held
from tests.support.ledger_rows import end, expire, job_of, make_run, must_take, processes, take
from tests.support.waiting import PATIENCE_S, eventually
from worker.db.claims import Claim
from worker.errors import ClaimLostError, LeaseLostError
from worker.jobs import lease_renewer
from worker.jobs.heartbeat import Heartbeat

HASH = "ab" * 32
QUICK_S = 0.3
"""A lease that is renewed each tenth of a second."""

SLOW_S = 3600.0
"""A lease whose thread does nothing as long as a test takes."""


def ticks(database: Engine, run_id: Any) -> Callable[[], bool]:
    """Whether the lease was renewed since this was called."""
    before = job_of(database, run_id)["lease_until"]
    return lambda: job_of(database, run_id)["lease_until"] != before


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lease-")]


def lost_claim(heartbeat: Heartbeat) -> bool:
    try:
        heartbeat.advance(0, 0)
    except ClaimLostError:
        return True
    return False


@pytest.fixture
def between_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the thread not renew by itself: on a busy machine a test may take longer than that waits."""
    monkeypatch.setattr(lease_renewer, "_RENEW_S", SLOW_S)


# The lease --------------------------------------------------------------------------------------------------


def test_the_lease_is_renewed_while_the_work_is_busy_elsewhere(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)

    with Heartbeat(database, lease, QUICK_S):
        for _ in range(3):
            eventually(ticks(database, run_id), "the lease is renewed")

        assert take(database, run_id) is None


def test_progress_is_recorded_from_any_thread(database: Engine):
    run_id = make_run(database)

    with Heartbeat(database, must_take(database, run_id), QUICK_S) as heartbeat:
        workers = [threading.Thread(target=heartbeat.advance, args=(1, 100)) for _ in range(20)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

        eventually(lambda: job_of(database, run_id)["files_done"] == 20, "the files are counted")
        assert job_of(database, run_id)["bytes_done"] == 2000


def test_an_entered_step_is_recorded_at_once_and_the_dataset_stays_known(database: Engine):
    run_id = make_run(database)

    with Heartbeat(database, must_take(database, run_id), SLOW_S) as heartbeat:
        heartbeat.advance(3, 500)
        heartbeat.enter("claim", HASH, at_once=True)
        heartbeat.enter("store", at_once=True)

        job = job_of(database, run_id)

    assert (job["phase"], job["dataset_hash"]) == ("store", HASH)
    assert (job["files_done"], job["bytes_done"]) == (3, 500)


def test_work_that_begins_again_is_counted_again(database: Engine):
    run_id = make_run(database)

    with Heartbeat(database, must_take(database, run_id), SLOW_S) as heartbeat:
        heartbeat.advance(3, 500)
        heartbeat.restart()
        heartbeat.advance(1, 10)
        heartbeat.enter("hash", at_once=True)

    job = job_of(database, run_id)
    assert (job["files_done"], job["bytes_done"]) == (1, 10)


def test_the_work_learns_at_its_next_file_that_another_worker_has_the_job(database: Engine):
    run_id = make_run(database)
    with Heartbeat(database, must_take(database, run_id), QUICK_S) as heartbeat:
        heartbeat.advance(1, 1)
        with database.begin() as conn:
            # In one transaction, as between two beats: expired, and taken over.
            conn.execute(
                text("update migration_jobs set attempt = attempt + 1, taken_as = '2:' || (attempt + 1)")
            )

        def is_lost() -> bool:
            try:
                heartbeat.advance(0, 0)
            except LeaseLostError as error:
                return "project 1: another worker has the job" in str(error)
            return False

        eventually(is_lost, "the work is told")
        with pytest.raises(LeaseLostError):
            heartbeat.advance(1, 1)


@pytest.mark.usefixtures("between_beats")
def test_the_work_learns_when_it_enters_a_step_that_another_worker_has_the_job(database: Engine):
    run_id = make_run(database)
    with Heartbeat(database, must_take(database, run_id), SLOW_S) as heartbeat:
        expire(database, run_id)
        must_take(database, run_id, worker="the other")

        with pytest.raises(LeaseLostError):
            heartbeat.enter("store", at_once=True)

    assert job_of(database, run_id)["worker"] == "the other"
    assert job_of(database, run_id)["phase"] == "scan"


def test_a_job_that_the_work_ended_itself_is_left_alone(database: Engine):
    run_id = make_run(database)
    lease = must_take(database, run_id)

    with Heartbeat(database, lease, 0.03) as heartbeat:
        end(database, lease)
        before = job_of(database, run_id)
        eventually(lambda: heartbeat.stop.is_set, "the thread has seen that the job has ended")

    assert job_of(database, run_id) == before


@pytest.mark.parametrize("fails", [False, True])
def test_the_thread_ends_with_the_block_whatever_happened_in_it(database: Engine, fails: Any):
    lease = must_take(database, make_run(database))

    try:
        with Heartbeat(database, lease, SLOW_S):
            assert threads() == ["lease-1"]
            _ = 1 / (not fails)
    except ZeroDivisionError:
        assert fails

    assert threads() == []


# What passes by itself --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_connection_is_pinged")
def test_a_database_that_is_away_for_a_while_is_waited_for(database: Engine):
    run_id = make_run(database)
    administer = create_engine(database.url.set(database="postgres"), isolation_level="AUTOCOMMIT").connect()
    name = database.url.database

    with (
        processes(database, 1) as (engine,),
        Heartbeat(engine, must_take(database, run_id), QUICK_S) as heartbeat,
    ):
        administer.execute(text(f"alter database {name} allow_connections false"))
        try:
            ended = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = :name"
            administer.execute(text(ended), {"name": name})
            heartbeat.enter("hash", at_once=True)
            heartbeat.advance(1, 100)
        finally:
            administer.execute(text(f"alter database {name} allow_connections true"))
            administer.close()
            administer.engine.dispose()

        eventually(lambda: job_of(database, run_id)["phase"] == "hash", "the lease is renewed again")
        eventually(lambda: job_of(database, run_id)["files_done"] == 1, "progress is recorded again")


def test_an_error_of_any_other_kind_does_not_end_the_thread(database: Engine):
    run_id = make_run(database)

    with Heartbeat(database, must_take(database, run_id), QUICK_S) as heartbeat:
        for statement in (
            "alter table migration_jobs rename to hidden_jobs",
            "alter table hidden_jobs rename to migration_jobs",
        ):
            with database.begin() as conn:
                conn.execute(text(statement))
            heartbeat.enter("hash", at_once=True)

        eventually(ticks(database, run_id), "the lease is renewed again")
        assert threads() == ["lease-1"]


def test_a_phase_that_no_job_waits_for_is_recorded_a_moment_later(database: Engine):
    run_id = make_run(database)

    with Heartbeat(database, must_take(database, run_id), SLOW_S) as heartbeat:
        heartbeat.enter("hash", HASH)

        eventually(lambda: job_of(database, run_id)["phase"] == "hash", "the phase is in the ledger")


# The claim --------------------------------------------------------------------------------------------------


def claimed(engine: Engine, *, lease_s: float) -> AbstractContextManager[Claim]:
    return held(engine, HASH, what="a dataset", lease_s=lease_s)


def test_a_claim_is_kept_beyond_its_time_limit(database: Engine):
    lease = must_take(database, make_run(database))
    with (
        Heartbeat(database, lease, QUICK_S) as heartbeat,
        claimed(database, lease_s=3) as claim,
        heartbeat.keeping_alive(claim),
    ):
        for _ in range(15):
            eventually(ticks(database, lease.ref.run_id), "the lease is renewed")

        claim.ping()


def test_several_claims_are_kept_at_once(database: Engine):
    lease = must_take(database, make_run(database))
    with (
        Heartbeat(database, lease, QUICK_S) as heartbeat,
        claimed(database, lease_s=3) as one,
        held(database, "file:1:ab", "file:2:cd", lease_s=3) as other,
        heartbeat.keeping_alive(one),
        heartbeat.keeping_alive(other),
    ):
        for _ in range(15):
            eventually(ticks(database, lease.ref.run_id), "the lease is renewed")

        one.ping()
        other.ping()


def test_the_work_learns_at_its_next_file_that_the_claim_is_lost_and_may_begin_again(database: Engine):
    lease = must_take(database, make_run(database))

    with Heartbeat(database, lease, QUICK_S) as heartbeat:
        with claimed(database, lease_s=60) as claim, heartbeat.keeping_alive(claim):
            with database.begin() as conn:
                conn.execute(text("update dataset_claims set owner = null"))

            eventually(lambda: lost_claim(heartbeat), "the work is told")

        heartbeat.advance(0, 0)
        with claimed(database, lease_s=60) as claim, heartbeat.keeping_alive(claim):
            heartbeat.enter("store", HASH, at_once=True)


@pytest.mark.usefixtures("between_beats")
def test_giving_a_claim_back_does_not_give_back_a_lost_lease(database: Engine):
    run_id = make_run(database)
    with Heartbeat(database, must_take(database, run_id), SLOW_S) as heartbeat:
        expire(database, run_id)
        must_take(database, run_id)
        with pytest.raises(LeaseLostError):
            heartbeat.enter("store", at_once=True)

        with claimed(database, lease_s=60) as claim, heartbeat.keeping_alive(claim):
            pass

        with pytest.raises(LeaseLostError):
            heartbeat.advance(0, 0)


class SlowClaim(Claim):
    """A claim whose ping is under way until somebody lets it go on."""

    def __init__(self, claim: Claim) -> None:
        self.__dict__.update(claim.__dict__)
        self.under_way, self.go_on = threading.Event(), threading.Event()

    def ping(self) -> None:
        self.under_way.set()
        self.go_on.wait(PATIENCE_S)
        super().ping()


def test_a_claim_is_not_given_back_while_it_is_pinged(database: Engine):
    lease = must_take(database, make_run(database))

    with (
        Heartbeat(database, lease, 0.03) as heartbeat,
        claimed(database, lease_s=60) as claim,
    ):
        slow = SlowClaim(claim)
        keeping = heartbeat.keeping_alive(slow)
        keeping.__enter__()
        assert slow.under_way.wait(PATIENCE_S)

        giving_back = threading.Thread(target=keeping.__exit__, args=(None, None, None))
        giving_back.start()
        giving_back.join(0.05)
        assert giving_back.is_alive()

        slow.go_on.set()
        giving_back.join(30)
        assert not giving_back.is_alive()


def test_claims_may_be_given_back_at_any_moment(database: Engine):
    lease = must_take(database, make_run(database))

    with Heartbeat(database, lease, 0.006) as heartbeat, processes(database, 1) as (engine,):
        for _ in range(60):
            with claimed(engine, lease_s=60) as claim, heartbeat.keeping_alive(claim):
                claim.ping()
            heartbeat.advance(1, 1)
            with engine.connect() as conn:
                assert conn.connection.driver_connection.info.transaction_status == 0  # type: ignore[union-attr]

        assert threads() == ["lease-1"]
