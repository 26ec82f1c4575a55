"""The steps of adopting one dataset that Label registered itself: its directory is read and stored, then it
changes places with a tree of ours, and at last the rows say so.

What else the verb does, by an option of the run, is in `undo_adoption`.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from worker.conversion.dataset_row import adopted_row, labels_in, raw_sessions
from worker.db import adoptions, datasets, dry_runs, exchange, leases, verifications
from worker.db.adoptions import Adoption, NewAdoption, Registered
from worker.db.engine import autocommit
from worker.errors import (
    AdoptionRefusedError,
    ClaimLostError,
    ContentAdoptedError,
    NothingToDoError,
    ProjectError,
)
from worker.jobs.adopted_directory import (
    directories_claimed,
    listing_of,
    pair_of,
    place_of,
    settle,
    settle_row,
)
from worker.jobs.attempt import Attempt
from worker.jobs.indexing import index, unmark
from worker.jobs.integrity import record_verified, repair, unverified
from worker.jobs.moved_directory import in_transaction
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.jobs.undo_adoption import undo_adoption
from worker.legacy.fingerprint import Fingerprint, fingerprint
from worker.legacy.hash import hash_tree
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import Stored, check_room, counted, missing_from, store_contents
from worker.legacy.mount_table import current_mounts, points_in
from worker.legacy.roots import Roots
from worker.legacy.scan import scan, too_long
from worker.messages import DiskBytes, JobRef, LinkCounts, Outcome, Status, Verb
from worker.store.beneath import PATH_MOST_BYTES
from worker.store.digest import printable
from worker.store.label_hash import label_hash
from worker.store.row_file import DatasetRow


def adopt(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Adopt one dataset that Label registered itself, rehearse that, or undo it; None when the job is not
    ours to do.

    Twice, at once, or dying anywhere: as `run_job` says; directories that were changing places are found by
    the ledger's row and brought back to where they were.
    """
    return run_job(tools, ref, worker, _work, Verb.ADOPT)


def _work(attempt: Attempt) -> Outcome:
    """That another dataset has the content is no failure: the dataset is skipped, with a remedy."""
    settle(attempt, attempt.lease.ref.subject_id)
    try:
        return undo_adoption(attempt) if attempt.options.undo else _adopt(attempt)
    except ContentAdoptedError as error:
        outcome = attempt.outcome(Status.SKIPPED, str(error)).with_changes(remedy=error.remedy)
        with autocommit(attempt.engine) as conn:
            leases.end_job(conn, attempt.lease, outcome)
        return outcome


def _adopt(attempt: Attempt) -> Outcome:
    dataset = _registered(attempt)
    place = _own_directory(attempt, dataset)
    with _in_our_words(dataset):
        # Before anything is read: what is equal to this afterwards was so all the time.
        before = fingerprint(place, attempt.pace)
        tree = _read(attempt, place)
        _check_new(attempt, dataset, tree)
        if attempt.lease.dry_run:
            return _predict(attempt, dataset, tree, before)
        unmark(attempt, tree)
        digest = tree.manifest.digest
        with attempt.claim([digest], f"dataset {digest[:12]}"):
            _check_new(attempt, dataset, tree)
            return _Adopting(attempt, dataset, place, before, tree).run()


def _registered(attempt: Attempt) -> Registered:
    """The dataset's rows as they are. Raises `NothingToDoError` for one that is gone, or ours already."""
    dataset_id = attempt.lease.ref.subject_id
    with attempt.engine.begin() as conn:
        dataset = adoptions.registered(conn, dataset_id)
        by_label = verifications.registered_by_label(conn)
    if dataset is None:
        raise NothingToDoError(f"dataset {dataset_id}: deleted since the run was opened")
    if dataset_id not in by_label:
        raise NothingToDoError(f"dataset {dataset_id}: this program's already")
    return dataset


@contextmanager
def _in_our_words(dataset: Registered) -> Iterator[None]:
    """What is wrong with the directory is said of the dataset, with what helps here."""
    try:
        yield
    except (AdoptionRefusedError, NothingToDoError):
        raise
    except ProjectError as error:
        raise AdoptionRefusedError(f"dataset {dataset.dataset_id}: {error}") from error


# Reading it -------------------------------------------------------------------------------------------------


