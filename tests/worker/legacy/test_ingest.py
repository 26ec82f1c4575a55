"""From a listed tree to a stored one: every byte as it was, every change under our hands noticed, every file counted once."""

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
from tests.support.trees import (
    STUDY,
    as_ordinary_user,
    condemned,
    hashed,
    manifest_of,
    open_store,
    passable_folder,
    read_tree,
    roots_of,
    store_at,
    temporary_files,
    write_tree,
)
from tests.support.waiting import PATIENCE_S, eventually
from worker.errors import (
    EntryRefusedError,
    EntryUnreadableError,
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
from worker.legacy.session_files import TextCheck
from worker.messages import FileCounts, LinkCounts
from worker.runtime.throttle import Pace
from worker.sessions_csv import RECORDING
from worker.store.digest import BIG_BYTES, CHUNK_BYTES, digest_of
from worker.store.removal import remove_tree
from worker.store.store import Store

BIG_FIRST = {b"session/1 big": b"1" * 300, b"session/2 middle": b"2" * 200, b"session/3 small": b"3" * 100}
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


def after_files(count: int, happening: Callable[[], object]) -> Advance:
    """Let something happen when so many files have been read."""
    done = itertools.count(1)

    def advance(_files: int, _bytes: int) -> None:
        if next(done) == count:
            happening()

    return advance


# What a hashed tree says ----------------------------------------------------------------------------------------


def test_a_hashed_tree_has_the_manifest_of_its_content(tmp_path: Path):
    tree = hashed(write_tree(tmp_path / "study"), open_store(tmp_path))

    assert tree.manifest == manifest_of(STUDY)
    assert {os.fsencode(path) for path in tree.sources} == {name for name in STUDY if STUDY[name] is not None}


def test_links_are_hashed_as_what_they_point_to(tmp_path: Path):
    plain = write_tree(tmp_path / "plain", {b"session/x": b"1", b"other/y": b"2"})
    linked = write_tree(tmp_path / "linked", {b"session": None})
    (linked / "session" / "x").symlink_to("../../plain/session/x")
    (linked / "other").symlink_to(plain / "other")
    store = open_store(tmp_path)

    assert hashed(linked, store).manifest == hashed(plain, store).manifest


def test_progress_counts_every_file_and_every_byte_once(tmp_path: Path):
    done: list[tuple[int, int]] = []

    tree = hashed(
        write_tree(tmp_path / "study"),
        open_store(tmp_path),
        lambda files, size_bytes: done.append((files, size_bytes)),
    )

    assert sum(files for files, _ in done) == len(tree.sources)
    assert sum(size_bytes for _, size_bytes in done) == tree.scan.size_bytes


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"t,x\n1,2\n3,4\n", 2),
        (b"t,x\n1,2\n3,4", 2),
        (CARRIAGE_RETURNS, 2),
        (b't,x\n1,"2\n3"\n', 1),
        (b"t,x\n1,2\n\n3,4\n", 2),
        (b"t,x\n", None),
        (b"", None),
        (b"\n\n", None),
        (b"t,x\n1,\xff\n", None),
        (b't,x\n1,"2\n', None),
        (b"t,x\n1,2\n1,2,3\n", None),
    ],
    ids=[
        "plain",
        "no newline at the end",
        "carriage returns",
        "quoted newline",
        "blank line",
        "header only",
        "empty",
        "blank lines only",
        "not text",
        "a quote without end",
        "a line too long",
    ],
)
def test_records_are_those_that_pandas_reads_and_none_where_it_reads_none(
    tmp_path: Path, content: bytes, records: int | None
):
    project = write_tree(tmp_path / "study", {b"session/" + RECORDING.encode(): content})

    assert hashed(project, open_store(tmp_path)).records == {"session": records}


@pytest.mark.parametrize("name", ["recording.csv.gz", "recording.csv.zip", "recording.csv.xz"])
def test_a_linked_recording_is_counted_whatever_its_target_is_called(tmp_path: Path, name: str):
    write_tree(tmp_path / "shared", {name.encode(): CARRIAGE_RETURNS})
    project = write_tree(tmp_path / "study", {b"session": None})
    (project / "session" / RECORDING).symlink_to(tmp_path / "shared" / name)

    assert hashed(project, open_store(tmp_path)).records == {"session": 2}


def test_records_are_counted_for_the_recording_of_a_session_only(tmp_path: Path):
    recording = b"t,x\n1,2\n"
    project = write_tree(
        tmp_path / "study",
        {
            b"one/accelerometer_data.csv": recording,
            b"two/gyroscope_data.csv": recording,
            b"three/deep/accelerometer_data.csv": recording,
            b"accelerometer_data.csv": recording,
            b"four/accelerometer_data.csv/x": recording,
        },
    )

    assert hashed(project, open_store(tmp_path)).records == {"one": 1}


# Labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "is_text"),
    [
        (b"[]", True),
        (b"", True),
        (b"not json", True),
        ("größe 研究 🙂".encode(), True),
        (b"\xef\xbb\xbf[]", True),
        (b"caf\xe9", False),
        (b"caf\xc3", False),
        (b"\xed\xa0\x80", False),
        (b"a\0b", False),
        (b"x" * (CHUNK_BYTES - 1) + "ü".encode(), True),
        (b"x" * (CHUNK_BYTES - 1) + b"\xc3", False),
        (b"\xff" + b"x" * CHUNK_BYTES, False),
    ],
    ids=[
        "a list",
        "empty",
        "not JSON",
        "all of Unicode",
        "byte order mark",
        "Latin-1",
        "cut short",
        "a surrogate",
        "a null byte",
        "a character across chunks",
        "cut short across chunks",
        "bad in the first chunk",
    ],
)
def test_labels_that_a_row_cannot_hold_are_told_apart_and_kept_as_a_file(
    tmp_path: Path, content: bytes, is_text
):
    project = write_tree(tmp_path / "study", {b"session/labels.json": content})
    store = open_store(tmp_path)

    tree = hashed(project, store)

    assert tree.unreadable_labels == (frozenset() if is_text else {"session"})
    target, _ = store_hashed(store, tree)
    assert (target / "session" / "labels.json").read_bytes() == content


def test_labels_are_looked_at_right_below_a_session_only(tmp_path: Path):
    bad = b"\xff"
    names = [b"one/labels.json", b"labels.json", b"two/deep/labels.json", b"two/Labels.json"]
    project = write_tree(tmp_path / "study", dict.fromkeys(names, bad))

    assert hashed(project, open_store(tmp_path)).unreadable_labels == {"one"}


@given(
    content=st.binary(max_size=60) | st.text(max_size=40).map(str.encode), cuts=st.lists(st.integers(0, 60))
)
@settings(deadline=None)
def test_text_is_told_the_same_wherever_the_chunks_end(content: bytes, cuts: list[int]):
    check = TextCheck()
    borders = sorted({0, *(cut for cut in cuts if cut < len(content)), len(content)})
    for start, end in zip(borders, borders[1:], strict=False):  # noqa: RUF007 - one border makes no pair
        check.feed(memoryview(content)[start:end])

    try:
        expected = "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        expected = False
    assert check.is_text is expected


# A tree that changes --------------------------------------------------------------------------------------------


def append(project: Path) -> str:
    with (project / "session/3 small").open("ab") as file:
        file.write(b"more")
    return "session/3 small"


def append_to_what_was_read(project: Path) -> str:
    with (project / "session/1 big").open("ab") as file:
        file.write(b"more")
    return "session/1 big"


def truncate(project: Path) -> str:
    os.truncate(project / "session/3 small", 10)
    return "session/3 small"


def truncate_what_was_read(project: Path) -> str:
    os.truncate(project / "session/1 big", 10)
    return "session/1 big"


def replace(project: Path) -> str:
    (project / "new").write_bytes(b"9" * 100)
    (project / "new").replace(project / "session/3 small")
    return "session/3 small"


def replace_what_was_read(project: Path) -> str:
    (project / "new").write_bytes(b"9" * 300)
    (project / "new").replace(project / "session/1 big")
    return "session/1 big"


def rewrite_what_was_read_with_its_old_time(project: Path) -> str:
    path = project / "session/1 big"
    status = path.stat()
    path.write_bytes(b"9" * 300)
    # Until the kernel's clock has moved on: an edit within one tick of it cannot be seen by anybody.
    eventually(lambda: _touched(path, status), "the file's time of change moves on")
    return "session/1 big"


def _touched(path: Path, before: os.stat_result) -> bool:
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path.stat().st_ctime_ns != before.st_ctime_ns


def add_a_file(project: Path) -> str:
    (project / "session/0 new").write_bytes(b"1")
    return "session/0 new"


def add_a_directory(project: Path) -> str:
    (project / "another").mkdir()
    return "another"


def remove_a_file(project: Path) -> str:
    (project / "session/3 small").unlink()
    return "session/3 small"


def remove_what_was_read(project: Path) -> str:
    (project / "session/1 big").unlink()
    return "session/1 big"


def turn_what_was_read_into_a_directory(project: Path) -> str:
    (project / "session/1 big").unlink()
    (project / "session/1 big").mkdir()
    return "session/1 big"


def rename_the_session(project: Path) -> str:
    (project / "session").rename(project / "renamed")
    return ""


def remove_the_last_directory(project: Path) -> str:
    for path in (project / "session").iterdir():
        path.unlink()
    (project / "session").rmdir()
    return ""


