"""What a dry run of gc foretells is what the real run does right after it; nothing of it is done before."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from sqlalchemy import text

from tests.support.damages import begun_entry, spare_tree
from tests.support.runs import gc, migrate_all, open_run, run_one, verify_datasets
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.db import blob_index, leases
from worker.jobs.tools import Tools
from worker.messages import GarbageEntry, Outcome, Status, Verb


def _roll_back(tools: Tools, one: Outcome) -> None:
    run_one(tools, Verb.ROLLBACK, one.project_id or 0)


def _a_deleted_project(tools: Tools, one: Outcome) -> None:
    """The ledger has no last word on its dataset."""
    _do(tools, "delete from projects where project_id = :id", id=one.project_id)


def _a_tree_without_a_row(tools: Tools, one: Outcome) -> None:
    _roll_back(tools, one)
    for table in ("raw_dataset_sessions", "raw_datasets"):
        _do(tools, f"delete from {table} where dataset_id = :id", id=one.dataset_id)


def _an_entry_that_was_begun(tools: Tools, one: Outcome) -> None:
    """By a gc that died when the rows were gone."""
    _roll_back(tools, one)
    begun_entry(tools, one)


def _an_old_entry(tools: Tools, one: Outcome) -> None:
    """Its tree has a blob that is needed in the store, and perhaps goes from there."""
    _roll_back(tools, one)
    assert [entry.kind for entry in gc(tools).garbage] == ["dataset"]


def _leftovers_of_jobs(tools: Tools, one: Outcome) -> None:
    """One has a second name of a blob in staging; another died beside a legacy directory."""
    task = open_run(tools.engine, Verb.ROLLBACK, only=[one.project_id or 0])[0].task_id
    store = tools.open_store(create=False)
    staged = store.root / "staging" / f"{task}-1"
    staged.mkdir()
    (staged / "new").write_bytes(b"never stored")
    loose = _a_loose_blob(tools, one, b"of a job that died")
    os.link(loose, staged / "linked")
    building = Path(str(one.original_path)).parent / f".restoring-{task}-1"
    building.mkdir()
    (building / "file").write_bytes(b"half")


def _a_loose_blob(tools: Tools, _one: Outcome, content: bytes = b"nothing needs this") -> Path:
    digest = blake3(content).hexdigest()
    path = Path(tools.open_store(create=False).blob_path(digest))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def _an_index_of_what_was_never_stored(tools: Tools, one: Outcome) -> None:
    blob = _a_loose_blob(tools, one, b"its migration came to nothing")
    with tools.engine.begin() as conn:
        blob_index.add(conn, "0" * 64, {blob.name: 1})
        blob_index.mark_indexed(conn, "0" * 64)


def _a_second_tree(_tools: Tools, one: Outcome) -> None:
    spare_tree(one)


KINDS: tuple[Callable[[Tools, Outcome], Any], ...] = (
    _an_old_entry,
    _roll_back,
    _roll_back,
    _a_deleted_project,
    _a_tree_without_a_row,
    _a_second_tree,
    _a_loose_blob,
    _an_index_of_what_was_never_stored,
    _an_entry_that_was_begun,
    _leftovers_of_jobs,
)


def _do(tools: Tools, statement: str, **values: object) -> None:
    with tools.engine.begin() as conn:
        conn.execute(text(statement), values)


def migrated(site: Site, tools: Tools, count: int) -> list[Outcome]:
    """Projects that each share a recording with the next one."""
    for number in range(count):
        plain_study(site, f"study {number}", number, number + 1)
    return migrate_all(site, tools)


def marks(tools: Tools) -> list[object]:
    """All marks."""
    with tools.engine.connect() as conn:
        return list(conn.execute(text("select * from migration_unreferenced order by kind, name")).all())


def marks_and_files(tools: Tools) -> list[object]:
    """All that a dry run must leave as it is."""
    files = ((str(path), path.lstat()) for path in tools.settings.data_dir.rglob("*"))
    return marks(tools) + sorted((path, found.st_ino, found.st_nlink) for path, found in files)


def figures(found: tuple[GarbageEntry, ...]) -> list[tuple[object, ...]]:
    """Of each entry what a dry run can know."""
    return [(one.action, one.kind, one.name, one.files, one.size_bytes) for one in found]


@pytest.mark.parametrize("hours", [0, 24])
def test_a_dry_run_foretells_every_kind_of_garbage_and_does_nothing(site: Site, tools: Tools, hours: int):
    stored = migrated(site, tools, len(KINDS))
    for make, one in zip(KINDS, stored, strict=True):
        if hours and make is _an_entry_that_was_begun:
            # What comes after this has no marks.
            gc(tools, grace_hours=10_000)
            _do(tools, "update migration_unreferenced set marked_at = marked_at - interval '9 days'")
            _do(tools, "update project_conversions set rolled_back_at = rolled_back_at - interval '9 days'")
        make(tools, one)
    before = marks_and_files(tools)

    foretold = gc(tools, dry_run=True, grace_hours=hours)

    assert foretold.status is Status.WOULD_COLLECT
    assert marks_and_files(tools) == before
    done = gc(tools, grace_hours=hours)
    assert figures(foretold.garbage) == figures(done.garbage)
    kinds = {(one.action, one.kind) for one in done.garbage}
    assert {("quarantined", kind) for kind in ("dataset", "tree", "blobs")} | {
        ("staging", "staging")
    } <= kinds
    assert {one.status for one in verify_datasets(tools)} <= {Status.VERIFIED}
    assert all(one.size_bytes for one in done.garbage if one.action == "quarantined")


def test_a_dry_run_leaves_the_mark_of_a_dataset_that_has_a_reference(site: Site, tools: Tools):
    stored = migrated(site, tools, 1)
    _do(
        tools,
        "insert into migration_unreferenced (kind, name) values ('dataset', :name)",
        name=stored[0].dataset_hash,
    )
    before = marks_and_files(tools)

    gc(tools, dry_run=True)

    assert marks_and_files(tools) == before
    gc(tools)
    assert marks(tools) == []


def test_a_running_migration_keeps_blobs_in_a_dry_run_as_in_a_real_one(site: Site, tools: Tools):
    stored = migrated(site, tools, 3)
    _a_loose_blob(tools, stored[0])
    for one in stored:
        _roll_back(tools, one)
    (ref,) = open_run(tools.engine, Verb.MIGRATE, only=[stored[0].project_id or 0])
    with tools.engine.begin() as conn:
        assert leases.take_lease(conn, ref, "another worker", 60.0)

    foretold, done = gc(tools, dry_run=True), gc(tools)

    assert figures(foretold.garbage) == figures(done.garbage)
    assert [one.kind for one in done.garbage] == ["dataset"] * 3


def test_a_dry_run_says_which_number_the_real_run_needs(site: Site, tools: Tools):
    for number in range(12):
        plain_study(site, f"study {number}", number)
    for one in migrate_all(site, tools):
        _roll_back(tools, one)

    foretold, refused = gc(tools, dry_run=True), gc(tools)

    assert [one.message for one in foretold.warnings] == [
        "12 of 12 datasets would go, which is more than one in ten: that needs producer gc --expect 12"
    ]
    assert (refused.status, refused.error_class) == (Status.FAILED, "GarbageTripwireError")
    at_once = site.run_producer("gc", "--yes", "--grace", "0")
    assert (at_once.returncode, "producer gc --expect 12" in at_once.stderr) == (2, True), at_once.stderr
    assert len(verify_datasets(tools)) == 12
    done = gc(tools, expect=12)
    assert figures(done.garbage) == figures(foretold.garbage)
    assert len(done.garbage) == 12


def test_blobs_of_datasets_that_the_index_lacks_stay(site: Site, tools: Tools):
    """As in a store of an earlier release, and as long as a manifest is damaged."""
    stored = migrated(site, tools, 2)
    _roll_back(tools, stored[0])
    for table in ("migration_dataset_blobs", "migration_indexed_datasets"):
        _do(tools, f"delete from {table} where dataset_hash = :hash", hash=stored[1].dataset_hash)
    manifest = Path(tools.open_store(create=False).manifest_path(str(stored[1].dataset_hash)))
    kept = manifest.read_bytes()
    manifest.chmod(0o644)
    manifest.write_bytes(b"damaged")

    (entry,) = gc(tools).garbage

    assert entry.kind == "dataset"
    manifest.write_bytes(kept)
    manifest.chmod(0o444)
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}
    assert {one.kind for one in gc(tools).garbage} == {"dataset", "blobs"}
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


def test_blobs_that_a_dataset_of_an_earlier_release_shares_stay(site: Site, tools: Tools):
    stored = migrated(site, tools, 2)
    _roll_back(tools, stored[0])
    for table in ("migration_dataset_blobs", "migration_indexed_datasets"):
        _do(tools, f"delete from {table}")

    (entry,) = gc(tools).garbage

    assert entry.kind == "dataset"
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}
