"""A legacy directory stays, and shares the blocks of its files with the store's blobs."""

from collections.abc import Mapping

from worker.db import leases, projects
from worker.db.engine import autocommit
from worker.errors import NothingToDoError
from worker.jobs.attempt import Attempt
from worker.jobs.moved_directory import Place
from worker.jobs.reclaim_conditions import Member, check_not_away, check_unchanged
from worker.legacy.fingerprint import fingerprint
from worker.legacy.share import share_file
from worker.messages import DiskBytes, Outcome, Status
from worker.units import human_bytes


def share(attempt: Attempt, settled: Mapping[int, Place]) -> Outcome:
    """Let each file of an unchanged legacy directory share its blob's blocks; the kernel compares the bytes.

    `settled` as of `settle_moves`. Twice, or after dying anywhere: what is shared stays so, and frees nothing
    again.
    """
    with autocommit(attempt.engine) as conn:
        conversion = projects.active_conversions(conn, [attempt.project_id]).get(attempt.project_id)
    if conversion is None:
        raise NothingToDoError(f"project {attempt.project_id}: not migrated, or rolled back since")
    check_not_away(attempt, conversion, settled)
    at = settled.get(conversion.conversion_id, Place(path=conversion.legacy_path))
    tree = check_unchanged(attempt, Member(conversion=conversion, place=conversion.legacy_path, at=at))
    attempt.heartbeat.enter("share", conversion.dataset_hash)
    dry_run, freed = attempt.lease.dry_run, 0
    for source in (tree.sources[file.path] for file in tree.manifest.files):
        freed += share_file(
            attempt.store.blob_path(source.digest),
            source.path,
            source.signature,
            attempt.pace,
            rehearse=dry_run,
        )
    size = fingerprint(tree.scan.root, attempt.pace).allocated_bytes
    words = (
        f"{'would give' if dry_run else 'gave'} back {human_bytes(freed)} by sharing blocks with the store"
    )
    outcome = attempt.outcome(Status.WOULD_SHARE if dry_run else Status.SHARED, words).with_changes(
        disk=DiskBytes(legacy=size, freed=freed)
    )
    with autocommit(attempt.engine) as conn:
        leases.end_job(conn, attempt.lease, outcome)
    return outcome
