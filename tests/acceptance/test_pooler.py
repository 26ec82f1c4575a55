"""The whole path through PgBouncer in transaction mode, with two connections to the server for everyone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.estate import make_project, record_session
from tests.support.forking import Forks
from tests.support.pooler import pgbouncer
from tests.support.runs import at_once, open_run
from tests.support.sites import Site, site_in
from tests.support.studies import plain_study
from worker.db.engine import connect
from worker.messages import Status, Verb

pytestmark = pytest.mark.slow


@pytest.fixture
def site(database: Engine, redis_url: str, tmp_path: Path, programs: Forks) -> Iterator[Site]:
    """Give an installation whose DATABASE_URL is that of a pooler."""
    with pgbouncer(database.url, connections=2) as url:
        engine = connect(url, application_name="tests")
        try:
            with site_in(tmp_path, engine, redis_url, programs) as made:
                yield made
        finally:
            engine.dispose()


def test_an_operators_day_through_a_pooler(site: Site, database: Engine):
    for number in range(6):
        with database.begin() as conn:
            project = make_project(conn, site.legacy_root, f"study {number}")
            for day in range(3):
                record_session(conn, project, f"day {day}", rows=400, seed=number % 2 * 10 + day)

    with site.workers(2, concurrency=2):
        for words in (
            ("doctor",),
            ("schema", "apply"),
            ("enqueue", "--dry-run", "--wait"),
            ("enqueue", "--wait"),
            ("verify",),
            ("reclaim", "--older-than", "0", "--yes", "--wait"),
            ("rollback", "--yes", "--wait"),
            ("gc", "--grace", "0", "--expect", "2", "--yes", "--wait"),
        ):
            done = site.run_producer(*words)
            assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])
            assert ("through a pooler" in done.stderr) is (words == ("doctor",))

    with database.connect() as conn:
        assert conn.scalar(text("select count(*) from project_dataset_refs")) == 0
        states = conn.execute(text("select state, count(*) from migration_jobs group by state")).all()
    assert {state for state, _ in states} == {"done"}


def test_equal_content_at_once_is_stored_once_through_a_pooler(site: Site, database: Engine):
    for number in range(16):
        plain_study(site, f"equal {number}", 1, 2)
    refs = open_run(database, Verb.MIGRATE)

    outcomes = at_once(site, [(Verb.MIGRATE, ref) for ref in refs])

    assert {outcome.status for outcome in outcomes if outcome} == {Status.MIGRATED}
    assert sum(outcome.dataset_created for outcome in outcomes if outcome) == 1
    with database.connect() as conn:
        assert conn.scalar(text("select count(*) from raw_datasets")) == 1
        assert conn.scalar(text("select count(*) from dataset_claims where owner is not null")) == 0
