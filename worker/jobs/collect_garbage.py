"""The steps of a gc: what nothing refers to goes to quarantine, and what was there long enough goes for good.

One job at a time, for the store as a whole. What it does to one thing is small, findable after a crash, and
completed by the next gc; so it may be stopped between any two.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from worker.db import garbage, leases, projects
from worker.db.engine import autocommit
from worker.db.garbage import Unreferenced
from worker.db.retry import when_free
from worker.errors import GarbageTripwireError, MigratorError
from worker.jobs import leftovers
from worker.jobs.attempt import Attempt
from worker.jobs.garbage_blobs import LooseBlobs, mark, take_own_blobs
from worker.jobs.indexing import index_rest
from worker.jobs.restore_garbage import restore_entry
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.legacy.restore import remove_finished
from worker.messages import GarbageEntry, JobRef, Outcome, Status, Verb, Warning_
from worker.runtime import log
from worker.store.digest import printable
from worker.store.garbage import Entry, Garbage

_log = log.get(__name__)

CLAIM = "collecting"
"""What one gc at a time holds."""

_PORTION = 5_000

_ACTIONS = {
    "quarantined": "put into quarantine",
    "removed": "removed from quarantine",
    "staging": "leftovers of jobs removed",
}


def collect_garbage(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Collect what nothing refers to, rehearse that, or bring an entry back; None when it is not ours to do.

    Twice, at once, or dying anywhere: as `run_job` says; entries that were begun are completed.
    """
    return run_job(tools, ref, worker, _work, Verb.GC)


def _work(attempt: Attempt) -> Outcome:
    attempt.heartbeat.enter("gc")
    with attempt.claim([CLAIM], "gc", lambda: attempt.heartbeat.enter("wait for another gc", at_once=True)):
        entry_id = attempt.lease.options.restore_entry
        done = restore_entry(attempt, entry_id) if entry_id is not None else _Collection(attempt).run()
        with attempt.engine.begin() as conn:
            leases.end_job(conn, attempt.lease, done)
        restored = Garbage(attempt.store).find(entry_id) if entry_id is not None else None
        if restored is not None:
            # Only now: an attempt that dies before it has said so finds the entry again.
            Garbage(attempt.store).remove(restored)
    return done


