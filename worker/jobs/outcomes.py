"""Builds the outcomes of jobs, for the work, its runner and the reaper alike. Writes nothing."""

from dataclasses import replace
from datetime import UTC, datetime

from worker.db.leases import Lease
from worker.jobs.endings import Ended
from worker.legacy.ingest import Stored
from worker.messages import ByteCounts, FileCounts, LinkCounts, Outcome, Status, subject_fields

_NOTHING = Stored(files=FileCounts(), bytes=ByteCounts(), links=LinkCounts())


def outcome(lease: Lease, worker: str, status: Status, reason: str) -> Outcome:
    """An outcome with what the lease knows of the job; it ends now."""
    now = datetime.now(UTC)
    return Outcome(
        **subject_fields(lease.ref, lease.subject_name),
        status=status,
        reason=reason,
        original_path=lease.path,
        worker=worker,
        attempts=lease.attempt,
        started_at=lease.started_at,
        finished_at=now,
        duration_s=round(max(0.0, (now - lease.started_at).total_seconds()), 3),
    )


def outcome_of(
    ended: Ended, lease: Lease, worker: str, *, stored: Stored | None = None, files_seen: int = 0
) -> Outcome:
    """The outcome of a job that ends so. A failed one tells what was `stored` all the same: it takes room,
    and the next attempt finds it.
    """
    built = outcome(lease, worker, ended.status, ended.reason)
    if ended.error is None:
        return built
    stored = stored or _NOTHING
    return built.with_changes(
        error_class=ended.error.error_class,
        error=str(ended.error),
        remedy=ended.error.remedy,
        files=replace(stored.files, left=max(0, files_seen - stored.files.total)),
        bytes=stored.bytes,
        links=stored.links,
        differences=ended.error.differences,
    )
