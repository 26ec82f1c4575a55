"""The steps of one project's reclaim: its legacy directory is moved away once the store has all of it.

What else the verb does is in `undo`, `purge` and `share`, each asked for by an option of the run.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from worker.db import datasets, leases, projects, reclaims
from worker.db.engine import autocommit
from worker.db.projects import Conversion
from worker.db.reclaims import NewReclaim, Reclaim
from worker.errors import ClaimLostError, NothingToDoError, ReclaimRefusedError
from worker.jobs.attempt import Attempt
from worker.jobs.grounds import Grounds
from worker.jobs.moved_directory import Place, in_transaction, reclaiming, settle_moves
from worker.jobs.purge import purge
from worker.jobs.reclaim_conditions import (
    Member,
    check_not_away,
    check_rows,
    check_sound,
    check_unchanged,
    group_of,
)
from worker.jobs.runner import run_job
from worker.jobs.share import share
from worker.jobs.tools import Tools
from worker.jobs.undo import undo
from worker.legacy.fingerprint import Fingerprint, fingerprint
from worker.legacy.moved_away import identity_of, move_away, move_back, plan_move
from worker.legacy.moved_links import Move
from worker.legacy.restore import settle
from worker.legacy.roots import Roots
from worker.legacy.tree_attributes import pack
from worker.legacy.way_in import WayIn
from worker.messages import DiskBytes, JobRef, Outcome, Status, Verb
from worker.store.digest import printable

REFUSED = Status.SKIPPED
"""What becomes of a job for which a condition does not hold."""


def reclaim(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Reclaim one migrated project's legacy directory, or undo, purge or share it, as the run was asked for;
    None when the job is not ours to do.

    Twice, at once, or dying anywhere: as `run_job` says; a directory that was being moved is found by the
    ledger's row and brought to one of its two places.
    """
    return run_job(tools, ref, worker, _work, Verb.RECLAIM)


def _work(attempt: Attempt) -> Outcome:
    """A condition that does not hold is no failure: the project is skipped, with the reason and a remedy."""
    settled = settle_moves(attempt, attempt.project_id)
    try:
        return _act(attempt, settled)
    except ReclaimRefusedError as error:
        reason = f"{error}, as {attempt.worker} sees it" if error.is_of_worker else str(error)
        outcome = attempt.outcome(REFUSED, reason).with_changes(
            remedy=error.remedy, differences=error.differences, disk=_kept(attempt, settled)
        )
        with autocommit(attempt.engine) as conn:
            leases.end_job(conn, attempt.lease, outcome)
        return outcome


def _act(attempt: Attempt, settled: Mapping[int, Place]) -> Outcome:
    options = attempt.lease.options
    if options.undo:
        return undo(attempt)
    if options.purge:
        return purge(attempt)
    return share(attempt, settled) if options.share else _reclaim(attempt, settled)


def _kept(attempt: Attempt, settled: Mapping[int, Place]) -> DiskBytes:
    """What stays allocated for a project that was skipped."""
    with autocommit(attempt.engine) as conn:
        conversion = projects.active_conversions(conn, [attempt.project_id]).get(attempt.project_id)
    place = settled.get(conversion.conversion_id) if conversion is not None else None
    path = os.path.realpath(place.path if place is not None else attempt.lease.path or "")
    if attempt.lease.options.purge or not os.path.isdir(path):
        return DiskBytes()
    size = fingerprint(path, attempt.pace).allocated_bytes
    return DiskBytes(legacy=size, kept=size)


def conversion_of(grounds: Grounds, project_id: int) -> Conversion:
    """The conversion whose directory is to go. Raises `NothingToDoError` when there is none."""
    with autocommit(grounds.engine) as conn:
        conversion = projects.active_conversions(conn, [project_id]).get(project_id)
    if conversion is None:
        raise NothingToDoError(f"project {project_id}: not migrated, or rolled back since")
    return conversion


