"""Every byte of a project is read once; new big files are stored on the way. Knows claims and counted
records.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from worker.db import claims, recordings
from worker.db.engine import autocommit
from worker.db.recordings import Counted
from worker.jobs.attempt import Attempt
from worker.jobs.remembering import remembering
from worker.legacy.file_list import ScannedFile
from worker.legacy.hash import count_rest, hash_tree, heads, is_big
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import check_room
from worker.legacy.remembered import Memory
from worker.legacy.scan import Scan
from worker.legacy.session_files import is_recording
from worker.sessions_csv import RECORDING
from worker.store.digest import CHUNK_BYTES
from worker.store.store import Source

_QUICK_BYTES = 1 << 20
"""A smaller recording is counted in the time that it takes to find out whether it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a job knows of a project that it has read to its end.

    `tree` has the records of every recording.
    """

    tree: HashedTree
    file_keys: Mapping[str, str]
    """The keys by which other jobs claim the same big files, by path."""
    heads: Mapping[str, str]
    """The digests of the beginnings of larger files, by path."""
    known_counts: Container[str]
    """The digests of the recordings that were counted for another project."""

    def counted(self) -> dict[str, Counted]:
        """By digest, the recordings that were counted here: the next project need not.

        None where counting takes less time than a question to the database.
        """
        if _quick_to_count(self.tree.scan):
            return {}
        return {
            source.digest: Counted(
                size_bytes=source.signature.size_bytes,
                head=self.heads.get(f"{session}/{RECORDING}"),
                records=self.tree.records[session],
            )
            for session, source in self.tree.recordings()
            if source.digest not in self.known_counts
        }


def read_once(attempt: Attempt, scanned: Scan) -> Reading:
    """Read every byte once: new big files are stored in the same pass, known recordings not counted again.

    Raises what `hash_tree` and `check_room` raise; what was stored by then stays (`Store.admitted`).
    """
    attempt.heartbeat.enter("hash")
    with remembering(attempt, attempt.project_id, scanned, attempt.store.algorithm) as memory:
        found = _heads(attempt, scanned, memory)
        keys = _file_keys(attempt, scanned, found)
        unseen = _unseen(attempt, list(keys.values()))
        likely_known = _likely_known(attempt, scanned, found)
        new_files = {key: path for path, key in keys.items() if key in unseen}
        tree = _hash_and_store(attempt, scanned, new_files, likely_known, memory)
    known = _known_counts(attempt, tree)
    tree = count_rest(tree, known, attempt.pace)
    return Reading(tree=tree, file_keys=keys, heads=found, known_counts=known.keys())


def _heads(attempt: Attempt, scanned: Scan, memory: Memory) -> dict[str, str]:
    """The beginnings of larger recordings, and of all big files that may have to be stored."""

    def wanted(path: str, size_bytes: int) -> bool:
        if is_recording(path):
            return size_bytes >= _QUICK_BYTES
        return is_big(path, size_bytes) and not attempt.lease.dry_run

    return heads(scanned, attempt.store, attempt.tools.threads, attempt.pace, memory, wanted)


def _file_keys(attempt: Attempt, scanned: Scan, found: Mapping[str, str]) -> dict[str, str]:
    """The key of each big file, by path: its size and beginning tell whether it was seen before. A dry run
    claims none.
    """
    if attempt.lease.dry_run:
        return {}
    return {
        path: claims.file_key(size, found[path])
        for path, size in zip(scanned.files.paths, scanned.files.sizes(), strict=True)
        if is_big(path, size)
    }


def _unseen(attempt: Attempt, keys: Sequence[str]) -> Container[str]:
    """Those of these keys that no job has seen before."""
    if not keys:
        return ()
    with autocommit(attempt.engine) as conn:
        return claims.first_seen(conn, keys)


def _likely_known(attempt: Attempt, scanned: Scan, found: Mapping[str, str]) -> Container[str]:
    """The recordings, by path, that begin like a counted one of their size; small ones are counted anyway."""
    beginnings = {
        path: (size, found[path])
        for path, size in zip(scanned.files.paths, scanned.files.sizes(), strict=True)
        if path in found and is_recording(path)
    }
    if not beginnings:
        return ()
    with autocommit(attempt.engine) as conn:
        known = recordings.known(conn, beginnings.values())
    return {path for path, beginning in beginnings.items() if beginning in known}


def _quick_to_count(scanned: Scan) -> bool:
    """Does counting the records of all recordings take less time than a question to the database?"""
    return sum(_recording_sizes(scanned)) <= CHUNK_BYTES


def _recording_sizes(scanned: Scan) -> list[int]:
    files = zip(scanned.files.paths, scanned.files.sizes(), strict=True)
    return [size for path, size in files if is_recording(path)]


def _known_counts(attempt: Attempt, tree: HashedTree) -> dict[str, int | None]:
    """The records, by digest, of those recordings of the tree that were not counted and are known."""
    rest = [source.digest for session, source in tree.recordings() if session not in tree.records]
    if not rest:
        return {}
    with autocommit(attempt.engine) as conn:
        return recordings.counts(conn, rest)


def _hash_and_store(
    attempt: Attempt,
    scanned: Scan,
    new_files: Mapping[str, str],
    likely_known: Container[str],
    memory: Memory,
) -> HashedTree:
    """Hash the tree and store, in the same pass, the files that no job has seen before: their paths by key.

    Their keys are claimed until they have their names: a job with an equal file waits until then before it
    copies its own. No other claim is waited for while these are held, so that jobs cannot wait in a circle.
    """
    if not new_files:
        return _hash(attempt, scanned, likely_known, {}, memory)
    with (
        attempt.claim(list(new_files), "new files"),
        attempt.store.staging(f"{attempt.name}-arrivals") as staging,
    ):
        first = _first_to_hold(attempt, list(new_files))
        copies = {
            path: f"{staging}/{number}"
            for number, (key, path) in enumerate(new_files.items())
            if key in first
        }

        def coming() -> Iterator[ScannedFile]:
            return (file for file in scanned.files if file.path in copies)

        check_room(attempt.store, coming)
        return _hash(attempt, scanned, likely_known, copies, memory)


def _hash(
    attempt: Attempt, scanned: Scan, likely_known: Container[str], copies: Mapping[str, str], memory: Memory
) -> HashedTree:
    return hash_tree(
        scanned,
        roots=attempt.tools.roots,
        store=attempt.store,
        threads=attempt.tools.threads,
        advance=attempt.heartbeat.advance,
        pace=attempt.pace,
        likely_known=likely_known,
        copies=copies,
        memory=memory,
    )


@contextmanager
def big_files_claimed(attempt: Attempt, reading: Reading) -> Iterator[None]:
    """Claim the big files that are still missing: another job may be storing one of them right now."""
    sources = reading.tree.sources
    keys = [key for path, key in reading.file_keys.items() if _is_missing(attempt, sources[path])]
    if not keys:
        yield
        return
    with attempt.claim(keys, "big files"):
        # A job that has seen one of them first, and claims it after this one, is to know that it may be
        # stored by then.
        _first_to_hold(attempt, keys)
        yield


def _first_to_hold(attempt: Attempt, keys: Sequence[str]) -> frozenset[str]:
    """Those of these keys, which this job holds by now, that no job has held before.

    Between being the first to see a file and holding its key, another job may have held the key and stored
    it.
    """
    held = {f"{key}:held": key for key in keys}
    with autocommit(attempt.engine) as conn:
        return frozenset(held[name] for name in claims.first_seen(conn, list(held)))


def _is_missing(attempt: Attempt, source: Source) -> bool:
    return not attempt.store.has_blob(source.digest, source.signature.size_bytes)
