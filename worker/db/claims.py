"""Claims: row locks that make one worker the one who stores a content. Each has a connection of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from worker.db.engine import autocommit, sql
from worker.errors import ClaimLostError, DatabaseBusyError, MigratorError

_SLICE = "800ms"
"""How long a claim is waited for before the job listens."""


class Claim:
    """The right to store what the claimed keys name, for as long as the connection lives."""

    def __init__(self, conn: Connection, what: str) -> None:
        self._conn = conn
        self._what = what

    def ping(self) -> None:
        """Tell the server that the owner is alive, from any thread. Raises `ClaimLostError` when it is lost.

        The driver's connection takes one statement at a time, from any thread (psycopg2, level 2).
        """
        try:
            raw = self._conn.connection.driver_connection
            with raw.cursor() as cursor:  # type: ignore[union-attr]
                cursor.execute("select 1")
        except Exception as error:
            raise ClaimLostError(f"The claim on {self._what} was lost while it was stored") from error


def file_key(size_bytes: int, head: str) -> str:
    """The key of a file that was not read to its end: equal files have equal keys, others hardly ever."""
    return f"file:{size_bytes}:{head}"


def first_seen(conn: Connection, keys: Sequence[str]) -> frozenset[str]:
    """Register keys; returns those that were not registered before. Only one caller ever gets a key back.

    Without waiting for the disk: if a crash of the server takes a key, it takes the locks of all who held it,
    too. The job that registers it again copies a file that may be there, and finds that out when it names it.
    """
    rows = conn.execute(
        sql("""
            set local synchronous_commit = off;
            insert into dataset_claims (dataset_hash)
            select key from unnest(cast(:keys as text[])) as key order by key
            on conflict do nothing returning dataset_hash"""),
        {"keys": sorted(set(keys))},
    )
    return frozenset(row.dataset_hash for row in rows)


@contextmanager
def hold(
    engine: Engine,
    keys: Sequence[str],
    *,
    what: str,
    idle_timeout_s: float,
    on_wait: Callable[[], None] = lambda: None,
    pace: Callable[[int], None] = lambda _size_bytes: None,
) -> Iterator[Claim]:
    """Wait until all these keys are mine; while others hold any, until they are done or dead.

    Two transactions: the first only makes the rows exist for every job, the second locks them in the order of
    their keys, so that two jobs cannot wait for each other. A job that stops without closing its
    connection is thrown out by the server after `idle_timeout_s` without a ping. `on_wait` is called before
    waiting, if another job has a key, and `pace` about every second of it: it may raise to end it.
    """
    wanted = sorted(set(keys))
    with autocommit(engine) as conn:
        first_seen(conn, wanted)
    with engine.connect() as conn:
        if not _lock(conn, wanted, "for update skip locked", idle_timeout_s):
            # Some may be mine now; to wait with them in hand for others could be waiting in a circle.
            conn.rollback()
            on_wait()
            if not _wait_and_lock(conn, wanted, idle_timeout_s, pace):
                raise ClaimLostError(f"The claim on {what} was removed while it was waited for")
        yield Claim(conn, what)
        try:
            conn.rollback()
        except MigratorError:
            # The work under the claim is committed by now; that the lock went earlier changes nothing.
            conn.invalidate()


def _wait_and_lock(
    conn: Connection, keys: Sequence[str], idle_timeout_s: float, pace: Callable[[int], None]
) -> bool:
    """Wait a slice at a time, shorter than the server takes before it looks for circles. The job that comes
    back for the next one is the last in the queue again; few jobs hold a claim, and each of them ends.
    """
    while True:
        pace(0)
        try:
            return _lock(conn, keys, "for update", idle_timeout_s)
        except DatabaseBusyError:
            conn.rollback()


def _lock(conn: Connection, keys: Sequence[str], how: str, idle_timeout_s: float) -> bool:
    """Lock the rows of these keys in their order; did I get them all?"""
    locked = conn.execute(
        sql(f"""
            select set_config('idle_in_transaction_session_timeout', :timeout, true),
                   set_config('lock_timeout', :slice, true);
            select from dataset_claims where dataset_hash = any(:keys) order by dataset_hash {how}"""),  # noqa: S608 - a constant
        {"keys": keys, "timeout": f"{int(idle_timeout_s * 1000)}ms", "slice": _SLICE},
    )
    return locked.rowcount == len(keys)
