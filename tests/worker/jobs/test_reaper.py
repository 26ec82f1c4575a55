"""The reaper: jobs of dead holders wait again, lost messages are sent again, and nothing that lives is
disturbed.
"""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

from producer.runs.collect import collect
from tests.support.ledger_rows import (
    at_once,
    expire,
    job_of,
    make_run,
    must_take,
    processes,
    set_run_state,
    take,
)
from tests.support.sites import Site
from tests.support.trees import open_store
from tests.support.waiting import eventually
from worker.broker import client as broker
from worker.db import leases, ledger, messages_sent
from worker.errors import DatabaseUnavailableError
from worker.findings import Verdict
from worker.jobs import reaper
from worker.jobs.reaper import Reaper, reap
from worker.messages import QUEUE, JobRef, Message, Outcome, Status, Verb
from worker.store.store import Store


@pytest.fixture
def look(site: Site) -> Callable[[], object]:
    """Let a worker's parent look once."""
    return lambda: reap(site.settings, site.engine)


def messages(site: Site) -> int:
    """How many messages wait in the broker."""
    return broker.condition(site.settings).waiting


def consume_all(site: Site) -> None:
    """Take every message out, as workers do; or lose them, as a worker that is killed at the wrong moment
    does.
    """
    with redis.Redis.from_url(site.redis_url) as client:
        client.delete(QUEUE)


def sent(site: Site, run_id: uuid.UUID, *, seconds_ago: float, epoch: str | None = None) -> None:
    """Let the messages of a run have been sent a while ago."""
    with site.engine.begin() as conn:
        conn.execute(
            text(
                "update migration_jobs set sent_at = clock_timestamp() - make_interval(secs => :ago), sent_epoch = :epoch"
                " where run_id = :id"
            ),
            {
                "id": run_id,
                "ago": seconds_ago,
                "epoch": broker.condition(site.settings).epoch if epoch is None else epoch,
            },
        )


def run_state(engine: Engine, run_id: uuid.UUID) -> str:
    with engine.connect() as conn:
        return ledger.find_run(conn, str(run_id)).state.value


# Dead holders -----------------------------------------------------------------------------------------------


def test_the_job_of_a_dead_worker_waits_again_and_gets_a_message(site: Site, look: Callable[[], object]):
    run_id = make_run(site.engine, [1, 2])
    sent(site, run_id, seconds_ago=0)
    must_take(site.engine, run_id, 1)
    expire(site.engine, run_id)

    look()

    job = job_of(site.engine, run_id, 1)
    assert (job["state"], job["crashes"], job["lease_until"]) == ("queued", 1, None)
    assert job["sent_at"] is not None
    assert messages(site) == 1
    assert must_take(site.engine, run_id, 1).attempt == 2


def test_leftovers_are_removed_when_the_job_waits_again_already(
    site: Site, look: Callable[[], object], monkeypatch: pytest.MonkeyPatch
):
    """A million links take longer to remove than the server lets a transaction say nothing."""
    open_store(site.data_dir)
    run_id = make_run(site.engine)
    must_take(site.engine, run_id)
    expire(site.engine, run_id)
    seen: list[tuple[str, int]] = []

    def clear(_store: Store, _job: str, last_attempt: int) -> None:
        seen.append((job_of(site.engine, run_id)["state"], last_attempt))

    monkeypatch.setattr(Store, "clear_staging", clear)

    look()

    assert seen == [("queued", 1)]


def test_a_lease_that_ran_out_while_the_server_was_away_is_no_crash(site: Site):
    """The server has started since. The holder gets the time of one more lease; after that its job waits
    again, uncounted.
    """
    run_id = make_run(site.engine)
    must_take(site.engine, run_id)
    with site.engine.begin() as conn:
        conn.execute(
            text("update migration_jobs set lease_until = pg_postmaster_start_time() - interval '1 second'")
        )

    with site.engine.begin() as conn:
        still_waited_for = leases.expired(conn, 10, lease_s=86_400)
        taken = leases.take_lease(conn, JobRef(run_id=run_id, subject_id=1), "w", 86_400)
        (over,) = leases.expired(conn, 10, lease_s=0.001)

    assert (still_waited_for, taken) == ([], None)
    assert over.crashes == 0


def test_a_worker_that_lives_keeps_its_job(site: Site, look: Callable[[], object]):
    run_id = make_run(site.engine)
    lease = must_take(site.engine, run_id)

    look()

    assert job_of(site.engine, run_id)["state"] == "running"
    with site.engine.begin() as conn:
        leases.hand_back(conn, lease)


