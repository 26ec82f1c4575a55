"""People who write to a project while it is migrated: what is stored is one state that the directory had,
never a mixture.

A change that is noticed starts the project over, once; one that goes on fails it by name. One that comes too
late to be noticed is not in what was stored, in none of its parts.
"""

import itertools
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.estate import Project
from tests.support.runs import run_one
from tests.support.sites import Site
from tests.support.studies import check_store, check_tree, folder_of, make_big, staged, study
from tests.support.trees import hashed, open_store, read_tree, signature_of, temporary_files, write_tree
from tests.support.waiting import eventually
from worker.errors import SourceChangedError
from worker.jobs.tools import Tools
from worker.legacy.ingest import store_tree
from worker.messages import Outcome, Status, Verb
from worker.store.digest import BIG_BYTES
from worker.store.removal import remove_tree

Change = Callable[[Path], object]
"""Something that is done to a project's directory, in which `day 1` and `day 2` have two files each."""

FIRST, LAST = "day 1/accelerometer_data.csv", "day 2/gyroscope_data.csv"


# Changes ----------------------------------------------------------------------------------------------------


def edit(name: str, at: int = -2) -> Change:
    """Another byte in the same file."""

    def do(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            old = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(b"7" if old != b"7" else b"8")

    return do


def append(name: str) -> Change:
    def do(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(b"1000000000000,1,2,3\n")

    return do


def truncate(name: str, by: int = 30) -> Change:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


def swap(name: str) -> Change:
    """Another file of the same size under the same name."""

    def do(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / "new").write_bytes(content)
        (folder / "new").rename(folder / name)

    return do


def as_if_nothing_had_happened(change: Change, name: str) -> Change:
    """The same with the former times, as `cp -p` or a careful program leaves them."""

    def do(folder: Path) -> None:
        status = (folder / name).stat()
        change(folder)
        os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns))

    return do


CHANGES: dict[str, Change] = {
    "edit the first": edit(FIRST),
    "edit the last": edit(LAST),
    "append": append(LAST),
    "truncate": truncate(FIRST),
    "empty": lambda folder: os.truncate(folder / LAST, 0),
    "swap the first": swap(FIRST),
    "swap the last": swap(LAST),
    "edit and set the times back": as_if_nothing_had_happened(edit(FIRST), FIRST),
    "swap and set the times back": as_if_nothing_had_happened(swap(LAST), LAST),
    "add a file": lambda folder: (folder / "day 2" / "new.csv").write_bytes(b"new"),
    "add an empty session": lambda folder: (folder / "day 3").mkdir(),
    "remove": lambda folder: (folder / LAST).unlink(),
    "rename a file": lambda folder: (folder / FIRST).rename(folder / "day 1" / "other.csv"),
    "rename a session": lambda folder: (folder / "day 2").rename(folder / "day 9"),
    "exchange two files": lambda folder: exchange(folder / FIRST, folder / LAST),
    "put a link in its place": lambda folder: put_link(folder / FIRST),
}


def exchange(one: Path, other: Path) -> None:
    """Each has the other's name; nobody's bytes change."""
    kept = one.with_name("kept")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


def put_link(path: Path) -> None:
    """The same bytes by way of a link."""
    elsewhere = path.with_name("elsewhere.csv")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


# One change at one moment -----------------------------------------------------------------------------------


def migrate_changing(
    site: Site, tools: Tools, project: Project, change: Change, moments: Callable[[int], bool]
) -> tuple[Outcome, int]:
    """Migrate a project and change it after those chunks that were read; the outcome, and how many were
    read.
    """
    let_the_clock_tick(site.folder)
    read, lock = itertools.count(1), threading.Lock()
    last = 0

    def pass_by(_size_bytes: int) -> None:
        nonlocal last
        with lock:
            last = next(read)
            if moments(last):
                change(folder_of(project))

    outcome = run_one(replace(tools, pace=pass_by), Verb.MIGRATE, project.project_id)
    assert staged(site) == []
    return outcome, last


def let_the_clock_tick(folder: Path) -> None:
    """Wait until a change has another time than those before it: before Linux 6.13 files' times advance in
    steps of some ms.
    """
    probe = folder / "probe"
    probe.touch()
    before = probe.stat().st_mtime_ns

    def has_ticked() -> bool:
        probe.touch()
        return probe.stat().st_mtime_ns // 10_000_000 > before // 10_000_000

    eventually(has_ticked, "the clock of files goes on")


