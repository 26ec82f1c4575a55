"""A legacy directory that a reclaim moved away, or may have: moved away, moved back, and settled after a
crash.

What is renamed is written to the ledger before (`moving`, `undoing`), so that a job that dies leaves a row by
which the next one finds the directory, wherever it is. All of it happens under one claim.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from worker.db import reclaims
from worker.db.engine import autocommit
from worker.db.projects import Conversion
from worker.db.reclaims import Reclaim
from worker.db.retry import when_free
from worker.errors import ClaimLostError, MovedAwayMissingError, ReclaimRefusedError, RootLacksError
from worker.jobs.attempt import Attempt
from worker.jobs.grounds import Grounds
from worker.legacy.moved_away import is_away, is_home, move_back, rehearse_move_back
from worker.legacy.moved_links import Move
from worker.runtime import log
from worker.store.digest import printable

_log = log.get(__name__)

T = TypeVar("T")

_CLAIM = "reclaiming"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a project's directory can be read; with the `move` that took it there, if not at home."""

    path: str
    move: Move | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """What a rollback finds of a project's directory. `place` is where it is, None for home (or nowhere);
    `words` what was done about it, or in a dry run would be; `purged`: it was removed.
    """

    place: Place | None = None
    words: str | None = None
    purged: bool = False


def last_move(attempt: Attempt, conversion: Conversion) -> object:
    """Something that is another one when the directory was moved, away or back, since it was asked."""
    with autocommit(attempt.engine) as conn:
        return reclaims.last_move(conn, conversion.conversion_id)


@contextmanager
def reclaiming(attempt: Attempt) -> Iterator[None]:
    """One job at a time moves directories: it takes a moment."""
    with attempt.claim([_CLAIM], "moved directories"):
        yield


def move_of(row: Reclaim) -> Move:
    """From where to where the directory of a row was moved."""
    return Move(source=row.moved_from, target=row.moved_to)


def place_of(row: Reclaim) -> str:
    """Where a project's own directory is while it is away: in what was moved, if that was one around it."""
    below = os.path.relpath(row.legacy_path, row.moved_from)
    return row.moved_to if below == "." else os.path.normpath(f"{row.moved_to}/{below}")


def settle_moves(attempt: Attempt, project_id: int) -> Mapping[int, Place]:
    """Bring what a job that died was moving back to its own place, and note it; what cannot be brought back
    is noted as reclaimed. Before anything is judged of the project, which may be deleted, or migrated anew.

    A dry run moves nothing. It takes for settled, by id of the conversion, what would come back, and reads it
    where it is now.
    """
    if not _between(attempt, project_id):
        return {}
    with reclaiming(attempt):
        # A job that lives has brought what it was moving to its end by now.
        if attempt.lease.dry_run:
            return rehearse_settling(attempt, project_id)
        for row in _between(attempt, project_id):
            try:
                _log.info("move_settled", project=project_id, at=row.moved_to)
                take_back(attempt, row)
            except ReclaimRefusedError as error:
                _log.warning("move_not_settled", project=project_id, at=row.moved_to, reason=str(error))
    return {}


def rehearse_settling(grounds: Grounds, project_id: int) -> Mapping[int, Place]:
    """What `settle_moves` gives in a dry run."""
    settled: dict[int, Place] = {}
    for row in _between(grounds, project_id):
        try:
            settled |= rehearse_taking_back(grounds, row)
        except ReclaimRefusedError as error:
            _log.warning("move_not_settled", project=project_id, at=row.moved_to, reason=str(error))
    return settled


def _between(grounds: Grounds, project_id: int) -> list[Reclaim]:
    with autocommit(grounds.engine) as conn:
        rows = reclaims.of_project(conn, project_id)
    return [row for row in rows if row.state in {"moving", "undoing"}]


def bring_home(attempt: Attempt, conversion: Conversion) -> Away:
    """Move a reclaimed directory back, for a rollback. In a dry run only where it is. One that is gone counts
    as purged where the rollback may rebuild it; otherwise raises as `take_back`.
    """
    if attempt.lease.dry_run:
        return rehearse_bringing_home(attempt, conversion)
    if _row_of(attempt, conversion) is None:
        return Away()
    with reclaiming(attempt):
        row = _row_of(attempt, conversion)
        return Away() if row is None else _bring_home(attempt, row)


def rehearse_bringing_home(grounds: Grounds, conversion: Conversion) -> Away:
    """What `bring_home` gives in a dry run."""
    row = _row_of(grounds, conversion)
    if row is None:
        return Away()
    if row.state in {"purging", "purged"}:
        return Away(purged=True)
    try:
        place = rehearse_taking_back(grounds, row)[row.conversion_id]
    except MovedAwayMissingError:
        if not grounds.options.restore_files:
            raise
        return Away(purged=True)
    if place.move is None:
        return Away()
    return Away(place=place, words=f"its legacy directory would be moved back from {printable(place.path)}")


