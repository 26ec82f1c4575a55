"""PostgreSQL is away for a while: what follows a run waits for it, as workers do."""

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, text

from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker.db import ledger
from worker.db.ledger import NewJob
from worker.messages import Verb


@contextmanager
def database_away(site: Site) -> Iterator[None]:
    """Close every connection to the site's database, and refuse new ones until the block ends."""
    url = site.engine.url
    server = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as conn:
        conn.execute(text(f"alter database {url.database} with allow_connections false"))
        conn.execute(
            text("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"),
            {"name": url.database},
        )
        try:
            yield
        finally:
            conn.execute(text(f"alter database {url.database} with allow_connections true"))
            server.dispose()


def open_run(site: Site, jobs: int) -> uuid.UUID:
    """A run whose jobs wait for workers that are not there."""
    run_id = uuid.uuid4()
    with site.engine.begin() as conn:
        ledger.open_run(conn, run_id, Verb.MIGRATE, dry_run=True, selection={})
        ledger.add_jobs(
            conn, run_id, [NewJob(subject_id=n, subject_name="x", path="/x") for n in range(1, jobs + 1)]
        )
        ledger.start_run(conn, run_id)
    return run_id


@pytest.mark.parametrize(
    ("verb", "exit_code", "last_word"),
    [(("collect",), 8, "Report: "), (("status", "--watch", "--json"), 0, "cancelled")],
)
def test_commands_that_follow_a_run_wait_for_the_database(
    verb: tuple[str, ...], exit_code: int, last_word: str, site: Site
):
    open_run(site, 1)
    with subprocess.Popen(
        [sys.executable, "-m", "producer", *verb],
        cwd=site.folder,
        env=site.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stderr is not None
        assert following.stdout is not None
        # A line of its progress, as JSON on standard output or in words beside it: it has looked once.
        while "project" not in (
            line := (following.stdout if "--json" in verb else following.stderr).readline()
        ):
            assert line, "it has ended"
        with database_away(site):
            while "database_asked_again" not in (line := following.stderr.readline()):
                assert line, "it has ended"
        site.engine.dispose()
        assert site.run_producer("cancel").returncode == 0

        _, words = following.communicate(timeout=PATIENCE_S)

    assert following.returncode == exit_code, words
    assert last_word in words


def test_two_retries_at_once_queue_every_failed_job_once(site: Site):
    run_id = open_run(site, 500)
    with site.engine.begin() as conn:
        conn.execute(text("set local session_replication_role = replica"))
        conn.execute(text("update migration_jobs set state = 'failed', outcome = '{}'"))
        conn.execute(text("update migration_runs set state = 'finished'"))
    both = threading.Barrier(2)

    def retry() -> int:
        with site.engine.connect() as conn:
            conn.execute(text("select 1"))
            both.wait(PATIENCE_S)
            count = ledger.retry_failed(conn, run_id)
            conn.commit()
            return count

    with ThreadPoolExecutor(2) as threads:
        counts = [one.result() for one in [threads.submit(retry), threads.submit(retry)]]

    assert sorted(counts) == [0, 500]
