"""The steps of a gc: what nothing refers to goes to quarantine, and what was there long enough goes for good.

One job at a time, for the store as a whole. What it does to one thing is small, findable after a crash, and
completed by the next gc; so it may be stopped between any two.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from worker.db import adoptions, garbage, leases, projects
from worker.db.engine import autocommit
from worker.db.garbage import Unreferenced
from worker.errors import EntryUnreadableError, GarbageTripwireError, MigratorError, StoredBytesMismatchError
from worker.jobs import leftovers
from worker.jobs.attempt import Attempt
from worker.jobs.garbage_adopted import remove_originals, settle_begun
from worker.jobs.garbage_foretold import Foretelling
from worker.jobs.garbage_taken import Taking, is_registered
from worker.jobs.indexing import index_rest
from worker.jobs.repair import inode_at
from worker.jobs.restore_garbage import has_the_only_tree, restore_entry
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.legacy.restore import remove_finished
from worker.messages import GarbageEntry, JobRef, Outcome, Status, Verb, Warning_
from worker.runtime import log
from worker.store.digest import printable
from worker.store.garbage import Entry, Garbage, Size
from worker.store.inspection import Found, inspect

_log = log.get(__name__)

CLAIM = "collecting"
"""What one gc at a time holds, or an import of a dataset: what that stores no gc may take for garbage."""

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
            try:
                Garbage(attempt.store).remove(restored)
            except MigratorError as error:
                # The job has ended well, and the next gc gives an empty entry up.
                _log.warning("entry_left", entry=restored.entry_id, reason=str(error))
    return done


class _Collection:
    """One gc, from what earlier ones left to the ledger's hygiene. What it finds its `hands` take; those of a
    dry run only foretell.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.garbage = Garbage(attempt.store)
        self.grace_h = attempt.lease.options.grace_hours or 0.0
        self.dry_run = attempt.lease.dry_run
        self.found: list[GarbageEntry] = []
        self.warnings: list[Warning_] = []

    def run(self) -> Outcome:
        """In an order in which what one step frees the next one finds."""
        found = self._unreferenced()
        knows_needs = self._knows_needs()
        kind = Foretelling if self.dry_run else Taking
        self.hands: Foretelling | Taking = kind(self.attempt, self.grace_h, may_take_blobs=knows_needs)
        self._complete_begun()
        self._remove_old()
        self._clear_leftovers()
        self._take_datasets(found)
        self._take_orphans()
        if knows_needs:
            self._take_loose_blobs()
        pruned = {} if self.dry_run else dict(self._prune())
        status = Status.WOULD_COLLECT if self.dry_run else Status.COLLECTED
        return self.attempt.outcome(status, self._words(pruned)).with_changes(
            garbage=tuple(self.found), pruned=pruned, warnings=tuple(self.warnings)
        )

    def _knows_needs(self) -> bool:
        """Does the index tell what every dataset of ours needs? It is completed first, in a dry run as well:
        it only repeats what manifests say.
        """
        index_rest(self.attempt)
        with autocommit(self.attempt.engine) as conn:
            unknown = garbage.without_index(conn)
        if unknown:
            self._warn(
                f"no blob was taken: what dataset {unknown[0][:12]} needs is not known, because its manifest is damaged. "
                "Run: producer verify --store --repair"
            )
        return not unknown

    def _words(self, pruned: dict[str, int]) -> str:
        counts = {action: sum(one.action == action for one in self.found) for action in _ACTIONS}
        said = [f"{count} {_ACTIONS[action]}" for action, count in counts.items() if count]
        said += [f"{sum(pruned.values()):,} rows of the ledger pruned"] if any(pruned.values()) else []
        return "; ".join(said) or "nothing to collect"

    # What earlier ones left ---------------------------------------------------------------------------------

    def _complete_begun(self) -> None:
        self.hands.finish_removals()
        for entry in self.hands.entries():
            if not entry.is_whole:
                self.hands.complete(entry)
        self.warnings += settle_begun(self.attempt, self.hands)

    def _remove_old(self) -> None:
        limit = datetime.now(UTC) - timedelta(hours=self.grace_h)
        for entry in self.hands.entries():
            if entry.quarantined_at > limit:
                continue
            if is_registered(self.attempt, entry.dataset_hash or "") and has_the_only_tree(
                self.garbage, entry
            ):
                # The database was restored from a backup that is older than the entry.
                self._warn(
                    f"{entry.entry_id} stays in quarantine: a row refers to its dataset. Run: producer gc --restore {entry.entry_id}"
                )
                continue
            self._note("removed", entry, self.hands.remove(entry))
        for one in remove_originals(self.attempt, self.hands, self.grace_h):
            if isinstance(one, Warning_):
                self.warnings.append(one)
            else:
                self.found.append(one)

    def _clear_leftovers(self) -> None:
        """Staging of jobs that no worker has, and what dead restores left beside legacy directories."""
        attempt = self.attempt
        staged = attempt.store.staged_by()
        over_tasks = leftovers.over(attempt.engine, staged) if staged else set()
        # No import is at work while this gc has the claim.
        for task in sorted(over_tasks | set(filter(leftovers.is_of_import, staged))):
            attempt.pace(0)
            self._note_leftover(task, self.hands.clear_staging(task, staged[task]))
        with autocommit(attempt.engine) as conn:
            paths = projects.converted_paths(conn)
        parents = {os.path.dirname(os.path.normpath(path)): path for path in paths}
        over = partial(leftovers.over, attempt.engine)
        for path in {os.path.realpath(parent): path for parent, path in parents.items()}.values():
            attempt.pace(0)
            for name in remove_finished(path, attempt.tools.roots, over, rehearse=self.dry_run):
                self._note_leftover(f"{os.path.dirname(os.path.normpath(path))}/{name}", Size())

    def _note_leftover(self, name: str, size: Size) -> None:
        self.found.append(
            GarbageEntry(
                action="staging",
                entry_id=None,
                kind="staging",
                dataset_id=None,
                name=printable(name),
                reason="its job is over",
                since=None,
                files=size.files,
                size_bytes=size.size_bytes,
            )
        )

    # Datasets -----------------------------------------------------------------------------------------------

    def _unreferenced(self) -> list[Unreferenced]:
        """What nothing refers to, unless more of it would go than an operator is likely to mean. Asked before
        anything is touched, and again for each under its lock.
        """
        with autocommit(self.attempt.engine) as conn:
            found = garbage.unreferenced(conn, self.grace_h)
            total = garbage.count_datasets(conn)
        count = sum(one.is_due for one in found)
        if garbage.would_trip(count, total, self.attempt.lease.options.expect):
            would_go = f"{count} of {total} datasets would go, which is more than one in ten"
            if not self.dry_run:
                raise GarbageTripwireError(f"{would_go}; nothing was taken")
            self._warn(f"{would_go}: that needs producer gc --expect {count}")
        return found

    def _take_datasets(self, found: Sequence[Unreferenced]) -> None:
        self.hands.mark("dataset", [one.dataset_hash for one in found if one.since is None])
        for one in (one for one in found if one.is_due):
            self.attempt.pace(0)
            entry = self._entry("dataset", one.dataset_name, "nothing refers to it", one.since)
            entry = replace(
                entry, dataset_id=one.dataset_id, dataset_hash=one.dataset_hash, tree=one.file_path
            )
            self._note_taken(entry, self.hands.take_dataset(entry))
        self.hands.forget_referenced()

    # Trees without a row ------------------------------------------------------------------------------------

    def _take_orphans(self) -> None:
        """Manifests without a row, with their trees: a job stored them, and its conversion failed."""
        with autocommit(self.attempt.engine) as conn:
            hashes, names = garbage.registered(conn)
        manifests = self.hands.manifests()
        orphans = [digest for digest in manifests if digest not in hashes]
        left = [name for name in self.garbage.trees() if name not in names]
        by_ending = self._trees_without_row(left)
        adopted = self._adopted_trees(left, orphans)
        trees = {
            digest: by_ending.get(digest) or by_ending.get(digest[:12]) or adopted.get(digest)
            for digest in orphans
        }
        self._take_spare_trees(left, manifests, set(trees.values()))
        self.hands.mark("manifest", orphans)
        with autocommit(self.attempt.engine) as conn:
            since = garbage.since(conn, "manifest", orphans)
        for digest in orphans:
            self.attempt.pace(0)
            entry = self._entry(
                "tree", f"dataset {digest[:12]}", "stored, but no dataset has it", since.get(digest)
            )
            entry = replace(entry, dataset_hash=digest, tree=trees[digest])
            self._note_taken(entry, self.hands.take_orphan(entry))

    def _trees_without_row(self, names: Sequence[str]) -> dict[str, str]:
        """The directories of these names, which no row points to, by the digest, or its beginning, that ends
        them.
        """
        return {_ending(name): f"{self.attempt.store.trees}/{name}" for name in reversed(names)}

    def _adopted_trees(self, names: Sequence[str], orphans: Sequence[str]) -> dict[str, str]:
        """Those of these directories that adopted datasets had, by their digests: deleted in Label, which
        cannot remove a tree that is read-only.
        """
        with autocommit(self.attempt.engine) as conn:
            found = adoptions.names_of(conn, orphans)
        trees = {
            digest: f"{self.attempt.store.trees}/{name}" for digest, name in found.items() if name in names
        }
        return {digest: tree for digest, tree in trees.items() if self._is_ours(tree, digest)}

    def _take_spare_trees(
        self, names: Sequence[str], manifests: Sequence[str], of_orphans: Collection[str | None]
    ) -> None:
        """Further trees of one content: two jobs stored it under two names, and only one's has the row. What
        is anything else may be a person's, and is left alone.
        """
        known = {end: digest for digest in manifests for end in (digest, digest[:12])}
        spare = {
            tree: digest
            for name in names
            if (tree := f"{self.attempt.store.trees}/{name}") not in of_orphans
            and (digest := known.get(_ending(name))) is not None
            and self._is_ours(tree, digest)
        }
        self.hands.mark("tree", sorted(set(spare.values())))
        with autocommit(self.attempt.engine) as conn:
            since = garbage.since(conn, "tree", sorted(set(spare.values())))
        gone: list[str] = []
        for tree, digest in spare.items():
            self.attempt.pace(0)
            name = f"dataset {digest[:12]}"
            entry = self._entry("tree", name, "the same content has another tree", since.get(digest))
            size = self.hands.take_spare(replace(entry, tree=tree), digest)
            self._note_taken(entry, size)
            gone += [digest] if size is not None else []
        self.hands.unmark_spare(gone)

    def _is_ours(self, tree: str, digest: str) -> bool:
        """Is everything in the tree a link of a blob, as the manifest has it, and is there nothing else?"""
        store = self.attempt.store
        try:
            found = inspect(store.read_manifest(digest), tree, self.attempt.pace)
            return all(
                isinstance(one, Found) and one.inode == inode_at(store.blob_path(one.file.digest))
                for one in found
            )
        except (StoredBytesMismatchError, EntryUnreadableError):
            return False

    # Loose blobs --------------------------------------------------------------------------------------------

    def _take_loose_blobs(self) -> None:
        self._forget_what_was_never_stored()
        entry = self._entry("blobs", "loose blobs", "no dataset needs them", None)
        size = self.hands.take_loose(entry)
        self._note_taken(entry, size if size.files else None)

    def _forget_what_was_never_stored(self) -> None:
        """A migration writes the index before its rows, and may have come to nothing since."""
        attempt = self.attempt
        with autocommit(attempt.engine) as conn:
            found = garbage.indexed_without_row(conn, attempt.run_id)
        self.hands.forget_index(
            [digest for digest in found if not os.path.lexists(attempt.store.manifest_path(digest))]
        )

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
            entry_id=f"{str(self.attempt.run_id)[:8]}-{self.attempt.lease.mark}-{number}",
            kind=kind,
            name=name,
            reason=reason,
            quarantined_at=datetime.now(UTC),
            since=since,
        )

    def _note_taken(self, entry: Entry, size: Size | None) -> None:
        if size is not None:
            self._note("quarantined", entry, size)

    def _note(self, action: str, entry: Entry, size: Size) -> None:
        self.found.append(
            GarbageEntry(
                action=action,
                entry_id=entry.entry_id,
                kind=entry.kind,
                dataset_id=entry.dataset_id,
                name=printable(entry.name),
                reason=entry.reason,
                since=entry.since,
                files=size.files,
                size_bytes=size.size_bytes,
            )
        )

    def _warn(self, message: str) -> None:
        self.warnings.append(Warning_(message=message))


def _ending(name: str) -> str:
    """Where a tree's name has its digest, or the beginning of that."""
    return name.rpartition("-")[2]
