"""The steps of importing a dataset from a bag: verify, read, claim, store, write its rows. Knows no Celery,
and no job of the ledger stands behind it.

The bag is read twice: by the validator of bags, which knows its own manifests alone, and then by what a
migration reads with, in the pass that copies what the store does not have. What is stored has the digests of
that second pass.
"""

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from sqlalchemy import Connection

from worker.conversion import dataset_row
from worker.conversion.transaction import in_one_transaction
from worker.db import claims, datasets, garbage, recordings, texts
from worker.db.claims import Claim
from worker.db.datasets import Dataset
from worker.db.engine import autocommit
from worker.db.leases import Lease
from worker.db.recordings import Counted
from worker.errors import (
    BagRefusedError,
    NoRoomForImportError,
    ProjectError,
    RoomWaitedForError,
    RowFileError,
    StoreFullError,
    TooLargeForStoreError,
    UsageError,
)
from worker.jobs import collect_garbage, indexing, leftovers
from worker.jobs.attempt import Attempt
from worker.jobs.claim_keeper import ClaimKeeper
from worker.jobs.dataset_place import Place, find_or_choose
from worker.jobs.integrity import record_verified, repair, unverified
from worker.jobs.tools import Tools
from worker.legacy.file_list import ScannedFile
from worker.legacy.hash import has_digest, hash_tree
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import check_paths_fit, check_room, counted, missing_from, store_tree
from worker.legacy.roots import Roots
from worker.legacy.scan import Scan, scan
from worker.messages import THE_STORE, ByteCounts, JobRef, Subject, Verb
from worker.store import bag_reading, row_file
from worker.store.bag_reading import Bag
from worker.store.bag_writing import MANIFEST, ROW, TREE
from worker.store.digest import printable
from worker.store.manifest import Directory, Manifest
from worker.store.row_file import DatasetRow
from worker.store.store import Store

_NAME_MOST = 255
"""So many characters the column of a dataset's name takes."""

_RENEWALS = 4
"""So often a claim is renewed while it lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The dataset as it is here now. `is_new`: this import wrote it; otherwise it was here, and nothing was
    written. `bytes` are what of its files was stored and reused.
    """

    dataset: Dataset
    is_new: bool
    files: int
    bytes: ByteCounts


def import_dataset(
    tools: Tools,
    path: str,
    *,
    on_read: Callable[[], None] = lambda: None,
    on_wait: Callable[[], None] = lambda: None,
) -> Imported:
    """Store a bag's dataset and write its rows, all of them or none. `on_read` is called before the bag is
    read, `on_wait` before a gc or another import is waited for.

    Twice, or at once: the second finds the dataset. Dying anywhere: no row is there, or all are; what was
    stored is found and used by the next import or migration of it, and else collected by gc. Raises
    `BagRefusedError` naming what is wrong with the bag, `NoRoomForImportError`, and what storing raises.
    """
    bag = bag_reading.open_bag(path)
    origin = _origin(tools, bag)
    with autocommit(tools.engine) as conn:
        known = datasets.find(conn, bag.manifest.digest)
    if known is not None:
        return _already(known)
    with _refusing(bag):
        attempt = _Import(tools, bag, origin.dataset_name)
        scanned = _scan(attempt, bag)
        on_read()
        bag_reading.verify(bag)
        with attempt.claim([collect_garbage.CLAIM], "the store", on_wait) as of_store:
            _clear_staging(attempt)
            tree = _read(attempt, bag, scanned)
            digest = tree.manifest.digest
            with attempt.claim([digest], f"dataset {digest[:12]}") as of_dataset:
                return _store(attempt, tree, origin, (of_store, of_dataset))


def _origin(tools: Tools, bag: Bag) -> DatasetRow:
    """What rows said of the dataset where it comes from, if rows here can say it. Session rows are made of
    the tree.
    """
    try:
        row = row_file.parse(bag.row, bag.manifest.digest, ROW)
        json.dumps(row.metadata, allow_nan=False)
    except (RowFileError, RecursionError, ValueError) as error:
        raise _refused(bag, f"{ROW}: {error}") from error
    if not 0 < len(row.dataset_name) <= _NAME_MOST:
        raise _refused(bag, f"{ROW}: a dataset's name has 1 to {_NAME_MOST} characters")
    with autocommit(tools.engine) as conn:
        encoding = texts.server_encoding(conn)
    wrong = texts.first_unholdable([row.dataset_name, row.description, row.metadata], encoding)
    if wrong is not None:
        raise _refused(bag, f"{ROW}: the database cannot hold {wrong}")
    return row


def _clear_staging(attempt: Attempt) -> None:
    """Whatever an import has left is of one that is over: it had the claim that this one has now."""
    for task, last_attempt in attempt.store.staged_by().items():
        if leftovers.is_of_import(task):
            attempt.store.clear_staging(task, last_attempt)


