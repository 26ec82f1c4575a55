"""Which blobs nothing needs, and how they go to quarantine: a few at a time, each time in the transaction
that holds their marks, so that a migration either removes a mark first or finds the blob gone.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
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
    if not names:
        return
    with attempt.engine.begin() as conn:
        garbage.mark(conn, kind, names)
    with attempt.engine.begin() as conn:
        garbage.ripen(conn, kind, names)


def loose_blobs(
    attempt: Attempt, digests: Iterable[str], but_for: Collection[str] = ()
) -> Iterator[list[str]]:
    """Those of these blobs that no dataset of the index needs, apart from some datasets; in portions."""
    rest = iter(digests)
    while some := list(islice(rest, _AT_ONCE)):
        attempt.pace(0)
        with autocommit(attempt.engine) as conn:
            needed = garbage.needed(conn, some, but_for)
        loose = [digest for digest in some if digest not in needed]
        if loose:
            yield loose


def due_blobs(attempt: Attempt, digests: Sequence[str], grace_h: float) -> list[str]:
    """Those of these blobs that may go: asked without a lock."""
    with autocommit(attempt.engine) as conn:
        return garbage.due(conn, "blob", digests, grace_h)


def take_blobs(
    attempt: Attempt, taken: Garbage, entry: Entry, digests: Sequence[str], grace_h: float
) -> None:
    """Move those of these marked blobs that may go into the entry, while their marks are locked.

    A crash before the commit: the marks are there still, and the blobs in an entry that a later gc completes
    or removes. A commit that fails: they are put back.
    """

    def take() -> None:
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

    when_free(take, listen=attempt.heartbeat.listen)
