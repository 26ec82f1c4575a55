"""The steps of one project's migration: scan, read once, claim, store, convert. Knows no Celery."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial

from sqlalchemy.exc import SQLAlchemyError

from worker.allocation import Allocation
from worker.conversion.convert import check_still_legacy, convert, rehearse
from worker.conversion.dataset_row import new_row
from worker.conversion.session_plan import check_names
from worker.db import column_types, datasets, dry_runs, leases, recordings, sessions
from worker.db.claims import Claim
from worker.db.engine import autocommit
from worker.db.sessions import Session
from worker.errors import (
    ClaimLostError,
    DatasetGoneError,
    HandBackError,
    MigratorError,
    PlaceTakenError,
    SourceChangedError,
    StoreSyncError,
    TransientError,
)
from worker.jobs import leftovers
from worker.jobs.attempt import Attempt
from worker.jobs.dataset_place import Place, find_or_choose, find_stored
from worker.jobs.indexing import index, unmark
from worker.jobs.integrity import record_verified, repair, unverified
from worker.jobs.read_once import Reading, big_files_claimed, read_once
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import Stored, check_paths_fit, check_room, counted, missing_from, store_tree
from worker.legacy.scan import Scan, scan
from worker.messages import ByteCounts, DiskBytes, FileCounts, JobRef, LinkCounts, Outcome, Status, Verb
from worker.runtime import log
from worker.store.digest import BIG_BYTES
from worker.store.row_file import DatasetRow
from worker.store.store import Store

_log = log.get(__name__)

_TRIES = 3
"""How often one attempt begins again at the claim when other jobs or people were faster."""


def _steps(attempt: Attempt, rows: Sequence[Session]) -> Outcome:
    """The steps of a migration. A dataset that is stored already is neither claimed nor stored again."""
    scanned = _scan(attempt, rows)
    reading = read_once(attempt, scanned)
    if not attempt.lease.dry_run:
        unmark(attempt, reading.tree)

    def claim_store_convert() -> Outcome:
        if attempt.lease.dry_run:
            return _predict(attempt, reading)
        known = find_stored(attempt, reading.tree)
        if known is not None and _is_reusable(attempt, reading.tree, known):
            if reading.counted():
                # Known to an earlier release, which did not keep how they begin.
                _remember(attempt, reading, ())
            return _convert(attempt, reading.tree, known)
        with _claim(attempt, reading.tree) as claim:
            place = find_or_choose(attempt, reading.tree)
            row = cache(partial(_new_row, attempt, reading.tree, place))
            stored = _store(attempt, reading, place, claim, row)
            return _convert(attempt, reading.tree, place, stored, row())

    return _again_if_another_was_faster(claim_store_convert)


def migrate(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Migrate one project, or rehearse it if its run is a dry run; None when the job is not ours to do.

    Twice, at once, or dying anywhere: as `run_job` says; what an earlier attempt stored is found and used.
    """
    return run_job(tools, ref, worker, _migrate, Verb.MIGRATE)


def _migrate(attempt: Attempt) -> Outcome:
    """The steps, and what is done before the first of them and when one fails."""
    column_types.known(attempt.engine)
    with autocommit(attempt.engine) as conn:
        project, rows = sessions.with_project(conn, attempt.project_id)
        check_still_legacy(project, attempt.lease, conn)
    if not attempt.lease.dry_run:
        leftovers.clear(attempt.engine, attempt.store)
    with _noting_what_was_stored(attempt):
        return _twice(attempt, rows)


@contextmanager
def _noting_what_was_stored(attempt: Attempt) -> Iterator[None]:
    """What was stored stays when the work fails: the outcome has it, the next attempt need not read it."""
    try:
        yield
    except Exception as error:
        attempt.stored = attempt.stored or _admitted(attempt)
        if isinstance(error, HandBackError | TransientError):
            with suppress(MigratorError, SQLAlchemyError), autocommit(attempt.engine) as conn:
                record_verified(conn, attempt.store, attempt.store.admitted)
        raise


