"""Giving a dataset back to Label: its directory and rows as they were before it was adopted."""

from sqlalchemy import Connection

from worker.db import adoptions, leases
from worker.db.adoptions import Adoption
from worker.db.engine import autocommit
from worker.errors import AdoptionNotUndoneError, ClaimLostError, NothingToDoError
from worker.jobs.adopted_directory import directories_claimed, pair_of, settle_row
from worker.jobs.attempt import Attempt
from worker.jobs.moved_directory import in_transaction
from worker.messages import DiskBytes, Outcome, Status
from worker.store.digest import printable


def undo_adoption(attempt: Attempt) -> Outcome:
    """Put the directory that Label had in its place again, and say in the rows what they said before. Our
    tree is removed; manifest and blobs are for the next gc, where nothing else needs them.

    Raises `NothingToDoError` for a dataset that is not adopted, `AdoptionNotUndoneError` for one that was
    migrated to since, or whose directory is not in quarantine any more.
    """
    dataset_id = attempt.lease.ref.subject_id
    with autocommit(attempt.engine) as conn:
        row = adoptions.of_dataset(conn, dataset_id)
        undone_by_this_run = adoptions.undone_by(conn, dataset_id, attempt.run_id)
    if row is None and undone_by_this_run is not None:
        return _end(attempt, undone_by_this_run)
    if row is None:
        raise NothingToDoError(f"dataset {dataset_id}: not adopted, or given back since")
    if not row.is_set_aside:
        raise AdoptionNotUndoneError(
            f"dataset {dataset_id}: the directory that Label had was removed by a gc"
        )
    with attempt.engine.begin() as conn:
        _check(conn, attempt, row)
    if not attempt.lease.dry_run:
        with directories_claimed(attempt, dataset_id):
            _undo(attempt, row)
    return _end(attempt, row)


def _check(conn: Connection, attempt: Attempt, row: Adoption) -> None:
    """Under the dataset's lock no project is pointed to it meanwhile."""
    dataset_id = row.dataset_id
    dataset = adoptions.registered(conn, dataset_id)
    if dataset is None:
        raise AdoptionNotUndoneError(f"dataset {dataset_id}: deleted since it was adopted")
    if (dataset.dataset_hash, dataset.file_path) != (row.dataset_hash, row.file_path):
        raise AdoptionNotUndoneError(f"dataset {dataset_id}: its row is another one since it was adopted")
    by = adoptions.migrated_to(conn, dataset_id)
    if by:
        raise AdoptionNotUndoneError(
            f"dataset {dataset_id}: project {by[0]} was migrated to it; roll back first: "
            f"producer rollback {' '.join(f'--project-id {one}' for one in by[:10])}"
        )
    pair = pair_of(attempt.store, row)
    if not pair.is_set_aside():
        raise AdoptionNotUndoneError(
            f"dataset {dataset_id}: the directory that Label had is not at {printable(pair.inside)}"
        )


def _undo(attempt: Attempt, row: Adoption) -> None:
    pair = pair_of(attempt.store, row)

    def begin(conn: Connection) -> None:
        _check(conn, attempt, row)
        _must_be(adoptions.lock(conn, row.adoption_id), "adopted")
        adoptions.set_state(conn, row.adoption_id, "undoing", attempt.run_id)

    def give_back(conn: Connection) -> None:
        _check(conn, attempt, row)
        _must_be(adoptions.lock(conn, row.adoption_id), "undoing")
        adoptions.restore_rows(conn, row.adoption_id)
        adoptions.set_state(conn, row.adoption_id, "clearing", attempt.run_id)
        pair.put_back()

    in_transaction(attempt, begin)
    try:
        in_transaction(attempt, give_back)
    except Exception:
        settle_row(attempt, row)
        with autocommit(attempt.engine) as conn:
            if adoptions.of_dataset(conn, row.dataset_id) is not None:
                raise
    else:
        settle_row(attempt, row)


def _must_be(found: adoptions.State, wanted: adoptions.State) -> None:
    if found != wanted:
        raise ClaimLostError("Another job has moved the directory meanwhile")


def _end(attempt: Attempt, row: Adoption) -> Outcome:
    status, would = (Status.WOULD_UNDO, "would be ") if attempt.lease.dry_run else (Status.UNDONE, "")
    reason = f"{would}given back to Label as it was, with the hash {row.registered_hash[:12]}"
    outcome = attempt.outcome(status, reason).with_changes(
        dataset_hash=row.registered_hash,
        dataset_path=row.file_path,
        disk=DiskBytes(legacy=row.size_bytes),
    )
    with autocommit(attempt.engine) as conn:
        leases.end_job(conn, attempt.lease, outcome)
    return outcome
