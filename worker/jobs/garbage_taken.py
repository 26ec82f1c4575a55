"""What a gc does to one thing that it found: it goes to quarantine, or from there for good.

All of it is findable after a crash, and completed by the next gc.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace

from sqlalchemy import Connection

from worker.db import garbage
from worker.db.adoptions import Adoption
from worker.db.engine import autocommit
from worker.db.garbage import Kind
from worker.db.retry import when_free
from worker.errors import MigratorError
from worker.jobs.adopted_directory import remove_original, settle
from worker.jobs.attempt import Attempt
from worker.jobs.garbage_blobs import due_blobs, loose_blobs, mark, take_blobs
from worker.runtime import log
from worker.store.garbage import Entry, Garbage, Room, Size

_log = log.get(__name__)


class Taking:
    """The acts of a gc. `may_take_blobs`: does the index know what every dataset needs?"""

    def __init__(self, attempt: Attempt, grace_h: float, *, may_take_blobs: bool) -> None:
        self._attempt = attempt
        self._garbage = Garbage(attempt.store)
        self._grace_h = grace_h
        self._may_take_blobs = may_take_blobs

    # What earlier ones left ---------------------------------------------------------------------------------

    def finish_removals(self) -> None:
        """What a gc that died was removing goes for good."""
        self._garbage.finish_removals()
        self._attempt.store.finish_removals()

    def complete(self, entry: Entry) -> None:
        """An entry of a gc that died: what is still in the store follows, unless it is in use again. One for
        which nothing had been taken, or from which all was brought back, is given up.
        """
        _log.info("entry_completed", entry=entry.entry_id)
        if entry.dataset_hash is None:
            # What else is loose this gc finds by itself.
            (self._garbage.remove if self._garbage.is_empty(entry) else self._garbage.finish)(entry)
            return
        digest = entry.dataset_hash
        with self._attempt.claim([digest], f"dataset {digest[:12]}"):
            if is_registered(self._attempt, digest) and self._garbage.is_empty(entry):
                self._garbage.remove(entry)
            else:
                self._take_files(entry)

    def entries(self) -> Iterator[Entry]:
        """What is in quarantine."""
        return self._garbage.entries()

    def remove(self, entry: Entry) -> Size:
        """An entry goes for good; what came free."""
        size = self._garbage.size_of(entry)
        self._garbage.remove(entry, self._attempt.pace)
        return size

    def settle_adoption(self, row: Adoption) -> None:
        """An adoption whose job died comes to its end; one whose job lives has done so by then."""
        settle(self._attempt, row.dataset_id)

    def remove_adopted(self, row: Adoption) -> Size:
        """What Label had of an adopted dataset goes for good; what came free."""
        return remove_original(self._attempt, row)

    def clear_staging(self, task: str, last_attempt: int) -> Size:
        """What a job that is over has in staging goes for good."""
        store, room = self._attempt.store, Room()
        for path in store.staged_at(task, last_attempt):
            room.add(path)
        store.clear_staging(task, last_attempt)
        return room.size

    # Datasets and trees -------------------------------------------------------------------------------------

    def mark(self, kind: Kind, names: Collection[str]) -> None:
        """Note that nothing refers to these things, since now unless that is noted already."""
        mark(self._attempt, kind, names)

    def take_dataset(self, entry: Entry) -> Size | None:
        """A dataset, if still nothing refers to it: rows, tree, manifest, blobs that only it needs."""
        digest = entry.dataset_hash or ""
        with self._attempt.claim([digest], f"dataset {entry.dataset_id}"):
            described = self._take_rows(entry)
            if described is None:
                return None
            self._take_files(described)
            return self._garbage.size_of(described)

    def _take_rows(self, entry: Entry) -> Entry | None:
        """The description is durable before the rows are gone. A crash between: the row is there, and the
        next gc gives the entry up.
        """

        def take() -> Entry | None:
            with self._attempt.engine.begin() as conn:
                rows = garbage.take_rows(conn, entry.dataset_hash or "", self._grace_h)
                if rows is None:
                    return None
                described = replace(entry, rows=rows)
                self._garbage.describe(described)
                return described

        return when_free(take, listen=self._attempt.heartbeat.listen)

    def manifests(self) -> list[str]:
        """The digests of all manifests."""
        return self._garbage.manifests()

    def take_orphan(self, entry: Entry) -> Size | None:
        """A manifest without a row, with its tree and blobs, if it is marked for long enough."""
        digest = entry.dataset_hash or ""
        with self._attempt.claim([digest], f"dataset {digest[:12]}"):
            with self._attempt.engine.begin() as conn:
                due = garbage.lock_due(conn, "manifest", [digest], self._grace_h)
                if not due or garbage.id_of(conn, digest) is not None or is_used(conn, entry):
                    return None
                self._garbage.describe(entry)
                garbage.forget_index(conn, digest)
            self._take_files(entry)
            with autocommit(self._attempt.engine) as conn:
                garbage.unmark(conn, "manifest", [digest])
            return self._garbage.size_of(entry)

    def take_spare(self, entry: Entry, digest: str) -> Size | None:
        """A further tree of a content, if that is marked for long enough. Blobs and manifest stay."""
        with self._attempt.claim([digest], f"dataset {digest[:12]}"):
            with self._attempt.engine.begin() as conn:
                if not garbage.lock_due(conn, "tree", [digest], self._grace_h) or is_used(conn, entry):
                    return None
                self._garbage.describe(entry)
            self._garbage.take_tree(entry)
            self._garbage.finish(entry)
            return self._garbage.size_of(entry)

    def unmark_spare(self, digests: Collection[str]) -> None:
        """All further trees of these contents are gone."""
        with self._attempt.engine.begin() as conn:
            garbage.unmark(conn, "tree", digests)

    def _take_files(self, entry: Entry) -> None:
        """Tree, manifest, and the blobs that nothing else needs. The dataset's claim is held.

        Its row may be back, because a migration stored it again after a gc had died here: then what is in use
        stays, and the entry keeps what it has.
        """
        if not is_registered(self._attempt, entry.dataset_hash or ""):
            digests = own_digests(self._garbage, entry) if self._may_take_blobs else set()
            self._garbage.take_tree(entry)
            for loose in loose_blobs(self._attempt, sorted(digests)):
                # What a running migration may rely on stays, and is taken for loose by a later gc.
                self.mark("blob", loose)
                take_blobs(self._attempt, self._garbage, entry, loose, grace_h=0)
        self._garbage.finish(entry)

    def forget_referenced(self) -> None:
        """Marks of what is referred to again go."""
        with self._attempt.engine.begin() as conn:
            garbage.forget_referenced(conn)

    # Blobs --------------------------------------------------------------------------------------------------

    def forget_index(self, digests: Collection[str]) -> None:
        """What was never stored needs no blobs."""
        with self._attempt.engine.begin() as conn:
            for digest in digests:
                garbage.forget_index(conn, digest)

    def take_loose(self, entry: Entry) -> Size:
        """The blobs that are in no dataset's manifest: those that are new are marked, those whose time has
        come go.
        """
        is_described = False
        for folder in self._garbage.blobs():
            for loose in loose_blobs(self._attempt, folder):
                self.mark("blob", loose)
                due = due_blobs(self._attempt, loose, self._grace_h)
                if due and not is_described:
                    self._garbage.describe(entry)
                    is_described = True
                if due:
                    take_blobs(self._attempt, self._garbage, entry, due, self._grace_h)
        if is_described:
            self._garbage.finish(entry)
        return self._garbage.size_of(entry)


def is_registered(attempt: Attempt, digest: str) -> bool:
    """Has the dataset with this digest a row?"""
    with autocommit(attempt.engine) as conn:
        return garbage.id_of(conn, digest) is not None


def is_used(conn: Connection, entry: Entry) -> bool:
    """Does a row point to the tree of an entry, or a session read from it?"""
    return entry.tree is not None and garbage.is_used(conn, os.path.basename(entry.tree))


def own_digests(taken: Garbage, entry: Entry) -> set[str]:
    """The blobs that an entry's dataset needs; none if its manifest is damaged: they stay."""
    try:
        return {file.digest for file in taken.manifest_of(entry).files}
    except MigratorError as error:
        _log.warning("blobs_left", entry=entry.entry_id, reason=str(error))
        return set()
