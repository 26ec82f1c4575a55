"""What a gc takes, leaves and brings back."""

import re
from pathlib import Path

import pytest
from blake3 import blake3
from sqlalchemy import Engine, text

from tests.estate import make_dataset
from tests.support.damages import Twins, begun_entry, spare_tree, twins
from tests.support.psql import contents
from tests.support.runs import WORK, at_once, gc, let_lease_run_out, open_run, run_one, verify_datasets
from tests.support.sites import Site
from worker.db import datasets, garbage, leases, ledger
from worker.jobs.tools import Tools
from worker.messages import THE_STORE, Status, Subject, Verb
from worker.store.garbage import Garbage


@pytest.fixture
def stored(site: Site, tools: Tools) -> Twins:
    return twins(site, tools)


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


# What is respected ------------------------------------------------------------------------------------------


def _sql(stored: Twins, statement: str, **values: object) -> None:
    with stored.site.engine.begin() as conn:
        conn.execute(text(statement), values)


def _refer_by_ref(stored: Twins) -> None:
    _sql(
        stored,
        "insert into project_dataset_refs (project_id, dataset_id) select :id, min(dataset_id) from raw_datasets",
        id=stored.second.project_id,
    )


def _refer_by_split(stored: Twins) -> None:
    _sql(
        stored,
        "insert into project_split_configs (project_id, dataset_id, raw_session_name)"
        " select :id, min(dataset_id), 'day' from raw_datasets",
        id=stored.second.project_id,
    )


def _refer_by_session(stored: Twins) -> None:
    _sql(
        stored,
        "update sessions set dataset_id = (select min(dataset_id) from raw_datasets)"
        " where session_id = (select min(session_id) from sessions where project_id = :id)",
        id=stored.first.project_id,
    )


def _refer_by_path(stored: Twins) -> None:
    """DATA_DIR may be spelled otherwise than in the dataset's row."""
    _sql(
        stored,
        "update sessions set parent_session_data_path = '/another/spelling/' || (select regexp_replace(file_path,"
        " '^.*/', '') from raw_datasets order by dataset_id limit 1) || '/day'"
        " where session_id = (select min(session_id) from sessions where project_id = :id)",
        id=stored.first.project_id,
    )


