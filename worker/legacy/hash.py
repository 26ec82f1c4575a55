"""Hashing a scanned tree: every byte in one pass, several files at a time. Knows no rows."""

import os
from array import array
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from worker.legacy.hashed_tree import HashedTree, Sources, manifest_of
from worker.legacy.parallel import Advance, buffer_for, for_each
from worker.legacy.roots import Roots
from worker.legacy.row_counter import RowCounter
from worker.legacy.scan import Scan, check_same
from worker.legacy.session_files import TextCheck, count, is_labels, is_recording, observer_of, records_of
from worker.runtime.throttle import Pace, unlimited
from worker.sessions_csv import RECORDING
from worker.store.batches import Admission
from worker.store.digest import BIG_BYTES, HEAD_BYTES, Algorithm, hash_file, head_of, new_hasher, read_stored
from worker.store.store import Store


def heads(scanned: Scan, store: Store, threads: ThreadPoolExecutor, pace: Pace = unlimited) -> dict[str, str]:
    """The digest of the beginning of each big file, by path: what tells, with its size, whether it was met before."""
    found: dict[str, str] = {}

    def one(number: int) -> None:
        file = scanned.files[number]
        found[file.path] = head_of(file.source, file.signature, store.algorithm, buffer_for(0), pace)

    big = [number for number, size in enumerate(scanned.files.sizes()) if size >= BIG_BYTES]
    for_each(threads, one, big, len(big) * HEAD_BYTES)
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
        observer = observer_of(file, counted_sizes)
        observe = observer.feed if observer is not None else None
        buffer = buffer_for(file.signature.size_bytes)
        staged = (arrivals or {}).get(file.path)
        if staged is None:
            digest = hash_file(file.source, file.signature, store.algorithm, buffer, observe, pace)
        else:
            digest = store.take_in(file.source, file.signature, staged, buffer, pace, observe)
            arrived.add(staged, digest, file.signature.size_bytes)
        digests[number] = digest
        if observer is not None or is_recording(file.path) or is_labels(file.path):
            observers[number] = observer
        advance(1, file.signature.size_bytes)

    with arrived:
        sizes = array("q", scanned.files.sizes())
        for_each(
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
            records[session] = records_of(observer, file.source, file.signature, pace)
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
        records[session] = known[source.digest] if source.digest in known else count(source, pace)
    return replace(tree, records=records, uncounted=frozenset(), known_counts=frozenset(known))


def has_digest(path: str, digest: str, algorithm: Algorithm, pace: Pace = unlimited) -> bool:
    """Read a stored file to its end, whichever has the name when it is opened: are its bytes those of the digest?"""
    hasher = new_hasher(algorithm)
    for chunk in read_stored(path, buffer_for(BIG_BYTES), pace):
        hasher.update(chunk)
    return hasher.hexdigest() == digest
