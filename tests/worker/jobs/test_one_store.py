"""One database, one store: a mount that is missing is a missing mount, never a place for a second store."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from producer import metrics
from producer.doctor.same_checks import store_check
from tests.support.runs import do, migrate_all, open_run, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from tests.support.waiting import PATIENCE_S
from worker.doctor.protocol import Evidence, Machine
from worker.errors import StoreElsewhereError
from worker.findings import Verdict
from worker.jobs.one_store import Remembered, open_store
from worker.jobs.tools import Tools
from worker.messages import Verb
from worker.store.store import Store


def unmount(site: Site) -> None:
    """What is left of DATA_DIR on a machine that lost its mount: the mount point."""
    site.data_dir.rename(site.data_dir.with_name("mounted elsewhere"))
    site.data_dir.mkdir()


def another_store(site: Site) -> None:
    unmount(site)
    Store.open(site.settings.store_dir, site.settings.datasets_dir, "blake3", create=True)


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as conn:
        conn.execute(text(statement))


def as_it_is(_site: Site) -> None:
    """A database that names its store."""


def names_none(site: Site) -> None:
    """As a database of an earlier release is after its tables were brought up to date."""
    execute(site.engine, "delete from migration_store")


def named(engine: Engine) -> list[str | None]:
    with engine.connect() as conn:
        return list(conn.scalars(text("select store_id::text from migration_store")))


@pytest.mark.parametrize(
    ("verb", "rehearsal", "before", "harm", "since"),
    [
        (Verb.MIGRATE, False, as_it_is, unmount, "its start"),
        (Verb.MIGRATE, False, as_it_is, unmount, "its first job"),
        (Verb.MIGRATE, False, as_it_is, another_store, "its first job"),
        (Verb.MIGRATE, False, names_none, unmount, "its start"),
        (Verb.MIGRATE, False, names_none, another_store, "its start"),
        (Verb.MIGRATE, True, names_none, unmount, "its start"),
        (Verb.VERIFY, False, as_it_is, unmount, "its start"),
    ],
)
def test_a_worker_without_the_store_does_no_job_and_pauses_the_run(
    site: Site,
    tools: Tools,
    verb: Verb,
    rehearsal: Any,
    before: Callable[[Site], None],
    harm: Callable[[Site], None],
    since: str,
):
    plain_study(site, "first", 1)
    migrate_all(site, tools)
    plain_study(site, "second", 2)
    before(site)
    harm(site)
    found = written(site.data_dir)

    with tools_of(site) as fresh:
        refs = open_run(site.engine, verb, dry_run=rehearsal)
        assert do(fresh if since == "its start" else tools, verb, refs, worker="w1@host") == {}

    with site.engine.connect() as conn:
        state, why = conn.execute(
            text("select state, paused_because from migration_runs order by created_at desc limit 1")
        ).one()
        jobs = conn.execute(
            text("select distinct state, crashes, retries from migration_jobs where outcome is null")
        ).all()
    assert state == "paused"
    assert why.startswith("w1@host: ")
    assert str(site.settings.store_dir) in why
    assert jobs == [("queued", 0, 0)]
    assert written(site.data_dir) == found


def test_the_store_of_an_earlier_release_s_database_is_named_by_its_next_migration(site: Site, tools: Tools):
    plain_study(site, "first", 1)
    migrate_all(site, tools)
    before = named(site.engine)
    names_none(site)
    plain_study(site, "second", 2)

    with tools_of(site) as upgraded:
        migrate_all(site, upgraded)

    assert named(site.engine) == before


def test_of_several_first_migrations_one_makes_the_store(site: Site):
    together = threading.Barrier(6)

    def open_first(_: int) -> str | None:
        together.wait(PATIENCE_S)
        return open_store(site.settings, site.engine, Remembered(), create=True).store_id

    with ThreadPoolExecutor(6) as threads:
        ids = set(threads.map(open_first, range(6)))

    assert list(ids) == named(site.engine)


def test_the_operator_may_let_a_new_store_be_made(site: Site, tools: Tools):
    plain_study(site, "first", 1)
    (first,) = migrate_all(site, tools)
    plain_study(site, "second", 1)
    unmount(site)

    execute(site.engine, "update migration_store set store_id = null")
    (second,) = migrate_all(site, tools)

    assert second.dataset_id == first.dataset_id
    assert Path(second.dataset_path or "").is_dir()
    assert named(site.engine) != [None]


def test_opening_a_store_for_reading_creates_and_names_nothing(site: Site):
    open_store(site.settings, site.engine, Remembered(), create=False)

    assert (written(site.data_dir), named(site.engine)) == ([], [])
    open_store(site.settings, site.engine, Remembered(), create=True)
    site.data_dir.rename(site.data_dir.with_name("mounted elsewhere"))
    with pytest.raises(StoreElsewhereError):
        open_store(site.settings, site.engine, Remembered(), create=False)
    site.data_dir.mkdir()


def test_doctor_and_metrics_say_that_another_store_is_there(site: Site, tools: Tools):
    plain_study(site, "first", 1)
    migrate_all(site, tools)
    (store_id,) = named(site.engine)
    unmount(site)
    evidence = Evidence(
        edition="1",
        settings={},
        processes=1,
        checks={},
        database=None,
        sampled=0,
        machine=Machine(checks={}, store_id=None),
    )

    check = store_check({"w1@host": evidence}, store_id)
    figures = metrics.scrape(site.settings, site.engine)

    assert (check.verdict, "finds none" in check.finding) == (Verdict.FAIL, True)
    assert "label_migrator_store_room_bytes" not in figures
    assert 'label_migrator_up{part="store"} 0.0' in figures
