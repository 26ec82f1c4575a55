"""The two directories of an adopted dataset: where both are, and what brings them there after a crash.

That they change places is written to the ledger before (`adopting`, `undoing`), so that a job that dies
leaves a row by which the next one finds them. All of it happens under the dataset's claim.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from worker.db import adoptions
from worker.db.adoptions import Adoption
from worker.db.engine import autocommit
from worker.errors import AdoptionRefusedError, ProjectError
from worker.jobs.attempt import Attempt
from worker.jobs.moved_directory import in_transaction
from worker.legacy.fingerprint import Fingerprint, fingerprint
from worker.runtime import log
from worker.store.garbage import Room, Size
from worker.store.set_aside import SetAside
from worker.store.store import Store

_log = log.get(__name__)


@contextmanager
def directories_claimed(attempt: Attempt, dataset_id: int) -> Iterator[None]:
    """One job at a time moves the directories of a dataset: it takes a moment."""
    with attempt.claim([f"adopt:{dataset_id}"], f"the directory of dataset {dataset_id}"):
        yield


def pair_of(store: Store, row: Adoption) -> SetAside:
    """The directories of a row, on this machine."""
    return SetAside(
        path=place_of(store, row.file_path),
        folder=f"{store.root}/quarantine/{row.folder}",
        original=row.inode,
        ours=row.tree_inode,
    )


def place_of(store: Store, file_path: str) -> str:
    """Where a dataset's directory is here: DATA_DIR may be spelled otherwise in its row."""
    return f"{os.path.realpath(store.trees)}/{os.path.basename(file_path.rstrip('/'))}"


def settle(attempt: Attempt, dataset_id: int) -> None:
    """Bring what a job that died was doing to a dataset's directories to one of its two ends: before anything
    is judged of the dataset. A dry run moves nothing.
    """
    if attempt.lease.dry_run or _between(attempt, dataset_id) is None:
        return
    with directories_claimed(attempt, dataset_id):
        # A job that lives has come to its end by now.
        row = _between(attempt, dataset_id)
        if row is not None:
            _log.info("adoption_settled", dataset=dataset_id, state=row.state)
            settle_row(attempt, row)


def _between(attempt: Attempt, dataset_id: int) -> Adoption | None:
    with autocommit(attempt.engine) as conn:
        row = adoptions.of_dataset(conn, dataset_id)
    return row if row is not None and row.state in adoptions.BETWEEN else None


def settle_row(attempt: Attempt, row: Adoption) -> None:
    """An adoption that was not written did not happen. An undo did if Label's directory has its place again,
    where it may have been written to since, unless a project was migrated to the dataset. What is to be
    removed is. The caller has the claim. Twice, or after dying anywhere: goes on where it was.

    Raises `AdoptionRefusedError` when a directory is not where a job can have left it; then nothing is moved
    or removed.
    """
    pair = pair_of(attempt.store, row)
    state: list[adoptions.State] = []

    def end(conn: Connection) -> None:
        is_there = adoptions.registered(conn, row.dataset_id) is not None
        now = adoptions.lock(conn, row.adoption_id)
        if now == "adopting" and is_there:
            pair.put_back()
            now = "clearing"
        elif now == "adopting":
            # Label has deleted it meanwhile: what it had stays in quarantine for the grace time.
            now = "adopted"
        elif now == "undoing" and not pair.is_set_aside() and not adoptions.migrated_to(conn, row.dataset_id):
            adoptions.restore_rows(conn, row.adoption_id)
            now = "clearing"
        elif now == "undoing":
            pair.set_aside()
            now = "adopted"
        adoptions.set_state(conn, row.adoption_id, now, attempt.run_id)
        state[:] = [now]

    in_transaction(attempt, end)
    if state == ["clearing"]:
        if pair.has_original():
            raise AdoptionRefusedError(f"The directory of dataset {row.dataset_id} is in {pair.folder} still")
        _remove(attempt, row, pair, "undone")
    elif state == ["removing"]:
        _remove(attempt, row, pair, "removed")


def is_untouched(attempt: Attempt, row: Adoption) -> bool:
    """Is the directory that Label had in quarantine as it was put there? A program that had a file of it open
    may have written to it since.
    """
    pair = pair_of(attempt.store, row)
    if not pair.is_set_aside():
        return False
    try:
        return listing_of(fingerprint(pair.inside, attempt.pace)) == row.listing
    except ProjectError:
        return False


def remove_original(attempt: Attempt, row: Adoption) -> Size:
    """Remove the directory that Label had, for good; what came free. Nothing if it was given back
    meanwhile.
    """
    room = Room()
    with directories_claimed(attempt, row.dataset_id):

        def begin(conn: Connection) -> bool:
            if adoptions.lock(conn, row.adoption_id) != "adopted":
                return False
            adoptions.set_state(conn, row.adoption_id, "removing", attempt.run_id)
            return True

        if in_transaction(attempt, begin):
            room.add(pair_of(attempt.store, row).inside)
            settle_row(attempt, row)
    return room.size


def listing_of(found: Fingerprint) -> str:
    """One digest of what stat said of everything in a directory."""
    digest = hashlib.sha256()
    for path, of_entries in sorted(found.directories.items()):
        digest.update(os.fsencode(path) + b"\0" + of_entries)
    return digest.hexdigest()


def _remove(attempt: Attempt, row: Adoption, pair: SetAside, then: adoptions.State) -> None:
    """The row says so only afterwards: a job that dies leaves no folder that no row knows of."""
    pair.remove()
    in_transaction(attempt, lambda conn: adoptions.set_state(conn, row.adoption_id, then, attempt.run_id))