def _admitted(attempt: Attempt) -> Stored | None:
    """What came into the store by files that were new and were copied while they were hashed."""
    sizes = []
    for digest in attempt.store.admitted:
        with suppress(OSError):
            sizes.append(os.stat(attempt.store.blob_path(digest)).st_size)
    if not sizes:
        return None
    return Stored(
        files=FileCounts(stored=len(sizes)),
        bytes=ByteCounts(stored=sum(sizes)),
        links=LinkCounts(cloned=_count(attempt.store.came_by_cloning())),
    )


def _twice(attempt: Attempt, rows: Sequence[Session]) -> Outcome:
    """A second time from the start if the directory changed, a claim was lost, or the disk lost bytes."""
    try:
        return _steps(attempt, rows)
    except (SourceChangedError, ClaimLostError) as error:
        _log.warning("starting_over", reason=str(error))
    except StoreSyncError as error:
        # Perhaps ours, and the disk says it only once: what has no name yet is written again.
        _log.warning("starting_over", reason=str(error))
        attempt.store.try_again()
    attempt.heartbeat.restart()
    return _steps(attempt, rows)


def _again_if_another_was_faster(steps: Callable[[], Outcome]) -> Outcome:
    """Begin again with what was read when the dataset was deleted meanwhile, or its claim or place lost."""
    for _ in range(_TRIES):
        try:
            return steps()
        except (DatasetGoneError, ClaimLostError, PlaceTakenError) as error:
            _log.warning("starting_over", reason=str(error))
            last = error
    raise last


def _scan(attempt: Attempt, rows: Sequence[Session]) -> Scan:
    """List the directory, and refuse what could not be stored or converted before a byte of it is read."""
    scanned = scan(attempt.lease.path or "", attempt.tools.roots, attempt.pace, threads=attempt.tools.threads)
    attempt.files_seen = len(scanned.files)
    check_names(rows, scanned)
    check_paths_fit(
        attempt.store, scanned, attempt.lease.subject_name or "dataset", attempt.lease.ref.task_id
    )
    return scanned


def _is_reusable(attempt: Attempt, tree: HashedTree, place: Place) -> bool:
    """Is the dataset there, whole and verified lately, so that a project may refer to it?"""
    if (
        place.dataset is None
        or not attempt.store.holds(tree.manifest, os.fspath(place.path), attempt.pace)
        or unverified(attempt, tree, place.path)
    ):
        return False
    # Another job may be rebuilding this tree right now, or a bad blob in it, and may not have synced.
    attempt.store.sync()
    return True


@contextmanager
def _claim(attempt: Attempt, tree: HashedTree) -> Iterator[Claim]:
    """The claim on the dataset: one job at a time stores a content."""
    digest = tree.manifest.digest

    def say_for_whom() -> None:
        with autocommit(attempt.engine) as conn:
            other = leases.job_that_stores(conn, digest, attempt.lease.ref)
        attempt.heartbeat.enter(f"wait for {other or 'another job'}", digest, at_once=True)

    attempt.heartbeat.enter("claim", digest)
    with attempt.claim([digest], f"dataset {digest[:12]}", say_for_whom) as claim:
        yield claim


def _new_row(attempt: Attempt, tree: HashedTree, place: Place) -> DatasetRow | None:
    """What the rows of a new dataset say, with ids that are kept for them; None for one that has its rows."""
    if place.dataset is not None:
        return None
    with autocommit(attempt.engine) as conn:
        numbers = datasets.reserve(conn, len(tree.manifest.session_names))
    return new_row(attempt.lease, tree, place.path, attempt.store.root, numbers)


def _store(
    attempt: Attempt,
    reading: Reading,
    place: Place,
    claim: Claim,
    row: Callable[[], DatasetRow | None],
) -> Stored | None:
    """Store the dataset; None when another job, which this one waited for, has stored it."""
    tree = reading.tree
    repair(attempt, tree, unverified(attempt, tree, place.path), place.path)
    if _is_reusable(attempt, tree, place):
        return None
    attempt.heartbeat.enter("store", tree.manifest.digest, at_once=tree.scan.size_bytes >= BIG_BYTES)
    with big_files_claimed(attempt, reading):
        # Only now: what was missing before may have come while this job waited.
        missing = missing_from(attempt.store, tree, attempt.pace)
        check_room(attempt.store, lambda: (tree.distinct[digest] for digest in missing))
        links = store_tree(
            attempt.store,
            tree,
            place.path,
            attempt=attempt.name,
            threads=attempt.tools.threads,
            advance=attempt.heartbeat.advance,
            pace=attempt.pace,
            confirm=claim.ping,
            describe=row,
        )
    links = replace(links, cloned=_count(attempt.store.came_by_cloning()))
    attempt.stored = counted(tree, attempt.store.admitted, links)
    missing.update(attempt.store.admitted)
    _remember(attempt, reading, missing)
    claim.ping()
    return attempt.stored


