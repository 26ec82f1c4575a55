"""The steps of one project's rollback: compare the legacy tree, or rebuild it, then revert the rows.

A rollback does without the store where the legacy directory is there: its own digest decides.
"""

import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import NoReturn

from worker.conversion.revert import (
    check_config,
    is_back,
    rehearse,
    revert,
)
from worker.db import column_types, leases, projects
from worker.db.engine import autocommit
from worker.db.projects import Conversion
from worker.errors import (
    HandBackError,
    LeaseLostError,
    LegacyPathMissingError,
    MigratorError,
    NothingToDoError,
    ProjectError,
    PurgedError,
    RollbackRefusedError,
    RunCancelledError,
)
from worker.jobs import leftovers
from worker.jobs.attempt import Attempt
from worker.jobs.grounds import Grounds
from worker.jobs.moved_directory import Away, Place, bring_home, last_move, settle_moves
from worker.jobs.remembering import remembering
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.legacy.hash import hash_tree
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.restore import (
    rehearse_restore,
    remove_finished,
    restore_tree,
    settle,
)
from worker.legacy.scan import scan
from worker.messages import JobRef, Outcome, Status, Verb
from worker.runtime import log
from worker.store.digest import Algorithm, printable
from worker.store.manifest import Entry, File, Manifest
from worker.store.store import Store

_log = log.get(__name__)

_SHOWN = 10
"""How many differences an outcome names."""


