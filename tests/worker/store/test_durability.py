"""A row relies on what the disk keeps: whoever commits one has waited for the disk itself, whoever made the
thing.
"""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import remove_all
from tests.support.ledger_rows import jobs_of
from tests.support.runs import open_run, run, run_one
from tests.support.sites import Site
from tests.support.studies import check_store, check_tree, staged, study, study_with_everything
from worker.db import ledger
from worker.jobs import leftovers, rollback
from worker.jobs.tools import Tools
from worker.legacy import restore
from worker.messages import RunState, Status, Verb
from worker.store import files, store, syscalls


def note(monkeypatch: pytest.MonkeyPatch, said: list[str], room: Any, name: str) -> None:
    """Write down when something is called."""
    real = getattr(room, name)
    monkeypatch.setattr(room, name, lambda *args, **more: (said.append(name), real(*args, **more))[1])


def test_a_legacy_directory_that_is_found_is_on_the_disk_before_a_row_relies_on_it(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """Another job may have renamed it there a moment ago, and not have waited for the disk yet."""
    study_with_everything(site)
    run(tools, Verb.MIGRATE)
    said: list[str] = []
    for room, name in ((rollback, "compare"), (restore, "sync_file_system"), (rollback, "revert")):
        note(monkeypatch, said, room, name)

    (outcome,) = run(tools, Verb.ROLLBACK).values()

    assert outcome.status is Status.ROLLED_BACK
    assert said == ["compare", "sync_file_system", "revert"]


def test_a_legacy_file_system_that_cannot_flush_is_tried_again_later(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    study_with_everything(site)
    run(tools, Verb.MIGRATE)
    fail(monkeypatch, restore, "sync_file_system", times=1)
    (ref,) = open_run(site.engine, Verb.ROLLBACK)

    first = rollback.rollback(tools, ref, "worker")
    with site.engine.connect() as conn:
        (job,) = jobs_of(conn, ref.run_id)
    again = run(tools, Verb.ROLLBACK) if first is not None else rollback.rollback(tools, ref, "worker")

    assert first is None
    assert job.state == "queued"
    del again


def fail(
    monkeypatch: pytest.MonkeyPatch, room: Any, name: str, *, times: int, number: int = errno.EIO
) -> None:
    """Let a call fail so many times, after it was made."""
    real, left = getattr(room, name), list(range(times))

    def call(*args: Any, **more: Any) -> Any:
        result = real(*args, **more)
        if left:
            left.pop()
            raise OSError(number, os.strerror(number))
        return result

    monkeypatch.setattr(room, name, call)


def test_a_restored_tree_is_flushed_by_a_descriptor_opened_before_any_write(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """One that is opened later is not told of what was lost before."""
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    there_at_opening: list[bool] = []
    by_descriptor: list[bool] = []
    real_open, real_sync = restore._opened, restore.sync_file_system

    def opened(parent: str) -> int:
        there_at_opening.append(any(name.startswith(restore.BUILDING) for name in os.listdir(parent)))
        return real_open(parent)

    def sync(folder: str | int, **how: bool) -> None:
        by_descriptor.append(isinstance(folder, int))
        real_sync(folder, **how)

    monkeypatch.setattr(restore, "_opened", opened)
    monkeypatch.setattr(restore, "sync_file_system", sync)

    run(tools, Verb.ROLLBACK, restore_files=True)

    assert there_at_opening == [False]
    # Bytes, then the name; then, before the row, whatever was found there.
    assert by_descriptor == [True, True, False]


@pytest.mark.parametrize(("times", "ends"), [(1, Status.ROLLED_BACK), (2, Status.FAILED)])
def test_bytes_that_may_be_lost_are_restored_once_more(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch, times: int, ends: Status
):
    """The next flush would say that all is well."""
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    filled: list[str] = []
    note(monkeypatch, filled, restore, "_fill")
    fail(monkeypatch, restore, "sync_file_system", times=times)

    (outcome,) = run(tools, Verb.ROLLBACK, restore_files=True).values()

    assert outcome.status is ends, outcome
    assert len(filled) == 2
    assert os.listdir(site.legacy_root) == ([directory.name] if ends is Status.ROLLED_BACK else [])


@pytest.mark.parametrize(("times", "ends"), [(1, Status.MIGRATED), (3, None)], ids=["once", "always"])
def test_bytes_that_may_be_lost_are_stored_once_more_before_the_run_is_paused(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch, times: int, ends: Status | None
):
    project = study(site, "study", 1, 2)
    tools.open_store(create=True)
    written: list[str] = []
    note(monkeypatch, written, store.Store, "copy_hashing")
    fail(monkeypatch, store, "sync_file_system", times=times)
    (ref,) = open_run(site.engine, Verb.MIGRATE)

    from worker.jobs.migrate import migrate

    outcome = migrate(tools, ref, "worker")

    assert (outcome.status if outcome is not None else None) is ends
    with site.engine.connect() as conn:
        state = ledger.find_run(conn, str(ref.run_id)).state
    assert state is (RunState.FINISHED if ends else RunState.PAUSED)
    assert staged(site) == []
    if outcome is not None:
        assert len(written) == 8
        check_tree(Path(str(outcome.dataset_path)), project)
        check_store(site)


def test_where_syncfs_reports_no_errors_each_file_is_flushed(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    directory = study_with_everything(site)
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(files, "SYNCFS_TELLS_ERRORS", False)

    run(tools, Verb.MIGRATE)
    blobs = len(list((site.settings.store_dir / "blobs").glob("*/*")))
    assert len([path for path in synced if "/staging/" in path]) >= blobs
    synced.clear()
    remove_all(directory)
    run(tools, Verb.ROLLBACK, restore_files=True)

    assert len([path for path in synced if restore.BUILDING in path]) == sum(
        path.is_file() for path in directory.rglob("*")
    )


@pytest.mark.parametrize(
    ("release", "tells"),
    [
        ("5.7.19-generic", False),
        ("4.18.0-553.el8.x86_64", False),
        ("5.8.0", True),
        ("6.1", True),
        ("odd", True),
    ],
)
def test_the_kernels_release_says_whether_syncfs_reports_errors(release: str, *, tells: bool):
    assert syscalls.syncfs_tells_errors(release) is tells


def test_what_a_power_failure_brings_back_into_staging_goes_with_the_next_job(site: Site, tools: Tools):
    """Of jobs that are over; not what another ledger's job may be making."""
    run_one(tools, Verb.MIGRATE, study(site, "first", 1).project_id)
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[study(site, "second", 2).project_id])
    staging = site.settings.store_dir / "staging"
    foreign = staging / f"{os.urandom(4).hex()}-0000-4000-8000-000000000000-1"
    for folder in (staging / f"{ref.task_id}-1-arrivals", staging / f"{ref.task_id}-7", foreign):
        folder.mkdir()
        (folder / "copy").write_bytes(b"x")
    leftovers._looked_at.clear()

    run_one(tools, Verb.MIGRATE, study(site, "third", 3).project_id)

    assert staged(site) == [foreign.name]


def test_what_finished_jobs_left_beside_a_place_goes_when_something_is_rebuilt_there(
    site: Site, tools: Tools
):
    directory = study_with_everything(site)
    (ref, *_) = open_run(site.engine, Verb.MIGRATE)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    foreign = site.legacy_root / f"{restore.BUILDING}another-ledgers-job-1"
    for leftover in (
        Path(restore.building_place(str(directory), f"{ref.task_id}-1")),
        site.legacy_root / f"{restore.BUILDING}removed-half",
        foreign,
    ):
        (leftover / "s").mkdir(parents=True)

    (outcome,) = run(tools, Verb.ROLLBACK, restore_files=True).values()

    assert outcome.status is Status.ROLLED_BACK
    assert sorted(os.listdir(site.legacy_root)) == sorted([directory.name, foreign.name])
