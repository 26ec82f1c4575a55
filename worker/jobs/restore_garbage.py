"""Bringing an entry of the quarantine back: as a migration stores, with the index first and the rows last."""

import os
from dataclasses import replace
from datetime import UTC, datetime

from worker.db import garbage
from worker.db.engine import autocommit
from worker.errors import DatabaseRefusedError, GarbageNotRestoredError, SequenceBehindError
from worker.jobs.attempt import Attempt
from worker.jobs.indexing import index
from worker.messages import GarbageEntry, Outcome, Status
from worker.store.digest import printable
from worker.store.garbage import Entry, Garbage
from worker.store.manifest import Manifest


def restore_entry(attempt: Attempt, entry_id: str) -> Outcome:
    """Bring back all of an entry: blobs, manifest, tree, and a dataset's rows with their ids. Its outcome;
    the entry, empty now, is the caller's to remove when that is in the ledger.

    Raises `GarbageNotRestoredError` when there is no such entry, its dataset was stored again meanwhile, its
    place is taken, or bytes of it are gone; the entry stays then. Dying anywhere: the next call completes it.
    """
    taken = Garbage(attempt.store)
    entry = taken.find(entry_id)
    if entry is None:
        raise GarbageNotRestoredError(f"There is no entry {printable(entry_id)} in quarantine")
    if entry.dataset_hash is None:
        files = _restore_without_dataset(attempt, taken, entry)
    else:
        with attempt.claim([entry.dataset_hash], f"dataset {entry.dataset_hash[:12]}"):
            files = _restore_dataset(attempt, taken, entry)
    found = GarbageEntry(
        action="restored",
        entry_id=entry.entry_id,
        kind=entry.kind,
        dataset_id=entry.dataset_id,
        name=printable(entry.name),
        reason=entry.reason,
        since=entry.since,
        files=files,
    )
    return attempt.outcome(
        Status.RESTORED, f"brought back {entry.kind} {found.name}: {files:,} files"
    ).with_changes(garbage=(found,))


def _wanted(taken: Garbage, entry: Entry) -> Entry:
    """Somebody wants the entry back: it is young again, so that no gc removes it before that has come about.
    Until the rows are there again, a gc that comes meanwhile completes this entry instead of a new one.
    """
    wanted = replace(entry, is_whole=False, quarantined_at=datetime.now(UTC))
    taken.describe(wanted)
    return wanted


def _restore_without_dataset(attempt: Attempt, taken: Garbage, entry: Entry) -> int:
    """Loose blobs, or a tree whose content has another one; young again, too."""
    if entry.tree is not None and os.path.lexists(entry.tree) and _has_tree(attempt, entry):
        raise GarbageNotRestoredError(f"Something else is at {printable(entry.tree)}")
    entry = _wanted(taken, entry)
    with attempt.engine.begin() as conn:
        garbage.unmark(conn, "blob", (os.path.basename(path) for path in taken.things(entry)))
    taken.restore_tree(entry)
    return taken.restore_loose(entry, attempt.pace)


def _restore_dataset(attempt: Attempt, taken: Garbage, entry: Entry) -> int:
    """The caller has the dataset's claim. Index and marks come before the blobs are looked for: a gc that
    comes later, or is at work on them, must not take what was just brought back.
    """
    manifest = taken.manifest_of(entry)
    has_row = _has_row(attempt, taken, entry, manifest)
    if has_row and not has_the_only_tree(taken, entry):
        return 0
    entry = _wanted(taken, entry)
    if has_row or entry.rows is not None:
        index(attempt, manifest)
    with attempt.engine.begin() as conn:
        garbage.unmark(conn, "blob", {file.digest for file in manifest.files})
        garbage.unmark(conn, "manifest", [manifest.digest])
    lacking = taken.restore_blobs(entry, manifest, attempt.pace)
    if lacking:
        with attempt.engine.begin() as conn:
            garbage.forget_index(conn, manifest.digest)
        taken.finish(entry)
        raise GarbageNotRestoredError(
            f"{len(lacking)} of its contents are gone, the first is {lacking[0]}; nothing was brought back"
        )
    taken.restore_tree(entry)
    if entry.rows is not None and not has_row:
        try:
            with attempt.engine.begin() as conn:
                garbage.put_rows_back(conn, entry.rows)
                garbage.mark(conn, "dataset", [manifest.digest])
                garbage.ripen(conn, "dataset", [manifest.digest])
        except SequenceBehindError as error:
            raise GarbageNotRestoredError(f"Another dataset has its number, {entry.dataset_id}") from error
        except DatabaseRefusedError as error:
            raise GarbageNotRestoredError(f"Its rows cannot be written: {error}") from error
    return len(manifest.files)


def _has_row(attempt: Attempt, taken: Garbage, entry: Entry, manifest: Manifest) -> bool:
    """Is the row there, because an attempt that died brought all of it back, or because the database was
    restored from a backup? Raises `GarbageNotRestoredError` when the dataset was stored again or the place is
    another one's.
    """
    with autocommit(attempt.engine) as conn:
        dataset_id = garbage.id_of(conn, entry.dataset_hash or "")
    if dataset_id is not None and (dataset_id == entry.dataset_id or has_the_only_tree(taken, entry)):
        return True
    if dataset_id is not None:
        raise GarbageNotRestoredError(
            f"Dataset {(entry.dataset_hash or '')[:12]} was stored again since, as dataset {dataset_id}; the entry is not needed"
        )
    if entry.tree is not None and os.path.lexists(entry.tree) and _is_taken(attempt, entry, manifest):
        raise GarbageNotRestoredError(f"Something else is at {printable(entry.tree)}")
    return False


def has_the_only_tree(taken: Garbage, entry: Entry) -> bool:
    """Is the dataset's tree in the entry, and nothing at its place?"""
    return entry.tree is not None and not os.path.lexists(entry.tree) and not taken.is_empty(entry)


def _is_taken(attempt: Attempt, entry: Entry, manifest: Manifest) -> bool:
    """Is what lies at the tree's place another one? The same content may have been stored there again."""
    return (
        _has_tree(attempt, entry)
        and next(attempt.store.differences(manifest, entry.tree or ""), None) is not None
    )


def _has_tree(attempt: Attempt, entry: Entry) -> bool:
    return os.path.lexists(f"{attempt.store.root}/quarantine/{entry.entry_id}/tree")
