"""Rows of datasets that the store has and the database lacks are made again: it was restored from an older
backup. Adds what is missing, and changes nothing that is there.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine

from worker.conversion import dataset_row
from worker.db import adoptions, claims, datasets, exchange, garbage, given_ids, verifications
from worker.db.claims import Claim, Owner
from worker.db.datasets import Dataset, Numbers
from worker.db.given_ids import Wanted
from worker.db.retry import when_free
from worker.errors import (
    DatabaseRefusedError,
    RowFileError,
    SequenceBehindError,
    StoredBytesMismatchError,
    StoreUnusableError,
)
from worker.jobs import collect_garbage, indexing
from worker.jobs.drift import Drift, Kind
from worker.jobs.lost_rows import Lost, find, with_ids
from worker.jobs.one_store import Remembered, open_store
from worker.runtime.throttle import Pace
from worker.settings import Settings
from worker.store.digest import printable
from worker.store.files import is_directory
from worker.store.garbage import Garbage
from worker.store.removal import remove_tree
from worker.store.row_file import DatasetRow, differences
from worker.store.store import Store

T = TypeVar("T")
Listen = Callable[[str], None]

_STAGING = "rebuild"
_RENEWALS = 4
"""So often a claim is renewed while it lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A dataset whose rows were made again. `notes`: what of them is not as it was, and why."""

    dataset_id: int
    dataset_name: str
    dataset_hash: str
    file_path: str
    sessions: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done, or of a dry run, what would be. `there` counts the datasets that had their rows;
    `row_files` are the ids of those whose row file was missing.
    """

    there: int
    rebuilt: Sequence[Rebuilt]
    row_files: Sequence[int]
    drift: Sequence[Drift]


def rebuild(
    settings: Settings, engine: Engine, *, dry_run: bool, listen: Listen = lambda _words: None
) -> Outcome:
    """Make the rows of every dataset again that is whole in the store and has none, in one transaction each.
    A dry run does the same in one transaction, and takes it back.

    Twice, at once, or dying anywhere: what was done is found done. `listen` is told what is waited for.
    Raises `StoreElsewhereError` or `StoreUnusableError` if DATA_DIR has not this database's store.
    """
    store = open_store(settings, engine, Remembered(), create=False)
    if store.store_id is None:
        raise StoreUnusableError(f"There is no store at {store.root}: nothing tells what rows there were")
    if dry_run:
        with engine.connect() as conn:
            try:
                return _Rebuild(store, _Rehearsing(conn)).run()
            finally:
                conn.rollback()
    # A database that names no store yet names this one.
    open_store(settings, engine, Remembered(), create=True)
    hands = _Hands(engine, store, settings.lease_s, listen)
    with hands.alone():
        return _Rebuild(store, hands).run()


class _Hands:
    """What a rebuild writes, and what keeps others from it meanwhile."""

    def __init__(self, engine: Engine, store: Store, lease_s: float, listen: Listen) -> None:
        self._engine = engine
        self._store = store
        self._lease_s = lease_s
        self._listen = listen
        self._owner = Owner(job=str(uuid.uuid4()), attempt=1)
        self._claims: list[Claim] = []
        self._pinged_at = time.monotonic()
        self._staging = ""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Neither a gc nor another rebuild meanwhile; with staging of its own, without what one left there
        that died.
        """
        with self._held(collect_garbage.CLAIM, "the store", "a gc, an import or another rebuild"):
            with suppress(FileNotFoundError):
                remove_tree(f"{self._store.root}/staging/{_STAGING}")
            with self._store.staging(_STAGING) as self._staging:
                yield

    def claimed(self, digest: str) -> AbstractContextManager[None]:
        """No job stores this dataset meanwhile."""
        what = f"dataset {digest[:12]}"
        return self._held(digest, what, f"the job that has {what}")

    @contextmanager
    def _held(self, key: str, what: str, other: str) -> Iterator[None]:
        with claims.hold(
            self._engine,
            [key],
            owner=self._owner,
            what=what,
            lease_s=self._lease_s,
            on_wait=lambda: self._listen(other),
            pace=self.pace,
        ) as claim:
            self._claims.append(claim)
            try:
                yield
            finally:
                self._claims.remove(claim)

    def pace(self, _size_bytes: int = 0) -> None:
        """To be called in loops: keeps the claims. Raises `ClaimLostError` when one is another's."""
        if time.monotonic() - self._pinged_at > self._lease_s / _RENEWALS:
            self._pinged_at = time.monotonic()
            for claim in self._claims:
                claim.ping()

    def transaction(self, write: Callable[[Connection], T]) -> T:
        """Do this in a transaction, and again where it gave way to another one."""

        def once() -> T:
            with self._engine.begin() as conn:
                return write(conn)

        return when_free(once)

    def keep(self, dataset_id: int, raw_session_id: int) -> None:
        """From now on no sequence gives ids up to these: neither to a job nor to `reserve`."""
        self.transaction(lambda conn: given_ids.catch_up(conn, dataset_id, raw_session_id))

    def reserve(self, conn: Connection, session_count: int) -> Numbers | None:
        """Ids that no other row has or will have."""
        return datasets.reserve(conn, session_count)

    def write_row_file(self, row: DatasetRow) -> None:
        """Write it; durable with the next `sync`."""
        self._store.write_row(row, self._staging)

    def sync(self) -> None:
        """Wait for the disk."""
        self._store.sync()


