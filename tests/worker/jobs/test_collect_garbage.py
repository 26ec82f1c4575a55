"""What a gc takes, leaves and brings back."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.support.damages import Twins, twins
from tests.support.psql import contents
from tests.support.runs import run, run_one, verify_datasets
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import THE_STORE, Outcome, Status, Subject, Verb
from worker.store.garbage import Garbage


@pytest.fixture
def stored(site: Site, tools: Tools) -> Twins:
    return twins(site, tools)


def gc(tools: Tools, *, dry_run: bool = False, **options: object) -> Outcome:
    """A gc without a grace time, unless one is given."""
    options = {"grace_hours": 0} | options
    return run(tools, Verb.GC, only=[THE_STORE], subject=Subject.STORE, dry_run=dry_run, **options)[THE_STORE]


def test_a_dataset_that_was_rolled_back_goes_to_quarantine_and_comes_back_as_it_was(
    stored: Twins, tools: Tools
):
    engine, store = stored.site.engine, tools.open_store(create=False)
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    before = rows(engine)
    files = everything_in(store.root / "blobs", store.root / "manifests", store.trees)

    predicted = gc(tools, dry_run=True)
    done = gc(tools)

    (entry,) = done.garbage
    assert (done.status, entry.action, entry.kind) == (Status.COLLECTED, "quarantined", "dataset")
    assert [one.name for one in predicted.garbage] == [entry.name]
    assert len(verify_datasets(tools)) == 1
    assert everything_in(store.root / "blobs", store.root / "manifests", store.trees) != files
    assert [one.entry_id for one in Garbage(store).entries() if one.is_whole] == [entry.entry_id]

    restored = gc(tools, restore_entry=entry.entry_id)

    assert restored.status is Status.RESTORED, restored
    assert rows(engine) == before
    assert everything_in(store.root / "blobs", store.root / "manifests", store.trees) == files
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}
    assert not list(Garbage(store).entries())


def rows(engine: Engine) -> list[list[str]]:
    """The rows of datasets and their sessions, in any order."""
    return [sorted(contents(engine, table).split("\n")) for table in ("raw_datasets", "raw_dataset_sessions")]


def everything_in(*folders: Path) -> dict[Path, bytes | None]:
    """Every file's bytes and every directory, by path."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for folder in folders
        for path in folder.rglob("*")
        if path.parent.name != "blobs"
    }


def test_what_was_in_quarantine_long_enough_goes_and_can_be_migrated_again(stored: Twins, tools: Tools):
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    gc(tools)

    removed = gc(tools)
    again = run_one(tools, Verb.MIGRATE, stored.first.project_id)

    assert [one.action for one in removed.garbage] == ["removed"]
    assert (again.status, again.dataset_created) == (Status.MIGRATED, True)
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}
    assert not gc(tools).garbage
