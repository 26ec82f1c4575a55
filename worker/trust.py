"""May stored bytes be reused? Fresh checks say so by stat and age; otherwise the bytes are read again, and mended."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy import Connection

from worker import log
from worker.blobs.digest import Signature
from worker.blobs.manifest import Manifest
from worker.blobs.store import Store
from worker.db import checks, claims, datasets
from worker.errors import EntryUnreadableError, SourceChangedError, StoredBytesMismatchError
from worker.ingest import HashedTree, copy_durably, has_digest
from worker.job import Job

_log = log.get(__name__)


def doubtful(job: Job, tree: HashedTree) -> set[str]:
    """The digests of this tree whose blob was not checked lately, or changed since, or is gone although the dataset was
    stored once: its tree may still have the bytes, but nobody has looked. What this job has just stored is beyond doubt.
    """
    asked = tree.distinct.keys() - tree.admitted
    stored = {digest: status for digest in asked if (status := _stat(job.store, digest)) is not None}
    gone = asked - stored.keys() if os.path.exists(job.store.manifest_path(tree.manifest.digest)) else set()
    if not stored:
        return gone
    with job.engine.connect() as conn:
        known = checks.fresh(
            conn,
            stored,
            max_age_days=job.tools.settings.verify_after_days,
            or_since=job.lease.run_created_at,
        )
    return gone | {
        digest
        for digest, status in stored.items()
        if known.get(digest) != (status.st_ino, status.st_mtime_ns)
    }


def mend(job: Job, tree: HashedTree, doubts: Iterable[str]) -> set[str]:
    """Read doubtful blobs again; replace bad ones by the good incoming copy, in every tree that holds them.

    The digests that were mended. The caller holds the dataset's claim; of other datasets' trees only single files are
    replaced, each by a rename. One job mends at a time: of two that found the same bad blob, the second finds it mended.
    """
    asked = sorted(doubts)
    bad = _bad_ones(job, asked)
    if bad:
        with (
            claims.hold(
                job.engine, ["mending"], what="mending", idle_timeout_s=job.tools.settings.lease_s
            ) as claim,
            job.heartbeat.keeping_alive(claim),
        ):
            bad = _bad_ones(job, sorted(bad))
            _replace(job, tree, bad)
    if asked:
        with job.engine.begin() as conn:
            record(conn, job.store, asked)
    return bad


def _bad_ones(job: Job, digests: Sequence[str]) -> set[str]:
    """Those of these blobs that are gone, or whose bytes are not those of the digest."""
    right = job.tools.threads.map(lambda digest: _is_right(job, digest), digests)
    return {digest for digest, is_right in zip(digests, right, strict=True) if not is_right}


def _replace(job: Job, tree: HashedTree, bad: Collection[str]) -> None:
    """Put good copies into the trees first, and last under the blobs' names: as long as a blob is bad it is doubted, so that
    whoever comes after a crash in between begins again.
    """
    if not bad:
        return
    with job.store.staging(f"{job.attempt_name}-mend") as staging:
        copies = copy_durably(
            job.store, tree, bad, staging, job.tools.threads, job.heartbeat.advance, job.pace
        )
        _replace_in_trees(job, copies, staging)
        for digest, copy in copies.items():
            _log.warning("bad_blob", digest=digest)
            job.store.replace_blob(digest, copy)
        job.store.sync()


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


def _replace_in_trees(job: Job, copies: Mapping[str, str], staging: str) -> None:
    """Give every tree that holds one of these contents the good copy."""
    with job.engine.connect() as conn:
        known = datasets.all_of(conn)
    for dataset in known:
        path = Path(dataset.file_path)
        if path.parent != job.store.trees or not path.is_dir():
            continue
        manifest = _manifest(job, dataset.dataset_hash)
        for file in manifest.files if manifest is not None else ():
            if file.digest in copies:
                job.store.replace_in_tree(copies[file.digest], f"{path}/{file.path}", staging)


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