def check_one_state(site: Site, outcome: Outcome, before: dict[bytes, bytes | None], project: Project) -> str:
    """The stored tree is the directory before the change or after it; which."""
    assert outcome.status is Status.MIGRATED, outcome
    stored, after = read_tree(Path(str(outcome.dataset_path))), read_tree(folder_of(project))
    assert stored in (before, after)
    check_store(site)
    return "before" if stored == before else "after"


def check_changes(site: Site, tools: Tools, kind: str, *, every: int) -> None:
    """Try a change at every so many moments, from the first chunk that is hashed to the last that is copied,
    and beyond.
    """
    seen = []
    for moment in itertools.count(1, every):
        project = study(site, f"study {moment}", 2 * moment, 2 * moment + 1)
        for number, name in enumerate(("day 1", "day 2")):
            (folder_of(project) / f"day {2 * moment + number}").rename(folder_of(project) / name)
        before = read_tree(folder_of(project))

        outcome, reads = migrate_changing(
            site, tools, project, CHANGES[kind], lambda count, moment=moment: count == moment
        )

        seen.append(check_one_state(site, outcome, before, project))
        if reads < moment:
            break
    # The first of four files has just been read: whatever comes now is noticed at the end of the pass at the
    # latest.
    assert seen[0] == "after"
    assert len(seen) > 8 // every
    assert seen[-1] == "before"


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_stored_as_a_whole_or_not_at_all(site: Site, tools: Tools, kind: str):
    """Noticed in time it is in what is stored, and in no part of it when it comes too late."""
    check_changes(site, tools, kind, every=5)


@pytest.mark.long
@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_at_any_moment_is_stored_as_a_whole_or_not_at_all(site: Site, tools: Tools, kind: str):
    check_changes(site, tools, kind, every=1)


