"""The story of one project's migration: lease, scan, hash, manifest, claim, store, convert. Knows no Celery."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from worker import log
from worker.blobs.store import Store
from worker.convert import check_still_legacy, convert, plan_sessions
from worker.db import datasets, ledger, projects, sessions
from worker.db.datasets import Dataset
from worker.errors import (
    ClaimLostError,
    DatasetGoneError,
    LeaseLostError,
    MigratorError,
    NothingToDoError,
    OutOfMemoryError,
    SourceChangedError,
    StoreUnusableError,
    UnexpectedError,
)
from worker.heartbeat import Heartbeat
from worker.ingest import HashedTree, Stored, count_bytes, count_files, hash_tree, missing_from, store_tree
from worker.messages import JobRef, Outcome, Status
from worker.scan import Roots, scan
from worker.settings import Settings

_log = log.get(__name__)

_TRIES = 3
"""How often one attempt starts over after something that passes by itself: a lost claim, a dataset deleted meanwhile."""


@dataclass(frozen=True)
class Tools:
    """What a worker process needs for any job; made once a process, never shared across a fork."""

    settings: Settings
    engine: Engine
    threads: ThreadPoolExecutor

    @property
    def roots(self) -> Roots:
        """Where projects may lie, and where they may not."""
        return Roots(
            allowed=self.settings.legacy_roots, store=(self.settings.datasets_dir, self.settings.store_dir)
        )

    def open_store(self, *, create: bool) -> Store:
        """The store of DATA_DIR; made on first use unless this is a rehearsal."""
        return Store.open(
            self.settings.store_dir, self.settings.datasets_dir, self.settings.store_digest, create=create
        )


@dataclass(frozen=True)
class Job:
    """One attempt: its lease, the heartbeat beside it, and the store it works on."""

    tools: Tools
    lease: ledger.Lease
    heartbeat: Heartbeat
    store: Store
    worker: str

    @property
    def engine(self) -> Engine:
        """The process's engine."""
        return self.tools.engine

    def outcome(self, status: Status, reason: str) -> Outcome:
        """An outcome of this attempt that ends now."""
        return new_outcome(self.lease, self.worker, status, reason)


def new_outcome(lease: ledger.Lease, worker: str, status: Status, reason: str) -> Outcome:
    """An outcome with what the lease knows; ends now."""
    now = datetime.now(UTC)
    return Outcome(
        project_id=lease.ref.project_id,
        project_name=lease.project_name,
        status=status,
        reason=reason,
        original_path=lease.path,
        worker=worker,
        attempts=lease.attempt,
        started_at=lease.started_at,
        finished_at=now,
        duration_s=round(max(0.0, (now - lease.started_at).total_seconds()), 3),
    )


