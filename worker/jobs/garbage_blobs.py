"""Blobs that nothing needs go to quarantine: a few at a time, each time in the transaction that holds their
marks, so that a migration either removes a mark first or finds the blob gone.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from worker.db import garbage
from worker.db.engine import autocommit
from worker.db.garbage import Kind
from worker.db.retry import when_free
from worker.jobs.attempt import Attempt
from worker.store.garbage import Entry, Garbage

_AT_ONCE = 500
"""So many blobs go in one transaction: a migration that wants one of them waits for it."""


def mark(attempt: Attempt, kind: Kind, names: Collection[str]) -> None:
    """Mark these things. Two commits: see `worker.db.garbage`."""
    with attempt.engine.begin() as conn:
        garbage.mark(conn, kind, names)
    with attempt.engine.begin() as conn:
        garbage.ripen(conn)


def take_own_blobs(attempt: Attempt, taken: Garbage, entry: Entry, digests: Collection[str]) -> None:
    """The blobs of a dataset that has just gone, as far as nothing else needs them. What a running migration
    may rely on stays, and is taken for loose by a later gc.
    """
    for some in _portions(sorted(digests)):
        loose = _loose(attempt, some)
        if loose:
            mark(attempt, "blob", loose)
            _take(attempt, taken, entry, loose, grace_h=0)


class LooseBlobs:
    """The blobs that are in no dataset's manifest."""

    def __init__(self, attempt: Attempt, taken: Garbage, grace_h: float) -> None:
        self._attempt = attempt
        self._taken = taken
        self._grace_h = grace_h

    def take(self, entry: Entry) -> tuple[int, int]:
        """Mark those that are new, take those whose time has come; how many files, and their bytes. In a dry
        run only counted.
        """
        attempt = self._attempt
        count = size = 0
        described = False
        for folder in self._taken.blobs():
            for digests in _portions(folder):
                loose = _loose(attempt, digests)
                if not loose:
                    continue
                due = self._due(loose)
                size += sum(_allocated(attempt.store.blob_path(digest)) for digest in due)
                if attempt.lease.dry_run:
                    count += len(due)
                    continue
                mark(attempt, "blob", loose)
                if due and not described:
                    self._taken.describe(entry)
                    described = True
                count += len(_take(attempt, self._taken, entry, due, self._grace_h)) if due else 0
        if described:
            self._taken.finish(entry)
        return count, size if count else 0

    def _due(self, loose: Sequence[str]) -> list[str]:
        """Those whose marks are old enough: read without a lock, and asked again under it."""
        with self._attempt.engine.begin() as conn:
            return garbage.lock_due(conn, "blob", loose, self._grace_h)


def _take(
    attempt: Attempt, taken: Garbage, entry: Entry, digests: Sequence[str], grace_h: float
) -> list[str]:
    """Move these blobs into the entry while their marks are locked; which have gone.

    A crash before the commit: the marks are there still, and the blobs in an entry that a later gc completes
    or removes. A commit that fails: they are put back.
    """

    def take() -> list[str]:
        gone: list[str] = []
        try:
            with attempt.engine.begin() as conn:
                due = garbage.lock_due(conn, "blob", digests, grace_h)
                needed = garbage.needed(conn, due)
                gone = [digest for digest in due if digest not in needed]
                taken.take_blobs(entry, gone)
                garbage.unmark(conn, "blob", due)
        except BaseException:
            taken.put_blobs_back(entry, gone)
            raise
        return gone

    return when_free(take, listen=attempt.heartbeat.listen)


def _loose(attempt: Attempt, digests: Sequence[str]) -> list[str]:
    """Those of these blobs that no dataset of the index needs."""
    attempt.pace(0)
    with autocommit(attempt.engine) as conn:
        needed = garbage.needed(conn, digests)
    return [digest for digest in digests if digest not in needed]


def _portions(digests: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(digests)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _allocated(path: str) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_blocks * 512 if status.st_nlink == 1 else 0
