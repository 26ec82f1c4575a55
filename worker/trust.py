"""May stored bytes be reused? Fresh checks say so by stat and age; otherwise the bytes are read again, and mended."""

import os
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection

from worker import log
from worker.blobs.digest import Signature
from worker.blobs.manifest import Manifest
from worker.blobs.store import Store
from worker.db import checks, datasets
from worker.errors import EntryUnreadableError, SourceChangedError, StoredBytesMismatchError
from worker.ingest import HashedTree, has_digest, store_blobs
from worker.job import Job

_log = log.get(__name__)


def doubtful(job: Job, tree: HashedTree) -> set[str]:
    """The digests of stored blobs of this tree that were not checked lately, or whose file changed since."""
    stored = {digest: status for digest in tree.distinct if (status := _stat(job.store, digest)) is not None}
    if not stored:
        return set()
    with job.engine.connect() as conn:
        known = checks.fresh(
            conn,
            stored,
            max_age_days=job.tools.settings.verify_after_days,
            or_since=job.lease.run_created_at,
        )
    return {
        digest
        for digest, status in stored.items()
        if known.get(digest) != (status.st_ino, status.st_mtime_ns)
    }


def mend(job: Job, tree: HashedTree, doubts: Iterable[str]) -> set[str]:
    """Read doubtful blobs again; replace bad ones by the good incoming copy, in every tree that holds them.

    The digests that were mended. A bad blob goes to quarantine first: from then on nobody reuses it. The caller holds the
    dataset's claim; of other datasets' trees only single files are replaced, each by a rename.
    """
    asked = sorted(doubts)
    right = set(job.tools.threads.map(lambda digest: digest if _is_right(job, digest) else None, asked))
    bad = {digest for digest in asked if digest not in right}
    for digest in bad:
        _log.warning("bad_blob", digest=digest)
        job.store.quarantine(job.store.blob_path(digest), "its bytes are not those of its digest")
    if bad:
        store_blobs(
            job.store,
            tree,
            bad,
            f"{job.attempt_name}-mend",
            job.tools.threads,
            job.heartbeat.advance,
            job.tools.pace,
        )
        _replace_in_trees(job, bad)
        job.store.sync()
    if asked:
        with job.engine.begin() as conn:
            record(conn, job.store, asked)
    return bad


def record(conn: Connection, store: Store, digests: Iterable[str]) -> None:
    """Remember that these blobs have just been seen to be right: read again, or written and compared."""
    seen = {
        digest: (status.st_ino, status.st_mtime_ns)
        for digest in digests
        if (status := _stat(store, digest)) is not None
    }
    checks.record(conn, seen)


def _is_right(job: Job, digest: str) -> bool:
    job.heartbeat.advance(0, 0)
    path = job.store.blob_path(digest)
    try:
        return has_digest(path, Signature.of(os.lstat(path)), digest, job.store.algorithm)
    except (OSError, EntryUnreadableError, SourceChangedError):
        return False


def _replace_in_trees(job: Job, digests: set[str]) -> None:
    """Give every tree that holds one of these contents the good blob."""
    with job.engine.connect() as conn:
        known = datasets.all_of(conn)
    for dataset in known:
        path = Path(dataset.file_path)
        if path.parent != job.store.trees or not path.is_dir():
            continue
        manifest = _manifest(job, dataset.dataset_hash)
        for file in manifest.files if manifest is not None else ():
            if file.digest in digests:
                job.store.replace_in_tree(file.digest, f"{path}/{file.path}")


def _manifest(job: Job, dataset_hash: str) -> Manifest | None:
    """A dataset's manifest; None for one that this program did not store, or whose manifest is damaged."""
    try:
        return job.store.read_manifest(dataset_hash)
    except StoredBytesMismatchError as error:
        _log.warning("manifest_not_read", reason=str(error))
        return None


def _stat(store: Store, digest: str) -> os.stat_result | None:
    try:
        return os.lstat(store.blob_path(digest))
    except FileNotFoundError:
        return None