def _reclaim(attempt: Attempt, settled: Mapping[int, Place]) -> Outcome:
    """The first job of a group moves the directory for all; the others find their row."""
    conversion = conversion_of(attempt, attempt.project_id)
    carried = _carried(attempt, conversion)
    if carried is not None:
        return _end_carried(attempt, carried)
    with autocommit(attempt.engine) as conn:
        named = reclaims.projects_of_run(conn, attempt.run_id)
    members = members_to_move(attempt, conversion, settled, named)
    with attempt.claim([f"reclaim:{members[0].conversion.conversion_id}"], "the directory"):
        carried = _carried(attempt, conversion)
        if carried is not None:
            return _end_carried(attempt, carried)
        # Another run may have moved it while this one waited.
        check_not_away(attempt, conversion, settled)
        return _Moving(attempt, members).run()


def members_to_move(
    grounds: Grounds, conversion: Conversion, settled: Mapping[int, Place], named: Collection[int]
) -> list[Member]:
    """Whose directories would be moved together, as of `group_of`, if that of this one may be moved."""
    check_not_away(grounds, conversion, settled)
    if conversion.conversion_id not in settled and not os.path.lexists(conversion.legacy_path):
        grounds.check_root(conversion.legacy_path)
    return group_of(grounds, conversion, settled, named)


def move_of_top(top: Member, run: str, roots: Roots) -> Move:
    """Where the directory of a group would go. Raises as `plan_move`."""
    return plan_move(top.conversion.legacy_path, f"{top.project_id}-{run}", roots, now=top.at.path)


def read_since(conversion: Conversion, verify_after_days: float) -> datetime:
    """Since when every byte of a dataset must have been read: after the conversion, and lately."""
    return max(conversion.converted_at, datetime.now(UTC) - timedelta(days=verify_after_days))


def _carried(attempt: Attempt, conversion: Conversion) -> Reclaim | None:
    """The project's row, if another job of this run has moved its directory."""
    with autocommit(attempt.engine) as conn:
        row = reclaims.of_conversion(conn, conversion.conversion_id)
    mine = row is not None and row.run_id == attempt.run_id and row.state == "reclaimed"
    return row if mine else None


def _end_carried(attempt: Attempt, row: Reclaim) -> Outcome:
    by = row.carried_by_project_id
    reason = f"moved to {printable(row.moved_to)}"
    if by is not None:
        reason = f"carried along with project {by}: {reason}"
    size = row.size_bytes
    outcome = attempt.outcome(Status.RECLAIMED, reason).with_changes(disk=DiskBytes(legacy=size, moved=size))
    with autocommit(attempt.engine) as conn:
        leases.end_job(conn, attempt.lease, outcome)
    return outcome


