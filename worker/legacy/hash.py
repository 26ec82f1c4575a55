"""Hashing a scanned tree: every byte in one pass, several files at a time. Knows no rows."""

import time
from array import array
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType

from worker.legacy.file_list import ScannedFile
from worker.legacy.hashed_tree import HashedTree, Sources, manifest_of
from worker.legacy.parallel import Advance, buffer_for, for_each
from worker.legacy.remembered import NO_MEMORY, Memory
from worker.legacy.roots import Roots
from worker.legacy.scan import Scan, check_same
from worker.legacy.session_files import SessionFiles, count_records_of
from worker.runtime.throttle import Pace, unlimited
from worker.store.batches import Admission
from worker.store.digest import (
    BIG_BYTES,
    HEAD_BYTES,
    Algorithm,
    Head,
    both,
    hash_file,
    head_of,
    new_hasher,
    read_stored,
)
from worker.store.store import Store


def is_big(_path: str, size_bytes: int) -> bool:
    """Is a file so big that several jobs should not store it at once?"""
    return size_bytes >= BIG_BYTES


def heads(
    scanned: Scan,
    store: Store,
    threads: ThreadPoolExecutor,
    pace: Pace = unlimited,
    memory: Memory = NO_MEMORY,
    wanted: Callable[[str, int], bool] = is_big,
) -> dict[str, str]:
    """The digest of the beginning of each file that is wanted by its path and size, by path: with the size, a
    hint that it was seen before. None of a smaller one whose content is remembered.
    """
    found: dict[str, str] = {}

    def one(number: int) -> None:
        file = scanned.files[number]
        known = memory.of(file)
        if known is not None and known.head is not None:
            found[file.path] = known.head
        elif known is None or file.signature.size_bytes >= BIG_BYTES:
            found[file.path] = head_of(file.source, file.signature, store.algorithm, buffer_for(0), pace)

    files = zip(scanned.files.paths, scanned.files.sizes(), strict=True)
    numbers = [number for number, file in enumerate(files) if wanted(*file)]
    for_each(threads, one, numbers, len(numbers) * HEAD_BYTES)
    return found


def hash_tree(  # noqa: PLR0913 - an option is an argument
    scanned: Scan,
    *,
    roots: Roots,
    store: Store,
    threads: ThreadPoolExecutor,
    advance: Advance = lambda _files, _bytes: None,
    pace: Pace = unlimited,
    likely_known: Container[str] = (),
    copies: Mapping[str, str] = MappingProxyType({}),
    memory: Memory = NO_MEMORY,
) -> HashedTree:
    """Hash every file of a scan, several at a time, biggest first; then list the directory again.

    The same pass counts the records of recordings, but not of those whose paths are in `likely_known`:
    counting costs more than hashing; `count_rest` completes the tree. Files in `copies`, which no job has
    seen before, are copied there while they are hashed, because they will have to be stored; they are blobs
    when this returns or raises. What `memory` knows of a file is believed instead of reading it, and it is
    told of those that were read.

    Raises `SourceChangedError` naming the first file that changed, vanished or came, `EntryUnreadableError`
    for one that cannot be read.
    """
    session_files = SessionFiles(scanned.files, likely_known)
    digests, remembered_bytes = _hash_files(
        scanned,
        session_files,
        store=store,
        threads=threads,
        advance=advance,
        pace=pace,
        copies=copies,
        memory=memory,
    )
    records = session_files.records(pace)
    check_same(scanned, roots, pace, threads)
    return HashedTree(
        scan=scanned,
        manifest=manifest_of(scanned, digests, store.algorithm),
        sources=Sources(scanned, digests),
        records=records,
        unreadable_labels=session_files.unreadable_labels(),
        large_labels=session_files.large_labels(),
        remembered_bytes=remembered_bytes,
    )


def _hash_files(
    scanned: Scan,
    session_files: SessionFiles,
    *,
    store: Store,
    threads: ThreadPoolExecutor,
    advance: Advance,
    pace: Pace,
    copies: Mapping[str, str],
    memory: Memory,
) -> tuple[list[str], int]:
    """The digest of each file, in the scan's order, and how many bytes needed no reading for it. Those in
    `copies` are blobs at the end, also of an error.
    """
    digests = [""] * len(scanned.files)
    remembered: list[int] = []

    def hash_one(number: int) -> None:
        file = scanned.files[number]
        size_bytes = file.signature.size_bytes
        staged = copies.get(file.path)
        known = memory.of(file) if staged is None else None
        if known is not None and session_files.recall(number, file, known):
            pace(0)
            digests[number] = known.digest
            remembered.append(size_bytes)
            memory.met_again(file, known)
        else:
            digests[number] = read_one(number, file, staged)
        advance(1, size_bytes)

    def read_one(number: int, file: ScannedFile, staged: str | None) -> str:
        size_bytes, began_ns = file.signature.size_bytes, time.time_ns()
        buffer, head = buffer_for(size_bytes), Head(store.algorithm) if size_bytes >= BIG_BYTES else None
        observe = both(session_files.watch(number, file), head.feed if head is not None else None)
        if staged is None:
            digest = hash_file(file.source, file.signature, store.algorithm, buffer, observe, pace)
        else:
            digest = store.copy_hashing(file.source, file.signature, staged, buffer, pace, observe)
            admission.add(staged, digest, size_bytes)
        memory.note(
            file, session_files.learned(number, digest, head.digest if head is not None else None), began_ns
        )
        return digest

    with Admission(store) as admission:
        for_each(threads, hash_one, _biggest_first(scanned), scanned.size_bytes)
    return digests, sum(remembered)


def _biggest_first(scanned: Scan) -> list[int]:
    """The numbers of all files: one big file that comes last would keep a single thread busy."""
    sizes = array("q", scanned.files.sizes())
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)


def count_rest(tree: HashedTree, known: Mapping[str, int | None], pace: Pace = unlimited) -> HashedTree:
    """The tree with the records of all recordings: known by digest, or counted now."""
    records = dict(tree.records)
    for session, source in tree.recordings():
        if session not in records:
            records[session] = (
                known[source.digest] if source.digest in known else count_records_of(source, pace)
            )
    return replace(tree, records=records)


def has_digest(path: str, digest: str, algorithm: Algorithm, pace: Pace = unlimited) -> bool:
    """Are the bytes of the stored file that has this name when it is opened those of the digest?"""
    hasher = new_hasher(algorithm)
    for chunk in read_stored(path, buffer_for(BIG_BYTES), pace):
        hasher.update(chunk)
    return hasher.hexdigest() == digest
