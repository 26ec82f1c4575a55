"""Every question about a run, answered from the rows of its jobs."""

from sqlalchemy import Engine

from tests.support.ledger_rows import (
    end,
    expire,
    job_of,
    make_run,
    must_take,
    outcome,
    renew,
)
from worker.db import overview
from worker.messages import RunState, Status


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


def test_thousands_of_jobs_are_written_at_once(database: Engine):
    run_id = make_run(database, list(range(1, 5001)), size_bytes=2**33)

    with database.connect() as conn:
        now = overview.progress(conn, run_id)

    assert (now.jobs, now.bytes_total) == (5000, 5000 * 2**33)
    assert job_of(database, run_id, 5000)["state"] == "queued"