class _Collection:
    """One gc, from what earlier ones left to the ledger's hygiene."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.garbage = Garbage(attempt.store)
        self.grace_h = attempt.lease.options.grace_hours or 0.0
        self.dry_run = attempt.lease.dry_run
        self.found: list[GarbageEntry] = []
        self.warnings: list[Warning_] = []

    def run(self) -> Outcome:
        """In an order in which what one step frees the next one finds."""
        self._complete_begun()
        self._remove_old()
        self._clear_leftovers()
        self._take_datasets()
        self._take_orphans()
        self._take_loose_blobs()
        pruned = {} if self.dry_run else dict(self._prune())
        status = Status.WOULD_COLLECT if self.dry_run else Status.COLLECTED
        return self.attempt.outcome(status, self._words(pruned)).with_changes(
            garbage=tuple(self.found), pruned=pruned, warnings=tuple(self.warnings)
        )

    def _words(self, pruned: dict[str, int]) -> str:
        counts = {action: sum(one.action == action for one in self.found) for action in _ACTIONS}
        said = [f"{count} {_ACTIONS[action]}" for action, count in counts.items() if count]
        said += [f"{sum(pruned.values()):,} rows of the ledger pruned"] if any(pruned.values()) else []
        return "; ".join(said) or "nothing to collect"

    # What earlier ones left ---------------------------------------------------------------------------------

    def _complete_begun(self) -> None:
        """Entries of a gc that died: what is still in the store follows, unless it is in use again."""
        if self.dry_run:
            return
        self.garbage.finish_removals()
        for entry in self.garbage.entries():
            if entry.is_whole or entry.dataset_hash is None:
                continue
            _log.info("entry_completed", entry=entry.entry_id)
            with self.attempt.claim([entry.dataset_hash], f"dataset {entry.dataset_hash[:12]}"):
                self._take_files(entry)

    def _remove_old(self) -> None:
        limit = datetime.now(UTC) - timedelta(hours=self.grace_h)
        for entry in list(self.garbage.entries()):
            if entry.quarantined_at > limit:
                continue
            size = self.garbage.size_of(entry)
            if not self.dry_run:
                self.garbage.remove(entry, self.attempt.pace)
            self._note("removed", entry, size.files, size.size_bytes)

    def _clear_leftovers(self) -> None:
        """Staging of jobs that no worker has, and what dead restores left beside legacy directories."""
        attempt = self.attempt
        staged = attempt.store.staged_by()
        for task in sorted(leftovers.over(attempt.engine, staged) if staged else ()):
            attempt.pace(0)
            size = attempt.store.staged_size(task)
            if not self.dry_run:
                attempt.store.clear_staging(task, staged[task])
            self._note_leftover(task, size)
        with autocommit(attempt.engine) as conn:
            paths = projects.converted_paths(conn)
        for path in {os.path.dirname(os.path.normpath(path)): path for path in paths}.values():
            attempt.pace(0)
            over = partial(leftovers.over, attempt.engine)
            for name in remove_finished(path, attempt.tools.roots, over, rehearse=self.dry_run):
                self._note_leftover(f"{os.path.dirname(os.path.normpath(path))}/{name}", 0)

    def _note_leftover(self, name: str, size_bytes: int) -> None:
        self.found.append(
            GarbageEntry(
                action="staging",
                entry_id=None,
                kind="staging",
                dataset_id=None,
                name=printable(name),
                reason="its job is over",
                since=None,
                size_bytes=size_bytes,
            )
        )

    # Datasets -----------------------------------------------------------------------------------------------

    def _take_datasets(self) -> None:
        engine = self.attempt.engine
        with autocommit(engine) as conn:
            found = garbage.unreferenced(conn, self.grace_h)
            total = garbage.count_datasets(conn)
        due = [one for one in found if one.is_due]
        expect = self.attempt.lease.options.expect
        if not self.dry_run and garbage.would_trip(len(due), total, expect):
            raise GarbageTripwireError(
                f"{len(due)} of {total} datasets would go, which is more than one in ten; nothing was taken"
            )
        if not self.dry_run:
            mark(self.attempt, "dataset", [one.dataset_hash for one in found if one.since is None])
        for one in due:
            self.attempt.pace(0)
            self._take_dataset(one)
        with engine.begin() as conn:
            garbage.forget_referenced(conn)

    def _take_dataset(self, one: Unreferenced) -> None:
        entry = self._entry("dataset", one.dataset_name, "nothing refers to it", one.since)
        entry = replace(entry, dataset_id=one.dataset_id, dataset_hash=one.dataset_hash, tree=one.file_path)
        if self.dry_run:
            self._note("quarantined", entry, *_tree_size(one.file_path))
            return
        with self.attempt.claim([one.dataset_hash], f"dataset {one.dataset_id}"):
            described = self._take_rows(entry)
            if described is not None:
                self._take_files(described)
                size = self.garbage.size_of(described)
                self._note("quarantined", described, size.files, size.size_bytes)

    def _take_rows(self, entry: Entry) -> Entry | None:
        """The description is durable before the rows are gone. A crash between: the row is there, and the
        next gc gives the entry up.
        """

        def take() -> Entry | None:
            with self.attempt.engine.begin() as conn:
                rows = garbage.take_rows(conn, entry.dataset_hash or "", self.grace_h)
                if rows is None:
                    return None
                described = replace(entry, rows=rows)
                self.garbage.describe(described)
                return described

        return when_free(take, listen=self.attempt.heartbeat.listen)

    def _take_files(self, entry: Entry) -> None:
        """Tree, manifest, and the blobs that nothing else needs. The dataset's claim is held.

        Its row may be back, because a migration stored it again after a gc had died here: then what is in use
        stays, and the entry keeps what it has.
        """
        with autocommit(self.attempt.engine) as conn:
            is_back = garbage.id_of(conn, entry.dataset_hash or "") is not None
        if not is_back:
            try:
                manifest = self.garbage.manifest_of(entry)
            except MigratorError as error:
                _log.warning("blobs_left", entry=entry.entry_id, reason=str(error))
                manifest = None
            self.garbage.take_tree(entry)
            if manifest is not None:
                take_own_blobs(self.attempt, self.garbage, entry, {file.digest for file in manifest.files})
        self.garbage.finish(entry)

    # Trees without a row ------------------------------------------------------------------------------------

    def _take_orphans(self) -> None:
        """Manifests without a row, with their trees: a job stored them, and its conversion failed."""
        with autocommit(self.attempt.engine) as conn:
            hashes, names = garbage.registered(conn)
        orphans = [digest for digest in self.garbage.manifests() if digest not in hashes]
        trees = {digest: self._tree_of(digest, names) for digest in orphans}
        if not self.dry_run:
            mark(self.attempt, "manifest", orphans)
        with autocommit(self.attempt.engine) as conn:
            since = garbage.since(conn, "manifest", orphans)
        for digest in orphans:
            self.attempt.pace(0)
            entry = self._entry(
                "tree", f"dataset {digest[:12]}", "stored, but no dataset has it", since.get(digest)
            )
            self._take_orphan(replace(entry, dataset_hash=digest, tree=trees[digest]))

    def _take_orphan(self, entry: Entry) -> None:
        digest = entry.dataset_hash or ""
        if self.dry_run:
            if entry.since is not None and entry.since <= datetime.now(UTC) - timedelta(hours=self.grace_h):
                self._note("quarantined", entry, *_tree_size(entry.tree))
            return
        with self.attempt.claim([digest], f"dataset {digest[:12]}"):
            with self.attempt.engine.begin() as conn:
                due = garbage.lock_due(conn, "manifest", [digest], self.grace_h)
                if not due or garbage.id_of(conn, digest) is not None:
                    return
                self.garbage.describe(entry)
                garbage.forget_index(conn, digest)
            self._take_files(entry)
            with autocommit(self.attempt.engine) as conn:
                garbage.unmark(conn, "manifest", [digest])
            size = self.garbage.size_of(entry)
            self._note("quarantined", entry, size.files, size.size_bytes)

    def _tree_of(self, digest: str, registered: frozenset[str]) -> str | None:
        """The directory that was built for this manifest; one that a row points to is somebody's dataset."""
        for name in self.garbage.trees():
            if name not in registered and name.endswith((f"-{digest}", f"-{digest[:12]}")):
                return f"{self.attempt.store.trees}/{name}"
        return None

    # Loose blobs --------------------------------------------------------------------------------------------

    def _take_loose_blobs(self) -> None:
        index_rest(self.attempt)
        self._forget_what_was_never_stored()
        with autocommit(self.attempt.engine) as conn:
            unknown = garbage.without_index(conn)
        if unknown:
            self.warnings.append(
                Warning_(
                    message=f"no blob was taken for loose: what dataset {unknown[0][:12]} needs is not known, because its "
                    "manifest is damaged. Run: producer verify --store --repair"
                )
            )
            return
        entry = self._entry("blobs", "loose blobs", "no dataset needs them", None)
        files, size = LooseBlobs(self.attempt, self.garbage, self.grace_h).take(entry)
        if files:
            self._note("quarantined", entry, files, size)

    def _forget_what_was_never_stored(self) -> None:
        """A migration writes the index before its rows, and may have come to nothing since."""
        if self.dry_run:
            return
        attempt = self.attempt
        with attempt.engine.begin() as conn:
            for digest in garbage.indexed_without_row(conn, attempt.run_id):
                if not os.path.lexists(attempt.store.manifest_path(digest)):
                    garbage.forget_index(conn, digest)

    # The ledger ---------------------------------------------------------------------------------------------

    def _prune(self) -> Iterator[tuple[str, int]]:
        attempt = self.attempt
        for table in garbage.PRUNABLE:
            attempt.pace(0)
            with attempt.engine.begin() as conn:
                yield table, garbage.prune(conn, table, self.grace_h, attempt.run_id)
        yield "migration_blob_checks", self._prune_checks()

    def _prune_checks(self) -> int:
        """Checks of blobs that are gone. A check that is missing is only made again."""
        count, after = 0, ""
        while True:
            self.attempt.pace(0)
            with autocommit(self.attempt.engine) as conn:
                keys = garbage.checked_digests(conn, after, _PORTION)
            if not keys:
                return count
            after = keys[-1]
            gone = [
                key
                for key in keys
                if not os.path.lexists(self.attempt.store.blob_path(key.partition(":")[0]))
            ]
            if gone:
                with self.attempt.engine.begin() as conn:
                    count += garbage.forget_checks(conn, gone)

    # Small things -------------------------------------------------------------------------------------------

    def _entry(self, kind: str, name: str, reason: str, since: datetime | None) -> Entry:
        number = sum(one.action == "quarantined" for one in self.found) + 1
        return Entry(
            entry_id=f"{str(self.attempt.run_id)[:8]}-{self.attempt.lease.attempt}-{number}",
            kind=kind,
            name=name,
            reason=reason,
            quarantined_at=datetime.now(UTC),
            since=since,
        )

    def _note(self, action: str, entry: Entry, files: int, size_bytes: int) -> None:
        self.found.append(
            GarbageEntry(
                action=action,
                entry_id=entry.entry_id,
                kind=entry.kind,
                dataset_id=entry.dataset_id,
                name=printable(entry.name),
                reason=entry.reason,
                since=entry.since,
                files=files,
                size_bytes=size_bytes,
            )
        )


def _tree_size(tree: str | None) -> tuple[int, int]:
    """Files of a tree, and the blocks that only it and its blobs have."""
    files = size = 0
    for above, _, names in os.walk(tree) if tree is not None else ():
        for name in names:
            status = os.lstat(f"{above}/{name}")
            files += 1
            size += status.st_blocks * 512 if status.st_nlink <= 2 else 0
    return files, size