@pytest.mark.parametrize(
    "change",
    [
        edit("day 1/accelerometer_data.csv", at=1000),
        edit("day 1/accelerometer_data.csv", at=BIG_BYTES - 1000),
        append("day 1/accelerometer_data.csv"),
        truncate("day 1/accelerometer_data.csv", by=BIG_BYTES // 2),
        swap("day 1/accelerometer_data.csv"),
    ],
    ids=["edit its beginning", "edit its end", "append", "truncate", "swap"],
)
def test_a_change_of_a_big_file_while_it_is_stored_is_noticed(site: Site, tools: Tools, change: Change):
    """It is hashed and stored in one pass: no second digest would tell."""
    for moment in (1, 2, 5, 9):
        site.empty()
        project = study(site, "study", 1)
        make_big(project, 1)
        before = read_tree(folder_of(project))

        outcome, _ = migrate_changing(
            site, tools, project, change, lambda count, moment=moment: count == moment
        )

        assert check_one_state(site, outcome, before, project) == "after"
        check_tree(Path(str(outcome.dataset_path)), project)
        assert outcome.files.stored == 2
        assert len(list((site.settings.store_dir / "blobs").glob("*/*"))) == 2


def test_a_source_that_never_rests_fails_its_project_by_name(site: Site, tools: Tools):
    project = study(site, "study", 1, 2)
    changed = folder_of(project) / FIRST

    outcome, _ = migrate_changing(site, tools, project, append(FIRST), lambda _count: True)

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "SourceChangedError")
    assert str(changed) in str(outcome.error)
    assert outcome.files.left == 4
    assert list(site.settings.datasets_dir.iterdir()) == []
    assert run_one(tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED


def test_a_change_that_leaves_the_times_alone_is_found_by_the_second_digest(tmp_path: Path):
    """A page that is mapped and was written to already takes another write without a word to the file's
    times.
    """
    folder = Path(tempfile.mkdtemp(prefix="label-tests-", dir=memory_folder(tmp_path)))
    try:
        path = write_tree(folder / "study", {b"s/mapped.csv": b"1,2,3\n" * 1000}) / "s" / "mapped.csv"
        store = open_store(folder)
        with (
            path.open("r+b") as file,
            mmap.mmap(file.fileno(), 0) as mapped,
            ThreadPoolExecutor(2) as threads,
        ):
            mapped[0:1] = b"4"
            tree = hashed(folder / "study", store)
            before = signature_of(path)
            mapped[0:1] = b"5"
            assert signature_of(path) == before, "this file system tells"

            target = store.tree_path("study", tree.manifest.digest)
            with pytest.raises(SourceChangedError, match=str(path)):
                store_tree(store, tree, target, attempt="attempt", threads=threads)

        assert temporary_files(store) == []
        assert list((store.root / "blobs").iterdir()) == []
    finally:
        remove_tree(str(folder))


def memory_folder(otherwise: Path) -> Path:
    """A folder in memory, where nothing is written back, which would make the next write to a map a noticed
    one.
    """
    folder = Path("/dev/shm")  # noqa: S108 - for a folder of its own in it
    return folder if os.access(folder, os.W_OK) else otherwise


# A writer beside it -----------------------------------------------------------------------------------------


class Writer:
    """Rewrites the files of a directory in a fixed order, each with the next generation's byte from end to
    end, so that every state it ever has can be told: the generations of its files never rise along that
    order, and differ by one at most.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.paths = [folder / f"s/{number}.csv" for number in range(6)]
        self._chance = Random(seed)
        self._sizes = [self._chance.choice((1, 4_000, 300_000)) for _ in self.paths]
        self._stop = threading.Event()
        for path, size in zip(self.paths, self._sizes, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0" * size)

    def run(self) -> None:
        """Write until stopped."""
        for generation in itertools.count(1):
            for path, size in zip(self.paths, self._sizes, strict=True):
                if self._stop.wait(self._chance.choice((0, 0, 0.001, 0.01))):
                    return
                self._rewrite(path, bytes([generation % 256]) * size)
            if self._stop.wait(self._chance.choice((0, 0.05, 0.1))):
                return

    def stop(self) -> None:
        """End after the file at hand."""
        self._stop.set()

    def _rewrite(self, path: Path, content: bytes) -> None:
        """In place, or as another file, with or without the former time."""
        former = path.stat().st_mtime_ns
        if self._chance.random() < 0.5:
            with path.open("r+b") as file:
                file.write(content)
        else:
            # Outside the session: a draft in it would be a state, too.
            draft = path.parents[2] / "draft"
            draft.write_bytes(content)
            draft.rename(path)
        if self._chance.random() < 0.3:
            os.utime(path, ns=(former, former))

    def check(self, tree: Path) -> None:
        """Is the tree one of the states?"""
        contents = [(tree / path.relative_to(path.parents[1])).read_bytes() for path in self.paths]
        assert [len(content) for content in contents] == self._sizes
        assert all(len(set(content)) == 1 for content in contents), "a file that never was"
        generations = [content[0] for content in contents]
        steps = [(earlier - later) % 256 for earlier, later in itertools.pairwise(generations)]
        assert sum(steps) <= 1, f"a directory that never was: generations {generations}"


def store_while_written(folder: Path, seed: int, tries: int) -> tuple[int, int]:
    """Try to store a directory that somebody writes to; how often it was stored, and how often it was
    refused.
    """
    store = open_store(folder)
    writer = Writer(folder / "study", seed)
    stored, refused = 0, []
    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(writer.run)
        for number in range(tries):
            try:
                tree = hashed(folder / "study", store)
                target = store.tree_path("study", tree.manifest.digest)
                store_tree(store, tree, target, attempt=str(number), threads=threads)
            except SourceChangedError as error:
                refused.append(str(error))
            else:
                writer.check(target)
                stored += 1
        writer.stop()
        writing.result()
    assert all(str(folder / "study") in reason for reason in refused), refused
    return stored, len(refused)


def check_writers(folder: Path, rounds: int) -> None:
    """So many directories and writers; both ends must have been seen."""
    ends = []
    for seed in range(rounds):
        (folder / str(seed)).mkdir()
        ends.append(store_while_written(folder / str(seed), seed, tries=25))
    assert sum(stored for stored, _ in ends) > 0, ends
    assert sum(refused for _, refused in ends) > 0, ends


def test_a_directory_that_is_written_to_is_stored_as_it_was_at_one_moment_or_refused(tmp_path: Path):
    check_writers(tmp_path, 3)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_directories_that_are_written_to_are_stored_as_they_were_or_refused(tmp_path: Path):
    check_writers(tmp_path, 200)
