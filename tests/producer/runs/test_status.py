"""What `producer status` says: counted from the ledger in a few statements, however big the run is."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from producer.cli.render import status_lines
from producer.runs import status
from tests.support.ledger_rows import end, expire, make_run, must_take, outcome, set_run_state
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker.db import leases, ledger
from worker.errors import DirectoryMissingError, SourceChangedError
from worker.messages import JobRef, Status


def described(engine: Engine, run_id: uuid.UUID) -> status.RunStatus:
    with engine.connect() as conn:
        run = ledger.find_run(conn, str(run_id))
    return status.describe(engine, run)


def as_json(engine: Engine, run_id: uuid.UUID) -> dict[str, Any]:
    return described(engine, run_id).to_json()


def fail(
    engine: Engine, run_id: uuid.UUID, number: int, kind: type[Exception] = DirectoryMissingError
) -> None:
    """Let a project's job fail as a worker does."""
    end(
        engine,
        must_take(engine, run_id, number),
        outcome(
            number,
            Status.FAILED,
            error_class=kind.__name__,
            error=f"wrong with {number}",
            remedy=f"mend {kind.__name__}",
        ),
    )


def test_status_counts_every_job_once_and_bytes_by_what_is_done(database: Engine):
    run_id = make_run(database, range(1, 7), size_bytes=100)
    end(database, must_take(database, run_id, 1))
    fail(database, run_id, 2)
    lease = must_take(database, run_id, 3)
    with database.begin() as conn:
        leases.renew_lease(conn, lease, 60, phase="hash", dataset_hash=None, files_done=1, bytes_done=40)

    seen = as_json(database, run_id)

    assert seen["projects"] == {"total": 6, "ended": 2, "failed": 1, "running": 1, "waiting": 3, "held": 0}
    assert (seen["bytes"]["total"], seen["bytes"]["done"]) == (600, 240)
    (holder,) = seen["holders"]
    assert (holder["project_id"], holder["worker"], holder["phase"]) == (3, "w", "hash")
    assert (holder["bytes_done"], holder["bytes_total"]) == (40, 100)
    assert 0 < holder["lease_left_s"] <= 60


def test_the_json_form_has_the_fields_that_scripts_read(database: Engine):
    run_id = make_run(database, [1, 2, 3])
    must_take(database, run_id, 1)
    fail(database, run_id, 2)
    with database.begin() as conn:
        leases.hand_back(conn, must_take(database, run_id, 3), retry_in_s=30, reason="the claim was lost")

    seen = as_json(database, run_id)

    assert list(seen["holders"][0]) == [
        *("project_id", "project_name", "subject", "subject_id", "subject_name"),
        "worker",
        "phase",
        "attempt",
        "age_s",
        "lease_left_s",
        "files_done",
        "files_total",
        "bytes_done",
        "bytes_total",
    ]
    assert list(seen["retrying"][0]) == [
        *("project_id", "project_name", "subject", "subject_id", "subject_name"),
        *("reason", "retries", "wait_s"),
    ]
    assert list(seen["failures"][0]) == ["error_class", "count", "remedy", "examples"]
    assert json.loads(json.dumps(seen)) == seen


def test_failures_are_grouped_by_class_with_their_remedy_and_the_first_few(database: Engine):
    count = status.EXAMPLES + 2
    run_id = make_run(database, range(1, count + 2))
    for number in range(1, count + 1):
        fail(database, run_id, number)
    fail(database, run_id, count + 1, SourceChangedError)

    many, one = as_json(database, run_id)["failures"]

    assert (many["error_class"], many["count"], many["remedy"]) == (
        "DirectoryMissingError",
        count,
        "mend DirectoryMissingError",
    )
    assert [example["project_id"] for example in many["examples"]] == list(range(1, status.EXAMPLES + 1))
    assert many["examples"][0]["error"] == "wrong with 1"
    assert (one["error_class"], one["count"]) == ("SourceChangedError", 1)


def test_retried_jobs_and_incidents_are_in_the_status(database: Engine):
    run_id = make_run(database, [1, 2, 3])
    with database.begin() as conn:
        lease = leases.take_lease(conn, JobRef(run_id=run_id, subject_id=1), "w", 60)
        assert lease is not None
        leases.hand_back(conn, lease, retry_in_s=30, reason="the claim was lost")
    must_take(database, run_id, 2)
    expire(database, run_id)
    must_take(database, run_id, 2)
    with database.begin() as conn:
        leases.note_fenced(conn, must_take(database, run_id, 3))

    seen = as_json(database, run_id)

    (waiting,) = seen["retrying"]
    assert (waiting["project_id"], waiting["reason"], waiting["retries"]) == (1, "the claim was lost", 1)
    assert 0 < waiting["wait_s"] <= 30
    assert seen["incidents"] == {"leases_run_out": 1, "attempts_fenced": 1, "retries": 1}
    told = "\n".join(status_lines(described(database, run_id)))
    assert "the claim was lost" in told
    assert "attempts fenced: 1" in told


