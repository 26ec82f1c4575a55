"""The bytes of a project are read once: what other jobs have met is found out before, and new big files are stored on the way.

Knows no rows but claims and counted recordings.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from worker.db import claims, recordings
from worker.db.engine import autocommit
from worker.jobs.attempt import Attempt as Job
from worker.legacy.hash import count_rest, hash_tree, heads
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import check_room
from worker.legacy.scan import Scan
from worker.legacy.session_files import is_recording
from worker.store.digest import CHUNK_BYTES
from worker.store.store import Source


def read_once(job: Job, scanned: Scan) -> HashedTree:
    """Read every byte once: new big files are stored in the same pass, known recordings are not counted again."""
    job.heartbeat.enter("hash")
    keys = _file_keys(job, scanned)
    never_met = _never_met(job, list(keys.values()))
    sizes = _counted_sizes(job, scanned)
    arriving = {key: path for path, key in keys.items() if key in never_met}
    tree = _take_in(job, scanned, arriving, sizes) if arriving else _only_hash(job, scanned, sizes, {})
    return _with_counts(job, with_admitted(job, replace(tree, keys=keys)))


def _file_keys(job: Job, scanned: Scan) -> dict[str, str]:
    """For each big file what tells, before it is read to its end, whether it was met before."""
    found = heads(scanned, job.store, job.tools.threads, job.pace)
    return {
        path: claims.file_key(size, found[path])
        for path, size in zip(scanned.files.paths, scanned.files.sizes(), strict=True)
        if path in found
    }


def _never_met(job: Job, keys: Sequence[str]) -> Container[str]:
    """Those of these keys that no job has met before; a rehearsal meets none."""
    if not keys or job.lease.dry_run:
        return ()
    with autocommit(job.engine) as conn:
        return claims.first_seen(conn, keys)


def _counted_sizes(job: Job, scanned: Scan) -> Container[int]:
    """Those sizes of recordings that some counted one has; none where it is quicker to count."""
    if quick_to_count(scanned):
        return ()
    with autocommit(job.engine) as conn:
        return recordings.known_sizes(conn, _recording_sizes(scanned))


def quick_to_count(scanned: Scan) -> bool:
    """Are the recordings so small that to count their records takes less time than a question to the database?"""
    return sum(_recording_sizes(scanned)) <= CHUNK_BYTES


def _recording_sizes(scanned: Scan) -> list[int]:
    files = zip(scanned.files.paths, scanned.files.sizes(), strict=True)
    return [size for path, size in files if is_recording(path)]


def _take_in(job: Job, scanned: Scan, arriving: Mapping[str, str], sizes: Container[int]) -> HashedTree:
    """Hash the tree and store, in the same pass, the files that nobody has met before.

    Their keys are held until they have their names: a job that meets an equal file meanwhile waits with its own copy.
    No other claim is waited for while they are held, so nobody can wait in a circle.
    """
    with (
        claims.hold(
            job.engine,
            list(arriving),
            what="new files",
            idle_timeout_s=job.tools.settings.lease_s,
            pace=job.pace,
        ) as claim,
        job.heartbeat.keeping_alive(claim),
        job.store.staging(f"{job.attempt_name}-arrivals") as staging,
    ):
        first = _first_to_hold(job, list(arriving))
        arrivals = {
            path: f"{staging}/{number}" for number, (key, path) in enumerate(arriving.items()) if key in first
        }
        check_room(job.store, lambda: (one for one in scanned.files if one.path in arrivals))
        return _only_hash(job, scanned, sizes, arrivals)


def _first_to_hold(job: Job, keys: Sequence[str]) -> frozenset[str]:
    """Those of these keys, which this job holds by now, that nobody has held before.

    Between being the first to meet a file and holding its key, another job may have met it, held the key and stored it.
    """
    held = {f"{key}:held": key for key in keys}
    with autocommit(job.engine) as conn:
        return frozenset(held[name] for name in claims.first_seen(conn, list(held)))


def _only_hash(job: Job, scanned: Scan, sizes: Container[int], arrivals: Mapping[str, str]) -> HashedTree:
    return hash_tree(
        scanned,
        job.tools.roots,
        job.store,
        job.tools.threads,
        job.heartbeat.advance,
        job.pace,
        counted_sizes=sizes,
        arrivals=arrivals,
    )


def with_admitted(job: Job, tree: HashedTree) -> HashedTree:
    """The tree with all of its content that this job stored until now: it may have started over since."""
    return replace(tree, admitted=frozenset(job.store.admitted & tree.distinct.keys()))


def _with_counts(job: Job, tree: HashedTree) -> HashedTree:
    """The tree with the records of every recording, known from other projects or counted just now."""
    known: dict[str, int | None] = {}
    if tree.uncounted:
        with autocommit(job.engine) as conn:
            known = recordings.counts(conn, tree.distinct)
    return count_rest(tree, known, job.pace)


@contextmanager
def big_files_claimed(job: Job, tree: HashedTree) -> Iterator[None]:
    """The claims on the big files that are still missing: another job may be storing one of them right now."""
    keys = [key for path, key in tree.keys.items() if _is_missing(job, tree.sources[path])]
    if not keys:
        yield
        return
    with (
        claims.hold(
            job.engine, keys, what="big files", idle_timeout_s=job.tools.settings.lease_s, pace=job.pace
        ) as claim,
        job.heartbeat.keeping_alive(claim),
    ):
        # Whoever has met one of them first and comes to hold it after this job is to know that it may be stored by then.
        _first_to_hold(job, keys)
        yield


def _is_missing(job: Job, source: Source) -> bool:
    return not job.store.has_blob(source.digest, source.signature.size_bytes)