def test_a_worker_that_wakes_up_after_its_lease_changes_nothing(site: Site, look: Callable[[], object]):
    run_id = make_run(site.engine)
    lease = must_take(site.engine, run_id)
    expire(site.engine, run_id)
    look()

    with site.engine.begin() as conn:
        assert (
            leases.renew_lease(conn, lease, 60, phase="store", dataset_hash=None, files_done=0, bytes_done=0)
            is None
        )

    assert job_of(site.engine, run_id)["state"] == "queued"


def test_a_job_that_killed_three_workers_fails_and_its_run_ends(site: Site, look: Callable[[], object]):
    run_id = make_run(site.engine)
    for _ in range(leases.MOST_CRASHES):
        must_take(site.engine, run_id, worker="w7@there")
        expire(site.engine, run_id)
        look()

    job = job_of(site.engine, run_id)
    outcome = Outcome.from_json(job["outcome"])
    assert job["state"] == "failed"
    assert job["error_class"] == "WorkerCrashedError"
    assert outcome.error == "crashed its worker 3 times"
    assert outcome.remedy is not None
    assert "producer retry" in outcome.remedy
    assert (outcome.worker, outcome.attempts) == ("w7@there", 3)
    assert run_state(site.engine, run_id) == "finished"


def test_a_job_that_killed_three_workers_is_not_taken_over_by_a_message(site: Site):
    """Otherwise a message that comes before the reaper would go on for ever."""
    run_id = make_run(site.engine)
    for _ in range(leases.MOST_CRASHES):
        must_take(site.engine, run_id)
        expire(site.engine, run_id)

    assert take(site.engine, run_id) is None


def test_a_job_that_waits_in_a_cancelled_run_is_named_by_the_collector_and_ended(
    site: Site, look: Callable[[], object]
):
    """An earlier release could leave one behind."""
    run_id = make_run(site.engine)
    set_run_state(site.engine, run_id, "cancelled")
    with site.engine.connect() as conn:
        run = ledger.find_run(conn, str(run_id))

    (missing,) = collect(site.settings, site.engine, run, timeout_s=10).outcomes
    look()
    (ended,) = collect(site.settings, site.engine, run, timeout_s=10).outcomes

    assert (missing.status, missing.error_class) == (Status.FAILED, "OutcomeMissingError")
    assert "project 1: no outcome was recorded" in missing.reason
    assert (ended.status, ended.reason) == (Status.CANCELLED, "The run was cancelled")


def test_the_job_of_a_dead_worker_in_a_cancelled_run_ends_as_cancelled(
    site: Site, look: Callable[[], object]
):
    run_id = make_run(site.engine)
    must_take(site.engine, run_id)
    expire(site.engine, run_id)
    set_run_state(site.engine, run_id, "cancelled")

    look()

    job = job_of(site.engine, run_id)
    assert (job["state"], job["outcome"]["reason"]) == ("cancelled", "The run was cancelled")


def test_the_job_of_a_dead_worker_in_a_paused_run_waits_without_a_message(
    site: Site, look: Callable[[], object]
):
    run_id = make_run(site.engine)
    must_take(site.engine, run_id)
    expire(site.engine, run_id)
    set_run_state(site.engine, run_id, "paused")

    look()

    assert job_of(site.engine, run_id)["state"] == "queued"
    assert messages(site) == 0


def test_what_a_dead_attempt_had_in_staging_is_removed_and_nothing_else(
    site: Site, look: Callable[[], object]
):
    run_id = make_run(site.engine, [1, 2])
    must_take(site.engine, run_id, 1)
    expire(site.engine, run_id)
    staging = site.settings.store_dir / "staging"
    dead = JobRef(run_id=run_id, subject_id=1).task_id
    alive = JobRef(run_id=run_id, subject_id=2).task_id
    for name in (f"{dead}-1", f"{dead}-1-arrivals", f"{alive}-1"):
        (staging / name / "tree").mkdir(parents=True)
        (staging / name / "tree" / "file").write_bytes(b"1")
        (staging / name / "tree").chmod(0o555)

    look()

    assert [one.name for one in staging.iterdir()] == [f"{alive}-1"]


