"""A project on the store's own file system is stored without taking room again, and the outcome says so."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from producer.datasets import bags
from tests.support.disks import file_system
from tests.support.runs import do, migrate_all, open_run, run_one, tools_of
from tests.support.sites import Site, site_in
from tests.support.studies import plain_study
from worker.db import overview
from worker.jobs.tools import Tools
from worker.messages import Status, Verb
from worker.store import store as store_module

BIG = 12 << 20


@pytest.fixture
def site(database: Engine, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """Give an installation on an XFS of its own, legacy directories and all."""
    place = tmp_path / "disk"
    place.mkdir()
    with file_system("xfs", place, tmp_path), site_in(place, database, redis_url) as made:
        yield made


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    with tools_of(site) as made:
        yield made


def study_with_files(site: Site, name: str, seed: int) -> None:
    folder = plain_study(site, name, seed) / f"day {seed}"
    for number, size in enumerate((BIG, 300_000, 4096, 100)):
        (folder / f"{number}.bin").write_bytes(os.urandom(size))
    os.sync()


def test_what_is_stored_shares_the_legacy_blocks_and_the_outcome_counts_it(site: Site, tools: Tools):
    study_with_files(site, "first", 1)

    (outcome,) = migrate_all(site, tools)

    assert outcome.status is Status.MIGRATED
    assert outcome.links.cloned >= 3
    assert outcome.disk.shared >= BIG + 300_000
    assert outcome.disk.store < BIG // 100
    with site.engine.connect() as conn:
        assert overview.shared_bytes(conn) == outcome.disk.shared


def test_a_bag_on_the_stores_disk_shares_its_blocks_out_and_in(site: Site, tools: Tools):
    study_with_files(site, "first", 1)
    (outcome,) = migrate_all(site, tools)
    before = os.statvfs(site.folder)

    bags.export(site.settings, site.engine, outcome.dataset_id or 0, str(site.folder / "bag"), print)
    exported = os.statvfs(site.folder)
    site.empty()
    found = bags.take_in(site.settings, site.engine, str(site.folder / "bag"), print)
    imported = os.statvfs(site.folder)

    assert found.bytes.stored > BIG
    taken = [(before.f_bfree - after.f_bfree) * before.f_frsize for after in (exported, imported)]
    assert max(taken) < BIG // 4, taken


def test_a_full_disk_takes_what_can_be_shared(site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch):
    study_with_files(site, "first", 1)
    real = os.statvfs

    def statvfs(path: str) -> os.statvfs_result:
        """All but five megabytes beside the reserve are taken."""
        said = list(real(path))
        said[4] = (said[2] // 50) + (5 << 20) // said[1]
        return os.statvfs_result(said)

    monkeypatch.setattr(store_module.os, "statvfs", statvfs)

    (outcome,) = do(tools, Verb.MIGRATE, open_run(site.engine, Verb.MIGRATE)).values()

    assert (outcome.status, outcome.error) == (Status.MIGRATED, None)


def test_the_legacy_directory_may_go_and_the_store_keeps_its_bytes(site: Site, tools: Tools):
    study_with_files(site, "first", 1)
    (migrated,) = migrate_all(site, tools)
    original = Path(migrated.original_path or "")
    before = {path.relative_to(original): path.read_bytes() for path in original.rglob("*") if path.is_file()}
    for path in before:
        (original / path).write_bytes(b"rewritten in place")

    stored = Path(migrated.dataset_path or "")

    assert {path: (stored / path).read_bytes() for path in before} == before
    assert run_one(tools, Verb.ROLLBACK, migrated.project_id or 0).error_class == "RollbackRefusedError"