def _remember(attempt: Attempt, reading: Reading, proved: Iterable[str]) -> None:
    """Keep what the next project need not find out again: counted records, and blobs that are right."""
    with autocommit(attempt.engine) as conn:
        recordings.remember(conn, reading.counted())
        record_verified(conn, attempt.store, proved)


def _convert(
    attempt: Attempt,
    tree: HashedTree,
    place: Place,
    stored: Stored | None = None,
    row: DatasetRow | None = None,
) -> Outcome:
    """Re-point the project to the dataset and end its job. Without `stored` the dataset was stored before;
    `row` of one that has no rows yet.
    """
    attempt.heartbeat.enter("convert", tree.manifest.digest)
    index(attempt, tree.manifest)
    if stored is None:
        reason = f"reused dataset {place.dataset_id}: equal content was stored before"
        stored = counted(tree, attempt.store.admitted)
    elif place.dataset is None:
        reason = "stored: its content was new"
    else:
        reason = f"restored dataset {place.dataset_id}, whose stored tree was incomplete, and reused it"
    return convert(
        attempt.engine,
        attempt.lease,
        tree,
        _outcome(attempt, tree, Status.MIGRATED, reason, stored),
        create=row,
        listen=attempt.heartbeat.listen,
    )


def _predict(attempt: Attempt, reading: Reading) -> Outcome:
    """The dry-run outcome: what the real run would do, as far as this project alone can tell.

    Which of several equal projects stores is settled in the report. Rows are written and taken back; only the
    ledger's stay.
    """
    tree = reading.tree
    attempt.heartbeat.enter("plan", tree.manifest.digest)
    place = find_or_choose(attempt, tree)
    is_whole = place.dataset is not None and attempt.store.holds(
        tree.manifest, os.fspath(place.path), attempt.pace
    )
    new = set() if is_whole else missing_from(attempt.store, tree, attempt.pace)
    if place.dataset is None:
        reason = "would store its content"
    elif is_whole:
        reason = "would reuse a dataset that is stored already"
    else:
        reason = f"would restore dataset {place.dataset_id}, whose stored tree is incomplete, and reuse it"
    _remember(attempt, reading, ())
    outcome = rehearse(
        attempt.engine,
        attempt.lease,
        tree,
        _outcome(attempt, tree, Status.WOULD_MIGRATE, reason, counted(tree, new)),
        create=_new_row(attempt, tree, place),
        listen=attempt.heartbeat.listen,
    )
    with attempt.engine.begin() as conn:
        dry_runs.note_new_content(
            conn, attempt.lease.ref, {digest: tree.distinct[digest].signature.size_bytes for digest in new}
        )
        leases.end_job(conn, attempt.lease, outcome)
    return outcome


def _outcome(attempt: Attempt, tree: HashedTree, status: Status, reason: str, stored: Stored) -> Outcome:
    return attempt.outcome(status, reason).with_changes(
        dataset_hash=tree.manifest.digest,
        files=stored.files,
        bytes=replace(stored.bytes, remembered=tree.remembered_bytes),
        links=stored.links,
        disk=DiskBytes(
            legacy=tree.scan.allocated_bytes,
            store=_taken(attempt.store, attempt.store.came_by_copying()),
            shared=_taken(attempt.store, attempt.store.came_by_cloning()),
        ),
    )


def _count(digests: Iterable[str]) -> int:
    return sum(1 for _ in digests)


def _taken(store: Store, digests: Iterable[str]) -> int:
    """The room on disk of blobs that this job has brought into the store."""
    allocation = Allocation()
    for digest in digests:
        with suppress(OSError):
            allocation.add(os.lstat(store.blob_path(digest)))
    return allocation.size_bytes
