"""A reclaimed directory is moved back to its own place."""

from worker.db import leases, reclaims
from worker.db.engine import autocommit
from worker.db.reclaims import Reclaim
from worker.errors import NothingToDoError, PurgeBegunError
from worker.jobs.attempt import Attempt
from worker.jobs.moved_directory import reclaiming, rehearse_taking_back, take_back
from worker.messages import DiskBytes, Outcome, Status
from worker.store.digest import printable


def undo(attempt: Attempt) -> Outcome:
    """Move a project's directory back, with all that were moved by it. Raises `NothingToDoError` for a
    project whose directory is not away, `PurgeBegunError` for one that is being removed, and as `take_back`.
    """
    with autocommit(attempt.engine) as conn:
        rows = reclaims.of_project(conn, attempt.project_id)
        back_by_this_run = reclaims.undone_by(conn, attempt.project_id, attempt.run_id)
    row = next((one for one in rows if one.state in reclaims.ACTIVE), None)
    if row is None and back_by_this_run is not None:
        return _end(attempt, back_by_this_run)
    if row is None and rows:
        raise PurgeBegunError(f"project {attempt.project_id} was reclaimed and purged already")
    if row is None:
        raise NothingToDoError(f"project {attempt.project_id}: its directory was not moved away")
    if attempt.lease.dry_run:
        rehearse_taking_back(attempt, row)
    else:
        with reclaiming(attempt):
            take_back(attempt, row)
    return _end(attempt, row)


def _end(attempt: Attempt, row: Reclaim) -> Outcome:
    status, would = (Status.WOULD_UNDO, "would be ") if attempt.lease.dry_run else (Status.UNDONE, "")
    outcome = attempt.outcome(status, f"{would}moved back from {printable(row.moved_to)}").with_changes(
        disk=DiskBytes(legacy=row.size_bytes)
    )
    with autocommit(attempt.engine) as conn:
        leases.end_job(conn, attempt.lease, outcome)
    return outcome
