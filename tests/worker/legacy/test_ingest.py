"""From a listed tree to a stored one: every byte as it was, every change under our hands noticed, every file
counted once.
"""

import dataclasses
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import worker.store.batches
import worker.store.store
from tests.support.folders import passable_folder
from tests.support.trees import (
    BIG_FIRST,
    after_files,
    condemned,
    hashed,
    open_store,
    read_tree,
    roots_of,
    store_at,
    temporary_files,
    write_tree,
)
from worker.errors import (
    LeaseLostError,
    SourceChangedError,
    StoreBrokenError,
    WorkerStoppingError,
)
from worker.legacy.hash import count_rest, hash_tree, heads
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import (
    Stored,
    counted,
    missing_from,
    store_tree,
)
from worker.legacy.parallel import Advance
from worker.legacy.scan import scan
from worker.messages import FileCounts, LinkCounts
from worker.runtime.throttle import Pace
from worker.sessions_csv import RECORDING
from worker.store.digest import BIG_BYTES, CHUNK_BYTES, digest_of
from worker.store.removal import remove_tree
from worker.store.store import Store

CARRIAGE_RETURNS = b"t,x\r\n1,2\r\n3,4\r\n"


def store_hashed(
    store: Store,
    tree: HashedTree,
    attempt: str = "attempt",
    advance: Advance = lambda _files, _bytes: None,
    *,
    threads: int = 2,
) -> tuple[Path, Stored]:
    """Store a tree at the place for its name."""
    target = store.tree_path("study", tree.manifest.digest)
    return target, store_at(store, tree, target, attempt, advance, threads=threads)


# Storing ----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b".c", b"d e", b"\xe9", "é".encode(), b"a.csv", b"labels.json"])
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map(lambda names: b"session/" + b"/".join(names)),
    st.none() | st.binary(max_size=8) | st.sampled_from([b"", b"x" * (CHUNK_BYTES + 1)]),
    min_size=1,
    max_size=8,
).filter(
    lambda tree: (
        not any(tree[one] is not None and other.startswith(one + b"/") for one in tree for other in tree)
    )
)


@given(entries=TREES)
@settings(deadline=None, max_examples=25)
def test_what_is_stored_is_the_source_byte_for_byte(entries: dict[bytes, bytes | None]):
    with passable_folder() as folder:
        store = open_store(folder)
        project = write_tree(folder / "study", entries)

        target, stored = store_hashed(store, hashed(project, store))

        assert read_tree(target) == read_tree(project)
        contents = [content for content in entries.values() if content is not None]
        assert stored.files == FileCounts(
            stored=len(set(contents)), reused=len(contents) - len(set(contents))
        )
        assert stored.bytes.stored == sum(map(len, set(contents)))
        assert stored.bytes.read == sum(map(len, contents))


def test_equal_files_are_stored_once_and_counted_once(tmp_path: Path):
    store = open_store(tmp_path)
    entries = {b"session/%d" % number: b"12345" for number in range(5)} | {b"session/own": b"1"}

    tree = hashed(write_tree(tmp_path / "study", entries), store)
    _, stored = store_hashed(store, tree)

    assert (stored.files.stored, stored.files.reused, stored.files.total) == (2, 4, 6)
    assert (stored.bytes.stored, stored.bytes.reused, stored.bytes.read) == (6, 20, 26)
    assert stored.links == LinkCounts(hard=6)
    assert len(tree.distinct) == 2


def test_content_that_was_there_before_counts_as_reused(tmp_path: Path):
    store = open_store(tmp_path)
    store_hashed(store, hashed(write_tree(tmp_path / "one", BIG_FIRST), store), "one")
    other = hashed(write_tree(tmp_path / "other", BIG_FIRST | {b"session/4": b"4"}), store)

    _, stored = store_hashed(store, other, "other")

    assert (stored.files.stored, stored.files.reused) == (1, 3)
    assert (stored.bytes.stored, stored.bytes.reused) == (1, 600)


def test_a_tree_that_is_reused_whole_stores_nothing(tmp_path: Path):
    tree = hashed(write_tree(tmp_path / "study", BIG_FIRST), open_store(tmp_path))

    found = counted(tree, ())
    assert found.files == FileCounts(reused=3)
    assert (found.bytes.stored, found.bytes.read) == (0, 600)