class _Moving:
    """The directory of a group of projects, from its check to its new place."""

    def __init__(self, attempt: Attempt, members: Sequence[Member]) -> None:
        self.attempt = attempt
        self.members = members
        self.top = members[0]
        self.way_in = WayIn(self.top.place)
        self.move = move_of_top(self.top, str(attempt.run_id)[:8], attempt.roots)

    def run(self) -> Outcome:
        """Rows first, because they are quick; then bytes; then rows again, under their locks."""
        attempt = self.attempt
        attempt.heartbeat.enter("check", self.top.conversion.dataset_hash)
        with attempt.engine.connect() as conn:
            check_rows(conn, attempt, self.members, self.way_in)
        here = os.path.realpath(self.top.at.path)
        identity, before = identity_of(here), fingerprint(here, attempt.pace)
        attributes = {member.project_id: self._check_bytes(member) for member in self.members}
        if attempt.lease.dry_run:
            return self._predict(before)
        # Its bytes may be in memory only, if it was restored a moment ago.
        settle(self.move.source)
        with reclaiming(attempt):
            ids = self._begin(before, attributes)
            self._rename(ids, identity)
            self._confirm(ids, before)
        return self._end(ids, before)

    def _check_bytes(self, member: Member) -> bytes:
        attempt, conversion = self.attempt, member.conversion
        tree = check_unchanged(attempt, member)
        check_sound(
            attempt,
            conversion,
            read_since=read_since(conversion, attempt.tools.settings.verify_after_days),
        )
        return pack(tree)

    def _predict(self, before: Fingerprint) -> Outcome:
        size = self._own_size(before)
        words = f"would be moved to {printable(self.move.target)}"
        if self.top.at.move is not None:
            words = (
                f"would be moved back from {printable(self.top.at.path)}, where a job died; then it {words}"
            )
        outcome = self.attempt.outcome(Status.WOULD_RECLAIM, words).with_changes(
            disk=DiskBytes(legacy=size, moved=size)
        )
        with autocommit(self.attempt.engine) as conn:
            leases.end_job(conn, self.attempt.lease, outcome)
        return outcome

    def _own_size(self, before: Fingerprint) -> int:
        """The directory counts for the project whose own is moved, the others are in it."""
        return before.allocated_bytes if self.attempt.project_id == self.top.project_id else 0

    # The one step -------------------------------------------------------------------------------------------

    def _lock_and_check(self, conn: Connection) -> None:
        """People who add a session to one of these projects wait for its row, and then find the directory
        before or after.
        """
        for member in self.members:
            datasets.lock(conn, member.conversion.dataset_hash)
        for member in self.members:
            projects.lock(conn, member.project_id)
        check_rows(conn, self.attempt, self.members, self.way_in)

    def _begin(self, before: Fingerprint, attributes: dict[int, bytes]) -> list[int]:
        """The row comes before the rename: a job that dies in between leaves what finds the directory."""
        ids: list[int] = []

        def write(conn: Connection) -> None:
            self._lock_and_check(conn)
            ids[:] = reclaims.begin(
                conn,
                self.attempt.run_id,
                self.move.source,
                self.move.target,
                (self._row(member, before, attributes[member.project_id]) for member in self.members),
            )

        in_transaction(self.attempt, write)
        return ids

    def _row(self, member: Member, before: Fingerprint, attributes: bytes) -> NewReclaim:
        is_top = member is self.top
        changed = attributes != member.conversion.tree_attributes
        return NewReclaim(
            conversion_id=member.conversion.conversion_id,
            project_id=member.project_id,
            legacy_path=member.place,
            carried_by_project_id=None if is_top else self.top.project_id,
            files=before.files if is_top else 0,
            size_bytes=before.allocated_bytes if is_top else 0,
            tree_attributes=attributes if changed else None,
        )

    def _rename(self, ids: Sequence[int], identity: tuple[int, int]) -> None:
        def write(conn: Connection) -> None:
            self._still_moving(conn, ids)
            self._lock_and_check(conn)
            move_away(self.move, identity, self.attempt.tools.roots)
            check_rows(conn, self.attempt, self.members, self.way_in)

        try:
            in_transaction(self.attempt, write)
        except Exception:
            self._give_up(ids)
            raise

    def _confirm(self, ids: Sequence[int], before: Fingerprint) -> None:
        """A file that was edited in the last moment, before the rename, is in the moved directory: back with
        it. So it is where a link led there since paths were looked up.
        """
        try:
            before.check_same(fingerprint(self.move.target, self.attempt.pace), self.move.source)
            with self.attempt.engine.connect() as conn:
                check_rows(conn, self.attempt, self.members, WayIn(self.top.place))
        except Exception:
            self._give_up(ids)
            raise

    def _give_up(self, ids: Sequence[int]) -> None:
        """Back to its place, if this attempt still has the rows; otherwise another one has seen to it."""

        def write(conn: Connection) -> None:
            if not reclaims.lock(conn, ids, "moving"):
                return
            if not os.path.lexists(self.move.source) and os.path.lexists(self.move.target):
                move_back(self.move, self.attempt.tools.roots)
            reclaims.set_state(conn, ids, "undone", self.attempt.run_id)

        in_transaction(self.attempt, write)

    def _still_moving(self, conn: Connection, ids: Sequence[int]) -> None:
        if not reclaims.lock(conn, ids, "moving"):
            raise ClaimLostError("Another job has settled this directory meanwhile")

    def _end(self, ids: Sequence[int], before: Fingerprint) -> Outcome:
        size = self._own_size(before)
        reason = f"moved to {printable(self.move.target)}"
        if self.attempt.project_id != self.top.project_id:
            reason = f"carried along with project {self.top.project_id}: {reason}"
        outcome = self.attempt.outcome(Status.RECLAIMED, reason).with_changes(
            disk=DiskBytes(legacy=size, moved=size)
        )

        def write(conn: Connection) -> None:
            self._still_moving(conn, ids)
            reclaims.set_state(conn, ids, "reclaimed", self.attempt.run_id)
            leases.end_job(conn, self.attempt.lease, outcome)

        in_transaction(self.attempt, write)
        return outcome