def test_a_description_that_a_dead_worker_was_drafting_is_removed(site: Site, look: Callable[[], object]):
    store = open_store(site.data_dir)
    run_id = make_run(site.engine)
    must_take(site.engine, run_id)
    expire(site.engine, run_id)
    (store.root / "staging" / "store-0123.json").write_bytes(b"{")

    look()

    assert list((store.root / "staging").iterdir()) == []
    assert open_store(site.data_dir).store_id == store.store_id


def test_of_many_reapers_at_once_one_takes_each_job(site: Site):
    run_id = make_run(site.engine, range(1, 41))
    for number in range(1, 41):
        must_take(site.engine, run_id, number)
    expire(site.engine, run_id)

    with processes(site.engine, 6) as engines:
        at_once(engines, lambda engine: reap(site.settings, engine))

    with site.engine.connect() as conn:
        found = conn.execute(text("select distinct state, crashes from migration_jobs")).all()
    assert found == [("queued", 1)]
    assert messages(site) == 40


# Lost messages ----------------------------------------------------------------------------------------------


def test_an_emptied_broker_gets_the_messages_of_all_that_waits(site: Site, look: Callable[[], object]):
    run_id = make_run(site.engine, [1, 2, 3])
    sent(site, run_id, seconds_ago=0)
    must_take(site.engine, run_id, 1)
    look()
    assert messages(site) == 0

    with redis.Redis.from_url(site.redis_url) as client:
        client.flushdb()
    look()
    assert messages(site) == 2

    look()
    assert messages(site) == 2, "once is enough"


def test_a_message_that_was_lost_on_its_way_is_sent_again_when_the_queue_is_empty(
    site: Site, look: Callable[[], object]
):
    run_id = make_run(site.engine, [1, 2])
    sent(site, run_id, seconds_ago=31)

    look()
    assert messages(site) == 2

    consume_all(site)
    look()
    assert messages(site) == 0, "these have just been sent"


def test_jobs_whose_messages_are_in_the_queue_are_not_queried(site: Site):
    """There may be a hundred thousand, and every worker looks every few seconds."""
    waiting = make_run(site.engine, [1, 2])
    epoch = reap(site.settings, site.engine)
    sent(site, waiting, seconds_ago=0)
    with site.engine.begin() as conn:
        messages_sent.note_sent(conn, [JobRef(run_id=waiting, subject_id=1)], "a life that is over")
    broker.send(
        site.settings,
        [
            Message(
                ref=JobRef(run_id=waiting, subject_id=2), verb=Verb.MIGRATE, subject_name="a", size_bytes=1
            )
        ],
    )

    reap(site.settings, site.engine, epoch)
    assert messages(site) == 1

    reap(site.settings, site.engine, "the epoch before")
    assert messages(site) == 2


def test_a_message_that_waits_behind_others_is_not_sent_again(site: Site, look: Callable[[], object]):
    first = make_run(site.engine, [1])
    sent(site, first, seconds_ago=3600)
    look()
    second = make_run(site.engine, [2])
    sent(site, second, seconds_ago=3600)

    look()

    assert messages(site) == 1


@pytest.mark.parametrize(("age_s", "count"), [(0, 0), (31, 3)])
def test_messages_that_a_dead_producer_did_not_send_are_sent_for_it(
    site: Site, look: Callable[[], object], age_s: float, count: int
):
    run_id = make_run(site.engine, [1, 2, 3], sent=False)
    with site.engine.begin() as conn:
        conn.execute(
            text("update migration_jobs set queued_at = queued_at - make_interval(secs => :age)"),
            {"age": age_s},
        )

    look()

    assert messages(site) == count
    assert must_take(site.engine, run_id, 2).attempt == 1


def test_a_job_that_was_handed_back_is_sent_at_once(site: Site, look: Callable[[], object]):
    run_id = make_run(site.engine)
    lease = must_take(site.engine, run_id)
    with site.engine.begin() as conn:
        leases.hand_back(conn, lease)

    look()

    assert messages(site) == 1


def test_a_job_that_met_a_transient_error_is_sent_when_its_time_has_come(
    site: Site, look: Callable[[], object]
):
    run_id = make_run(site.engine)
    lease = must_take(site.engine, run_id)
    with site.engine.begin() as conn:
        leases.hand_back(conn, lease, retry_in_s=60, reason="the database was busy")

    look()
    assert messages(site) == 0
    assert take(site.engine, run_id) is None, "a message that comes too early is not followed"

    with site.engine.begin() as conn:
        conn.execute(text("update migration_jobs set not_before = clock_timestamp()"))
    look()
    assert messages(site) == 1
    assert must_take(site.engine, run_id).retries == 1


