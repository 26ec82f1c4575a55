"""A store's disk that is full, broken, read-only or forbidden, at any call: the job says so, cleans up, and
goes on later.

A store that takes nothing stops everybody, so the run is paused with the reason and the job waits
(StoreFullError, StoreBrokenError); one that refuses a single thing fails the project (StoreUnusableError). A
file that cannot be read fails its project. In no case is the project touched, or the legacy directory.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.estate import snapshot_tree
from tests.faults.child import Children
from tests.faults.disturbing import NUMBERS, check_what_is_said, disturb, go_on
from tests.faults.stories import STORIES, BigFiles, Mending, Story, first_of_each_kind
from tests.support.disks import fill, fill_with_names, mounted_twice, overcommitted_disk, small_disk
from tests.support.runs import WORK, open_run
from tests.support.shim import Act, Fault
from tests.support.sites import Site
from tests.support.states import look
from tests.support.studies import check_store, check_tree, folder_of, staged, study
from tests.support.trees import source_of
from worker.db import ledger
from worker.errors import StoreStoppedError, StoreUnusableError
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, RunState, Status, Verb
from worker.store.digest import new_buffer
from worker.store.store import Store

# Every call, every error ------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", STORIES)
def test_an_error_at_any_call_is_reported_and_leaves_nothing_behind(
    site: Site, tools: Tools, watched: Children, story: Callable[[Site, Tools, Children], Story]
):
    """At the first calls of every third kind, the errors by turns."""
    told = story(site, tools, watched)
    calls = {call.number: call for call in told.calls() if told.is_told_here(call)}
    points = first_of_each_kind(calls.values())[::3]

    for turn, point in enumerate(points):
        disturb(told, calls[point], NUMBERS[turn % len(NUMBERS)])

    assert len(points) >= 4


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("story", STORIES)
def test_every_error_at_every_call_is_reported_and_leaves_nothing_behind(
    site: Site, tools: Tools, watched: Children, story: Callable[[Site, Tools, Children], Story], number: int
):
    told = story(site, tools, watched)

    for call in told.calls():
        if call.result != -1:
            disturb(told, call, number)


def test_a_store_that_refuses_everything_from_a_call_on_leaves_the_project_alone(
    site: Site, tools: Tools, watched: Children
):
    """As a disk that was remounted read-only: not even what was begun can be removed. The next attempt needs
    none of it.
    """
    told = Story(site, tools, watched)
    length = len(told.calls())
    for number, share in ((errno.EROFS, 0.3), (errno.EIO, 0.5), (errno.ENOSPC, 0.7)):
        ref, end = told.start(Fault(act=Act.FAIL_FROM, at=int(length * share), errno=number))

        assert told.check_between().is_legacy
        check_what_is_said(told, ref, end, number)
        told.check_end(go_on(tools, ref))


# What is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", [Story, BigFiles])
def test_a_file_that_the_disk_cannot_deliver_fails_its_project_by_name(
    site: Site, tools: Tools, watched: Children, story: Callable[[Site, Tools, Children], Story]
):
    """At some reads of the first pass and some of the second."""
    told = story(site, tools, watched)
    _, quiet = told.start(Fault(act=Act.FAIL_ONCE, at=1_000_000, call="readv"))
    reads = [call.number for call in quiet.counted]
    assert len(reads) >= 16

    for at in reads[:: len(reads) // 3]:
        ref, end = told.start(Fault(act=Act.FAIL_ONCE, at=at, call="readv", errno=errno.EIO))

        (failed,) = [call for call in end.counted if call.number == at]
        assert failed.path.startswith(str(site.legacy_root))
        assert (end.answer["status"], end.answer["error_class"]) == (Status.FAILED, "EntryUnreadableError")
        assert end.answer["error"] == f"Cannot read {failed.path}: {os.strerror(errno.EIO)}"
        assert told.check_between().is_legacy
        assert staged(site) == []
        with site.engine.connect() as conn:
            assert ledger.find_run(conn, str(ref.run_id)).state is RunState.FINISHED
        told.check_end(go_on(tools, ref))


def test_a_blob_that_the_disk_cannot_deliver_is_repaired(site: Site, tools: Tools, watched: Children):
    """The check before its reuse cannot read it; the incoming copy takes its place."""
    told = Mending(site, tools, watched)
    _, quiet = told.start(Fault(act=Act.FAIL_ONCE, at=1_000_000, call="readv"))
    reads = [call for call in quiet.counted if "/blobs/" in call.path]
    assert reads

    ref, end = told.start(Fault(act=Act.FAIL_ONCE, at=reads[0].number, call="readv", errno=errno.EIO))

    assert end.answer["status"] == Status.MIGRATED
    told.check_end(go_on(tools, ref))


# A real disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(site: Site, tmp_path: Path) -> Iterator[Site]:
    """Put the store on a disk of 16 MiB and some thousand inodes."""
    with small_disk(site.data_dir, tmp_path):
        yield site


def random_study(site: Site, name: str, sizes: dict[str, int]) -> Path:
    """A project with a session of files of these sizes that nobody has; its directory."""
    folder = folder_of(study(site, name, 1))
    for file, size in sizes.items():
        (folder / "day 1" / file).write_bytes(os.urandom(size))
    return folder


def migrate_next(site: Site, tools: Tools) -> tuple[JobRef, Outcome | None]:
    """Migrate the one project that is legacy."""
    (ref,) = open_run(site.engine, Verb.MIGRATE)
    return ref, WORK[Verb.MIGRATE, ref.subject](tools, ref, "a worker")


def check_paused(site: Site, ref: JobRef, why: str) -> None:
    """The run waits, for this reason; nothing is left of the attempt, and the project is what it was."""
    with site.engine.connect() as conn:
        run = ledger.find_run(conn, str(ref.run_id))
    assert run.state is RunState.PAUSED
    assert why in str(run.paused_because)
    assert staged(site) == []
    assert look(site.engine, ref.subject_id).is_legacy
    check_store(site)


def check_goes_on(site: Site, tools: Tools, ref: JobRef, folder: Path) -> None:
    """With room again, the same job ends well."""
    outcome = go_on(tools, ref)
    assert outcome is not None
    assert outcome.status is Status.MIGRATED, outcome
    stored, legacy = snapshot_tree(Path(str(outcome.dataset_path))), snapshot_tree(folder)
    assert {name: entry.content for name, entry in stored.items()} == {
        name: entry.content for name, entry in legacy.items()
    }
    assert staged(site) == []
    check_store(site)


def test_a_project_that_does_not_fit_on_the_disk_is_not_begun(small: Site, tools: Tools):
    folder = random_study(small, "too big", {str(number): 3 << 20 for number in range(4)})
    (small.data_dir / "filler").write_bytes(os.urandom(5 << 20))

    ref, outcome = migrate_next(small, tools)

    assert outcome is None
    check_paused(small, ref, "bytes are to be stored")
    assert list((small.settings.store_dir / "blobs").iterdir()) == []
    (small.data_dir / "filler").unlink()
    check_goes_on(small, tools, ref, folder)


@pytest.mark.parametrize(
    "size", [1 << 20, 9 << 20], ids=["small files", "a file that is stored while hashed"]
)
def test_a_disk_that_fills_up_in_the_middle_loses_nothing_and_the_run_goes_on(
    small: Site, tools: Tools, size: int
):
    """Somebody else takes the room while the files are copied."""
    first = study(small, "first", 1)
    _, outcome = migrate_next(small, tools)
    assert outcome is not None
    folder = random_study(small, "second", {str(number): size for number in range((9 << 20) // size)})
    reads = iter(range(1_000_000))
    late = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) * 3 // 2 // (1 << 18)

    def take_the_room(size_bytes: int) -> None:
        if size_bytes and next(reads) == (late if size < 9 << 20 else 3):
            fill(small.data_dir)

    ref, nothing = migrate_next(small, replace(tools, pace=take_the_room))

    assert nothing is None
    check_paused(small, ref, f"No space left in the store: {small.settings.store_dir}/")
    check_tree(Path(str(outcome.dataset_path)), first)
    (small.data_dir / "filler").unlink()
    check_goes_on(small, tools, ref, folder)


def test_trees_that_are_mounted_apart_from_their_store_are_refused_by_name(site: Site, tools: Tools):
    study(site, "one", 1)
    trees = site.settings.datasets_dir
    trees.mkdir()
    with mounted_twice(trees):
        ref, outcome = migrate_next(site, tools)

    assert outcome is not None
    assert outcome.error_class == StoreUnusableError.__name__
    assert "dataset_store and raw_datasets are on different mounts, and need one" in str(outcome.error)
    assert staged(site) == []
    assert list(trees.iterdir()) == []
    assert look(site.engine, ref.subject_id).is_legacy


def test_a_disk_without_free_inodes_counts_as_full(small: Site, tools: Tools):
    """No count of bytes foretells this one."""
    folder = random_study(small, "many", {str(number): 10 for number in range(100)})
    tools.open_store(create=True)
    fill_with_names(small.data_dir / "names")

    ref, outcome = migrate_next(small, tools)

    assert outcome is None
    check_paused(small, ref, f"No space left in the store: {small.settings.store_dir}/")
    shutil.rmtree(small.data_dir / "names")
    check_goes_on(small, tools, ref, folder)


def test_bytes_that_the_disk_lost_stop_every_worker_that_wrote_meanwhile(tmp_path: Path):
    """The kernel tells each open descriptor of it once: who opened one after another worker had been told
    would not hear.
    """
    place, folder, source = (tmp_path / name for name in ("disk", "backing", "recording"))
    place.mkdir()
    folder.mkdir()
    source.write_bytes(os.urandom(20 << 20))
    with overcommitted_disk(place, folder):
        one, other = (
            Store.open(place / "dataset_store", place / "raw_datasets", "blake3", create=True)
            for _ in range(2)
        )
        with one.staging("attempt") as staging:
            one.stage_file(source_of(source), staging, new_buffer(1 << 20))

            # The disk below is full: the kernel says so, or calls it an error of the disk.
            with pytest.raises(StoreStoppedError):
                other.sync()
            with pytest.raises(StoreStoppedError):
                one.sync()