REFERENCES = {
    "a reference": _refer_by_ref,
    "a split configuration": _refer_by_split,
    "a session": _refer_by_session,
    "a session's path": _refer_by_path,
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_dataset_that_is_referred_to_stays(stored: Twins, tools: Tools, reference: str):
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    REFERENCES[reference](stored)

    for _ in range(2):
        done = gc(tools)
        assert (done.status, done.garbage) == (Status.COLLECTED, ())

    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


def test_what_is_young_leased_or_not_ours_stays(stored: Twins, tools: Tools):
    store = tools.open_store(create=False)
    foreign = [
        store.root / "blobs" / "note",
        store.trees / "made by hand" / "file",
        store.root / "quarantine" / "damaged-1234.reason.txt",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("not ours")
    with stored.site.engine.begin() as conn:
        of_label = make_dataset(conn, store.trees / "made by hand", f"{1:064x}")
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)

    young = gc(tools, grace_hours=24)
    taken = gc(tools)

    assert young.garbage == ()
    assert [(one.kind, one.dataset_id) for one in taken.garbage] == [("dataset", stored.first.dataset_id)]
    with stored.site.engine.connect() as conn:
        assert of_label in {one.dataset_id for one in datasets.all_of(conn)}
    assert [path.read_text() for path in foreign] == ["not ours"] * len(foreign)
    (shared,) = verify_datasets(tools, only=[stored.second.dataset_id or 0])
    assert shared.status is Status.VERIFIED, "a blob that another dataset needs stayed"


def test_loose_blobs_and_trees_without_a_row_go_when_they_are_old_enough(stored: Twins, tools: Tools):
    store = tools.open_store(create=False)
    content = b"nothing needs this"
    digest = blake3(content).hexdigest()
    loose = Path(store.blob_path(digest))
    loose.parent.mkdir(exist_ok=True)
    loose.write_bytes(content)
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    _sql(
        stored,
        "with gone as (select min(dataset_id) as id from raw_datasets), sessions_gone as"
        " (delete from raw_dataset_sessions using gone where dataset_id = gone.id)"
        " delete from raw_datasets using gone where dataset_id = gone.id",
    )

    young = gc(tools, grace_hours=24)
    found = {one.kind: one for one in gc(tools).garbage}

    assert young.garbage == ()
    assert found.keys() == {"tree", "blobs"}
    assert not loose.exists()
    blobs = found["blobs"]
    restored = gc(tools, restore_entry=blobs.entry_id)
    assert restored.status is Status.RESTORED, restored.reason
    assert loose.read_bytes() == content
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


def test_a_second_tree_of_a_content_goes_unless_it_is_in_use_or_is_not_only_that(stored: Twins, tools: Tools):
    spare = spare_tree(stored.first)
    young = gc(tools, grace_hours=24)
    _sql(stored, "update migration_unreferenced set marked_at = marked_at - interval '2 days'")
    _sql(
        stored,
        "insert into sessions (project_id, session_name, start_ns, stop_ns, parent_session_data_path)"
        " values (:id, 'reads there', 0, 1, :path)",
        id=stored.second.project_id,
        path=f"{spare}/day",
    )
    in_use = gc(tools)
    _sql(stored, "delete from sessions where session_name = 'reads there'")
    spare.chmod(0o755)
    (spare / "somebody's own").touch()
    not_only = gc(tools)
    (spare / "somebody's own").unlink()
    files = everything_in(spare)

    (entry,) = gc(tools, grace_hours=24).garbage

    assert young.garbage == in_use.garbage == not_only.garbage == ()
    assert (entry.kind, entry.reason) == ("tree", "the same content has another tree")
    assert not spare.exists()
    stored.check_whole()
    assert gc(tools, restore_entry=entry.entry_id).status is Status.RESTORED
    assert everything_in(spare) == files


def test_a_restored_dataset_is_young_again_and_a_second_copy_is_refused(stored: Twins, tools: Tools):
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    _sql(stored, "update project_conversions set rolled_back_at = rolled_back_at - interval '9 days'")
    (entry,) = gc(tools, grace_hours=24).garbage
    assert gc(tools, restore_entry=entry.entry_id).status is Status.RESTORED

    assert gc(tools, grace_hours=24).garbage == ()
    (again,) = gc(tools).garbage
    run_one(tools, Verb.MIGRATE, stored.first.project_id)
    refused = gc(tools, restore_entry=again.entry_id)

    assert (refused.status, refused.error_class) == (Status.FAILED, "GarbageNotRestoredError")
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


def test_an_old_entry_that_could_not_be_brought_back_is_young_again(stored: Twins, tools: Tools):
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    (entry,) = gc(tools).garbage
    description = stored.site.settings.store_dir / "quarantine" / str(entry.entry_id) / "description.json"
    old = re.sub(r"(?<=\"quarantined_at\": \")\d{4}", "2020", description.read_text())
    description.write_text(old)
    _sql(
        stored,
        "insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path) values (:id, 'x', 'x', '/x')",
        id=entry.dataset_id,
    )

    refused = gc(tools, restore_entry=entry.entry_id)
    assert (refused.status, refused.error_class) == (Status.FAILED, "GarbageNotRestoredError")
    _sql(stored, "delete from raw_datasets where dataset_hash = 'x'")
    assert gc(tools, grace_hours=24).garbage == ()
    assert gc(tools, restore_entry=entry.entry_id).status is Status.RESTORED
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


def test_a_migration_that_runs_keeps_the_blobs_that_it_may_rely_on(stored: Twins, tools: Tools):
    """It looked for them before they had their marks."""
    engine = stored.site.engine
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    (ref,) = open_run(engine, Verb.MIGRATE, only=[stored.first.project_id])
    with engine.begin() as conn:
        lease = leases.take_lease(conn, ref, "another worker", 60.0)
    assert lease is not None

    (entry,) = gc(tools).garbage

    assert entry.kind == "dataset"
    assert not list(
        (tools.open_store(create=False).root / "quarantine" / str(entry.entry_id)).glob("blobs/*")
    )
    let_lease_run_out(engine, ref)
    assert WORK[Verb.MIGRATE, ref.subject](tools, ref, "the next worker").status is Status.MIGRATED
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


# What is left over -----------------------------------------------------------------------------------------


def test_what_jobs_left_behind_goes_when_no_worker_has_them(stored: Twins, tools: Tools):
    engine, store = stored.site.engine, tools.open_store(create=False)
    over, running = (
        open_run(engine, Verb.ROLLBACK, only=[one.project_id])[0] for one in (stored.first, stored.second)
    )
    with engine.begin() as conn:
        assert leases.take_lease(conn, running, "another worker", 60.0)
    beside = Path(str(stored.first.original_path)).parent
    left = {
        ref: [store.root / "staging" / f"{ref.task_id}-1", beside / f".restoring-{ref.task_id}-1"]
        for ref in (over, running)
    }
    for path in (path for paths in left.values() for path in paths):
        path.mkdir()
        (path / "file").write_bytes(b"half")

    found = gc(tools).garbage

    assert [(one.action, one.files) for one in found] == [("staging", 1), ("staging", 0)]
    assert not any(path.exists() for path in left[over])
    assert all((path / "file").exists() for path in left[running])


def test_rows_of_the_ledger_that_no_job_needs_are_pruned(stored: Twins, tools: Tools):
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    run_one(tools, Verb.MIGRATE, stored.first.project_id, dry_run=True)
    verify_datasets(tools)
    gone = blake3(b"gone").hexdigest()
    _sql(
        stored,
        "insert into migration_dry_run_blobs select run_id, :gone, 1, 1 from migration_runs",
        gone=gone,
    )
    _sql(
        stored,
        "insert into migration_blob_checks (digest, inode, mtime_ns) values (:gone, 1, 1), (concat(cast(:gone as text), chr(58), '7'), 7, 1)",
        gone=gone,
    )
    _sql(stored, "insert into migration_dataset_blobs values (repeat('0', 64), :gone, 1)", gone=gone)
    _sql(stored, "insert into dataset_claims (dataset_hash) values (:gone)", gone=gone)
    with stored.site.engine.begin() as conn:
        ledger.finish_ended_runs(conn)
    checks = "select count(*) from migration_blob_checks"

    young, old = gc(tools, grace_hours=24), gc(tools, grace_hours=0)

    assert young.pruned["dataset_claims"] == young.pruned["migration_dry_run_blobs"] == 0
    assert old.pruned["dataset_claims"] > 0
    assert old.pruned["migration_dry_run_blobs"] > 0
    assert young.pruned["migration_blob_readers"] > 0
    assert young.pruned["migration_dataset_blobs"] == 1
    assert young.pruned["migration_blob_checks"] == 2
    with stored.site.engine.connect() as conn:
        assert conn.execute(text(checks)).scalar_one() > 0
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


# Others at the same time ------------------------------------------------------------------------------------


def test_of_two_gcs_at_once_one_takes_everything_and_the_other_says_so(stored: Twins, tools: Tools):
    for one in (stored.first, stored.second):
        run_one(tools, Verb.ROLLBACK, one.project_id)
    refs = [
        open_run(stored.site.engine, Verb.GC, only=[THE_STORE], subject=Subject.STORE, grace_hours=24)[0]
        for _ in range(2)
    ]
    _sql(stored, "update project_conversions set rolled_back_at = rolled_back_at - interval '9 days'")

    outcomes = [one for one in at_once(stored.site, [(Verb.GC, ref) for ref in refs]) if one is not None]

    assert {one.status for one in outcomes} <= {Status.COLLECTED, Status.SKIPPED}
    assert {one.reason.partition(" by run ")[0] for one in outcomes if one.status is Status.SKIPPED} <= {
        "the store is being processed"
    }
    taken = [one.dataset_id for outcome in outcomes for one in outcome.garbage if one.action == "quarantined"]
    assert sorted(taken) == sorted([stored.first.dataset_id, stored.second.dataset_id])
    assert list(tools.open_store(create=False).trees.iterdir()) == []


def test_a_shared_blob_that_another_entry_has_is_there_again_after_either_restore(
    stored: Twins, tools: Tools
):
    entries = []
    for one in (stored.first, stored.second):
        run_one(tools, Verb.ROLLBACK, one.project_id)
        _sql(stored, "update project_conversions set rolled_back_at = rolled_back_at - interval '9 days'")
        entries += [entry.entry_id for entry in gc(tools, grace_hours=24).garbage]
    assert not stored.blob.exists()

    for number, entry_id in enumerate(entries, start=1):
        assert gc(tools, restore_entry=entry_id).status is Status.RESTORED
        assert [one.status for one in verify_datasets(tools)] == [Status.VERIFIED] * number

    assert stored.blob.exists()
    stored.check_whole()


@pytest.mark.parametrize("moved", [False, True])
def test_a_dataset_that_was_stored_again_after_a_gc_had_died_stays(
    stored: Twins, tools: Tools, *, moved: bool
):
    """The gc had removed the rows, and moved the tree or nothing yet."""
    run_one(tools, Verb.ROLLBACK, stored.first.project_id)
    entry, taken = begun_entry(tools, stored.first), Garbage(tools.open_store(create=False))
    if moved:
        taken.take_tree(entry)
    again = run_one(tools, Verb.MIGRATE, stored.first.project_id)

    foretold = gc(tools, grace_hours=24, dry_run=True)
    done = gc(tools, grace_hours=72)

    assert again.status is Status.MIGRATED
    assert [one.action for one in foretold.garbage] == ["removed"] * moved
    assert done.garbage == ()
    assert [one.is_whole for one in taken.entries()] == [True] * moved
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}
    refused = gc(tools, restore_entry=entry.entry_id)
    assert refused.error_class == "GarbageNotRestoredError"
    assert [one.action for one in gc(tools).garbage] == ["removed"] * moved
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


@pytest.mark.parametrize(
    ("count", "datasets", "expect", "trips"),
    [
        (10, 10, None, False),
        (11, 111, None, False),
        (11, 109, None, True),
        (11, 20, 11, False),
        (12, 20, 11, True),
    ],
)
def test_too_many_datasets_go_only_if_the_operator_says_how_many(
    count: int, datasets: int, expect: int | None, *, trips: bool
):
    assert garbage.would_trip(count, datasets, expect) is trips
