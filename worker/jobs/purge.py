"""A directory that was moved away long enough ago is removed, once the dataset was read again."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from worker.db import leases, projects, reclaims
from worker.db.engine import autocommit
from worker.db.projects import Conversion
from worker.db.reclaims import Reclaim
from worker.errors import (
    ClaimLostError,
    DatasetUnsoundError,
    MigratedProjectThereError,
    MovedAwayMissingError,
    NothingToDoError,
    ReclaimedLatelyError,
)
from worker.jobs.attempt import Attempt
from worker.jobs.moved_directory import check_mounted, in_transaction, move_of, reclaiming
from worker.jobs.reclaim_conditions import check_sound
from worker.legacy.moved_away import is_away, missing
from worker.legacy.purge import Purged, purge_tree
from worker.legacy.tree_attributes import unpack
from worker.messages import DiskBytes, Outcome, Status, Warning_
from worker.store.digest import printable
from worker.store.manifest import Manifest
from worker.units import human_bytes

_READ_WITHIN = timedelta(hours=24)


def purge(attempt: Attempt) -> Outcome:
    """Remove what was moved away for a project, with all that were moved by it; what came into it since, or
    was changed, stays and is named.

    Twice, or after dying anywhere: the row says `purging`, and the next call goes on. So it does when another
    job of the run, whose directory lies in the same place, removes it meanwhile.
    """
    while True:
        row = _row(attempt)
        try:
            return _purge(attempt, row)
        except MovedAwayMissingError:
            if _row(attempt).state == row.state:
                raise


def _purge(attempt: Attempt, row: Reclaim) -> Outcome:
    if row.state == "purged":
        return _end(attempt, row, Purged(), "removed with another project's directory")
    with autocommit(attempt.engine) as conn:
        rows = reclaims.at(conn, row.moved_to)
        named = reclaims.projects_of_run(conn, attempt.run_id)
    for one in rows:
        if one.project_id not in named:
            raise MigratedProjectThereError(
                f"project {one.project_id} has its directory in what was moved away; name both"
            )
    top = next(one for one in rows if one.carried_by_project_id is None)
    _check_age(attempt, rows)
    _check_there(attempt, top)
    manifest = _check_sound(attempt, rows, top)
    if not attempt.lease.dry_run:
        with reclaiming(attempt):
            _begin(attempt, rows)
    done = _remove(attempt, top, manifest)
    if attempt.lease.dry_run and row.reclaim_id != top.reclaim_id:
        return _end(attempt, row, Purged(), "would be removed with another project's directory")
    return _end(attempt, row, done, "", rows)


def _row(attempt: Attempt) -> Reclaim:
    """What is to be removed for the project: it may be deleted, or migrated anew since."""
    with autocommit(attempt.engine) as conn:
        rows = reclaims.of_project(conn, attempt.project_id)
    open_rows = [one for one in rows if one.state in {"reclaimed", "purging"}]
    if open_rows:
        return open_rows[-1]
    done = [one for one in rows if one.state == "purged" and one.run_id is not None]
    if done and reclaimed_by_this_run(attempt, done[0]):
        return done[0]
    raise NothingToDoError(f"project {attempt.project_id}: nothing of it was moved away")


def reclaimed_by_this_run(attempt: Attempt, row: Reclaim) -> bool:
    """Did another job of this run remove it a moment ago?"""
    with autocommit(attempt.engine) as conn:
        return reclaims.ended_by(conn, row.reclaim_id) == attempt.run_id


def _check_age(attempt: Attempt, rows: Sequence[Reclaim]) -> None:
    days = attempt.lease.options.grace_days or 0.0
    for one in rows:
        if one.reclaimed_at is not None and datetime.now(UTC) - one.reclaimed_at < timedelta(days=days):
            raise ReclaimedLatelyError(
                f"project {one.project_id} was reclaimed at {one.reclaimed_at:%Y-%m-%d %H:%M} UTC, less than {days:g} days ago"
            )


def _check_there(attempt: Attempt, top: Reclaim) -> None:
    """Raise unless it is where it was moved to, or may be removed already: only by a purge that has begun."""
    check_mounted(attempt, top)
    if top.state != "purging" and not is_away(move_of(top)):
        raise missing(top.moved_to)


def _check_sound(attempt: Attempt, rows: Sequence[Reclaim], top: Reclaim) -> Manifest:
    """The manifest of what is removed. Every dataset that the directories are the way back of is read."""
    attempt.heartbeat.enter("check")
    manifest: Manifest | None = None
    for one in rows:
        conversion = _conversion(attempt, one)
        found = check_sound(attempt, conversion, read_since=datetime.now(UTC) - _READ_WITHIN)
        manifest = found if one is top else manifest
    if manifest is None:
        raise DatasetUnsoundError("the manifest of what was moved away is gone")
    return manifest


def _conversion(attempt: Attempt, row: Reclaim) -> Conversion:
    with autocommit(attempt.engine) as conn:
        found = projects.conversion(conn, row.conversion_id)
    if found is None:
        raise DatasetUnsoundError(f"the record of the conversion of project {row.project_id} is gone")
    return found


def _begin(attempt: Attempt, rows: Sequence[Reclaim]) -> None:
    def write(conn: Connection) -> None:
        for one in rows:
            if one.state != "purging" and not reclaims.lock(conn, [one.reclaim_id], "reclaimed"):
                raise ClaimLostError("Another job has moved the directory meanwhile")
        reclaims.set_state(conn, [one.reclaim_id for one in rows], "purging", attempt.run_id)

    in_transaction(attempt, write)


def _remove(attempt: Attempt, top: Reclaim, manifest: Manifest) -> Purged:
    conversion = _conversion(attempt, top)
    attempt.heartbeat.enter("purge", conversion.dataset_hash)
    try:
        return purge_tree(
            move_of(top),
            manifest,
            unpack(top.tree_attributes or conversion.tree_attributes),
            attempt.tools.roots,
            rehearse=attempt.lease.dry_run,
            advance=attempt.heartbeat.advance,
            pace=attempt.pace,
        )
    except MovedAwayMissingError:
        check_mounted(attempt, top)
        raise


def _end(attempt: Attempt, row: Reclaim, done: Purged, reason: str, rows: Sequence[Reclaim] = ()) -> Outcome:
    dry_run = attempt.lease.dry_run
    would = "would be " if dry_run else ""
    said = reason or f"{would}removed {done.files:,} files, {human_bytes(done.freed_bytes)}"
    stays, stay = ("would stay", "would stay") if dry_run else ("stays", "stay")
    warnings = [Warning_(message=f"{stays} in {printable(row.moved_to)}: {kept}") for kept in done.kept]
    if done.kept_count > len(done.kept):
        warnings.append(Warning_(message=f"and {done.kept_count - len(done.kept)} more {stay} there"))
    outcome = attempt.outcome(Status.WOULD_PURGE if dry_run else Status.PURGED, said).with_changes(
        disk=DiskBytes(legacy=sum(one.size_bytes for one in rows), freed=done.freed_bytes),
        warnings=tuple(warnings),
    )

    def write(conn: Connection) -> None:
        if rows and not dry_run:
            ids = [one.reclaim_id for one in rows]
            if reclaims.lock(conn, ids, "purging"):
                reclaims.set_state(conn, ids, "purged", attempt.run_id)
        leases.end_job(conn, attempt.lease, outcome)

    in_transaction(attempt, write)
    return outcome
