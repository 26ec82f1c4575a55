"""Imports beside each other, beside a gc, and beside a migration of the same content."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from producer.datasets import bags
from tests.support.claims import held, waiting_for_claims
from tests.support.runs import another_worker, migrate_all, tools_of, verify_datasets
from tests.support.sites import Site
from tests.support.studies import check_store, plain_study, staged
from tests.support.waiting import PATIENCE_S, eventually
from worker.db import datasets
from worker.errors import ClaimLostError
from worker.jobs import collect_garbage, import_dataset
from worker.jobs.import_dataset import Imported
from worker.jobs.tools import connect
from worker.messages import Status


@pytest.fixture
def bag(site: Site, tmp_path: Path) -> Path:
    """A bag of a study; nothing of that is at the site any more."""
    plain_study(site, "study", 1, 2)
    with tools_of(site) as tools:
        (study,) = migrate_all(site, tools)
    bags.export(site.settings, site.engine, study.dataset_id or 0, str(tmp_path / "bag"), lambda _words: None)
    site.empty()
    return tmp_path / "bag"


def taken_in(site: Site, bag: Path, engine: Engine | None = None, said: list[str] | None = None) -> Imported:
    say: Callable[[str], object] = (said if said is not None else []).append
    return bags.take_in(site.settings, engine or site.engine, str(bag), lambda words: (say(words), None)[1])


def check_one(site: Site) -> None:
    with site.engine.connect() as conn:
        assert len(datasets.all_of(conn)) == 1
    check_store(site)
    assert staged(site) == []
    with tools_of(site) as tools:
        assert [one.status for one in verify_datasets(tools)] == [Status.VERIFIED]


def test_an_import_waits_for_a_gc_and_says_so(site: Site, bag: Path):
    said: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        with held(site.engine, collect_garbage.CLAIM):
            done = threads.submit(taken_in, site, bag, None, said)
            eventually(lambda: waiting_for_claims(site.engine) == 1, "the import waits")
            assert said[-1] == "Waiting until no gc, rebuild or other import runs"
        assert done.result(PATIENCE_S).is_new
    check_one(site)


def test_of_two_imports_at_once_one_stores_and_the_other_finds_it(site: Site, bag: Path):
    together = threading.Barrier(2)

    def take(number: int) -> Imported:
        engine = connect(site.settings, f"import {number}")
        try:
            together.wait(PATIENCE_S)
            return taken_in(site, bag, engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(take, range(2)))

    assert sorted(one.is_new for one in found) == [False, True]
    assert len({one.dataset.dataset_id for one in found}) == 1
    check_one(site)


def test_an_import_and_a_migration_of_equal_content_store_it_once(site: Site, bag: Path):
    plain_study(site, "study", 1, 2)
    together = threading.Barrier(2)

    def migrate() -> int | None:
        with another_worker(site, "worker") as tools:
            together.wait(PATIENCE_S)
            return migrate_all(site, tools)[0].dataset_id

    def take() -> int:
        together.wait(PATIENCE_S)
        return taken_in(site, bag).dataset.dataset_id

    with ThreadPoolExecutor(2) as threads:
        both = threads.submit(migrate), threads.submit(take)
        ids = {one.result(PATIENCE_S) for one in both}

    assert len(ids) == 1
    check_one(site)


def test_an_import_that_slept_until_its_claims_were_lost_writes_no_row(
    site: Site, bag: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a process that is stopped until a gc has taken what it stored."""
    really = import_dataset.store_tree

    def store_and_sleep(*args: Any, **options: Any) -> Any:
        links = really(*args, **options)
        with site.engine.begin() as conn:
            conn.execute(
                text("update dataset_claims set owner = :other where dataset_hash = :key"),
                {"other": uuid.uuid4(), "key": collect_garbage.CLAIM},
            )
        return links

    with monkeypatch.context() as patch:
        patch.setattr(import_dataset, "store_tree", store_and_sleep)
        with pytest.raises(ClaimLostError, match="The claim on the store was lost"):
            taken_in(site, bag)
    with site.engine.begin() as conn:
        assert datasets.all_of(conn) == []
        conn.execute(text("delete from dataset_claims"))

    assert taken_in(site, bag).is_new
    check_one(site)