def test_an_attempt_that_died_after_publishing_is_finished_by_the_next(tmp_path: Path):
    store = open_store(tmp_path)
    tree = hashed(write_tree(tmp_path / "study", BIG_FIRST), store)
    target, _ = store_hashed(store, tree, "first")
    inode = target.stat().st_ino

    again, stored = store_hashed(store, tree, "second")

    assert (again, again.stat().st_ino) == (target, inode)
    assert (stored.files.stored, stored.files.reused) == (0, 3)
    assert condemned(store) == {}


def test_a_tree_found_published_is_made_durable_before_rows_refer_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = open_store(tmp_path)
    tree = hashed(write_tree(tmp_path / "study", BIG_FIRST), store)
    store_hashed(store, tree, "first")
    synced: list[str] = []
    really = worker.store.store.sync_file_system
    monkeypatch.setattr(
        worker.store.store, "sync_file_system", lambda path: (really(path), synced.append(path))
    )

    store_hashed(store, tree, "second")

    assert synced


def test_an_attempt_that_died_after_some_blobs_is_finished_by_the_next(tmp_path: Path):
    store = open_store(tmp_path)
    tree = hashed(write_tree(tmp_path / "study", BIG_FIRST), store)
    store_hashed(store, hashed(write_tree(tmp_path / "part", {b"s/x": b"1" * 300}), store), "died")
    (store.root / "staging" / "leftover").mkdir()

    target, stored = store_hashed(store, tree, "second")

    assert read_tree(target) == read_tree(tmp_path / "study")
    assert (stored.files.stored, stored.files.reused) == (2, 1)


