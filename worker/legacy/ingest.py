"""Moving bytes: hash a scanned tree in one pass, then store what the store does not have. Knows no rows."""

import codecs
import os
import threading
from array import array
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from worker.legacy.hashed_tree import HashedTree, Sources, manifest_of
from worker.legacy.row_counter import RowCounter
from worker.legacy.scan import (
    Roots,
    Scan,
    ScannedFile,
    check_same,
    too_long,
)
from worker.messages import ByteCounts, FileCounts, LinkCounts
from worker.runtime.throttle import Pace, unlimited
from worker.sessions_csv import RECORDING, count_records
from worker.store import batches as admission
from worker.store.batches import Admission
from worker.store.beneath import PATH_MOST_BYTES
from worker.store.digest import (
    BIG_BYTES,
    BIG_CHUNK_BYTES,
    CHUNK_BYTES,
    HEAD_BYTES,
    Algorithm,
    Signature,
    hash_file,
    head_of,
    new_buffer,
    new_hasher,
    opened,
    read_chunks,
    read_stored,
)
from worker.store.store import Source, Store

LABELS = "labels.json"
"""The file of a session that is kept as text in a row, too."""

LABELS_MOST_BYTES = 16 << 20
"""A longer one is kept as a file only: to write a row takes several times its size of memory, here and in PostgreSQL."""

Advance = Callable[[int, int], None]
"""Called with files and bytes done since the last call; may raise to stop the work at a file boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What storing a tree did: files and bytes by disposition, and how the tree's files were made."""

    files: FileCounts
    bytes: ByteCounts
    links: LinkCounts


T = TypeVar("T")

_MOST_THREADS = 64
"""More a worker process never has (HASH_THREADS)."""

_FEW = 8
"""So many files, if they are small, are not worth other threads."""

_local = threading.local()


def _buffer(size_bytes: int) -> memoryview:
    """This thread's own buffer for files of this size, made once."""
    name, length = ("big", BIG_CHUNK_BYTES) if size_bytes >= BIG_BYTES else ("small", CHUNK_BYTES)
    if not hasattr(_local, name):
        setattr(_local, name, new_buffer(length))
    buffer: memoryview = getattr(_local, name)
    return buffer


def heads(scanned: Scan, store: Store, threads: ThreadPoolExecutor, pace: Pace = unlimited) -> dict[str, str]:
    """The digest of the beginning of each big file, by path: what tells, with its size, whether it was met before."""
    found: dict[str, str] = {}

    def one(number: int) -> None:
        file = scanned.files[number]
        found[file.path] = head_of(file.source, file.signature, store.algorithm, _buffer(0), pace)

    big = [number for number, size in enumerate(scanned.files.sizes()) if size >= BIG_BYTES]
    _each(threads, one, big, len(big) * HEAD_BYTES)
    return found


def hash_tree(
    scanned: Scan,
    roots: Roots,
    store: Store,
    threads: ThreadPoolExecutor,
    advance: Advance,
    pace: Pace = unlimited,
    counted_sizes: Container[int] = (),
    arrivals: Mapping[str, str] | None = None,
) -> HashedTree:
    """Hash every file of a scan, several at a time, biggest first; then list the directory again.

    The same pass counts the records of recordings, but not of those whose size is one of `counted_sizes`: they are most
    likely known, and counting costs more than hashing. Files in `arrivals`, which nobody has met before, are copied to the
    path that it says while they are hashed, because they will have to be stored; they are blobs when this returns or raises.

    Raises `SourceChangedError` naming the first file that changed, vanished or came, `EntryUnreadableError` for one
    that cannot be read.
    """
    arrived = Admission(store)
    digests = [""] * len(scanned.files)
    observers: dict[int, RowCounter | TextCheck | None] = {}

    def one(number: int) -> None:
        file = scanned.files[number]
        observer = _observer(file, counted_sizes)
        observe = observer.feed if observer is not None else None
        buffer = _buffer(file.signature.size_bytes)
        staged = (arrivals or {}).get(file.path)
        if staged is None:
            digest = hash_file(file.source, file.signature, store.algorithm, buffer, observe, pace)
        else:
            digest = store.take_in(file.source, file.signature, staged, buffer, pace, observe)
            arrived.add(staged, digest, file.signature.size_bytes)
        digests[number] = digest
        if observer is not None or is_recording(file.path) or _is_labels(file.path):
            observers[number] = observer
        advance(1, file.signature.size_bytes)

    with arrived:
        sizes = array("q", scanned.files.sizes())
        _each(
            threads, one, sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True), scanned.size_bytes
        )
    records: dict[str, int | None] = {}
    unreadable_labels: set[str] = set()
    large_labels: set[str] = set()
    uncounted: set[str] = set()
    for number in sorted(observers):
        file, observer = scanned.files[number], observers[number]
        session = os.path.dirname(file.path)
        if isinstance(observer, RowCounter):
            records[session] = _records(observer, file.source, file.signature, pace)
        elif observer is None:
            (uncounted if is_recording(file.path) else large_labels).add(session)
        elif not observer.is_text:
            unreadable_labels.add(session)
    check_same(scanned, roots, pace)
    return HashedTree(
        scanned,
        manifest_of(scanned, digests, store.algorithm),
        Sources(scanned, digests),
        records,
        frozenset(unreadable_labels),
        frozenset(large_labels),
        frozenset(uncounted),
        frozenset(arrived.admitted),
    )