def rollback(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Take one project back to its legacy directory, or rehearse it; None when the job is not ours to do.

    Twice, at once, or dying anywhere: as `run_job` says. A directory that was rebuilt before a crash is
    found, compared and used by the next attempt.
    """
    return run_job(tools, ref, worker, _work, Verb.ROLLBACK)


def _work(attempt: Attempt) -> Outcome:
    settle_moves(attempt, attempt.project_id)
    conversion = conversion_of(attempt, attempt.project_id)
    away, rebuilt = _way_back(attempt, conversion)
    if attempt.lease.dry_run:
        return _predict(attempt, conversion, rebuilt)
    # The attempt or person that made what was found there may not have waited for the disk yet.
    settle(conversion.legacy_path)
    attempt.heartbeat.enter("revert", conversion.dataset_hash)
    outcome = attempt.outcome(Status.ROLLED_BACK, rebuilt or "its legacy directory is unchanged")
    return revert(
        attempt.engine,
        attempt.lease,
        conversion,
        _of_dataset(outcome, conversion),
        attempt.heartbeat.listen,
        purged_seen=away.purged,
    )


def _way_back(attempt: Attempt, conversion: Conversion) -> tuple[Away, str | None]:
    """Bring the directory home, and compare it, or rebuild it; what was done. Begins again when a reclaim of
    a project with the same directory has moved it under our hands.
    """
    while True:
        before = last_move(attempt, conversion)
        try:
            away = bring_home(attempt, conversion)
            rebuilt = away.words or _rebuild_if_gone(attempt, conversion, away)
            if rebuilt is None or away.words:
                compare(attempt, conversion, away.place)
        except ProjectError:
            if last_move(attempt, conversion) == before:
                raise
            attempt.heartbeat.restart()
        else:
            return away, rebuilt


def conversion_of(grounds: Grounds, project_id: int) -> Conversion:
    """The before-image to go back by, checked against the project's row before anything is read from disk."""
    column_types.known(grounds.engine, column_types.OF_ROLLBACK)
    with autocommit(grounds.engine) as conn:
        # In this order: a conversion that is active now was so, or began, when the row was read.
        project = projects.by_ids(conn, [project_id]).get(project_id)
        conversion = projects.active_conversions(conn, [project_id]).get(project_id)
        if conversion is None:
            raise NothingToDoError(
                f"project {project_id}: not migrated by this program, or rolled back already"
            )
        if not is_back(project, conversion):
            check_config(conn, conversion)
    return conversion


def _rebuild_if_gone(attempt: Attempt, conversion: Conversion, away: Away) -> str | None:
    """Rebuild the legacy directory if it is gone and the operator wants that; what was done, None if nothing.

    A project may lie inside another one's directory. Were only the inner one rebuilt, the outer one's place
    would be taken, so what is gone around it is rebuilt first, and usually brings it along.
    """
    if not is_gone(attempt, conversion, away):
        return None
    path = conversion.legacy_path
    manifest = attempt.store.read_manifest(conversion.dataset_hash)
    attempt.heartbeat.enter("restore", conversion.dataset_hash)
    for outer in _gone_around(attempt, conversion):
        if attempt.lease.dry_run or not os.path.lexists(outer.legacy_path):
            _rebuild(attempt, outer, attempt.store.read_manifest(outer.dataset_hash))
    if os.path.lexists(path):
        return None
    made = _rebuild(attempt, conversion, manifest)
    would = "would rebuild" if attempt.lease.dry_run else "rebuilt"
    return f"{would} {len(manifest.files)} files from the store" if made else None


def is_gone(grounds: Grounds, conversion: Conversion, away: Away) -> bool:
    """Is the legacy directory gone, and to be rebuilt? Raises when it is gone and was not to be rebuilt."""
    path = conversion.legacy_path
    if os.path.lexists(path):
        return False
    if not grounds.options.restore_files:
        if away.purged:
            raise PurgedError(f"Legacy path was reclaimed and purged: {printable(path)}")
        raise LegacyPathMissingError(f"Legacy path no longer exists: {printable(path)}")
    return True


def _rebuild(attempt: Attempt, conversion: Conversion, manifest: Manifest) -> bool:
    """Rebuild one directory, or rehearse it; False when something came to its place meanwhile."""
    path, roots, advance = conversion.legacy_path, attempt.tools.roots, attempt.heartbeat.advance
    if attempt.lease.dry_run:
        rehearse_restore(attempt.store, manifest, path, roots, advance, attempt.pace)
        return True
    attributes = conversion.tree_attributes
    remove_finished(path, roots, partial(leftovers.over, attempt.engine))
    return restore_tree(attempt.store, manifest, attributes, path, attempt.name, roots, advance, attempt.pace)


def _gone_around(attempt: Attempt, conversion: Conversion) -> list[Conversion]:
    """Other converted projects whose directory is gone, too, and contained this one's; outermost first."""
    inner = os.path.normpath(conversion.legacy_path)
    with attempt.engine.connect() as conn:
        others = projects.converted_at(conn, _above(inner))
    gone = [
        other
        for other in others
        if inner.startswith(os.path.normpath(other.legacy_path).rstrip("/") + "/")
        and not os.path.lexists(other.legacy_path)
    ]
    return sorted(gone, key=lambda other: len(os.path.normpath(other.legacy_path)))


def _above(path: str) -> list[str]:
    """The directories around a normal path, which may begin with two slashes."""
    return [str(folder) for folder in PurePosixPath("/", path.lstrip("/")).parents]


def compare(attempt: Attempt, conversion: Conversion, place: Place | None = None) -> HashedTree:
    """The legacy tree, as it was just read; `place` is where it is, if not at its own.

    Raises `RollbackRefusedError` unless it still has the content that was converted. Its digest alone says
    so.
    """
    place = place or Place(path=conversion.legacy_path)
    check_directory(place)
    likely, *others = _algorithms(attempt, conversion)
    tree = _hashed(attempt, conversion, place, likely)
    for algorithm in others:
        if tree.manifest.digest != conversion.dataset_hash:
            attempt.heartbeat.restart()
            tree = _hashed(attempt, conversion, place, algorithm)
    if tree.manifest.digest != conversion.dataset_hash:
        _refuse(attempt, conversion, place, tree.manifest)
    return tree


def check_directory(place: Place) -> None:
    """Raise `RollbackRefusedError` for a place at which no directory can be compared."""
    if not os.path.isdir(place.path):
        raise RollbackRefusedError(f"Legacy path is not a directory any more: {printable(place.path)}")


def _refuse(attempt: Attempt, conversion: Conversion, place: Place, last: Manifest) -> NoReturn:
    """Raise `RollbackRefusedError`, naming what differs from the store's manifest, where there is one. `last`
    is what was found by the algorithm that was tried last.
    """
    changed = f"Legacy path is not what was migrated: {printable(place.path)}"
    try:
        expected = attempt.store.read_manifest(conversion.dataset_hash)
        found = last if last.algorithm == expected.algorithm else None
        found = found or _hashed(attempt, conversion, place, expected.algorithm).manifest
        names = list(differences(expected, found))
    except (HandBackError, RunCancelledError, LeaseLostError):
        raise
    except MigratorError as error:
        raise RollbackRefusedError(f"{changed}; what differs cannot be named: {error}") from error
    shown = tuple(islice(names, _SHOWN))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise RollbackRefusedError(f"{changed}: {'; '.join(shown)}{more}", shown)


def _algorithms(attempt: Attempt, conversion: Conversion) -> tuple[Algorithm, ...]:
    """By which algorithm the dataset was named, or, of a conversion by release 0.1, which did not note it, by
    which it may have been: the likelier one first.
    """
    match conversion.before.get("digest_algorithm"):
        case "blake3" | "sha256" as noted:
            return (noted,)
    likely: Algorithm = attempt.tools.settings.store_digest
    try:
        if attempt.store.store_id is not None:
            likely = attempt.store.algorithm
    except MigratorError as error:
        _log.info("store_not_asked", reason=str(error))
    return (likely, "sha256" if likely == "blake3" else "blake3")


def _hashed(attempt: Attempt, conversion: Conversion, place: Place, algorithm: Algorithm) -> HashedTree:
    """The legacy tree as it is now. Reads what is not remembered of it, and nothing of the store."""
    settings = attempt.tools.settings
    tools = attempt.tools
    scanned = scan(
        place.path, tools.roots, attempt.pace, threads=tools.threads, needs_sessions=False, moved=place.move
    )
    attempt.files_seen = len(scanned.files)
    attempt.heartbeat.enter("compare", conversion.dataset_hash)
    named_by = Store(settings.store_dir, settings.datasets_dir, algorithm, None)
    with remembering(attempt, conversion.project_id, scanned, algorithm) as memory:
        return hash_tree(
            scanned,
            roots=tools.roots,
            store=named_by,
            threads=tools.threads,
            advance=attempt.heartbeat.advance,
            pace=attempt.pace,
            memory=memory,
        )


def differences(expected: Manifest, found: Manifest) -> Iterator[str]:
    """What was removed, added or changed between two manifests, in the order of paths."""
    old = {entry.path: entry for entry in expected.entries}
    new = {entry.path: entry for entry in found.entries}
    for path in sorted(old.keys() | new.keys(), key=os.fsencode):
        before, after = old.get(path), new.get(path)
        if before != after:
            yield f"{_what_happened(before, after)}: {printable(path)}"


def _what_happened(before: Entry | None, after: Entry | None) -> str:
    if after is None:
        return "missing"
    if before is None:
        return "added"
    if isinstance(before, File) and isinstance(after, File):
        return "changed"
    return "became a file" if isinstance(after, File) else "became a directory"


def _predict(attempt: Attempt, conversion: Conversion, rebuilt: str | None) -> Outcome:
    """The outcome that the real rollback would have, its rows rehearsed. Only the ledger's stay written."""
    outcome = attempt.outcome(Status.WOULD_ROLL_BACK, rebuilt or "its legacy directory is unchanged")
    predicted = rehearse(
        attempt.engine, attempt.lease, conversion, _of_dataset(outcome, conversion), attempt.heartbeat.listen
    )
    with autocommit(attempt.engine) as conn:
        leases.end_job(conn, attempt.lease, predicted)
    return predicted


def _of_dataset(outcome: Outcome, conversion: Conversion) -> Outcome:
    return outcome.with_changes(dataset_id=conversion.dataset_id, dataset_hash=conversion.dataset_hash)
