"""What is asked of a run, or of all, costs the same however many jobs there are, or ever were."""

import json
import random
import uuid
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, event, text

from tests.support.costs import pages, plans, rows
from tests.support.ledger_rows import LEASE_S, make_run, outcome
from tests.support.servers import Databases
from worker.db import job_counts, leases, ledger, messages_sent, overview
from worker.db.leases import Lease
from worker.jobs import leftovers
from worker.messages import JobRef

FEW, MANY = 1_000, 20_000
WAITS = 901
"""A job that waits in either run."""

Ask = Callable[[Connection, uuid.UUID], object]


def large_run(engine: Engine, jobs: int) -> uuid.UUID:
    """A run of which half have ended, ten of these failed, five are running and the rest wait; messages of
    theirs are on the way. And one of as many jobs that all ended.
    """
    run_id, over = (
        make_run(engine, range(1, jobs + 1), size_bytes=1_000_000, dry_run=dry_run)
        for dry_run in (False, True)
    )
    with engine.begin() as conn:
        conn.execute(
            text("""
                update migration_jobs
                set state = 'running', lease_until = clock_timestamp() + interval '1 hour', worker = 'w', attempt = 1, taken_as = '2:1',
                    started_at = clock_timestamp() - interval '2 hours' + subject_id * interval '100 ms'
                where run_id = :over or subject_id % 2 = 0 or subject_id < 10"""),
            {"over": over},
        )
        conn.execute(
            text("""
                update migration_jobs
                set state = case when subject_id <= 20 then 'failed' else 'done' end, lease_until = null,
                    error_class = case when subject_id <= 20 then 'Gone' end,
                    finished_at = started_at + interval '2 seconds', outcome = cast(:outcome as jsonb)
                where run_id = :over or subject_id % 2 = 0"""),
            {"over": over, "outcome": json.dumps(outcome(1, remedy="look").to_json())},
        )
        conn.execute(
            text("""
                update migration_jobs set sent_at = clock_timestamp(), sent_epoch = 'epoch'
                where state = 'queued' and run_id = :run"""),
            {"run": run_id},
        )
    with engine.begin() as conn:
        ledger.finish_ended_runs(conn)
        job_counts.fold(conn)
    vacuum(engine)
    return run_id


