"""A legacy directory that a reclaim moved away, or may have: moved away, moved back, and settled after a
crash.

What is renamed is written to the ledger before (`moving`, `undoing`), so that a job that dies leaves a row by
which the next one finds the directory, wherever it is. All of it happens under one claim.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from worker.db import reclaims
from worker.db.engine import autocommit
from worker.db.projects import Conversion
from worker.db.reclaims import Reclaim
from worker.db.retry import when_free
from worker.errors import ClaimLostError
from worker.jobs.attempt import Attempt
from worker.legacy.moved_away import Move, is_away, is_home, move_back
from worker.runtime import log
from worker.store.digest import printable

_log = log.get(__name__)

_CLAIM = "reclaiming"


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """What a rollback finds of a project's directory. `path` is where it is, None for its own place (or
    nowhere); `words` what was done about it, or in a dry run would be; `purged`: it was removed.
    """

    path: str | None = None
    words: str | None = None
    purged: bool = False


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


def settle_moves(attempt: Attempt, project_id: int) -> None:
    """Bring what a job that died was moving back to its own place, and note it.

    Before anything is judged of the project: it may be deleted, or migrated anew since.
    """
    if attempt.lease.dry_run or not _between(attempt, project_id):
        return
    with reclaiming(attempt):
        # A job that lives has brought what it was moving to its end by now.
        for row in _between(attempt, project_id):
            _log.info("move_settled", project=project_id, at=row.moved_to)
            take_back(attempt, row)


def _between(attempt: Attempt, project_id: int) -> list[Reclaim]:
    with autocommit(attempt.engine) as conn:
        rows = reclaims.of_project(conn, project_id)
    return [row for row in rows if row.state in {"moving", "undoing"}]


def bring_home(attempt: Attempt, conversion: Conversion) -> Away:
    """Move a reclaimed directory back, for a rollback. In a dry run only where it is."""
    with autocommit(attempt.engine) as conn:
        row = reclaims.of_conversion(conn, conversion.conversion_id)
    if row is None:
        return Away()
    if row.state in {"purging", "purged"}:
        return Away(purged=True)
    if attempt.lease.dry_run:
        path = place_of(row)
        return Away(path=path, words=f"its legacy directory would be moved back from {printable(path)}")
    with reclaiming(attempt):
        with autocommit(attempt.engine) as conn:
            row = reclaims.of_conversion(conn, conversion.conversion_id)
        if row is None:
            return Away()
        if row.state in {"purging", "purged"}:
            return Away(purged=True)
        take_back(attempt, row)
    return Away(words=f"its legacy directory was moved back from {printable(row.moved_to)}")


def take_back(attempt: Attempt, row: Reclaim) -> None:
    """Move a directory back, for all projects that it is of, and note it. The caller has the claim.

    Twice, or after dying anywhere: what is home already is only noted. Raises `LegacyPlaceTakenError` when
    the place is taken and `MovedAwayMissingError` when the directory is gone; then it stays noted as
    reclaimed.
    """
    with autocommit(attempt.engine) as conn:
        rows = [one for one in reclaims.at(conn, row.moved_to) if one.state in reclaims.ACTIVE]
    ids = [one.reclaim_id for one in rows]
    move, roots = move_of(row), attempt.tools.roots

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
        if is_away(move):
            in_transaction(attempt, lambda conn: _stay(conn, ids, attempt))
        raise


def _stay(conn: Connection, ids: Sequence[int], attempt: Attempt) -> None:
    if reclaims.lock(conn, ids, "undoing"):
        reclaims.set_state(conn, ids, "reclaimed", attempt.run_id)


def in_transaction(attempt: Attempt, write: Callable[[Connection], None]) -> None:
    """Write in a transaction that gives way to people."""

    def once() -> None:
        with attempt.engine.begin() as conn:
            write(conn)

    when_free(once, listen=attempt.heartbeat.listen)


def _must(still: bool) -> None:  # noqa: FBT001 - named by its function
    if not still:
        raise ClaimLostError("Another job has moved the directory meanwhile")
