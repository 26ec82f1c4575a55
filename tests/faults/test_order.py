"""The order of a migration's calls to the system: bytes on the disk, then their names, then those on the disk, then the row.

What a crash of the machine takes is what was not synced; this order is what makes every row refer to bytes that survive one.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from tests.conftest import Site
from tests.estate import Project, snapshot_tree
from tests.faults.child import Children, End
from tests.faults.shim import REMOVALS, SENDS, SYNCS, Act, Call, Fault
from tests.faults.studies import damage, folder_of, make_big, study
from tests.fidelity.runs import let_lease_run_out, open_run, run_one
from worker.job import Tools
from worker.messages import Status, Verb

pytestmark = pytest.mark.stack

_OPENS = {"open", "open64", "openat", "openat64", "creat", "creat64"}
_FILLS = {
    *("write", "writev", "pwrite", "pwrite64", "pwritev", "pwritev64", "pwritev2", "pwritev64v2"),
    *("posix_fallocate", "posix_fallocate64", "ftruncate", "ftruncate64", "sendfile64", "copy_file_range"),
    *("fchmod", "ioctl"),
}
"""What changes a file that is open."""
_NAMES = {"link", "linkat", "rename", "renameat", "renameat2"}


def migrate(site: Site, watched: Children, project: Project) -> End:
    """Migrate one project by a watched worker."""
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
    end = watched.migrate(ref)
    assert end.answer["status"] == Status.MIGRATED, end.answer
    return end


# What must hold -------------------------------------------------------------------------------------------------


def check_order(site: Site, end: End) -> None:
    """Everything that is said of the order above, of one whole migration."""
    done = [call for call in end.calls if call.result is not None and call.result >= 0]
    commit = conversion(done)
    for name in names_of_blobs(site, done) + manifests(site, done):
        check_durable_before_named(done, name)
    lasting = last_sync(done, commit)
    for call in done:
        if call.name not in SENDS | SYNCS | REMOVALS and call.started < commit.started:
            assert call.before(lasting) or is_clearing_up(site, call), (
                f"not on the disk at the commit: {call}"
            )
    assert [call for call in files(done) if call.started > commit.started] == []
    check_places(site, end.calls)


def conversion(done: Sequence[Call]) -> Call:
    """The commit of the transaction that makes the project refer to the dataset."""
    sends = [call for call in done if call.name in SENDS]
    (converting,) = [call for call in sends if "insert into project_conversions" in call.text]
    return next(
        call
        for call in sends
        if call.thread == converting.thread and converting.before(call) and "COMMIT" in call.text
    )


def manifests(site: Site, done: Sequence[Call]) -> list[Call]:
    """The calls that give manifests their names."""
    folder = f"{site.settings.store_dir}/manifests/"
    return [call for call in done if call.name in _NAMES and call.target.startswith(folder)]


def names_of_blobs(site: Site, done: Sequence[Call]) -> list[Call]:
    """The calls that give blobs their names."""
    blobs = f"{site.settings.store_dir}/blobs/"
    return [call for call in done if call.name in _NAMES and call.target.startswith(blobs)]


def check_durable_before_named(done: Sequence[Call], name: Call) -> None:
    """The bytes that get a name were written, and a sync that began after that was over, when they got it."""
    written = [call for call in done if call.name in _FILLS and call.path == name.path]
    assert written, f"nobody wrote {name.path}"
    assert any(
        is_sync_of(call, name.path) and call.before(name) and all(write.before(call) for write in written)
        for call in done
    ), f"named before its bytes were on the disk: {name}"
    assert not [call for call in done if call.name in _FILLS and call.path == name.target]


def is_sync_of(call: Call, path: str) -> bool:
    """Does the call wait until a file is on the disk?"""
    return call.name == "syncfs" or (call.name in SYNCS and call.path == path)


def last_sync(done: Sequence[Call], commit: Call) -> Call:
    """The last sync of the whole file system that was over before the commit was sent."""
    return [call for call in done if call.name == "syncfs" and call.before(commit)][-1]


def is_clearing_up(site: Site, call: Call) -> bool:
    """Does the call open a directory of staging so that its entries can be removed?"""
    return call.name == "chmod" and call.path.startswith(f"{site.settings.store_dir}/staging/")


def check_places(site: Site, calls: Sequence[Call]) -> None:
    """Files are made in staging and in quarantine only; names of trees come by rename; the legacy directory is left alone."""
    store, trees = site.settings.store_dir, site.settings.datasets_dir
    for call in calls:
        if call.name in _OPENS | _FILLS:
            assert is_below(call.path, [store / "staging", store / "quarantine"]), call
        if is_below(call.target, [trees]):
            assert call.name == "rename", call
            assert is_below(call.path, [store / "staging"]), call
        assert not is_below(call.path, [site.legacy_root]), call
        assert not is_below(call.target, [site.legacy_root]), call


def is_below(path: str, folders: Collection[Path]) -> bool:
    """Is the path inside one of the folders?"""
    return any(path.startswith(f"{folder}/") for folder in folders)


def files(calls: Sequence[Call]) -> list[Call]:
    """The calls that concern files, not the server."""
    return [call for call in calls if call.name not in SENDS]


def syncs(end: End) -> Counter[str]:
    """How often each call that waits for the disk was made."""
    return Counter(call.name for call in end.calls if call.name in SYNCS)


# The ways a project may go --------------------------------------------------------------------------------------


def test_new_content_is_durable_before_its_names_and_these_before_the_row(site: Site, watched: Children):
    project = study(site, "new", 1, 2)

    end = migrate(site, watched, project)

    assert len(names_of_blobs(site, end.calls)) == 4
    check_order(site, end)


def test_big_new_files_that_are_stored_while_they_are_hashed_keep_the_order(site: Site, watched: Children):
    project = study(site, "big", 1, 2)
    make_big(project, 1)
    make_big(project, 2)

    end = migrate(site, watched, project)

    arrived = [call for call in names_of_blobs(site, end.calls) if "-arrivals/" in call.path]
    assert len(arrived) == 2
    assert len(names_of_blobs(site, end.calls)) == 4
    check_order(site, end)


def test_what_was_just_stored_is_not_read_again_to_be_believed(site: Site, watched: Children):
    project = study(site, "big", 1)
    make_big(project, 1)
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

    end = watched.migrate(ref, Fault(act=Act.FAIL_ONCE, at=1_000_000, call="readv"))

    assert end.answer["status"] == Status.MIGRATED
    assert {call.path for call in end.counted} == {
        str(path) for path in folder_of(project).rglob("*") if path.is_file()
    }


def test_a_dataset_beside_others_that_shares_their_blobs_keeps_the_order(site: Site, watched: Children):
    migrate(site, watched, study(site, "first", 1, 2))

    end = migrate(site, watched, study(site, "second", 2, 3))

    assert len(names_of_blobs(site, end.calls)) == 2
    check_order(site, end)


def test_a_reused_dataset_costs_no_call_that_changes_a_file_and_no_sync(site: Site, watched: Children):
    migrate(site, watched, study(site, "first", 1, 2))

    end = migrate(site, watched, study(site, "second", 1, 2))

    # What makes the store's directories finds them there; that is all.
    assert [call for call in files(end.calls) if call.result != -1] == []


def test_a_damaged_blob_is_mended_in_the_same_order(site: Site, watched: Children):
    migrate(site, watched, study(site, "first", 1, 2))
    (tree,) = site.settings.datasets_dir.iterdir()
    damaged = tree / "day 1" / "accelerometer_data.csv"
    whole = damaged.read_bytes()
    damage(damaged)

    end = migrate(site, watched, study(site, "second", 1, 3))

    assert damaged.read_bytes() == whole
    done = [call for call in end.calls if call.result is not None and call.result >= 0]
    assert len(names_of_blobs(site, done)) == 3
    for name in names_of_blobs(site, done):
        check_durable_before_named(done, name)
    # The tree that had the bad bytes gets the good ones before anybody may refer to them, and that is durable, too.
    (mended,) = [call for call in done if call.target == str(damaged)]
    assert mended.before(last_sync(done, conversion(done)))


def test_a_tree_that_a_dead_worker_published_is_synced_before_a_row_refers_to_it(
    site: Site, watched: Children, tools: Tools
):
    """It may have died before its last sync."""
    project = study(site, "first", 1)
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
    died = watched.migrate(ref, Fault(act=Act.KILL_BEFORE, at=2, call="syncfs"))
    assert died.died
    assert len(list(site.settings.datasets_dir.iterdir())) == 1
    let_lease_run_out(tools.engine, ref)

    end = watched.migrate(ref)

    assert end.answer["status"] == Status.MIGRATED
    assert names_of_blobs(site, end.calls) == []
    check_order(site, end)


def test_a_legacy_directory_is_as_it_was(site: Site, watched: Children):
    """By its bytes, modes, times and link counts; that nothing was called upon it, `check_places` says above."""
    project = study(site, "first", 1, 2)
    assert project.directory is not None
    before = snapshot_tree(project.directory)

    migrate(site, watched, project)

    assert snapshot_tree(project.directory) == before


def test_waits_for_the_disk_do_not_grow_with_the_number_of_files(site: Site, watched: Children, tools: Tools):
    run_one(tools, Verb.MIGRATE, study(site, "the store is made", 1).project_id)
    few, many = study(site, "few", 2), study(site, "many", *range(3, 23))

    waits = syncs(migrate(site, watched, few)), syncs(migrate(site, watched, many))

    assert waits[0] == waits[1]
    assert waits[0] == {"syncfs": 2, "fsync": 1}