@pytest.mark.parametrize("files_read", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        append,
        append_to_what_was_read,
        truncate,
        truncate_what_was_read,
        replace,
        replace_what_was_read,
        rewrite_what_was_read_with_its_old_time,
        add_a_file,
        add_a_directory,
        remove_a_file,
        remove_what_was_read,
        turn_what_was_read_into_a_directory,
        rename_the_session,
        remove_the_last_directory,
    ],
)
def test_a_change_while_others_are_read_is_noticed_and_named(
    tmp_path: Path, change: Callable[[Path], str], files_read: int
):
    project = write_tree(tmp_path / "study", BIG_FIRST)
    named: list[str] = []

    with pytest.raises(SourceChangedError) as raised:
        hashed(
            project,
            open_store(tmp_path),
            after_files(files_read, lambda: named.append(change(project))),
            threads=1,
        )

    assert f"{project}/{named[0]}" in str(raised.value)


def test_a_change_after_the_last_file_was_read_is_noticed(tmp_path: Path):
    project = write_tree(tmp_path / "study", BIG_FIRST)

    with pytest.raises(SourceChangedError, match="session/0 new"):
        hashed(project, open_store(tmp_path), after_files(3, lambda: add_a_file(project)), threads=1)


def test_a_change_between_hashing_and_copying_is_noticed_and_nothing_is_published(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study", BIG_FIRST)
    tree = hashed(project, store)
    append(project)

    with pytest.raises(SourceChangedError, match="session/3 small"):
        store_hashed(store, tree)

    assert list(store.trees.iterdir()) == []
    assert temporary_files(store) == []


def test_a_recording_that_vanishes_before_a_parser_counts_it_is_a_change(tmp_path: Path):
    project = write_tree(tmp_path / "study", {b"session/accelerometer_data.csv": CARRIAGE_RETURNS})
    path = project / "session" / RECORDING

    with pytest.raises(SourceChangedError, match=str(path)):
        hashed(project, open_store(tmp_path), after_files(1, path.unlink))


@pytest.mark.timeout(PATIENCE_S, method="signal")
def test_a_pipe_in_the_place_of_a_recording_that_a_parser_must_count_does_not_block(tmp_path: Path):
    project = write_tree(tmp_path / "study", {b"session/accelerometer_data.csv": CARRIAGE_RETURNS})
    path = project / "session" / RECORDING

    def replace_by_pipe() -> None:
        path.unlink()
        os.mkfifo(path)

    with pytest.raises((SourceChangedError, EntryRefusedError), match=str(path)):
        hashed(project, open_store(tmp_path), after_files(1, replace_by_pipe))


def test_a_file_that_cannot_be_read_fails_the_tree_and_is_named():
    with passable_folder() as folder:
        project = write_tree(folder / "study", BIG_FIRST)
        secret = project / "session/2 middle"
        store = open_store(folder)
        secret.chmod(0o000)

        with pytest.raises(EntryUnreadableError, match=f"^Cannot read {secret}: Permission denied$"):
            as_ordinary_user(lambda: hashed(project, store).manifest)


# Storing --------------------------------------------------------------------------------------------------------

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


# Stopping -------------------------------------------------------------------------------------------------------


def test_the_work_stops_at_a_file_when_it_has_lost_its_right(tmp_path: Path):
    entries = {b"session/%03d" % number: b"x" for number in range(200)}
    read: list[int] = []

    def lose(files: int, _bytes: int) -> None:
        read.append(files)
        if len(read) == 3:
            raise LeaseLostError("another worker has the job")

    with pytest.raises(LeaseLostError, match="another worker has the job"):
        hashed(write_tree(tmp_path / "study", entries), open_store(tmp_path), lose, threads=1)

    assert len(read) < 200


def test_copying_stops_at_a_file_and_keeps_what_is_finished_for_whoever_goes_on(tmp_path: Path):
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


# Batches --------------------------------------------------------------------------------------------------------


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


def take_in(store: Store, project: Path, threads: int = 1) -> HashedTree:
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
        tree = take_in(store, project)
    remove_tree(str(store.root / "blobs"))
    (store.root / "blobs").mkdir()
    with counting_syncs(monkeypatch, store) as copying:
        store_hashed(store, tree, threads=1)

    assert hashing == [0, 3]
    assert copying == [0, 3, 6]


def test_what_fits_into_one_batch_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(tmp_path)

    with counting_syncs(monkeypatch, store) as waits:
        tree = take_in(store, write_tree(tmp_path / "study", BIG_FIRST))

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
        take_in(store, project, threads=3)

    assert blobs_of(store) == {}


# Listening ------------------------------------------------------------------------------------------------------


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
def test_every_pass_over_a_tree_ends_when_the_worker_is_to_stop(
    tmp_path: Path, work: Callable[[HashedTree, Store, ThreadPoolExecutor, Pace], object]
):
    store = open_store(tmp_path)
    tree = hashed(with_odd_recording(tmp_path), store)

    with ThreadPoolExecutor(2) as pool, pytest.raises(WorkerStoppingError):
        work(tree, store, pool, stop_at(1))


def test_a_recording_that_a_parser_counts_is_left_when_the_worker_is_to_stop(tmp_path: Path):
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