def count_rest(tree: HashedTree, known: Mapping[str, int | None], pace: Pace = unlimited) -> HashedTree:
    """Complete `records` from what is known by digest; a recording of a known size but new content is counted now."""
    records = dict(tree.records)
    for session in tree.uncounted:
        source = tree.sources[f"{session}/{RECORDING}"]
        records[session] = known[source.digest] if source.digest in known else _count(source, pace)
    return replace(tree, records=records, uncounted=frozenset(), known_counts=frozenset(known))


def _count(source: Source, pace: Pace) -> int | None:
    counter = RowCounter()
    for chunk in read_chunks(source.path, source.signature, _buffer(source.signature.size_bytes), pace):
        counter.feed(chunk)
    return _records(counter, source.path, source.signature, pace)


def check_paths_fit(store: Store, scanned: Scan, name: str, job: str) -> None:
    """Raise `EntryRefusedError` for a file or directory whose path in the store no system call could take, Label's included.

    `name` is the project's, of which the tree's is made, with a number where another dataset has it; `job` begins the names of its attempts: a tree is built in staging, under another path than it
    gets. To be asked before anything is stored.
    """
    places = (store.tree_path(f"00-{name}", "0" * 64, digits=64), f"{store.root}/staging/{job}-9999/tree")
    room = PATH_MOST_BYTES - max(len(os.fsencode(place)) for place in places) - 1
    for entries in (scanned.files.paths, [entry.path for entry in scanned.directories]):
        longest = max(entries, key=len, default="")
        if 4 * len(longest) <= room:
            # A character has four bytes at most.
            continue
        longest = max(entries, key=lambda path: len(os.fsencode(path)))
        if len(os.fsencode(longest)) > room:
            raise too_long(longest)


def missing_from(store: Store, tree: HashedTree, pace: Pace = unlimited) -> set[str]:
    """The digests whose bytes the store does not have."""
    missing: set[str] = set()
    for digest, source in tree.distinct.items():
        pace(0)
        if not store.has_blob(digest, source.signature.size_bytes):
            missing.add(digest)
    return missing


def store_tree(
    store: Store,
    tree: HashedTree,
    target: Path,
    attempt: str,
    threads: ThreadPoolExecutor,
    advance: Advance,
    pace: Pace = unlimited,
    confirm: Callable[[], None] = lambda: None,
) -> Stored:
    """Store what is missing of a tree and publish it at `target`; when this returns, every byte and name is durable.

    The caller holds the dataset's claim. Twice, or after a crash anywhere: what is there already is reused, a tree that
    is not complete is replaced. `confirm` as of `Store.publish`.
    """
    if store.holds(tree.manifest, os.fspath(target), pace):
        # An earlier attempt published the tree and ended before its rows were committed, perhaps before its sync.
        store.seal(target)
        return Stored(files=count_files(tree, ()), bytes=count_bytes(tree, ()), links=LinkCounts())
    with store.staging(attempt) as staging:
        with Admission(store) as new:

            def finish(source: Source, copy: str) -> None:
                new.add(copy, source.digest, source.signature.size_bytes)
                advance(0, 0)

            _copy_each(store, tree, missing_from(store, tree, pace), staging, threads, pace, finish)
        placed = store.build_tree(tree.manifest, f"{staging}/tree", pace)
        if placed["copy"]:
            # A tree that is found published is believed by its sizes: copies in it must have their bytes before that.
            store.sync()
        store.publish(tree.manifest, f"{staging}/tree", target, staging, confirm)
    return Stored(
        files=count_files(tree, new.admitted),
        bytes=count_bytes(tree, new.admitted),
        links=LinkCounts(**placed),
    )


def count_files(tree: HashedTree, new: Collection[str]) -> FileCounts:
    """Every file once: the first of each new content as stored, all others as reused."""
    stored = len(tree.admitted.union(new))
    return FileCounts(stored=stored, reused=len(tree.sources) - stored)


def count_bytes(tree: HashedTree, new: Collection[str]) -> ByteCounts:
    """The same for bytes."""
    stored = sum(_size(tree, digest) for digest in tree.admitted.union(new))
    return ByteCounts(stored=stored, reused=tree.scan.size_bytes - stored)


