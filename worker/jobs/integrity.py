"""May stored bytes be reused? Fresh checks say so by stat and age; otherwise the bytes are read again, and
repaired.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from worker.db import checks
from worker.jobs.attempt import Attempt
from worker.jobs.good_bytes import in_incoming
from worker.jobs.indexing import index_rest
from worker.jobs.judging import is_right
from worker.jobs.repair import CLAIM, Needs, Tree, replace_blobs, replace_copies
from worker.legacy.hashed_tree import HashedTree
from worker.store.files import fresh_status
from worker.store.manifest import File
from worker.store.store import Store

_BATCH = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A stored file that promises the bytes of a digest, and what `stat` says of it now."""

    path: str
    digest: str
    inode: int
    mtime_ns: int
    is_blob: bool

    @property
    def key(self) -> str:
        """What its checks are kept under: a blob has a name of its own, a copy only its inode."""
        return self.digest if self.is_blob else f"{self.digest}:{self.inode}"


def unverified(attempt: Attempt, tree: HashedTree, place: Path) -> dict[str, str]:
    """The stored files that must be read before this tree is reused at `place`: the digests they promise, by
    path.

    Blobs that were not verified lately, or changed since, or are gone although the dataset was stored once:
    its tree may still have the bytes. Likewise files at `place` that are no links of their blobs: copies may
    go bad by themselves. What this attempt has stored itself is right.
    """
    was_stored = fresh_status(attempt.store.manifest_path(tree.manifest.digest)) is not None
    place_is_there = place.is_dir()
    suspects: dict[str, str] = {}
    for files in _batches(tree.manifest.files):
        attempt.pace(0)
        digests = {file.digest for file in files}
        attempt.store.ask_anew(digests)
        blobs = {digest: _blob(attempt.store, digest) for digest in digests}
        found = {digest: blob for digest, blob in blobs.items() if blob is not None}
        asked = [blob for digest, blob in found.items() if digest not in attempt.store.admitted]
        if place_is_there:
            asked += _copies(attempt, files, place, found)
        if was_stored:
            gone = blobs.keys() - found.keys() - attempt.store.admitted
            suspects |= {attempt.store.blob_path(digest): digest for digest in gone}
        suspects |= {file.path: file.digest for file in _not_checked(attempt, asked)}
    return suspects


def _copies(attempt: Attempt, files: Sequence[File], place: Path, blobs: Mapping[str, _File]) -> list[_File]:
    """The files of a tree that are there but are not links of their blobs."""
    found = []
    for file in files:
        attempt.pace(0)
        blob = blobs.get(file.digest)
        path = f"{place}/{file.path}"
        # The inode is compared first: nearly all of so many files are links.
        if blob is not None and (status := _stat(path)) is not None and status.st_ino != blob.inode:
            found.append(_file(path, file.digest, status, is_blob=False))
    return found


def _not_checked(attempt: Attempt, files: Sequence[_File]) -> list[_File]:
    """Those of these files whose last check is too old, or was of something else than what is there now."""
    if not files:
        return []
    with attempt.engine.connect() as conn:
        known = checks.fresh(
            conn,
            (file.key for file in files),
            max_age_days=attempt.tools.settings.verify_after_days,
            or_since=attempt.lease.run_created_at,
        )
    return [file for file in files if known.get(file.key) != (file.inode, file.mtime_ns)]


def repair(attempt: Attempt, tree: HashedTree, suspects: Mapping[str, str], place: Path) -> None:
    """Read suspect files again; replace bad blobs, in every tree that has them, by the legacy directory's
    good bytes, and bad copies by their blob.

    The caller has the dataset's claim; of other datasets' trees only single files are replaced, each by a
    rename. One job repairs at a time: of two that found the same bad blob, the second finds it repaired.
    """
    bad = _bad_ones(attempt, suspects)
    if bad:
        with attempt.claim([CLAIM], CLAIM):
            _replace(attempt, tree, _bad_ones(attempt, bad), place)
    if suspects:
        with attempt.engine.begin() as conn:
            _record(conn, [_found(attempt.store, path, digest) for path, digest in suspects.items()])


def _bad_ones(attempt: Attempt, files: Mapping[str, str]) -> dict[str, str]:
    """Those of these files that are gone, or whose bytes are not those of the digest."""
    asked = sorted(files.items())
    right = attempt.tools.threads.map(lambda file: is_right(attempt, *file), asked)
    return {path: digest for (path, digest), good in zip(asked, right, strict=True) if not good}


def _replace(attempt: Attempt, tree: HashedTree, bad: Mapping[str, str], place: Path) -> None:
    """Replace bad blobs by the legacy directory's bytes, in every tree that has them, and bad copies by their
    blob.
    """
    if not bad:
        return
    blobs = {
        digest: tree.distinct[digest].signature.size_bytes
        for path, digest in bad.items()
        if path == attempt.store.blob_path(digest)
    }
    copies = {os.path.relpath(path, place): digest for path, digest in bad.items() if digest not in blobs}
    index_rest(attempt)
    own = Tree(path=place, dataset_hash=tree.manifest.digest)
    needs = Needs(attempt, blobs, own, tree.manifest)
    with attempt.store.staging(f"{attempt.name}-mend") as staging:
        replace_blobs(attempt, blobs, needs, in_incoming(attempt, tree), staging)
        replace_copies(attempt, copies, own, staging)
        attempt.store.sync()


def record_verified(conn: Connection, store: Store, digests: Iterable[str]) -> None:
    """Remember that these blobs have just been verified: read again, or written and compared."""
    _record(conn, (_blob(store, digest) for digest in digests))


def _record(conn: Connection, files: Iterable[_File | None]) -> None:
    for some in _batches(files):
        checks.record(conn, {file.key: (file.inode, file.mtime_ns) for file in some if file is not None})


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Some thousand at a time: one statement for each, and no more memory than these take."""
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _blob(store: Store, digest: str) -> _File | None:
    return _found(store, store.blob_path(digest), digest)


def _found(store: Store, path: str, digest: str) -> _File | None:
    """The stored file at a path, if there is one."""
    status = _stat(path)
    return (
        _file(path, digest, status, is_blob=path == store.blob_path(digest)) if status is not None else None
    )


def _file(path: str, digest: str, status: os.stat_result, *, is_blob: bool) -> _File:
    return _File(path=path, digest=digest, inode=status.st_ino, mtime_ns=status.st_mtime_ns, is_blob=is_blob)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
