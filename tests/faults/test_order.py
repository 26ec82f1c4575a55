"""The order of a migration's calls to the system: bytes on the disk, then their names, then those on the
disk, then the row.

What a crash of the machine takes is what was not synced; this order is what makes every row refer to bytes
that survive one.
"""

from tests.estate import Project, snapshot_tree
from tests.faults.child import Children, End
from tests.faults.order import (
    check_durable_before_named,
    check_order,
    conversion,
    files,
    last_sync,
    names_of_blobs,
    syncs,
)
from tests.support.runs import let_lease_run_out, open_run, run_one
from tests.support.shim import Act, Fault
from tests.support.sites import Site
from tests.support.studies import damage, folder_of, make_big, study
from worker.jobs.tools import Tools
from worker.messages import Status, Verb


def migrate(site: Site, watched: Children, project: Project) -> End:
    """Migrate one project by a watched worker."""
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
    end = watched.migrate(ref)
    assert end.answer["status"] == Status.MIGRATED, end.answer
    return end


# The ways a project may go ----------------------------------------------------------------------------------


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


def test_what_was_just_stored_is_not_read_again_to_be_verified(site: Site, watched: Children):
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


def test_a_reused_dataset_costs_one_sync_before_its_row_and_changes_no_file(site: Site, watched: Children):
    """Another job may be making what is reused at this moment, and still be waiting for the disk."""
    migrate(site, watched, study(site, "first", 1, 2))

    end = migrate(site, watched, study(site, "second", 1, 2))

    # What makes the store's directories finds them there.
    (sync,) = [call for call in files(end.calls) if call.result != -1]
    assert (sync.name, sync.path) == ("syncfs", str(site.settings.store_dir))
    assert sync.before(conversion([call for call in end.calls if call.result is not None]))


def test_a_damaged_blob_is_repaired_in_the_same_order_of_syncs(site: Site, watched: Children):
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
    # The tree that had the bad bytes gets the good ones before anybody may refer to them, and that is
    # durable, too.
    (mended,) = [call for call in done if call.target == str(damaged)]
    assert mended.before(last_sync(done, conversion(done)))


def test_a_tree_that_a_dead_worker_published_is_synced_before_a_row_refers_to_it(
    site: Site, watched: Children, tools: Tools
):
    """It may have died before its last sync."""
    tools.open_store(create=True)
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


def test_a_migration_leaves_the_legacy_directory_as_it_was(site: Site, watched: Children):
    """By its bytes, modes, times and link counts; that nothing was called upon it, `check_places` says
    above.
    """
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