def vacuum(engine: Engine) -> None:
    """As autovacuum does, some time after so many rows have changed."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("vacuum analyze migration_jobs; "))
        conn.execute(text("vacuum analyze migration_job_counts"))


@pytest.fixture(scope="module")
def few_and_many(databases: Databases) -> Iterator[list[tuple[Engine, uuid.UUID]]]:
    """A ledger of two runs of a thousand jobs each, and one of two runs of twenty times as many."""
    with databases.one() as few, databases.one() as many:
        yield [(few, large_run(few, FEW)), (many, large_run(many, MANY))]


def lease(conn: Connection, run_id: uuid.UUID) -> Lease:
    taken = leases.take_lease(conn, JobRef(run_id=run_id, subject_id=WAITS), "worker", LEASE_S)
    assert taken is not None
    return taken


def renew(conn: Connection, run_id: uuid.UUID) -> None:
    leases.renew_lease(
        conn, lease(conn, run_id), LEASE_S, phase="hash", dataset_hash=None, files_done=1, bytes_done=1
    )


def hand_back(conn: Connection, run_id: uuid.UUID) -> None:
    leases.hand_back(conn, lease(conn, run_id), retry_in_s=1.0, reason="because")


QUESTIONS: dict[str, Ask] = {
    "take_lease": lease,
    "renew_lease": renew,
    "hand_back": hand_back,
    "end_job": lambda conn, run_id: leases.end_job(conn, lease(conn, run_id), outcome(WAITS)),
    "finish_run_if_ended": ledger.finish_run_if_ended,
    "expired": lambda conn, _: leases.expired(conn, 500, LEASE_S),
    "never_sent": lambda conn, _: messages_sent.never_sent(conn, 500),
    "finish_ended_runs": lambda conn, _: ledger.finish_ended_runs(conn),
    "end_waiting_jobs_of_cancelled_runs": lambda conn, _: ledger.end_waiting_jobs_of_cancelled_runs(
        conn, "why"
    ),
    "pause_runs_that_only_wait": lambda conn, _: ledger.pause_runs_that_only_wait(conn, 60.0),
    "fold": lambda conn, _: job_counts.fold(conn),
    "progress": overview.progress,
    "current_attempts": overview.current_attempts,
    "retrying": lambda conn, run_id: overview.retrying(conn, run_id, 10),
    "failures": lambda conn, run_id: overview.failures(conn, run_id, 10),
    "shared_bytes": lambda conn, _: overview.shared_bytes(conn),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_costs_no_more_of_a_large_run(few_and_many: list[tuple[Engine, uuid.UUID]], name: str):
    few, many = (
        pages(engine, lambda conn, run_id=run_id: QUESTIONS[name](conn, run_id))
        for engine, run_id in few_and_many
    )

    # Indexes have one level more.
    assert many <= 1.6 * few + 10


@pytest.mark.parametrize(
    ("waiting", "names"),
    [
        (
            "waits_for = '/a/root', waits_since = clock_timestamp(), not_before = clock_timestamp() + interval '1 hour', sent_at = null",
            "finish_run_if_ended finish_ended_runs pause_runs_that_only_wait retrying",
        ),
        (
            "waits_for = '/a/root', waits_since = clock_timestamp() - interval '1 hour', phase = 'no root'",
            "finish_run_if_ended finish_ended_runs pause_runs_that_only_wait retrying",
        ),
        (
            "not_before = clock_timestamp() + subject_id * interval '1 minute', retries = 1, sent_at = null",
            "finish_run_if_ended finish_ended_runs pause_runs_that_only_wait retrying",
        ),
    ],
    ids=["a root was missing", "a root is missing", "all are tried again later"],
)
def test_it_costs_no_more_when_everything_waits(databases: Databases, waiting: str, names: str):
    costs = []
    for jobs in (FEW, MANY):
        with databases.one() as engine:
            run_id = make_run(engine, range(1, jobs + 1), size_bytes=1_000_000)
            with engine.begin() as conn:
                conn.execute(text(f"update migration_jobs set {waiting}"))
            vacuum(engine)
            costs.append(
                {
                    name: pages(engine, lambda conn, name=name, run_id=run_id: QUESTIONS[name](conn, run_id))
                    for name in names.split()
                }
            )

    few, many = costs
    assert {name: cost for name, cost in many.items() if cost > 1.6 * few[name] + 10} == {}


def test_of_all_jobs_that_need_a_message_only_those_are_read_that_get_one(database: Engine):
    make_run(database, range(1, MANY + 1), size_bytes=1_000_000)
    with database.begin() as conn:
        conn.execute(text("update migration_jobs set attempt = 1"))
    vacuum(database)

    # Found, found again to be locked, and limited.
    assert rows(database, lambda conn: messages_sent.never_sent(conn, 50)) < 50 * 10


def test_metrics_read_counts_and_not_all_jobs(few_and_many: list[tuple[Engine, uuid.UUID]]):
    costs = []
    for engine, _ in few_and_many:
        # The second is about jobs that failed: the way over all jobs may be the shorter one.
        jobs, _, runs, still_open = plans(engine, overview.figures)
        costs.append(
            sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in (jobs, runs, still_open))
        )

    few, many = costs
    assert many <= 1.6 * few + 10


def test_the_active_time_is_the_union_of_the_times_of_the_jobs(database: Engine):
    dice = random.Random(3)
    for _ in range(20):
        spans = [(at := dice.randint(0, 60), at + dice.randint(0, 9)) for _ in range(dice.randint(0, 12))]
        run_id = make_run(database, range(1, len(spans) + 1))
        with database.begin() as conn:
            conn.execute(text("set local session_replication_role = replica"))
            for number, (began, ended) in enumerate(spans, start=1):
                conn.execute(
                    text("""
                        update migration_jobs
                        set state = 'done', outcome = '{}', started_at = timestamptz '2026-01-01' + :began * interval '1 s',
                            finished_at = timestamptz '2026-01-01' + :ended * interval '1 s'
                        where run_id = :run and subject_id = :number"""),
                    {"began": began, "ended": ended, "run": run_id, "number": number},
                )
            covered = {second for began, ended in spans for second in range(began, ended)}

            assert overview.active_s(conn, run_id) == len(covered)


def test_whose_staging_is_over_costs_no_more_where_all_of_it_is_of_running_jobs(
    few_and_many: list[tuple[Engine, uuid.UUID]],
):
    engine, run_id = few_and_many[1]
    running, idle = (JobRef(run_id=run_id, subject_id=number).task_id for number in (1, 2))
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *about: asked.append(about[2]))

    assert leftovers.over(engine, [running]) == set()
    assert len(asked) == 1
    assert rows(engine, overview.running_jobs) < 20
    assert leftovers.over(engine, [running, idle, "of another ledger"]) == {idle}