def _own_directory(attempt: Attempt, dataset: Registered) -> str:
    """Where the dataset's directory is, if it is one that can become ours in its place."""
    store, path = attempt.store, dataset.file_path.rstrip("/")
    place = place_of(store, path)
    if not os.path.isabs(path) or os.path.realpath(os.path.dirname(path)) != os.path.dirname(place):
        raise _refused(dataset, f"is not directly in {store.trees}")
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        raise AdoptionRefusedError(
            f"dataset {dataset.dataset_id}: Directory does not exist: {printable(path)}"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(dataset, "is a link" if stat.S_ISLNK(status.st_mode) else "is not a directory")
    points = points_in(place, current_mounts())
    if points or status.st_dev != os.stat(store.trees).st_dev:
        where = f", mounted at {printable(points[0])}" if points else ""
        raise _refused(dataset, f"is, or holds, another file system than the store's{where}")
    for folder, uid in ((place, status.st_uid), (os.path.dirname(place), -1)):
        # A read-only directory of this user is opened to be moved.
        if not os.access(folder, os.W_OK | os.X_OK) and uid != os.geteuid():
            raise AdoptionRefusedError(
                f"dataset {dataset.dataset_id}: the migrator's user may not write to {printable(folder)}, and so not move it"
            )
    return place


def _refused(dataset: Registered, why: str) -> AdoptionRefusedError:
    return AdoptionRefusedError(f"dataset {dataset.dataset_id}: {printable(dataset.file_path)} {why}")


def _read(attempt: Attempt, place: str) -> HashedTree:
    """List and hash the directory, in which no link is followed; its recordings need no counting."""
    store = attempt.store
    roots = Roots(allowed=(store.trees,), store=(store.root,))
    scanned = scan(place, roots, attempt.pace, threads=attempt.tools.threads, follows_links=False)
    attempt.files_seen = len(scanned.files)
    room = PATH_MOST_BYTES - len(os.fsencode(f"{store.root}/staging/{attempt.name}/tree/"))
    for path in (*scanned.files.paths, *(one.path for one in scanned.directories)):
        if len(os.fsencode(path)) > room:
            raise too_long(path)
    attempt.heartbeat.enter("hash")
    return hash_tree(
        scanned,
        roots=roots,
        store=store,
        threads=attempt.tools.threads,
        advance=attempt.heartbeat.advance,
        pace=attempt.pace,
        likely_known=frozenset(scanned.files.paths),
    )


def _check_new(attempt: Attempt, dataset: Registered, tree: HashedTree) -> None:
    """Raise `ContentAdoptedError` if another dataset has the same content: one digest is one dataset's."""
    with autocommit(attempt.engine) as conn:
        other = datasets.find(conn, tree.manifest.digest)
    if other is not None:
        raise ContentAdoptedError(
            f"dataset {dataset.dataset_id}: dataset {other.dataset_id} {printable(other.dataset_name)} has the same content"
        )


def _predict(attempt: Attempt, dataset: Registered, tree: HashedTree, before: Fingerprint) -> Outcome:
    """What the real run would do, as far as this dataset alone can tell; which of several that share content
    stores it is settled in the report.
    """
    new = missing_from(attempt.store, tree, attempt.pace)
    outcome = _outcome(attempt, dataset, tree, counted(tree, new), before)
    with attempt.engine.begin() as conn:
        sizes = {digest: tree.distinct[digest].signature.size_bytes for digest in new}
        dry_runs.note_new_content(conn, attempt.lease.ref, sizes)
        leases.end_job(conn, attempt.lease, outcome)
    return outcome


def _outcome(
    attempt: Attempt,
    dataset: Registered,
    tree: HashedTree,
    stored: Stored,
    before: Fingerprint,
    label: str | None = None,
) -> Outcome:
    """`label` is Label's hash of what is adopted; a dry run does not compute it."""
    status, would = (Status.WOULD_ADOPT, "would become") if attempt.lease.dry_run else (Status.ADOPTED, "is")
    new = (
        "new"
        if stored.bytes.stored == stored.bytes.read
        else "in part new"
        if stored.files.stored
        else "stored"
    )
    reason = f"{would} this program's in its place; its contents were {new}"
    if label not in {None, dataset.dataset_hash}:
        reason += "; Label had rewritten it since it registered it"
    return attempt.outcome(status, reason).with_changes(
        dataset_hash=tree.manifest.digest,
        dataset_path=dataset.file_path,
        sessions_count=len(tree.manifest.session_names),
        files=stored.files,
        bytes=stored.bytes,
        links=stored.links,
        disk=DiskBytes(legacy=before.allocated_bytes),
    )


# Making it ours ---------------------------------------------------------------------------------------------


class _Adopting:
    """One dataset from its contents in the store to its rows. The caller has the claim on its digest."""

    def __init__(
        self, attempt: Attempt, dataset: Registered, place: str, before: Fingerprint, tree: HashedTree
    ) -> None:
        self.attempt = attempt
        self.dataset = dataset
        self.place = place
        self.before = before
        self.tree = tree

    def run(self) -> Outcome:
        """Bytes first; then the directories change places; then the rows."""
        attempt = self.attempt
        attempt.heartbeat.enter("label hash", self.tree.manifest.digest)
        label = label_hash(self.place, attempt.pace)
        attempt.heartbeat.enter("store", self.tree.manifest.digest)
        says = self._new_row(label)
        with attempt.store.staging(attempt.name) as staging:
            attempt.stored = self._store(staging, says)
            with directories_claimed(attempt, self.dataset.dataset_id):
                row = self._begin(f"{staging}/tree", label)
                try:
                    self._exchange(row, f"{staging}/tree")
                    self._confirm(row)
                    return self._write(row, says, attempt.stored)
                except Exception:
                    settle_row(attempt, row)
                    raise

    def _new_row(self, label: str | None) -> DatasetRow:
        """What the rows are to say. Sessions that Label did not register get numbers that no others will."""
        before = self.dataset.before
        known = {one["session_name"] for one in before["sessions"]}
        new = [name for name in self.tree.manifest.session_names if name not in known]
        numbers = None
        if new:
            with autocommit(self.attempt.engine) as conn:
                numbers = datasets.reserve(conn, len(new))
        return adopted_row(self.tree, before, numbers, label)

    def _store(self, staging: str, says: DatasetRow) -> Stored:
        """All contents, manifest and row file, and a tree of ours in staging, durably. The index has them by
        then: no gc takes them.
        """
        attempt, tree, store = self.attempt, self.tree, self.attempt.store
        built = f"{staging}/tree"
        repair(attempt, tree, unverified(attempt, tree, Path(built)), Path(built))
        missing = missing_from(store, tree, attempt.pace)
        check_room(store, lambda: (tree.distinct[digest] for digest in missing))
        store_contents(
            store,
            tree,
            staging,
            threads=attempt.tools.threads,
            advance=attempt.heartbeat.advance,
            pace=attempt.pace,
        )
        placed = store.build_tree(tree.manifest, built, attempt.pace)
        store.keep_manifest(tree.manifest, staging)
        store.write_row(says, staging)
        store.sync()
        index(attempt, tree.manifest)
        with autocommit(attempt.engine) as conn:
            record_verified(conn, store, missing | store.admitted)
        cloned = sum(1 for _ in store.came_by_cloning())
        return replace(counted(tree, store.admitted), links=LinkCounts(**placed, cloned=cloned))

    # The directories change places --------------------------------------------------------------------------

    def _begin(self, built: str, label: str | None) -> Adoption:
        """The row comes before the exchange: a job that dies in between leaves what finds both."""
        attempt, dataset = self.attempt, self.dataset
        new = NewAdoption(
            dataset=dataset,
            run_id=attempt.run_id,
            folder=f"adopted-{dataset.dataset_id}-{str(attempt.run_id)[:8]}-{attempt.lease.mark}",
            inode=os.lstat(self.place).st_ino,
            tree_inode=os.lstat(built).st_ino,
            listing=listing_of(self.before),
            size_bytes=self.before.allocated_bytes,
            dataset_hash=self.tree.manifest.digest,
            label_hash=label,
        )

        def write(conn: Connection) -> Adoption:
            self._check_rows(conn)
            adoptions.begin(conn, new)
            row = adoptions.of_dataset(conn, dataset.dataset_id)
            assert row is not None  # noqa: S101 - for the type checker: it was written just now
            return row

        return in_transaction(attempt, write)

    def _check_rows(self, conn: Connection) -> None:
        """Locks the dataset's row, and keeps Label from deleting it meanwhile."""
        if adoptions.registered(conn, self.dataset.dataset_id) != self.dataset:
            raise AdoptionRefusedError(
                f"dataset {self.dataset.dataset_id}: its rows were changed or deleted while it was read"
            )

    def _still_adopting(self, conn: Connection, row: Adoption) -> None:
        """Locks the dataset's row, then that of the adoption."""
        self._check_rows(conn)
        if adoptions.lock(conn, row.adoption_id) != "adopting":
            raise ClaimLostError("Another job has settled this directory meanwhile")

    def _exchange(self, row: Adoption, built: str) -> None:
        pair = pair_of(self.attempt.store, row)
        reason = (
            f"what Label had as dataset {row.dataset_id} before it was adopted; "
            f"to give it back: producer datasets adopt --undo {row.dataset_id}"
        )

        def write(conn: Connection) -> None:
            self._still_adopting(conn, row)
            pair.take_in(built, reason)
            pair.set_aside()

        in_transaction(self.attempt, write)

    def _confirm(self, row: Adoption) -> None:
        """A file that was written in the last moment is in the directory that was set aside: back with it."""
        now = fingerprint(pair_of(self.attempt.store, row).inside, self.attempt.pace)
        self.before.check_same(now, self.place)

    def _write(self, row: Adoption, says: DatasetRow, stored: Stored) -> Outcome:
        attempt, tree = self.attempt, self.tree
        outcome = _outcome(attempt, self.dataset, tree, stored, self.before, row.label_hash)
        sessions = list(raw_sessions(says, partial(labels_in, Path(self.place))))

        def write(conn: Connection) -> None:
            self._still_adopting(conn, row)
            adoptions.write_rows(
                conn,
                row.dataset_id,
                dataset_hash=row.dataset_hash,
                size_bytes=tree.manifest.size_bytes,
                sessions=sessions,
            )
            exchange.remember_label_hash(conn, row.dataset_hash, row.label_hash)
            adoptions.set_state(conn, row.adoption_id, "adopted", attempt.run_id)
            leases.end_job(conn, attempt.lease, outcome)

        in_transaction(attempt, write)
        return outcome