def migrate(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Migrate one project, or rehearse it if its run is a dry run; None when the job is not ours to do.

    Twice, or at once: one caller gets the lease, the others None. Dying anywhere: the lease runs out and the next caller
    goes on from what is stored. The outcome is in the ledger when this returns.
    """
    with tools.engine.begin() as conn:
        lease = ledger.take_lease(conn, ref, worker, tools.settings.lease_s)
    if lease is None:
        _log.info("duplicate_delivery", run=str(ref.run_id), project=ref.project_id)
        return None
    with log.bound(run=str(ref.run_id), project=ref.project_id, attempt=lease.attempt):
        outcome = _attempt(tools, lease, worker)
        if outcome is not None:
            with tools.engine.begin() as conn:
                ledger.finish_run_if_ended(conn, ref.run_id)
            _log.info(
                "job_ended", status=outcome.status.value, reason=outcome.reason, seconds=outcome.duration_s
            )
    return outcome


def _attempt(tools: Tools, lease: ledger.Lease, worker: str) -> Outcome | None:
    """Do the work and record how it ended; only a lost lease leaves nothing to record."""
    try:
        with Heartbeat(tools.engine, lease, tools.settings.lease_s) as heartbeat:
            store = tools.open_store(create=not lease.dry_run)
            return _work(Job(tools, lease, heartbeat, store, worker))
    except LeaseLostError as error:
        _log.warning("lease_lost", reason=str(error))
        return None
    except NothingToDoError as error:
        return _record(tools, lease, new_outcome(lease, worker, Status.SKIPPED, str(error)))
    except MigratorError as error:
        return _record(tools, lease, _failed(lease, worker, error))
    except MemoryError:
        # Celery would stop the whole worker at this one, and its message would go on to kill the next.
        return _record(tools, lease, _failed(lease, worker, OutOfMemoryError("The worker ran out of memory")))
    except Exception as error:  # noqa: BLE001 - the last line of defence of a job
        # A defect of ours must not leave a job without an outcome; the trace goes to the log.
        _log.exception("unexpected_error")
        return _record(
            tools, lease, _failed(lease, worker, UnexpectedError(f"{type(error).__name__}: {error}"))
        )


def _failed(lease: ledger.Lease, worker: str, error: MigratorError) -> Outcome:
    return new_outcome(lease, worker, Status.FAILED, str(error)).with_changes(
        error_class=error.error_class, error=str(error), remedy=error.remedy
    )


def _record(tools: Tools, lease: ledger.Lease, outcome: Outcome) -> Outcome | None:
    try:
        with tools.engine.begin() as conn:
            ledger.end_job(conn, lease, outcome)
    except LeaseLostError as error:
        _log.warning("lease_lost", reason=str(error))
        return None
    return outcome


def _work(job: Job) -> Outcome:
    """The whole way of one project, from its directory to its outcome."""
    with job.engine.connect() as conn:
        found = projects.by_ids(conn, [job.lease.ref.project_id])
        check_still_legacy(found.get(job.lease.ref.project_id), job.lease, conn)
    tree = _hash(job)
    if job.lease.dry_run:
        return _foretell(job, tree)
    for _ in range(_TRIES):
        try:
            return _reuse(job, tree) or _store(job, tree)
        except (DatasetGoneError, ClaimLostError) as error:
            _log.warning("starting_over", reason=str(error))
            last = error
    raise last


def _hash(job: Job) -> HashedTree:
    """Read the directory once; a second time if somebody wrote to it meanwhile."""
    path = job.lease.path or ""
    try:
        return _hash_once(job, path)
    except SourceChangedError as error:
        _log.warning("source_changed", reason=str(error))
        job.heartbeat.restart()
        return _hash_once(job, path)


def _hash_once(job: Job, path: str) -> HashedTree:
    scanned = scan(path, job.tools.roots)
    job.heartbeat.enter("hash")
    return hash_tree(scanned, job.tools.roots, job.store, job.tools.threads, job.heartbeat.advance)


def _reuse(job: Job, tree: HashedTree) -> Outcome | None:
    """Refer to a dataset that is there already, if it is, and whole; None otherwise."""
    known = _known(job, tree)
    if known is None or not job.store.holds(tree.manifest, known.file_path):
        return None
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
    )


def _store(job: Job, tree: HashedTree) -> Outcome:
    """Store the dataset as the only one who does, then convert; whoever waited finds it stored and reuses it."""
    digest = tree.manifest.digest
    with _claimed(job, digest) as claim:
        reused = _reuse(job, tree)
        if reused is not None:
            return reused
        job.heartbeat.enter("store", digest)
        target = _place_for(job, tree)
        stored = store_tree(
            job.store, tree, target, _attempt_name(job), job.tools.threads, job.heartbeat.advance
        )
        claim.ping()
        job.heartbeat.enter("convert", digest)
        outcome = job.outcome(Status.MIGRATED, "stored: its content was new")
        return convert(
            job.engine,
            job.lease,
            tree,
            _with_stored(outcome, tree, stored),
            create_at=target,
            store_root=job.store.root,
        )


@contextmanager
def _claimed(job: Job, digest: str) -> Iterator[datasets.Claim]:
    """The claim on a dataset, kept alive by the heartbeat for as long as it is held."""
    job.heartbeat.enter("claim", digest)
    with job.engine.connect() as conn:
        holder = ledger.holder_of_dataset(conn, digest, job.lease.ref)
    if holder is not None:
        job.heartbeat.enter(f"wait for {holder}", digest)
    with datasets.claim(job.engine, digest, idle_timeout_s=job.tools.settings.lease_s) as claim:
        job.heartbeat.keep_alive(claim)
        try:
            yield claim
        finally:
            job.heartbeat.keep_alive(None)


def _known(job: Job, tree: HashedTree) -> Dataset | None:
    with job.engine.connect() as conn:
        known = datasets.find(conn, tree.manifest.digest)
    if known is not None and Path(known.file_path).parent != job.store.trees:
        raise StoreUnusableError(
            f"Dataset {known.dataset_id} is registered at {known.file_path}, which is not directly in {job.store.trees}"
        )
    return known


def _place_for(job: Job, tree: HashedTree) -> Path:
    """Where the tree goes: where its row says if it has one, else a name that no other dataset's tree has."""
    known = _known(job, tree)
    if known is not None:
        return Path(known.file_path)
    name = job.lease.project_name or "dataset"
    short = job.store.tree_path(name, tree.manifest.digest)
    if not os.path.lexists(short) or job.store.holds(tree.manifest, os.fspath(short)):
        return short
    return job.store.tree_path(name, tree.manifest.digest, digits=64)


def _foretell(job: Job, tree: HashedTree) -> Outcome:
    """What the real run would do, as far as this project alone can tell; equal projects of the run are settled between
    them when the report is made. Writes to the ledger only.
    """
    job.heartbeat.enter("plan", tree.manifest.digest)
    known = _known(job, tree)
    whole = known is not None and job.store.holds(tree.manifest, known.file_path)
    new = set() if whole else missing_from(job.store, tree)
    target = Path(known.file_path) if known is not None else _place_for(job, tree)
    reason = (
        "would reuse a dataset that is stored already" if known is not None else "would store its content"
    )
    with job.engine.begin() as conn:
        rows = sessions.of_project(conn, job.lease.ref.project_id)
        plan = plan_sessions(job.lease.path or "", rows, tree)
        ledger.note_new_content(
            conn, job.lease.ref, {digest: tree.distinct[digest].signature.size_bytes for digest in new}
        )
        outcome = _counted(job.outcome(Status.WOULD_MIGRATE, reason), tree, new=new).with_changes(
            dataset_id=known.dataset_id if known is not None else None,
            dataset_path=str(target),
            dataset_created=known is None,
            sessions_count=len(rows),
            warnings=plan.warnings,
        )
        ledger.end_job(conn, job.lease, outcome)
    return outcome


def _counted(outcome: Outcome, tree: HashedTree, *, new: set[str]) -> Outcome:
    return outcome.with_changes(
        dataset_hash=tree.manifest.digest, files=count_files(tree, new), bytes=count_bytes(tree, new)
    )


def _with_stored(outcome: Outcome, tree: HashedTree, stored: Stored) -> Outcome:
    return outcome.with_changes(
        dataset_hash=tree.manifest.digest, files=stored.files, bytes=stored.bytes, links=stored.links
    )


def _attempt_name(job: Job) -> str:
    """Staging's name for this attempt: unique, so that a cleanup removes only what this attempt made."""
    return f"{job.lease.ref.task_id}-{job.lease.attempt}"