def has_digest(path: str, digest: str, algorithm: Algorithm, pace: Pace = unlimited) -> bool:
    """Read a stored file to its end, whichever has the name when it is opened: are its bytes those of the digest?"""
    hasher = new_hasher(algorithm)
    for chunk in read_stored(path, _buffer(BIG_BYTES), pace):
        hasher.update(chunk)
    return hasher.hexdigest() == digest


def copy_durably(
    store: Store,
    tree: HashedTree,
    wanted: Collection[str],
    staging: str,
    threads: ThreadPoolExecutor,
    advance: Advance,
    pace: Pace,
) -> dict[str, str]:
    """Copy the wanted contents of a tree into staging, durably, in one batch; the paths of the copies by digest."""
    copies: dict[str, str] = {}

    def finish(source: Source, copy: str) -> None:
        copies[source.digest] = copy
        advance(0, 0)

    _copy_each(store, tree, wanted, staging, threads, pace, finish)
    if copies:
        store.sync()
    return copies


def in_batches(tree: HashedTree, digests: Collection[str]) -> Iterator[list[str]]:
    """Contents of a tree, biggest first, in groups of about `BATCH_BYTES`."""
    group: list[str] = []
    size = 0
    for digest in sorted(digests, key=lambda digest: (-_size(tree, digest), digest)):
        group.append(digest)
        size += _size(tree, digest)
        if size >= admission.BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _copy_each(
    store: Store,
    tree: HashedTree,
    wanted: Collection[str],
    staging: str,
    threads: ThreadPoolExecutor,
    pace: Pace,
    finish: Callable[[Source, str], None],
) -> None:
    """Copy contents of a tree into staging, biggest first; `finish` is told of each copy by the thread that made it, and may
    raise.
    """

    def one(digest: str) -> None:
        source = tree.distinct[digest]
        finish(source, store.stage_file(source, staging, _buffer(source.signature.size_bytes), pace))

    biggest_first = sorted(wanted, key=lambda digest: _size(tree, digest), reverse=True)
    _each(threads, one, biggest_first, sum(_size(tree, digest) for digest in wanted))


def _size(tree: HashedTree, digest: str) -> int:
    return tree.distinct[digest].signature.size_bytes


def _each(
    threads: ThreadPoolExecutor, call: Callable[[T], None], items: Sequence[T], size_bytes: int
) -> None:
    """Call with each item; the first error keeps back what has not begun and waits for what has.

    Each thread takes the next item when it is free: a task an item would cost more than hashing a small file, and memory
    for all of them at once. `size_bytes` is what there is to read in all.
    """
    if len(items) <= _FEW and size_bytes <= CHUNK_BYTES:
        # Done before another thread has begun.
        for item in items:
            call(item)
        return
    rest = iter(items)
    failed = threading.Event()

    def work() -> None:
        # To take the next item is one step of the interpreter, which no other thread can come between.
        for item in rest:
            if failed.is_set():
                return
            try:
                call(item)
            except BaseException:
                failed.set()
                raise

    tasks = [threads.submit(work) for _ in range(min(len(items), _MOST_THREADS))]
    try:
        wait(tasks)
    finally:
        # Whatever ends the waiting ends the work, too, and nobody is left working when this returns.
        failed.set()
        wait(tasks)
    for task in tasks:
        task.result()


class TextCheck:
    """Watches a file pass by: is it text that PostgreSQL can hold (UTF-8 without NUL)?"""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._holds = True

    def feed(self, chunk: memoryview) -> None:
        """Take the next part of the file."""
        self._holds = self._holds and self._decodes(bytes(chunk), final=False)

    @property
    def is_text(self) -> bool:
        """To be asked once, at the end."""
        return self._holds and self._decodes(b"", final=True)

    def _decodes(self, content: bytes, *, final: bool) -> bool:
        try:
            return "\0" not in self._decoder.decode(content, final)
        except UnicodeDecodeError:
            return False


def is_recording(path: str) -> bool:
    """Is this the file of a session whose records Label counts?"""
    return path.count("/") == 1 and path.endswith(f"/{RECORDING}")


def _observer(file: ScannedFile, counted_sizes: Container[int]) -> RowCounter | TextCheck | None:
    """Who watches this file while it is hashed: only the two files of a session that rows are made from."""
    if is_recording(file.path):
        return RowCounter() if file.signature.size_bytes not in counted_sizes else None
    if _is_labels(file.path):
        return TextCheck() if file.signature.size_bytes <= LABELS_MOST_BYTES else None
    return None


def _is_labels(path: str) -> bool:
    return path.count("/") == 1 and path.endswith(f"/{LABELS}")


def _records(counter: RowCounter, path: str, signature: Signature, pace: Pace) -> int | None:
    """Label's number of records: from the bytes that passed by where they are plain, else from pandas, which Label uses."""
    if counter.records is not None:
        return counter.records or None
    # Pandas opens by name; by this one it gets the file that was checked, whatever lies at the path by now.
    with opened(path, signature) as descriptor:
        return count_records(Path(f"/proc/self/fd/{descriptor}"), pace)
