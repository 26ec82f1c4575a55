"""Moving bytes: hash a scanned tree in one pass, then store what the store does not have. Knows no rows."""

import codecs
import os
import threading
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

from worker.blobs import admission
from worker.blobs.admission import Admission
from worker.blobs.digest import (
    BIG_BYTES,
    BIG_CHUNK_BYTES,
    CHUNK_BYTES,
    Algorithm,
    Signature,
    hash_file,
    head_of,
    new_buffer,
    opened,
    printable,
    read_chunks,
)
from worker.blobs.manifest import Directory, Entry, File, Manifest
from worker.blobs.store import Source, Store, distinct
from worker.csv_rows import RowCounter
from worker.errors import SourceChangedError
from worker.messages import ByteCounts, FileCounts, LinkCounts
from worker.scan import Roots, Scan, ScannedFile, scan
from worker.sessions_csv import RECORDING, count_records
from worker.throttle import Pace, unlimited

LABELS = "labels.json"
"""The file of a session that is kept as text in a row, too."""

Advance = Callable[[int, int], None]
"""Called with files and bytes done since the last call; may raise to stop the work at a file boundary."""


@dataclass(frozen=True)
class HashedTree:
    """A legacy tree whose every byte was read once: its manifest, where each file's bytes are, and the records of each
    session's recording (None where the recording has none or cannot be parsed). `unreadable_labels` are the sessions
    whose labels.json is not text that a row can hold. `uncounted` are the sessions whose recording was not counted, because
    one of its size is known: `count_rest` completes `records`. `admitted` are the digests of new content that this job
    stored already, while it was hashing; `keys` name its big files to other jobs; `known_counts` are
    digests of recordings that were counted for another project.
    """

    scan: Scan
    manifest: Manifest
    sources: dict[str, Source]
    records: dict[str, int | None]
    unreadable_labels: frozenset[str]
    uncounted: frozenset[str] = frozenset()
    admitted: frozenset[str] = frozenset()
    keys: Mapping[str, str] = field(default_factory=dict)
    known_counts: frozenset[str] = frozenset()

    @cached_property
    def distinct(self) -> dict[str, Source]:
        """One source for each different content."""
        return distinct(self.sources.values())

    @property
    def counted(self) -> dict[str, tuple[int, int | None]]:
        """Size and records, by content, of each recording that had to be counted."""
        sources = {session: self.sources[f"{session}/{RECORDING}"] for session in self.records}
        return {
            source.digest: (source.signature.size_bytes, self.records[session])
            for session, source in sources.items()
            if source.digest not in self.known_counts
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What storing a tree did: files and bytes by disposition, and how the tree's files were made."""

    files: FileCounts
    bytes: ByteCounts
    links: LinkCounts


T = TypeVar("T", bound=ScannedFile | Source)
R = TypeVar("R")

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


def heads(scanned: Scan, store: Store, threads: ThreadPoolExecutor) -> dict[str, str]:
    """The digest of the beginning of each big file, by path: what tells, with its size, whether it was met before."""
    big = [file for file in scanned.files if file.signature.size_bytes >= BIG_BYTES]

    def one(file: ScannedFile) -> tuple[str, str]:
        return file.path, head_of(file.source, file.signature, store.algorithm, _buffer(0))

    return dict(_each(threads, one, big))


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

    def one(file: ScannedFile) -> tuple[ScannedFile, str, RowCounter | TextCheck | None]:
        observer = _observer(file, counted_sizes)
        observe = observer.feed if observer is not None else None
        buffer = _buffer(file.signature.size_bytes)
        staged = (arrivals or {}).get(file.path)
        if staged is None:
            digest = hash_file(file.source, file.signature, store.algorithm, buffer, observe, pace)
        else:
            digest = store.take_in(file.source, file.signature, staged, buffer, pace, observe)
            arrived.add(staged, digest, file.signature.size_bytes)
        advance(1, file.signature.size_bytes)
        return file, digest, observer

    sources: dict[str, Source] = {}
    records: dict[str, int | None] = {}
    unreadable_labels: set[str] = set()
    uncounted: set[str] = set()
    with arrived:
        hashed = _each(threads, one, _biggest_first(scanned.files))
    for file, digest, observer in hashed:
        sources[file.path] = Source(path=file.source, signature=file.signature, digest=digest)
        session = os.path.dirname(file.path)
        if isinstance(observer, RowCounter):
            records[session] = _records(observer, file.source, file.signature)
        elif is_recording(file.path):
            uncounted.add(session)
        elif isinstance(observer, TextCheck) and not observer.is_text:
            unreadable_labels.add(session)
    _check_same_entries(scanned, scan(scanned.root, roots, needs_sessions=False))
    entries: list[Entry] = [Directory(entry.path) for entry in scanned.directories]
    entries += [File(path, source.signature.size_bytes, source.digest) for path, source in sources.items()]
    return HashedTree(
        scanned,
        Manifest.of(store.algorithm, entries),
        sources,
        records,
        frozenset(unreadable_labels),
        frozenset(uncounted),
        frozenset(arrived.admitted),
    )


def count_rest(tree: HashedTree, known: Mapping[str, int | None]) -> HashedTree:
    """Complete `records` from what is known by digest; a recording of a known size but new content is counted now."""
    records = dict(tree.records)
    for session in tree.uncounted:
        source = tree.sources[f"{session}/{RECORDING}"]
        records[session] = known[source.digest] if source.digest in known else _count(source)
    return replace(tree, records=records, uncounted=frozenset(), known_counts=frozenset(known))


def _count(source: Source) -> int | None:
    counter = RowCounter()
    for chunk in read_chunks(source.path, source.signature, _buffer(source.signature.size_bytes)):
        counter.feed(chunk)
    return _records(counter, source.path, source.signature)


def missing_from(store: Store, tree: HashedTree) -> set[str]:
    """The digests whose bytes the store does not have."""
    return {
        digest
        for digest, source in tree.distinct.items()
        if not store.has_blob(digest, source.signature.size_bytes)
    }


def store_tree(
    store: Store,
    tree: HashedTree,
    target: Path,
    attempt: str,
    threads: ThreadPoolExecutor,
    advance: Advance,
    pace: Pace = unlimited,
) -> Stored:
    """Store what is missing of a tree and publish it at `target`; when this returns, every byte and name is durable.

    The caller holds the dataset's claim. Twice, or after a crash anywhere: what is there already is reused, a tree that
    is not complete is replaced.
    """
    if store.holds(tree.manifest, os.fspath(target)):
        # An earlier attempt published the tree and ended before its rows were committed, perhaps before its sync.
        store.seal(target)
        return Stored(files=count_files(tree, ()), bytes=count_bytes(tree, ()), links=LinkCounts())
    with store.staging(attempt) as staging:
        with Admission(store) as new:
            missing = [tree.distinct[digest] for digest in missing_from(store, tree)]

            def finish(source: Source, copy: str) -> None:
                new.add(copy, source.digest, source.signature.size_bytes)
                advance(0, 0)

            _copy_each(store, missing, staging, threads, pace, finish)
        placed = store.build_tree(tree.manifest, f"{staging}/tree")
        if placed["copy"]:
            # A tree that is found published is believed by its sizes: copies in it must have their bytes before that.
            store.sync()
        store.publish(tree.manifest, f"{staging}/tree", target, staging)
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


def has_digest(path: str, signature: Signature, digest: str, algorithm: Algorithm) -> bool:
    """Read a stored file to its end: are its bytes those of the digest?"""
    return hash_file(path, signature, algorithm, _buffer(signature.size_bytes)) == digest


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

    _copy_each(store, [tree.distinct[digest] for digest in wanted], staging, threads, pace, finish)
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
    sources: Iterable[Source],
    staging: str,
    threads: ThreadPoolExecutor,
    pace: Pace,
    finish: Callable[[Source, str], None],
) -> None:
    """Copy sources into staging, biggest first; `finish` is told of each copy by the thread that made it, and may raise."""

    def one(source: Source) -> None:
        finish(source, store.stage_file(source, staging, _buffer(source.signature.size_bytes), pace))

    _each(threads, one, sorted(sources, key=lambda source: -source.signature.size_bytes))