def _already(known: Dataset) -> Imported:
    return Imported(dataset=known, is_new=False, files=0, bytes=ByteCounts())


class _Import(Attempt):
    """An attempt as a job has one, but without a row of the ledger: nothing renews a lease for it, and no run
    can pause it. What it has are its claims: that of a gc, so that none runs meanwhile, and its dataset's.
    """

    def __init__(self, tools: Tools, bag: Bag, dataset_name: str) -> None:
        now = datetime.now(UTC)
        lease = Lease(
            ref=JobRef(run_id=uuid.uuid4(), subject_id=THE_STORE, subject=Subject.STORE),
            attempt=1,
            subject_name=dataset_name,
            path=printable(bag.path),
            verb=Verb.MIGRATE,
            dry_run=False,
            asked_for=None,
            started_at=now,
            run_created_at=now,
        )
        super().__init__(tools, lease, "producer datasets import")
        self.task_id = leftovers.import_task()
        self._keeper = ClaimKeeper(self.heartbeat.stop)

    @property
    def name(self) -> str:
        """What begins the names of its staging."""
        return f"{self.task_id}-1"

    @contextmanager
    def claim(
        self, keys: Sequence[str], what: str, on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[Claim]:
        """As an attempt's, and kept alive by a thread of its own."""
        lease_s = self.tools.settings.lease_s
        with (
            claims.hold(
                self.engine,
                keys,
                owner=claims.Owner(job=self.task_id, attempt=1),
                what=what,
                lease_s=lease_s,
                on_wait=on_wait,
                pace=self.pace,
            ) as claim,
            self._keeper.keeping_alive(claim),
            _pinging(self._keeper, lease_s / _RENEWALS),
        ):
            yield claim


@contextmanager
def _pinging(keeper: ClaimKeeper, every_s: float) -> Iterator[None]:
    ended = threading.Event()

    def ping() -> None:
        while not ended.wait(every_s):
            keeper.ping()

    thread = threading.Thread(target=ping, name="claims", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _refusing(bag: Bag) -> Iterator[None]:
    """What is wrong with a project's directory is wrong with the bag; nothing is to be resumed or retried."""
    try:
        yield
    except ProjectError as error:
        raise BagRefusedError(f"{printable(bag.path)} is refused: {error}") from error
    except (StoreFullError, RoomWaitedForError, TooLargeForStoreError) as error:
        raise NoRoomForImportError(str(error)) from error


# Reading ----------------------------------------------------------------------------------------------------


def _roots(attempt: Attempt, bag: Bag) -> Roots:
    """A bag may lie anywhere but in the store, and nothing in it leads out of it."""
    return replace(attempt.roots, allowed=(Path(bag.tree),))


def _scan(attempt: Attempt, bag: Bag) -> Scan:
    scanned = scan(bag.tree, _roots(attempt, bag), attempt.pace, needs_sessions=False)
    # One that is not there yet is made for a bag only that was found good.
    store = attempt.tools.open_store(create=False)
    _check_user(store)
    check_paths_fit(store, scanned, attempt.lease.subject_name or "dataset", attempt.name)
    wrong = next(_differences(bag.manifest, scanned), None)
    if wrong is not None:
        raise _refused(bag, f"{TREE}/{wrong}")
    return scanned


def _check_user(store: Store) -> None:
    """Raise `UsageError` for another user than the store's, such as root: its directories could not be
    written to by workers any more.
    """
    if store.store_id is None:
        return
    owner = store.root.stat().st_uid
    if owner != os.geteuid():
        raise UsageError(
            f"{store.root} belongs to user {owner}, as whom workers run, and this is user {os.geteuid()}: import as that one"
        )


def _differences(listed: Manifest, scanned: Scan) -> Iterator[str]:
    """What a tree has that its manifest has not, or the other way round, by name and size. A directory that
    is empty may have been lost on the way: the manifest has it.
    """
    directories = {directory.path for directory in listed.directories}
    for path in (one.path for one in scanned.directories if one.path not in directories):
        yield f"{printable(path)} is not in {MANIFEST}"
    sizes = {file.path: file.size_bytes for file in listed.files}
    for path, size_bytes in zip(scanned.files.paths, scanned.files.sizes(), strict=True):
        expected = sizes.pop(path, None)
        if expected is None:
            yield f"{printable(path)} is not in {MANIFEST}"
        elif expected != size_bytes:
            yield f"{printable(path)} has {size_bytes} bytes, and by {MANIFEST} {expected}"
    for path in sizes:
        yield f"{printable(path)} is missing"


def _read(attempt: Attempt, bag: Bag, scanned: Scan) -> HashedTree:
    """Read every file, and copy what the store does not have in the same pass; then the tree is the
    manifest's. Of a bag that is refused only now, loose blobs stay for a gc.
    """
    store, listed = attempt.store, bag.manifest
    is_ours = listed.algorithm == store.algorithm
    with store.staging(f"{attempt.name}-arrivals") as staging:
        copies = _copies(attempt, listed, staging) if is_ours else {}

        def coming() -> Iterator[ScannedFile]:
            return (file for file in scanned.files if file.path in copies)

        check_room(store, coming)
        tree = hash_tree(
            scanned,
            roots=_roots(attempt, bag),
            store=store,
            threads=attempt.tools.threads,
            pace=attempt.pace,
            copies=copies,
        )
    found = tree.manifest
    if is_ours:
        pairs = zip(listed.files, found.files, strict=True)
        wrong = next((file.path for file, other in pairs if file != other), None)
    else:
        # This store has digests of its own: those that the manifest promises are compared beside.
        wrong = next(_with_other_bytes(attempt, bag), None)
    if wrong is not None:
        raise _refused(bag, f"{TREE}/{printable(wrong)} has not the bytes of its digest in {MANIFEST}")
    directories = [Directory(one.path) for one in listed.directories]
    return replace(tree, manifest=Manifest.of(store.algorithm, [*directories, *found.files]))


def _copies(attempt: Attempt, listed: Manifest, staging: str) -> dict[str, str]:
    """One file of each content that the store does not have, and where its copy goes."""
    first: dict[str, str] = {}
    for file in listed.files:
        if not attempt.store.has_blob(file.digest, file.size_bytes):
            first.setdefault(file.digest, file.path)
    return {path: f"{staging}/{number}" for number, path in enumerate(first.values())}


def _with_other_bytes(attempt: Attempt, bag: Bag) -> Iterator[str]:
    for file in bag.manifest.files:
        if not has_digest(f"{bag.tree}/{file.path}", file.digest, bag.manifest.algorithm, attempt.pace):
            yield file.path


def _refused(bag: Bag, reason: str) -> BagRefusedError:
    return BagRefusedError(f"{printable(bag.path)} is refused: {reason}")


# Storing ----------------------------------------------------------------------------------------------------


def _store(attempt: Attempt, tree: HashedTree, origin: DatasetRow, held: tuple[Claim, Claim]) -> Imported:
    """Store the tree as a migration does, unless another job has meanwhile, and write its rows."""
    place = find_or_choose(attempt, tree)
    if place.dataset is not None:
        return _already(place.dataset)
    repair(attempt, tree, unverified(attempt, tree, place.path), place.path)
    missing = missing_from(attempt.store, tree, attempt.pace)
    check_room(attempt.store, lambda: (tree.distinct[digest] for digest in missing))
    row = cache(partial(_row, attempt, tree, place, origin))
    store_tree(
        attempt.store,
        tree,
        place.path,
        attempt=attempt.name,
        threads=attempt.tools.threads,
        pace=attempt.pace,
        confirm=held[1].ping,
        describe=row,
    )
    dataset = in_one_transaction(
        attempt.engine, f"dataset {row().dataset_name}", partial(_write_rows, attempt, tree, row(), held)
    )
    # These spare others work, and say nothing that is not so if they are missing.
    with autocommit(attempt.engine) as conn:
        recordings.remember(conn, _counted(tree))
        record_verified(conn, attempt.store, attempt.store.admitted)
    stored = counted(tree, attempt.store.admitted)
    return Imported(dataset=dataset, is_new=True, files=len(tree.sources), bytes=stored.bytes)


def _row(attempt: Attempt, tree: HashedTree, place: Place, origin: DatasetRow) -> DatasetRow:
    """The rows of the dataset here, with ids of this database; what they were elsewhere is metadata."""
    with autocommit(attempt.engine) as conn:
        numbers = datasets.reserve(conn, len(tree.manifest.session_names))
    row = dataset_row.new_row(attempt.lease, tree, place.path, attempt.store.root, numbers)
    came_from = {
        "dataset_id": origin.dataset_id,
        "dataset_hash": origin.dataset_hash,
        "metadata": origin.metadata,
    }
    return replace(row, description=origin.description, metadata={**row.metadata, "imported_from": came_from})


def _write_rows(
    attempt: Attempt, tree: HashedTree, row: DatasetRow, held: tuple[Claim, Claim], conn: Connection
) -> Dataset:
    """The dataset, its sessions, and which blobs it needs. Locks the claims first: were one lost, a gc could
    have taken what was stored.
    """
    for claim in held:
        claim.keep_in(conn)
    garbage.unmark(conn, "blob", tree.distinct)
    for kind in ("dataset", "manifest", "tree"):
        garbage.unmark(conn, kind, [row.dataset_hash])
    indexing.write(conn, tree.manifest, attempt.pace)
    return dataset_row.add(conn, row, partial(dataset_row.labels_in, Path(row.file_path)))


def _counted(tree: HashedTree) -> dict[str, Counted]:
    return {
        source.digest: Counted(
            size_bytes=source.signature.size_bytes, head=None, records=tree.records[session]
        )
        for session, source in tree.recordings()
    }
