"""Adopting what Label registered itself: what becomes of it, what refuses it, and giving it back."""

import os
import socket
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate.files import write_recording
from tests.support.disks import mounted_twice
from tests.support.registered import Registered, register
from tests.support.runs import gc, open_run, run, run_one, verify_datasets
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.db import exchange
from worker.errors import WorkerStoppingError
from worker.jobs import adopt as adopt_job
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Subject, Verb
from worker.store.label_hash import label_hash


def adopt(tools: Tools, one: Registered, *, dry_run: bool = False, **options: object) -> Outcome:
    return run(tools, Verb.ADOPT, only=[one.dataset_id], subject=Subject.DATASET, dry_run=dry_run, **options)[
        one.dataset_id
    ]


@pytest.fixture
def walk(site: Site) -> Registered:
    return register(site, "walk", 1, 2)


def test_an_adopted_dataset_reads_as_before_and_is_verified_as_ours(walk: Registered, tools: Tools):
    outcome = adopt(tools, walk)

    assert (outcome.status, outcome.error) == (Status.ADOPTED, None)
    assert (outcome.sessions_count, outcome.files.stored, outcome.files.reused) == (3, 4, 0)
    walk.check_adopted()
    (verified,) = verify_datasets(tools)
    assert (verified.status, verified.dataset_id) == (Status.VERIFIED, walk.dataset_id)


def test_its_former_hash_and_that_of_todays_bytes_are_kept(walk: Registered, tools: Tools):
    registered_hash = walk.rows["raw_datasets"][0]["dataset_hash"]
    write_recording(walk.tree / "day 1", rows=19, seed=1)
    today = label_hash(str(walk.tree))

    outcome = adopt(tools, walk)

    with walk.site.engine.connect() as conn:
        kept = conn.execute(text("select registered_hash, label_hash from migration_adoptions")).one()
        found = [exchange.find_by_hashes(conn, [str(one)]) for one in (registered_hash, today)]
    assert tuple(kept) == (registered_hash, today)
    assert registered_hash != today
    assert found == [walk.dataset_id, walk.dataset_id]
    assert outcome.reason.endswith("Label had rewritten it since it registered it")


def test_rows_of_its_sessions_become_those_of_the_directory(walk: Registered, tools: Tools):
    with walk.site.engine.begin() as conn:
        conn.execute(
            text("update raw_dataset_sessions set session_name = 'gone' where session_name = 'day 1'")
        )

    adopt(tools, walk)

    rows = walk.rows_now()["raw_dataset_sessions"]
    assert [(row["session_name"], row["file_count"], row["original_labels_json"]) for row in rows] == [
        ("day 2", 1, None),
        ("notes", 0, None),
        ("day 1", 2, "[[1, 2]]"),
    ]


def test_a_migration_of_equal_content_reuses_it(walk: Registered, tools: Tools):
    legacy = plain_study(walk.site, "study", 5)
    for name in ("day 1", "day 2", "notes"):
        (legacy / name).mkdir()
    for path in walk.tree.rglob("*"):
        if path.is_file():
            (legacy / path.relative_to(walk.tree)).write_bytes(path.read_bytes())
    (legacy / "notes" / "empty").mkdir()
    for path in (legacy / "day 5").iterdir():
        path.unlink()
    (legacy / "day 5").rmdir()
    adopt(tools, walk)

    (outcome,) = run(tools, Verb.MIGRATE).values()

    assert (outcome.status, outcome.dataset_id) == (Status.MIGRATED, walk.dataset_id), outcome
    assert outcome.bytes.stored == 0
    refused = adopt(tools, walk, undo=True)
    assert refused.error_class == "AdoptionNotUndoneError"
    assert f"project {outcome.project_id} was migrated to it" in str(refused.error)
    walk.check_adopted()
    assert run_one(tools, Verb.ROLLBACK, outcome.project_id or 0).status is Status.ROLLED_BACK
    assert adopt(tools, walk, undo=True).status is Status.UNDONE
    walk.check_untouched()


def test_a_dry_run_foretells_and_changes_nothing(walk: Registered, tools: Tools):
    predicted = adopt(tools, walk, dry_run=True)

    walk.check_untouched()
    assert not walk.site.settings.store_dir.exists()
    outcome = adopt(tools, walk)
    assert (predicted.status, outcome.status) == (Status.WOULD_ADOPT, Status.ADOPTED)
    assert (predicted.dataset_hash, predicted.files, predicted.bytes) == (
        outcome.dataset_hash,
        outcome.files,
        outcome.bytes,
    )


def test_it_is_adopted_once(walk: Registered, tools: Tools):
    adopt(tools, walk)

    again = adopt(tools, walk)

    assert (again.status, again.reason) == (
        Status.SKIPPED,
        f"dataset {walk.dataset_id}: this program's already",
    )
    walk.check_adopted()