def test_a_change_between_hashing_and_copying_is_noticed_and_nothing_is_published(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study", BIG_FIRST)
    tree = hashed(project, store)
    with (project / "session/3 small").open("ab") as file:
        file.write(b"more")

    with pytest.raises(SourceChangedError, match="session/3 small"):
        store_hashed(store, tree)

    assert list(store.trees.iterdir()) == []
    assert temporary_files(store) == []


# Stopping ---------------------------------------------------------------------------------------------------


def test_copying_stops_at_a_file_and_keeps_what_is_finished_for_the_next_attempt(tmp_path: Path):
    entries = {b"session/%03d" % number: b"%d" % number for number in range(200)}
    store = open_store(tmp_path)
    tree = hashed(write_tree(tmp_path / "study", entries), store)

    with pytest.raises(LeaseLostError):
        store_hashed(store, tree, "first", after_files(3, lose_the_lease))

    kept = blobs_of(store)
    assert 3 <= len(kept) < 200
    assert temporary_files(store) == []
    assert list(store.trees.iterdir()) == []

    target, stored = store_hashed(store, tree, "second")

    assert read_tree(target) == read_tree(tmp_path / "study")
    assert (stored.files.stored, stored.files.reused) == (200 - len(kept), len(kept))


def lose_the_lease() -> None:
    raise LeaseLostError("another worker has the job")


# Batches ----------------------------------------------------------------------------------------------------


def blobs_of(store: Store) -> dict[str, bytes]:
    """Every blob, each with the bytes that its name promises."""
    found = {path.name: path.read_bytes() for path in (store.root / "blobs").glob("*/*")}
    assert {digest_of("blake3", content) for content in found.values()} == found.keys()
    return found


@contextmanager
def counting_syncs(monkeypatch: pytest.MonkeyPatch, store: Store) -> Iterator[list[int]]:
    """How many blobs there were at each wait for the disk."""
    seen: list[int] = []
    really = worker.store.store.sync_file_system

    def count(folder: str | int) -> None:
        seen.append(len(blobs_of(store)))
        really(folder)

    with monkeypatch.context() as patch:
        patch.setattr(worker.store.store, "sync_file_system", count)
        yield seen


def hash_and_store(store: Store, project: Path, threads: int = 1) -> HashedTree:
    """Hash a project and store each of its files in the same pass."""
    roots = roots_of(store.root.parent)
    scanned = scan(str(project), roots)
    with store.staging("arrivals") as staging, ThreadPoolExecutor(threads) as pool:
        copies = {file.path: f"{staging}/{number}" for number, file in enumerate(scanned.files)}
        return hash_tree(scanned, roots=roots, store=store, threads=pool, copies=copies)


def test_copies_get_their_names_whenever_a_batch_of_them_has_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Six files of 100 bytes: a batch is full with the third, and with the sixth."""
    project = write_tree(
        tmp_path / "study", {b"session/%d" % number: b"%d" % number * 100 for number in range(6)}
    )
    store = open_store(tmp_path)
    monkeypatch.setattr(worker.store.batches, "BATCH_BYTES", 250)

    with counting_syncs(monkeypatch, store) as hashing:
        tree = hash_and_store(store, project)
    remove_tree(str(store.root / "blobs"))
    (store.root / "blobs").mkdir()
    with counting_syncs(monkeypatch, store) as copying:
        store_hashed(store, tree, threads=1)

    assert hashing == [0, 3]
    assert copying == [0, 3, 6]


def test_files_that_fit_into_one_batch_are_synced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(tmp_path)

    with counting_syncs(monkeypatch, store) as waits:
        tree = hash_and_store(store, write_tree(tmp_path / "study", BIG_FIRST))

    assert waits == [0]
    assert store.admitted == tree.distinct.keys() == blobs_of(store).keys()


def test_a_disk_that_has_lost_bytes_gets_no_second_chance_to_call_them_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The kernel tells once: the next sync would be content with what came in before the first."""
    answers = iter([OSError(errno.EIO, os.strerror(errno.EIO))])

    def sync(_folder: str | int) -> None:
        for error in answers:
            raise error

    monkeypatch.setattr(worker.store.store, "sync_file_system", sync)
    monkeypatch.setattr(worker.store.batches, "BATCH_BYTES", 250)
    store = open_store(tmp_path)
    project = write_tree(
        tmp_path / "study", {b"session/%d" % number: b"%d" % number * 100 for number in range(20)}
    )

    with pytest.raises(StoreBrokenError):
        hash_and_store(store, project, threads=3)

    assert blobs_of(store) == {}


# Listening --------------------------------------------------------------------------------------------------


def stop_at(number: int) -> Pace:
    """A pace at whose call of this number, from 1, the worker is told to stop."""
    calls = itertools.count(1)

    def pace(_size: int) -> None:
        if next(calls) >= number:
            raise WorkerStoppingError("The worker was told to stop")

    return pace


def with_odd_recording(folder: Path) -> Path:
    """A project with a recording that only a parser can count, one big file and some small ones."""
    return write_tree(
        folder / "study",
        {
            f"session/{RECORDING}".encode(): CARRIAGE_RETURNS * 40_000,
            b"session/big": b"1" * BIG_BYTES,
            **{b"session/%d" % number: b"%d" % number for number in range(20)},
        },
    )


@pytest.mark.parametrize(
    "work",
    [
        lambda tree, store, pool, pace: heads(tree.scan, store, pool, pace),
        lambda tree, store, pool, pace: hash_tree(
            tree.scan, roots=roots_of(store.root.parent), store=store, threads=pool, pace=pace
        ),
        lambda tree, _store, _pool, pace: count_rest(dataclasses.replace(tree, records={}), {}, pace),
        lambda tree, store, _pool, pace: missing_from(store, tree, pace),
        lambda tree, store, pool, pace: store_tree(
            store, tree, store.trees / "study-1", attempt="attempt", threads=pool, pace=pace
        ),
    ],
    ids=["heads", "hash_tree", "count_rest", "missing_from", "store_tree"],
)
def test_every_pass_over_a_tree_ends_when_the_worker_stops(
    tmp_path: Path, work: Callable[[HashedTree, Store, ThreadPoolExecutor, Pace], object]
):
    store = open_store(tmp_path)
    tree = hashed(with_odd_recording(tmp_path), store)

    with ThreadPoolExecutor(2) as pool, pytest.raises(WorkerStoppingError):
        work(tree, store, pool, stop_at(1))


def test_counting_a_recording_ends_when_the_worker_stops(tmp_path: Path):
    """The bytes are hashed by then; the parser reads them once more."""
    store = open_store(tmp_path)
    project = with_odd_recording(tmp_path)
    roots = roots_of(tmp_path)
    seen: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        listed = scan(str(project), roots)
        hash_tree(listed, roots=roots, store=store, threads=pool, pace=seen.append)
        again = next(number for number, size in enumerate(seen, 1) if size == 0) - 2
        assert sum(seen) == listed.size_bytes + len(CARRIAGE_RETURNS) * 40_000

        with pytest.raises(WorkerStoppingError):
            hash_tree(listed, roots=roots, store=store, threads=pool, pace=stop_at(again))
