"""Moving bytes: store what the store does not have of a hashed tree. Knows no rows."""

import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from worker.errors import RoomWaitedForError, StoreFullError, TooLargeForStoreError
from worker.legacy.file_list import ScannedFile
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.parallel import Advance, buffer_for, for_each
from worker.legacy.scan import (
    Scan,
    too_long,
)
from worker.messages import ByteCounts, FileCounts, LinkCounts
from worker.runtime.throttle import Pace, unlimited
from worker.store import batches
from worker.store.batches import Admission
from worker.store.beneath import PATH_MOST_BYTES
from worker.store.files import allocated
from worker.store.row_file import DatasetRow
from worker.store.store import Source, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What storing a tree did: files and bytes by disposition, and how the tree's files were made."""

    files: FileCounts
    bytes: ByteCounts
    links: LinkCounts


def check_paths_fit(store: Store, scanned: Scan, name: str, job: str) -> None:
    """Raise `EntryRefusedError` for a path that would be too long in the store for a system call.

    `name` is the project's, of which the tree's is made, with a number where another dataset has it; `job`
    begins the names of its attempts, which end with a number and a time: a tree is built in staging, under
    another path than it gets. To be asked before anything is stored.
    """
    attempt = f"{job}-9999-{'f' * 13}"
    places = (store.tree_path(f"00-{name}", "0" * 64, digits=64), f"{store.root}/staging/{attempt}/tree")
    room = PATH_MOST_BYTES - max(len(os.fsencode(place)) for place in places) - 1
    for entries in (scanned.files.paths, [entry.path for entry in scanned.directories]):
        longest = max(entries, key=len, default="")
        if 4 * len(longest) <= room:
            # A character has four bytes at most.
            continue
        longest = max(entries, key=lambda path: len(os.fsencode(path)))
        if len(os.fsencode(longest)) > room:
            raise too_long(longest)


def check_room(store: Store, coming: Callable[[], Iterable[ScannedFile | Source]]) -> None:
    """Does what is coming fit? By its length, and where that does not, by what it takes on its disk, which is
    nothing where the store can share its blocks.

    `coming` may be called twice, so that nothing of it is kept: it may be a million files. Raises as
    `Store.check_room`.
    """
    try:
        store.check_room(sum(one.signature.size_bytes for one in coming()))
    except (TooLargeForStoreError, StoreFullError, RoomWaitedForError):
        store.check_room(sum(_to_allocate(store, one) for one in coming()))


def _to_allocate(store: Store, one: ScannedFile | Source) -> int:
    path = one.source if isinstance(one, ScannedFile) else one.path
    return 0 if store.would_clone(path, one.signature) else allocated(path, one.signature.size_bytes)


def missing_from(store: Store, tree: HashedTree, pace: Pace = unlimited) -> set[str]:
    """The digests whose bytes the store does not have."""
    missing: set[str] = set()
    for digest, source in tree.distinct.items():
        pace(0)
        if not store.has_blob(digest, source.signature.size_bytes):
            missing.add(digest)
    return missing


def store_tree(  # noqa: PLR0913 - what a job has at hand
    store: Store,
    tree: HashedTree,
    target: Path,
    *,
    attempt: str,
    threads: ThreadPoolExecutor,
    advance: Advance = lambda _files, _bytes: None,
    pace: Pace = unlimited,
    confirm: Callable[[], None] = lambda: None,
    describe: Callable[[], DatasetRow | None] = lambda: None,
) -> LinkCounts:
    """Store what is missing of a tree and publish it at `target`, with its row file, for which `describe` is
    asked then; after that every byte and name is durable.

    The caller holds the dataset's claim. Twice, or after a crash anywhere: what is there already is reused, a
    tree that is not complete is replaced. `confirm` as of `Store.publish`. Returns how the files of the tree
    were made; which contents came in, `store.admitted` says.
    """
    with store.staging(attempt) as staging:
        if store.holds(tree.manifest, os.fspath(target), pace):
            # An earlier attempt published the tree and ended before its rows were committed, perhaps
            # unsynced.
            store.publish_again(target, describe(), staging)
            return LinkCounts()
        store_contents(store, tree, staging, threads=threads, advance=advance, pace=pace)
        placed = store.build_tree(tree.manifest, f"{staging}/tree", pace)
        if placed["copy"]:
            # A tree that is found published is judged by its sizes: copies must have their bytes before.
            store.sync()
        store.publish(tree.manifest, f"{staging}/tree", target, staging, confirm, describe())
    return LinkCounts(**placed)


def store_contents(
    store: Store,
    tree: HashedTree,
    staging: str,
    *,
    threads: ThreadPoolExecutor,
    advance: Advance = lambda _files, _bytes: None,
    pace: Pace = unlimited,
) -> None:
    """Store the contents of a tree that are missing, by copies in `staging`. Their bytes are durable then,
    their names after the next `Store.sync`.
    """
    with Admission(store) as admission:

        def finish(source: Source, copy: str) -> None:
            admission.add(copy, source.digest, source.signature.size_bytes)
            advance(0, 0)

        _copy_each(store, tree, missing_from(store, tree, pace), staging, threads, pace, finish)


def counted(tree: HashedTree, stored: Container[str], links: LinkCounts | None = None) -> Stored:
    """Each file of a tree: the first of each content in `stored` as stored, all others as reused."""
    files = size_bytes = 0
    for digest in tree.distinct:
        if digest in stored:
            files += 1
            size_bytes += _size(tree, digest)
    return Stored(
        files=FileCounts(stored=files, reused=len(tree.sources) - files),
        bytes=ByteCounts(stored=size_bytes, reused=tree.scan.size_bytes - size_bytes),
        links=links or LinkCounts(),
    )


def copy_durably(
    store: Store,
    tree: HashedTree,
    wanted: Collection[str],
    staging: str,
    threads: ThreadPoolExecutor,
    advance: Advance,
    pace: Pace,
) -> dict[str, str]:
    """Copy the wanted contents of a tree into staging, durably, in one batch; the copies' paths by digest."""
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
        if size >= batches.BATCH_BYTES:
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
    """Copy contents of a tree into staging, biggest first. Its thread gives each to `finish`, which may
    raise.
    """

    def one(digest: str) -> None:
        source = tree.distinct[digest]
        finish(source, store.stage_file(source, staging, buffer_for(source.signature.size_bytes), pace))

    biggest_first = sorted(wanted, key=lambda digest: _size(tree, digest), reverse=True)
    for_each(threads, one, biggest_first, sum(_size(tree, digest) for digest in wanted))


def _size(tree: HashedTree, digest: str) -> int:
    return tree.distinct[digest].signature.size_bytes