def _size(tree: HashedTree, digest: str) -> int:
    return tree.distinct[digest].signature.size_bytes


def _each(threads: ThreadPoolExecutor, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Results of `call` in the order of items; the first error keeps back what has not begun and waits for what has.

    Each thread takes the next item when it is free: a task an item would cost more than hashing a small file, and memory
    for all of them at once.
    """
    if len(items) <= _FEW and sum(item.signature.size_bytes for item in items) <= CHUNK_BYTES:
        # Done before another thread has begun.
        return [call(item) for item in items]
    results: list[R | None] = [None] * len(items)
    numbers = iter(range(len(items)))
    failed = threading.Event()

    def work() -> None:
        # To take the next number is one step of the interpreter, which no other thread can come between.
        for number in numbers:
            if failed.is_set():
                return
            try:
                results[number] = call(items[number])
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
    return cast("list[R]", results)


def _biggest_first(files: Iterable[ScannedFile]) -> list[ScannedFile]:
    return sorted(files, key=lambda file: -file.signature.size_bytes)


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
    if file.path.count("/") == 1 and file.path.endswith(f"/{LABELS}"):
        return TextCheck()
    return None


def _records(counter: RowCounter, path: str, signature: Signature) -> int | None:
    """Label's number of records: from the bytes that passed by where they are plain, else from pandas, which Label uses."""
    if counter.records is not None:
        return counter.records or None
    # Pandas opens by name; by this one it gets the file that was checked, whatever lies at the path by now.
    with opened(path, signature) as descriptor:
        return count_records(Path(f"/proc/self/fd/{descriptor}"))


def _check_same_entries(before: Scan, after: Scan) -> None:
    """Files that came, went or were replaced while others were read would make the stored tree one that never was."""
    if _is_same(before, after):
        return
    old = {file.path: file.signature for file in before.files} | {
        entry.path: None for entry in before.directories
    }
    new = {file.path: file.signature for file in after.files} | {
        entry.path: None for entry in after.directories
    }
    changed = min(path for path in old.keys() | new.keys() if old.get(path, 0) != new.get(path, 0))
    raise SourceChangedError(
        f"Entry changed while the directory was read: {printable(f'{before.root}/{changed}')}"
    )


def _is_same(before: Scan, after: Scan) -> bool:
    """Do both list the same files and directories? Both are in one order; a directory's own times do not matter."""
    return (
        len(before.files) == len(after.files)
        and len(before.directories) == len(after.directories)
        and all(
            old.path == new.path and old.signature == new.signature
            for old, new in zip(before.files, after.files, strict=True)
        )
        and all(old.path == new.path for old, new in zip(before.directories, after.directories, strict=True))
    )