@pytest.mark.parametrize(("state", "guessed"), [("running", True), ("paused", False), ("cancelled", False)])
def test_the_end_is_estimated_only_for_a_run_that_is_running(database: Engine, state: str, guessed: Any):
    run_id = make_run(database, [1, 2], size_bytes=100)
    end(database, must_take(database, run_id, 1))
    set_run_state(database, run_id, state)

    assert (as_json(database, run_id)["eta_s"] is not None) is guessed


def test_a_database_that_takes_no_writes_is_what_workers_wait_for(database: Engine):
    run_id = make_run(database, [1])
    with database.begin() as conn:
        conn.execute(text(f"alter database {database.url.database} set default_transaction_read_only = on"))
    database.dispose()

    assert "takes no writes" in as_json(database, run_id)["waiting_because"]


def test_idle_time_counts_neither_for_the_speed_nor_for_the_time_that_is_left(database: Engine):
    """Two jobs that overlap, ten seconds together, in a run that was opened a day ago; half of the bytes are
    done.
    """
    run_id = make_run(database, range(1, 5), size_bytes=100)
    for number in (1, 2):
        end(database, must_take(database, run_id, number))
    with database.begin() as conn:
        conn.execute(text("set local session_replication_role = replica"))
        conn.execute(text("update migration_runs set created_at = now() - interval '1 day'"))
        conn.execute(
            text("""
                update migration_jobs set bytes_done = 100,
                       started_at = now() - interval '10 hours' + (project_id - 1) * interval '4 seconds',
                       finished_at = now() - interval '10 hours' + (project_id - 1) * interval '4 seconds' + interval '6 seconds'
                where finished_at is not null""")
        )

    seen = as_json(database, run_id)

    assert (seen["active_s"], seen["bytes"]["per_second"], seen["eta_s"]) == (10.0, 20, 10.0)
    assert seen["elapsed_s"] > 86_000


def test_the_number_of_statements_does_not_grow_with_the_run(database: Engine):
    def statements(run_id: uuid.UUID) -> int:
        seen: list[str] = []

        def note(_conn: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
            seen.append(statement)

        event.listen(database, "before_cursor_execute", note)
        try:
            described(database, run_id)
        finally:
            event.remove(database, "before_cursor_execute", note)
        return len(seen)

    small, big = make_run(database, [1]), make_run(database, range(1, 2001))
    with database.begin() as conn:
        conn.execute(
            text(
                "update migration_jobs set lease_until = clock_timestamp(), state = 'running', taken_as = '2:0'"
            )
        )
        conn.execute(
            text(
                "update migration_jobs set lease_until = null, state = 'failed', outcome = '{}', error_class = 'A'"
            )
        )

    assert statements(small) == statements(big) <= 10


# Watching ---------------------------------------------------------------------------------------------------


def end_all(site: Site, run_id: uuid.UUID) -> None:
    """Let the run end: its second job, which waits, is done."""
    end(site.engine, must_take(site.engine, run_id, 2))
    with site.engine.begin() as conn:
        ledger.finish_run_if_ended(conn, run_id)


def test_watching_ends_with_the_run_and_says_how_it_ended(site: Site):
    run_id = make_run(site.engine, [1, 2])
    end(site.engine, must_take(site.engine, run_id, 1))

    with subprocess.Popen(
        [sys.executable, "-m", "producer", "status", "--watch", "--json"],
        cwd=site.folder,
        env=site.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        end_all(site, run_id)
        _, words = watching.communicate(timeout=PATIENCE_S)

    assert watching.returncode == 0, words
    assert first["projects"]["total"] == 2
    assert "running: 1/2 projects, 0 failed, 0 running" in words
    assert "2 of 2 projects ended" in words


def test_on_a_terminal_the_status_is_one_screen_that_is_refreshed(site: Site):
    run_id = make_run(site.engine, [1, 2])
    end(site.engine, must_take(site.engine, run_id, 1))
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "producer", "status", "--watch"],
            cwd=site.folder,
            env={**site.env, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        seen = b""
        has_ended = False
        with contextlib.suppress(OSError):  # what Linux answers when the other side is closed
            while part := os.read(ours, 4096):
                seen += part
                if not has_ended and b"1 of 2 projects ended" in seen:
                    end_all(site, run_id)
                    has_ended = True
        assert process.wait(PATIENCE_S) == 0
    finally:
        os.close(ours)

    screens = seen.decode(errors="replace")
    assert "1 of 2 projects ended" in screens
    assert "2 of 2 projects ended" in screens
    assert "now:" in screens
    assert "\x1b[1A" in screens or "\x1b[2K" in screens, "a later screen takes the place of the one before"
