"""The story of one project's migration: scan, hash, manifest, claim, store, convert. Knows no Celery."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from worker.conversion.convert import check_still_legacy, convert, rehearse
from worker.conversion.session_plan import check_names
from worker.db import claims, column_types, datasets, dry_runs, leases, recordings, sessions
from worker.db.claims import Claim
from worker.db.datasets import Dataset
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
    StoreUnusableError,
    TransientError,
)
from worker.jobs import leftovers
from worker.jobs.attempt import Attempt as Job
from worker.jobs.integrity import doubtful, mend, record
from worker.jobs.read_once import big_files_claimed, quick_to_count, read_once, with_admitted
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import (
    Stored,
    check_paths_fit,
    check_room,
    count_bytes,
    count_files,
    missing_from,
    store_tree,
)
from worker.legacy.scan import Scan, scan
from worker.messages import ByteCounts, FileCounts, JobRef, LinkCounts, Outcome, Status, Verb
from worker.runtime import log
from worker.store.digest import BIG_BYTES

_log = log.get(__name__)

_PLACES = 10
"""So many names are tried for a new dataset's tree."""

_TRIES = 3
"""How often one attempt starts over after something that passes by itself: a lost claim, a dataset deleted meanwhile."""


def migrate(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Migrate one project, or rehearse it if its run is a dry run; None when the job is not ours to do.

    Twice, at once, or dying anywhere: as `run_job` says; what an earlier attempt stored is found and used.
    """
    return run_job(tools, ref, worker, _work, Verb.MIGRATE)


def _work(job: Job) -> Outcome:
    """The whole way of one project."""
    column_types.known(job.engine)
    with autocommit(job.engine) as conn:
        project, rows = sessions.with_project(conn, job.project_id)
        check_still_legacy(project, job.lease, conn)
    if not job.lease.dry_run:
        leftovers.clear(job.engine, job.store)
    try:
        return _twice(job, rows)
    except Exception as error:
        # What is in the store by now stays there, whatever becomes of the project.
        job.stored = job.stored or _admitted(job)
        if not isinstance(error, HandBackError | TransientError):
            raise
        # Whoever goes on need not read again what was stored just now.
        with suppress(MigratorError, SQLAlchemyError), autocommit(job.engine) as conn:
            record(conn, job.store, job.store.admitted)
        raise


def _admitted(job: Job) -> Stored | None:
    """What came into the store by files that were new and were copied while they were hashed."""
    sizes = []
    for digest in job.store.admitted:
        with suppress(OSError):
            sizes.append(os.stat(job.store.blob_path(digest)).st_size)
    if not sizes:
        return None
    return Stored(
        files=FileCounts(stored=len(sizes)), bytes=ByteCounts(stored=sum(sizes)), links=LinkCounts()
    )


def _twice(job: Job, rows: Sequence[Session]) -> Outcome:
    """A second time from the start if somebody wrote to the directory meanwhile, the database took a claim away, or the disk
    lost something.
    """
    try:
        return _from_directory_to_rows(job, rows)
    except (SourceChangedError, ClaimLostError) as error:
        _log.warning("starting_over", reason=str(error))
    except StoreSyncError as error:
        # Some bytes were lost, perhaps ours, and it is told only once: what has no name yet is written again.
        _log.warning("starting_over", reason=str(error))
        job.store.try_again()
    job.heartbeat.restart()
    return _from_directory_to_rows(job, rows)


def _from_directory_to_rows(job: Job, rows: Sequence[Session]) -> Outcome:
    tree = read_once(job, _scan(job, rows))
    for _ in range(_TRIES):
        try:
            if job.lease.dry_run:
                return _foretell(job, tree)
            return _reuse(job, tree, _perhaps_whole(job, tree)) or _store(job, tree)
        except (DatasetGoneError, ClaimLostError, PlaceTakenError) as error:
            _log.warning("starting_over", reason=str(error))
            last = error
    raise last


def _scan(job: Job, rows: Sequence[Session]) -> Scan:
    """List the directory, and refuse what could not be stored or converted before a byte of it is read."""
    scanned = scan(job.lease.path or "", job.tools.roots, job.pace)
    job.files_seen = len(scanned.files)
    check_names(rows, scanned)
    check_paths_fit(job.store, scanned, job.lease.project_name or "dataset", job.lease.ref.task_id)
    return scanned


def _remember(job: Job, tree: HashedTree, proved: Collection[str]) -> None:
    """Keep what the next project need not find out again: counted records, and blobs that are right for certain."""
    with autocommit(job.engine) as conn:
        if not quick_to_count(tree.scan):
            recordings.remember(conn, tree.counted)
        record(conn, job.store, proved)


def _reuse(job: Job, tree: HashedTree, known: Dataset | None) -> Outcome | None:
    """Refer to a dataset that is there already, if it is, whole, and checked lately; None otherwise."""
    if (
        known is None
        or not job.store.holds(tree.manifest, known.file_path, job.pace)
        or doubtful(job, tree, Path(known.file_path))
    ):
        return None
    # Another job may be rebuilding this tree right now, or replacing a bad blob in it, and may not have waited for the disk yet.
    job.store.sync()
    job.heartbeat.enter("convert", tree.manifest.digest)
    outcome = job.outcome(
        Status.MIGRATED, f"reused dataset {known.dataset_id}: equal content was stored before"
    )
    return convert(
        job.engine,
        job.lease,
        tree,
        _counted(outcome, tree, new=set()),
        create_at=None,
        store_root=job.store.root,
        listen=job.heartbeat.listen,
    )


def _store(job: Job, tree: HashedTree) -> Outcome:
    """Store the dataset as the only one who does, then convert; whoever waited finds it stored and reuses it."""
    digest = tree.manifest.digest
    with _claimed(job, digest) as claim:
        known, target = _known_or_place(job, tree)
        mend(job, tree, doubtful(job, tree, target), target)
        tree = with_admitted(job, tree)
        reused = _reuse(job, tree, known)
        if reused is not None:
            return reused
        job.heartbeat.enter("store", digest, at_once=tree.scan.size_bytes >= BIG_BYTES)
        with big_files_claimed(job, tree):
            # Counted when nobody else stores any of it: what was missing before may have come while this job waited.
            missing = missing_from(job.store, tree, job.pace)
            check_room(job.store, lambda: (tree.distinct[digest] for digest in missing))
            stored = store_tree(
                job.store,
                tree,
                target,
                job.attempt_name,
                job.tools.threads,
                job.heartbeat.advance,
                job.pace,
                claim.ping,
            )
        job.stored = stored
        _remember(job, tree, missing | tree.admitted)
        claim.ping()
        job.heartbeat.enter("convert", digest)
        outcome = job.outcome(
            Status.MIGRATED,
            "stored: its content was new"
            if known is None
            else f"restored dataset {known.dataset_id}, whose stored tree was incomplete, and reused it",
        )
        return convert(
            job.engine,
            job.lease,
            tree,
            _with_stored(outcome, tree, stored),
            create_at=target if known is None else None,
            store_root=job.store.root,
            listen=job.heartbeat.listen,
        )


@contextmanager
def _claimed(job: Job, digest: str) -> Iterator[Claim]:
    """The claim on a dataset, kept alive by the heartbeat for as long as it is held."""

    def say_for_whom() -> None:
        with autocommit(job.engine) as conn:
            holder = leases.job_that_stores(conn, digest, job.lease.ref)
        job.heartbeat.enter(f"wait for {holder or 'another job'}", digest, at_once=True)

    job.heartbeat.enter("claim", digest)
    with (
        claims.hold(
            job.engine,
            [digest],
            what=f"dataset {digest[:12]}",
            idle_timeout_s=job.tools.settings.lease_s,
            on_wait=say_for_whom,
            pace=job.pace,
        ) as claim,
        job.heartbeat.keeping_alive(claim),
    ):
        yield claim


def _perhaps_whole(job: Job, tree: HashedTree) -> Dataset | None:
    """The dataset, if it is there; without its manifest in the store it is not whole, and nobody needs to be asked."""
    return _known(job, tree) if os.path.exists(job.store.manifest_path(tree.manifest.digest)) else None


def _known(job: Job, tree: HashedTree) -> Dataset | None:
    with autocommit(job.engine) as conn:
        known = datasets.find(conn, tree.manifest.digest)
    return None if known is None else _in_the_store(job, known)


def _in_the_store(job: Job, known: Dataset) -> Dataset:
    # By what the paths lead to: DATA_DIR may be spelled otherwise than when the dataset was stored.
    if os.path.realpath(os.path.dirname(known.file_path)) != os.path.realpath(job.store.trees):
        raise StoreUnusableError(
            f"Dataset {known.dataset_id} is registered at {known.file_path}, which is not directly in {job.store.trees}"
        )
    return known


def _known_or_place(job: Job, tree: HashedTree) -> tuple[Dataset | None, Path]:
    """The dataset and where it is, or None and where a new one's tree goes: to a name that no other dataset has.

    A tree that is there without a row may have got one of Label's own meanwhile: then it is that dataset's.
    """
    name, digest = job.lease.project_name or "dataset", tree.manifest.digest
    short = job.store.tree_path(name, digest)
    places = [
        short,
        *(
            job.store.tree_path(one, digest, digits=64)
            for one in (name, *(f"{n}-{name}" for n in range(2, _PLACES)))
        ),
    ]
    with autocommit(job.engine) as conn:
        known, taken = datasets.find_or_at(conn, digest, [os.fspath(place) for place in places])
        if known is not None:
            return _in_the_store(job, known), Path(known.file_path)
        for place in places:
            if os.fspath(place) in taken:
                continue
            if not os.path.lexists(place):
                return None, place
            if datasets.is_registered(conn, place.name):
                continue
            if place != short or job.store.holds(tree.manifest, os.fspath(place), job.pace):
                return None, place
    raise StoreUnusableError(
        f"Every directory for dataset {digest[:12]} in {job.store.trees} is another dataset's"
    )


def _foretell(job: Job, tree: HashedTree) -> Outcome:
    """What the real run would do, as far as this project alone can tell; equal projects of the run are settled between
    them when the report is made. Its rows are written and taken back again; what stays is the ledger's.
    """
    job.heartbeat.enter("plan", tree.manifest.digest)
    known, target = _known_or_place(job, tree)
    whole = known is not None and job.store.holds(tree.manifest, known.file_path, job.pace)
    new = set() if whole else missing_from(job.store, tree, job.pace)
    if known is None:
        reason = "would store its content"
    elif whole:
        reason = "would reuse a dataset that is stored already"
    else:
        reason = f"would restore dataset {known.dataset_id}, whose stored tree is incomplete, and reuse it"
    _remember(job, tree, ())
    outcome = rehearse(
        job.engine,
        job.lease,
        tree,
        _counted(job.outcome(Status.WOULD_MIGRATE, reason), tree, new=new),
        create_at=target if known is None else None,
        store_root=job.store.root,
        listen=job.heartbeat.listen,
    )
    with job.engine.begin() as conn:
        dry_runs.note_new_content(
            conn, job.lease.ref, {digest: tree.distinct[digest].signature.size_bytes for digest in new}
        )
        leases.end_job(conn, job.lease, outcome)
    return outcome


def _counted(outcome: Outcome, tree: HashedTree, *, new: set[str]) -> Outcome:
    return outcome.with_changes(
        dataset_hash=tree.manifest.digest, files=count_files(tree, new), bytes=count_bytes(tree, new)
    )


def _with_stored(outcome: Outcome, tree: HashedTree, stored: Stored) -> Outcome:
    return outcome.with_changes(
        dataset_hash=tree.manifest.digest, files=stored.files, bytes=stored.bytes, links=stored.links
    )