def test_equal_content_is_one_datasets_and_the_other_is_left_as_it_is(walk: Registered, tools: Tools):
    twin = register(walk.site, "twin", 1, 2, digest="of the bytes that Label rewrote")
    adopt(tools, walk)

    outcome = adopt(tools, twin)

    assert outcome.status is Status.SKIPPED
    assert outcome.reason == f"dataset {twin.dataset_id}: dataset {walk.dataset_id} walk has the same content"
    assert outcome.remedy is not None
    twin.check_untouched()
    walk.check_adopted()


# What is refused --------------------------------------------------------------------------------------------


def _pipe(tree: Path) -> str:
    os.mkfifo(tree / "day 1" / "pipe")
    return "Entry cannot be stored, it is a named pipe: day 1/pipe"


def _socket(tree: Path) -> str:
    # The path of one may have 107 bytes.
    folder = os.open(tree / "day 2", os.O_PATH)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{folder}/socket")
    os.close(folder)
    return "Entry cannot be stored, it is a socket: day 2/socket"


def _link(tree: Path) -> str:
    (tree / "day 2" / "link").symlink_to(tree / "day 1")
    return "Entry cannot be stored, it is a link: day 2/link"


def _no_session(tree: Path) -> str:
    for folder in ("day 1", "day 2", "notes"):
        (tree / folder).rename(tree.parents[1] / folder)
    return "No session directories found"


def _itself_a_link(tree: Path) -> str:
    tree.rename(tree.parents[1] / "elsewhere")
    tree.symlink_to(tree.parents[1] / "elsewhere")
    return "is a link"


def _gone(tree: Path) -> str:
    tree.rename(tree.parents[1] / "elsewhere")
    return f"Directory does not exist: {tree}"


@pytest.mark.parametrize("spoil", [_pipe, _socket, _link, _no_session, _itself_a_link, _gone])
def test_what_cannot_become_ours_is_refused_by_name_and_untouched(
    walk: Registered, tools: Tools, spoil: object
):
    assert callable(spoil)
    said = spoil(walk.tree)
    before = walk.rows_now()
    inode = os.lstat(walk.tree).st_ino if os.path.lexists(walk.tree) else None

    for dry_run in (True, False):
        outcome = adopt(tools, walk, dry_run=dry_run)

        assert outcome.error_class == "AdoptionRefusedError"
        assert str(outcome.error).startswith(f"dataset {walk.dataset_id}: ")
        assert said in str(outcome.error)
        assert walk.rows_now() == before
        assert (os.lstat(walk.tree).st_ino if os.path.lexists(walk.tree) else None) == inode
    assert not walk.set_aside()
    assert walk.state() is None


def test_a_dataset_elsewhere_is_refused(walk: Registered, tools: Tools):
    with walk.site.engine.begin() as conn:
        conn.execute(
            text("update raw_datasets set file_path = :path"), {"path": str(walk.site.data_dir / "x")}
        )

    outcome = adopt(tools, walk)

    assert f"is not directly in {walk.site.data_dir}/raw_datasets" in str(outcome.error)


@pytest.mark.parametrize("below", ["", "notes"])
def test_a_mount_in_its_place_or_in_it_is_refused(walk: Registered, tools: Tools, below: str):
    with mounted_twice(walk.tree / below):
        for dry_run in (True, False):
            outcome = adopt(tools, walk, dry_run=dry_run)

            assert outcome.error_class == "AdoptionRefusedError"
            assert "another file system than the store's, mounted at" in str(outcome.error)
            assert walk.state() is None
    walk.check_untouched()


@pytest.mark.parametrize("after", ["_begin", "_exchange"])
def test_one_that_changes_meanwhile_is_put_back_with_what_was_written(
    walk: Registered, tools: Tools, monkeypatch: pytest.MonkeyPatch, after: str
):
    step = getattr(adopt_job._Adopting, after)
    with open(walk.tree / "day 1" / "late", "w") as late:
        # A program that has it open and goes on writing.
        def then_write(self: object, *arguments: object) -> object:
            done = step(self, *arguments)
            late.write("written late")
            late.flush()
            return done

        monkeypatch.setattr(adopt_job._Adopting, after, then_write)
        outcome = adopt(tools, walk)

    assert outcome.error_class == "AdoptionRefusedError"
    assert f"Something changed meanwhile in {walk.tree}/day 1" in str(outcome.error)
    assert (walk.tree / "day 1" / "late").read_text() == "written late"
    assert os.stat(walk.tree).st_ino == walk.inode
    assert walk.rows_now() == walk.rows
    assert (walk.state(), walk.set_aside()) == ("undone", [])
    monkeypatch.undo()
    assert adopt(tools, walk).status is Status.ADOPTED