def _row_of(grounds: Grounds, conversion: Conversion) -> Reclaim | None:
    with autocommit(grounds.engine) as conn:
        return reclaims.of_conversion(conn, conversion.conversion_id)


def _bring_home(attempt: Attempt, row: Reclaim) -> Away:
    if row.state in {"purging", "purged"}:
        return Away(purged=True)
    try:
        take_back(attempt, row)
    except MovedAwayMissingError:
        if not attempt.options.restore_files:
            raise
        rows, ids = _moved_with(attempt, row)
        in_transaction(attempt, lambda conn: reclaims.set_state(conn, ids, "purged", attempt.run_id))
        _log.warning("moved_directory_gone", at=row.moved_to, projects=[one.project_id for one in rows])
        return Away(purged=True)
    return Away(words=f"its legacy directory was moved back from {printable(row.moved_to)}")


def take_back(attempt: Attempt, row: Reclaim) -> None:
    """Move a directory back, for all projects that it is of, and note it. The caller has the claim.

    Twice, or after dying anywhere: what is home already is only noted. Raises `LegacyPlaceTakenError` when
    the place is taken and `MovedAwayMissingError` when the directory is gone; then it is noted as reclaimed.
    Raises `RootLacksError`, and notes nothing, when a mount may hide it.
    """
    move, roots = move_of(row), attempt.tools.roots
    check_mounted(attempt, row)
    rows, ids = _moved_with(attempt, row)

    def begin(conn: Connection) -> None:
        for one in rows:
            _must(reclaims.lock(conn, [one.reclaim_id], one.state))
        reclaims.set_state(conn, ids, "undoing", attempt.run_id)

    def rename(conn: Connection) -> None:
        _must(reclaims.lock(conn, ids, "undoing"))
        if is_away(move) or not is_home(move):
            move_back(move, roots)
        reclaims.set_state(conn, ids, "undone", attempt.run_id)

    in_transaction(attempt, begin)
    try:
        in_transaction(attempt, rename)
    except Exception:
        if is_away(move) or not is_home(move):
            in_transaction(attempt, lambda conn: _stay(conn, ids, attempt))
        raise


def rehearse_taking_back(grounds: Grounds, row: Reclaim) -> dict[int, Place]:
    """Raise what `take_back` would; where the directory of each conversion is, that would come back."""
    check_mounted(grounds, row)
    rows, _ = _moved_with(grounds, row)
    move = move_of(row)
    if not is_away(move) and is_home(move):
        return {one.conversion_id: Place(path=one.legacy_path) for one in rows}
    rehearse_move_back(move, grounds.roots)
    return {one.conversion_id: Place(path=place_of(one), move=move) for one in rows}


def check_mounted(grounds: Grounds, row: Reclaim) -> None:
    """Raise `RootLacksError` unless this machine can tell where a directory is that was, or may have been,
    moved away: what a missing mount hides is not gone.
    """
    move = move_of(row)
    if is_away(move) or (row.state in {"moving", "undoing"} and is_home(move)):
        return
    folder = os.path.dirname(row.moved_to)
    grounds.check_root(folder)
    if not os.path.isdir(folder):
        raise RootLacksError(
            f"{printable(folder)}, where reclaimed directories are, does not exist there; is it mounted?",
            waits_for=folder,
        )


def _moved_with(grounds: Grounds, row: Reclaim) -> tuple[list[Reclaim], list[int]]:
    """The rows of all projects whose directories were moved with this one's, and their ids."""
    with autocommit(grounds.engine) as conn:
        rows = [one for one in reclaims.at(conn, row.moved_to) if one.state in reclaims.ACTIVE]
    return rows, [one.reclaim_id for one in rows]


def _stay(conn: Connection, ids: Sequence[int], attempt: Attempt) -> None:
    if reclaims.lock(conn, ids, "undoing"):
        reclaims.set_state(conn, ids, "reclaimed", attempt.run_id)


def in_transaction(attempt: Attempt, write: Callable[[Connection], T]) -> T:
    """Write in a transaction that gives way to people; what `write` returns."""

    def once() -> T:
        with attempt.engine.begin() as conn:
            return write(conn)

    return when_free(once, listen=attempt.heartbeat.listen)


def _must(still: bool) -> None:  # noqa: FBT001 - named by its function
    if not still:
        raise ClaimLostError("Another job has moved the directory meanwhile")