@pytest.mark.parametrize("state", ["paused", "cancelled", "finished"])
def test_a_run_that_does_not_run_gets_no_messages(site: Site, look: Callable[[], object], state: str):
    run_id = make_run(site.engine, [1])
    sent(site, run_id, seconds_ago=3600, epoch="another")
    set_run_state(site.engine, run_id, state)

    look()

    assert messages(site) == 0


def test_of_many_reapers_at_once_one_sends_a_message(site: Site):
    run_id = make_run(site.engine, range(1, 31))
    sent(site, run_id, seconds_ago=0, epoch="another")

    with processes(site.engine, 6) as engines:
        at_once(engines, lambda engine: reap(site.settings, engine))

    assert messages(site) == 30


# Ends, and the thread ---------------------------------------------------------------------------------------


def test_a_run_whose_last_worker_died_before_it_could_say_so_is_closed(
    site: Site, look: Callable[[], object]
):
    run_id = make_run(site.engine)
    with site.engine.begin() as conn:
        conn.execute(
            text("update migration_jobs set state = 'cancelled', outcome = '{}' where run_id = :id"),
            {"id": run_id},
        )

    look()

    assert run_state(site.engine, run_id) == "finished"


def test_the_reaper_goes_on_after_any_error(site: Site, monkeypatch: pytest.MonkeyPatch):
    settings = site.settings.model_copy(update={"lease_s": 0.1})
    calls: list[int] = []

    def failing(*_arguments: Any, **_named: Any) -> None:
        calls.append(1)
        raise RuntimeError("nobody has foreseen this")

    monkeypatch.setattr("worker.jobs.reaper.reap", failing)
    reaper = Reaper(settings)
    reaper.start()
    eventually(lambda: len(calls) > 2, "it looked again")
    reaper.stop()

    count = len(calls)
    assert not reaper._thread.is_alive()
    assert len(calls) == count


def test_the_parent_keeps_no_connection_that_a_fork_could_inherit(site: Site):
    reaper = Reaper(site.settings)

    reap(site.settings, reaper._engine)

    with site.engine.connect() as conn:
        kept = conn.scalars(
            text("select application_name from pg_stat_activity where datname = current_database()")
        ).all()
    assert "label-migrator reaper" not in kept


# For the doctor ---------------------------------------------------------------------------------------------


def test_a_reaper_that_looks_is_well_and_one_whose_thread_ended_is_not(site: Site):
    reaper = Reaper(site.settings)
    reaper.start()
    looks = reaper.check()
    reaper.stop()
    eventually(lambda: reaper.check().verdict is Verdict.FAIL, "its end is seen")

    assert looks.verdict is Verdict.PASS
    assert reaper.check().finding == "its thread has ended"


def test_a_reaper_that_hangs_is_found(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.jobs.reaper._SILENT_AFTER_LOOKS", 0)
    reaper = Reaper(site.settings)
    reaper.start()

    assert reaper.check().finding == "has not looked for 0 s"
    reaper.stop()


def test_a_lease_that_ran_out_while_no_database_answered_is_no_crash(site: Site):
    """A promoted replica has been running for long: only that nothing answered tells of the outage."""
    run_id = make_run(site.engine)
    must_take(site.engine, run_id)
    expire(site.engine, run_id)
    outage = reaper._Outage()
    assert outage.ended_s_ago is None

    with pytest.raises(DatabaseUnavailableError), outage.noticed():
        raise DatabaseUnavailableError("away")
    with outage.noticed():
        reap(site.settings, site.engine, ended_s_ago=outage.ended_s_ago)

    job = job_of(site.engine, run_id)
    assert (job["state"], job["crashes"]) == ("running", 0), "its owner gets time to come back"
    assert outage.ended_s_ago is not None
    # A lease's time later the owner has not come back.
    lease_s = site.settings.granted_lease_s
    with site.engine.begin() as conn:
        ran_out = text(
            "update migration_jobs set lease_until = lease_until - make_interval(secs => :lease_s)"
        )
        conn.execute(ran_out, {"lease_s": lease_s})
    reap(site.settings, site.engine, ended_s_ago=lease_s + 0.5)
    job = job_of(site.engine, run_id)
    assert (job["state"], job["crashes"]) == ("queued", 0)