@pytest.mark.parametrize("at", ["_store", "_begin", "_confirm", "_write"])
def test_a_worker_that_is_told_to_stop_leaves_it_as_it_was(
    walk: Registered, tools: Tools, monkeypatch: pytest.MonkeyPatch, at: str
):
    def stop(*_arguments: object) -> None:
        raise WorkerStoppingError("the worker is told to stop")

    (ref,) = open_run(walk.site.engine, Verb.ADOPT, only=[walk.dataset_id], subject=Subject.DATASET)
    with monkeypatch.context() as stopping:
        stopping.setattr(adopt_job._Adopting, at, stop)
        assert adopt_job.adopt(tools, ref, "worker") is None

    walk.check_untouched()
    outcome = adopt_job.adopt(tools, ref, "worker")
    assert outcome is not None
    assert outcome.status is Status.ADOPTED
    walk.check_adopted()


def test_one_that_is_deleted_meanwhile_is_let_go(walk: Registered, tools: Tools):
    (ref,) = open_run(walk.site.engine, Verb.ADOPT, only=[walk.dataset_id], subject=Subject.DATASET)
    with walk.site.engine.begin() as conn:
        conn.execute(text("delete from sessions; delete from raw_datasets"))

    outcome = adopt_job.adopt(tools, ref, "worker")

    assert outcome is not None
    assert (outcome.status, outcome.reason) == (
        Status.SKIPPED,
        f"dataset {walk.dataset_id}: deleted since the run was opened",
    )


# Giving it back, and what becomes of what Label had ---------------------------------------------------------


def test_an_undo_gives_back_directory_and_rows_as_they_were(walk: Registered, tools: Tools):
    adopt(tools, walk)

    predicted = adopt(tools, walk, undo=True, dry_run=True)
    walk.check_adopted()
    outcome = adopt(tools, walk, undo=True)

    assert (predicted.status, outcome.status) == (Status.WOULD_UNDO, Status.UNDONE)
    walk.check_untouched()
    assert not list((walk.site.settings.store_dir / "quarantine").iterdir())
    assert adopt(tools, walk).status is Status.ADOPTED
    walk.check_adopted()


def test_blobs_of_what_was_given_back_go_by_a_gc(walk: Registered, tools: Tools):
    adopt(tools, walk)
    adopt(tools, walk, undo=True)

    for _ in range(3):
        gc(tools)

    assert not [path for path in (walk.site.settings.store_dir / "blobs").rglob("*") if path.is_file()]
    walk.check_untouched()


def test_a_gc_removes_what_label_had_once_all_of_it_was_read(walk: Registered, tools: Tools):
    adopt(tools, walk)

    early = gc(tools)
    walk.check_adopted()
    verify_datasets(tools)
    (foretold,) = gc(tools, dry_run=True).garbage
    (removed,) = gc(tools).garbage

    assert ["stays in quarantine until" in one.message for one in early.warnings] == [True]
    assert (removed.action, removed.kind, removed.dataset_id) == ("removed", "adopted", walk.dataset_id)
    assert (
        (foretold.files, foretold.size_bytes)
        == (removed.files, removed.size_bytes)
        == (4, removed.size_bytes)
    )
    assert not walk.set_aside()
    walk.check_read()
    refused = adopt(tools, walk, undo=True)
    assert "was removed by a gc" in str(refused.error)
    assert not gc(tools).garbage


def test_what_label_had_stays_if_it_was_written_to_since(walk: Registered, tools: Tools):
    with open(walk.tree / "day 1" / "accelerometer_data.csv", "a") as recording:
        adopt(tools, walk)
        recording.write("1,2,3,4\n")
    verify_datasets(tools)

    done = gc(tools)

    assert not done.garbage
    assert ["was written to since it was put there" in one.message for one in done.warnings] == [True]
    (kept,) = walk.set_aside()
    assert (kept / "day 1" / "accelerometer_data.csv").read_text().endswith("1,2,3,4\n")


def test_one_that_was_deleted_in_label_goes_by_a_gc(walk: Registered, tools: Tools):
    """Label, which is another user, removes the rows and cannot remove the tree."""
    adopt(tools, walk)
    with walk.site.engine.begin() as conn:
        conn.execute(text("delete from sessions; delete from raw_datasets"))

    found = [one for _ in range(2) for one in gc(tools).garbage]

    assert sorted((one.action, one.kind) for one in found) == [
        ("quarantined", "tree"),
        ("removed", "adopted"),
        ("removed", "tree"),
    ]
    assert not walk.tree.exists()
    assert not [path for path in (walk.site.settings.store_dir / "blobs").rglob("*") if path.is_file()]


def test_a_gc_leaves_an_adopted_dataset_that_nothing_refers_to(walk: Registered, tools: Tools):
    """Label registered it, and keeps it until people delete it there."""
    adopt(tools, walk)
    with walk.site.engine.begin() as conn:
        conn.execute(text("delete from projects"))

    done = [gc(tools) for _ in range(3)]

    assert not [one for each in done for one in each.garbage]
    (verified,) = verify_datasets(tools)
    assert verified.status is Status.VERIFIED