class _Rehearsing(_Hands):
    """The same, but for what no transaction takes back."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._kept = 0, 0

    def transaction(self, write: Callable[[Connection], T]) -> T:
        """Do this in a part of the one transaction."""
        with self._conn.begin_nested():
            return write(self._conn)

    def claimed(self, digest: str) -> AbstractContextManager[None]:  # noqa: ARG002 - as of `_Hands`
        """Nothing that stays is written."""
        return nullcontext()

    def pace(self, _size_bytes: int = 0) -> None:
        """Nothing is claimed."""

    def keep(self, dataset_id: int, raw_session_id: int) -> None:
        """Sequences do not come back, so they are left alone."""
        self._kept = dataset_id, raw_session_id

    def reserve(self, conn: Connection, session_count: int) -> Numbers:
        """The ids that a rebuild would draw, if nothing else draws any."""
        return given_ids.next_free(conn, *self._kept, session_count)

    def write_row_file(self, row: DatasetRow) -> None:
        """Nor would a file."""

    def sync(self) -> None:
        """Nothing was written."""


class _Rebuild:
    """One rebuild: first what is missing, in the order of the ids that come back, then what is there."""

    def __init__(self, store: Store, hands: _Hands) -> None:
        self.store = store
        self.hands = hands
        self.garbage = Garbage(store)
        self.rebuilt: list[Rebuilt] = []
        self.row_files: list[int] = []
        self.drift: list[Drift] = []

    def run(self) -> Outcome:
        """All of it."""
        there = self.hands.transaction(datasets.all_of)
        manifests = self.garbage.manifests()
        self._rebuild_missing(there, manifests)
        self._check_all(there, frozenset(manifests))
        self._name_trees(manifests)
        return Outcome(there=len(there), rebuilt=self.rebuilt, row_files=self.row_files, drift=self.drift)

    # What is missing ----------------------------------------------------------------------------------------

    def _rebuild_missing(self, there: Sequence[Dataset], manifests: Sequence[str]) -> None:
        hashes, trees = {one.dataset_hash for one in there}, _by_tree(there)
        kept = {digest: self._said(digest) for digest in manifests if digest not in hashes}
        wanted = [
            Wanted(dataset_id=one[0], dataset_hash=digest, tree=one[1]) for digest, one in kept.items() if one
        ]
        if wanted:
            self.hands.keep(
                max(one.dataset_id for one in wanted), max(one[2] for one in kept.values() if one)
            )
        others = self.hands.transaction(lambda conn: given_ids.other_users(conn, wanted))
        undone = self.hands.transaction(lambda conn: adoptions.in_states(conn, ["undone"]))
        given_back = {one.dataset_hash for one in undone}
        for digest, one in sorted(kept.items(), key=lambda item: (item[1] is None, item[1], item[0])):
            with self.hands.claimed(digest):
                lost = find(self.store, digest, trees, self.hands.pace)
                if isinstance(lost, Drift):
                    # Of what was given back to Label a gc takes the manifest.
                    if lost.kind is not Kind.NOT_ADOPTED or digest not in given_back:
                        self.drift.append(lost)
                else:
                    self._rebuild(lost, others.get(one[0]) if one else None)

    def _said(self, digest: str) -> tuple[int, str, int] | None:
        """The id, the tree and the highest id of a session that the row file says; None without one that can
        be read, which is looked into later.
        """
        try:
            row = self.store.read_row(digest)
        except RowFileError:
            return None
        if row is None or row.dataset_id is None:
            return None
        return row.dataset_id, row.tree, max((one.raw_session_id or 0 for one in row.sessions), default=0)

    def _rebuild(self, lost: Lost, other_user: str | None) -> None:
        """The caller has the dataset's claim. The index comes first, and marks go: from then on no gc takes
        what the rows are to refer to.
        """
        digest = lost.manifest.digest
        try:
            if self.hands.transaction(lambda conn: _prepare(conn, lost, self.hands.pace)):
                self._note_missing_blobs(lost)
                self.rebuilt.append(self.hands.transaction(lambda conn: self._write(conn, lost, other_user)))
        except StoredBytesMismatchError as error:
            self._drift(Kind.LABELS_DIFFER, lost.path, str(error), digest)
        except (DatabaseRefusedError, SequenceBehindError) as error:
            self._drift(Kind.REFUSED, lost.path, str(error), digest)

    def _note_missing_blobs(self, lost: Lost) -> None:
        sizes = {file.digest: file.size_bytes for file in lost.manifest.files}
        missing = []
        for digest, size in sizes.items():
            self.hands.pace()
            if not self.store.has_blob(digest, size, asked_anew=True):
                missing.append(digest)
        if missing:
            reason = f"{len(missing)} of its {len(sizes)} blobs are missing, the first is {missing[0]}"
            self._drift(Kind.BLOBS_MISSING, lost.path, reason, lost.manifest.digest, lost.row.dataset_id)

    def _write(self, conn: Connection, lost: Lost, other_user: str | None) -> Rebuilt:
        row, notes = _numbered(conn, lost, other_user, self.hands.reserve)
        if row != lost.row:
            # Before the row: it has its ids from here.
            self.hands.write_row_file(row)
            self.hands.sync()
        dataset_id = dataset_row.add(conn, row, lost.labels).dataset_id
        if row.has_label_hash:
            exchange.remember_label_hash(conn, row.dataset_hash, row.label_hash)
        if row.registered_hash is not None:
            adoptions.remember_removed(
                conn,
                dataset_id,
                file_path=row.file_path,
                dataset_hash=row.dataset_hash,
                registered_hash=row.registered_hash,
                label_hash=row.label_hash,
            )
        # Nothing may refer to it yet: its time until a gc takes it begins now.
        garbage.mark(conn, "dataset", [row.dataset_hash])
        garbage.ripen(conn, "dataset", [row.dataset_hash])
        return Rebuilt(
            dataset_id=dataset_id,
            dataset_name=row.dataset_name,
            dataset_hash=row.dataset_hash,
            file_path=row.file_path,
            sessions=len(row.sessions),
            notes=(*lost.notes, *notes),
        )

    # What is there ------------------------------------------------------------------------------------------

    def _check_all(self, there: Sequence[Dataset], manifests: frozenset[str]) -> None:
        by_label = self.hands.transaction(verifications.registered_by_label)
        quarantined = {one.dataset_hash: one.entry_id for one in self.garbage.entries() if one.dataset_hash}
        for one in there:
            self.hands.pace()
            if one.dataset_hash not in manifests and one.dataset_id in by_label:
                continue
            entry = quarantined.get(one.dataset_hash)
            if not is_directory(one.file_path):
                reason = "its tree is not there" + (
                    f"; a gc has put it into quarantine as {entry}" if entry else ""
                )
                self._drift(Kind.ROW_WITHOUT_TREE, one.file_path, reason, one.dataset_hash, one.dataset_id)
            elif one.dataset_hash not in manifests:
                path = self.store.manifest_path(one.dataset_hash)
                self._drift(
                    Kind.ROW_WITHOUT_MANIFEST,
                    path,
                    "its manifest is not there",
                    one.dataset_hash,
                    one.dataset_id,
                )
            else:
                self._check_row_file(one)
        if self.row_files:
            self.hands.sync()

    def _check_row_file(self, dataset: Dataset) -> None:
        row = self.hands.transaction(lambda conn: dataset_row.read(conn, dataset.dataset_id))
        if row is None:
            # Removed a moment ago.
            return
        path = self.store.row_path(dataset.dataset_hash)
        try:
            kept = self.store.read_row(dataset.dataset_hash)
        except RowFileError as error:
            self._drift(Kind.ROW_FILE_UNREADABLE, path, str(error), row.dataset_hash, row.dataset_id)
            return
        if kept is None:
            self.hands.write_row_file(row)
            self.row_files.append(dataset.dataset_id)
        elif other := list(differences(kept, row)):
            self._drift(Kind.ROW_FILE_DIFFERS, path, "; ".join(other), row.dataset_hash, row.dataset_id)

    # Trees that nothing knows -------------------------------------------------------------------------------

    def _name_trees(self, manifests: Sequence[str]) -> None:
        """The trees that are left, apart from those of datasets that are named already."""
        registered = _by_tree(self.hands.transaction(datasets.all_of))
        hashes = {one.dataset_hash: one.dataset_id for one in registered.values()}
        known = {end: digest for digest in manifests for end in (digest, digest[:12])}
        for name in self.garbage.trees():
            path = f"{self.store.trees}/{name}"
            digest = known.get(name.rpartition("-")[2])
            if name in registered or not is_directory(path) or (digest is not None and digest not in hashes):
                continue
            reason = (
                "no manifest says what it is"
                if digest is None
                else f"dataset {hashes[digest]} has the same content in another directory; a gc takes this one if nothing reads it"
            )
            self._drift(Kind.TREE_WITHOUT_ROW, path, reason, digest)

    def _drift(
        self, kind: Kind, path: str, reason: str, dataset_hash: str | None, dataset_id: int | None = None
    ) -> None:
        self.drift.append(
            Drift(
                kind=kind,
                path=printable(path),
                reason=reason,
                dataset_hash=dataset_hash,
                dataset_id=dataset_id,
            )
        )


def _by_tree(some: Sequence[Dataset]) -> Mapping[str, Dataset]:
    """Datasets by the name of their directory: Label finds them by that, however the path is spelt."""
    return {os.path.basename(one.file_path.rstrip("/")): one for one in some}


def _prepare(conn: Connection, lost: Lost, pace: Pace) -> bool:
    """Index its blobs and remove its marks; False if it has its row by now."""
    manifest = lost.manifest
    if garbage.id_of(conn, manifest.digest) is not None:
        return False
    indexing.write(conn, manifest, pace)
    garbage.unmark(conn, "blob", {file.digest for file in manifest.files})
    for kind in ("manifest", "tree"):
        garbage.unmark(conn, kind, [manifest.digest])
    return True


def _numbered(
    conn: Connection,
    lost: Lost,
    other_user: str | None,
    reserve: Callable[[Connection, int], Numbers | None],
) -> tuple[DatasetRow, list[str]]:
    """Its rows with the ids that they had, where these are free; and what was not."""
    row = lost.row
    if row.dataset_id is None:
        numbers = reserve(conn, len(row.sessions))
        return (row if numbers is None else with_ids(row, numbers.dataset_id, numbers.session_ids)), []
    name, any_session = given_ids.taken(
        conn, row.dataset_id, [one.raw_session_id for one in row.sessions if one.raw_session_id is not None]
    )
    reason = f"dataset {name} has it" if name is not None else other_user and f"{other_user} names it"
    if not reason and not any_session:
        return row, []
    numbers = reserve(conn, len(row.sessions))
    if numbers is None:
        return row, []
    changed = with_ids(
        row, numbers.dataset_id if reason else None, numbers.session_ids if any_session else None
    )
    notes = [f"its id was {row.dataset_id}, which is another one's by now: {reason}"] if reason else []
    notes += ["its sessions have new ids: others have theirs"] if any_session else []
    return changed, notes
