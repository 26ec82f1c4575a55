"""Claims: rows that make one attempt the one who stores a content. Taken, renewed and given back by
transactions of one statement each, so that none stays open while bytes are stored.
"""

import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import psycopg2
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.db.engine import autocommit, is_pooled, sql
from worker.errors import ClaimLostError, DatabaseUnavailableError, MigratorError
from worker.runtime import log

_log = log.get(__name__)

_POLL_S = 0.8
"""How long a job that waits for a claim hears nothing before it looks by itself."""

_CHANNEL = "migration_claims"

_IS_OVER = """
    case when pg_postmaster_start_time() > c.expires_at - make_interval(secs => :lease_s / 4)
         then pg_postmaster_start_time() + make_interval(secs => :lease_s) else c.expires_at end < clock_timestamp()"""
"""Has the owner not renewed its claim although it could? After an outage it gets time again, as with leases.
"""

_FREE = f"""
    update dataset_claims c set owner = null, attempt = null, expires_at = null
    from mine where c.dataset_hash = mine.dataset_hash;
    select pg_notify('{_CHANNEL}', '')"""  # noqa: S608 - a constant
"""Gives back the claims that are `mine`, and tells all who wait."""

_LOCKED = """
    select c.dataset_hash from dataset_claims c
    where c.dataset_hash = any(:keys) and c.owner = :job and c.attempt = :attempt and c.claimed_at = :claimed_at
    order by c.dataset_hash for update"""
"""What the owner took of these keys then, locked in their order: no two transactions can wait in a circle.
The time is asked for as well, because a database that has failed over may give an attempt its number again.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who claims: an attempt at a job, by the job's task id. A later attempt takes over what an earlier one
    had.
    """

    job: str
    attempt: int


class Claim:
    """The right to store what the claimed keys name, until it is given back or was not renewed for too
    long.
    """

    def __init__(
        self,
        engine: Engine,
        owner: Owner,
        keys: Sequence[str],
        what: str,
        lease_s: float,
        claimed_at: datetime,
    ) -> None:
        self._engine = engine
        self._keys = list(keys)
        self._values = {
            "keys": self._keys,
            "job": owner.job,
            "attempt": owner.attempt,
            "lease_s": lease_s,
            "claimed_at": claimed_at,
        }
        self._what = what
        self._lease_s = lease_s
        self._renewed_at = time.monotonic()

    def ping(self) -> None:
        """Renew it, from any thread. Raises `ClaimLostError` when another attempt has it, or may have it by
        now; `DatabaseUnavailableError` when that cannot be asked, and it is not over yet.
        """
        began = time.monotonic()
        try:
            with autocommit(self._engine) as conn:
                held = conn.execute(
                    sql(f"""
                        set local synchronous_commit = off;
                        update dataset_claims c set expires_at = clock_timestamp() + make_interval(secs => :lease_s)
                        from ({_LOCKED}) mine where c.dataset_hash = mine.dataset_hash"""),  # noqa: S608 - constants
                    self._values,
                ).rowcount
        except DatabaseUnavailableError as error:
            if began - self._renewed_at < self._lease_s:
                raise
            raise self._lost() from error
        if held != len(self._keys):
            raise self._lost()
        self._renewed_at = began

    def keep_in(self, conn: Connection) -> None:
        """Let no other attempt take it until this transaction ends. Raises `ClaimLostError` if one has."""
        if len(conn.execute(sql(_LOCKED), self._values).all()) != len(self._keys):
            raise self._lost()

    def give_back(self) -> None:
        """Let others have it, as far as it is still held."""
        with autocommit(self._engine) as conn:
            conn.execute(
                sql(f"""
                    set local synchronous_commit = off;
                    with mine as ({_LOCKED}) {_FREE}"""),
                self._values,
            )

    def _lost(self) -> ClaimLostError:
        return ClaimLostError(f"The claim on {self._what} was lost while it was stored")


def file_key(size_bytes: int, head: str) -> str:
    """The key of a file that was not read to its end: equal files have equal keys, others hardly ever."""
    return f"file:{size_bytes}:{head}"


def first_seen(conn: Connection, keys: Sequence[str]) -> frozenset[str]:
    """Register keys; returns those that were not registered before. Only one caller ever gets a key back.

    Without waiting for the disk: if a crash of the server takes a key, the job that registers it again copies
    a file that may be there, and finds that out when it names it.
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
    owner: Owner,
    what: str,
    lease_s: float,
    on_wait: Callable[[], None] = lambda: None,
    pace: Callable[[int], None] = lambda _size_bytes: None,
) -> Iterator[Claim]:
    """Wait until all these keys are the owner's; while others hold any, until they are done or dead.

    All of them or none: to wait with some in hand for others could be waiting in a circle. What is not
    renewed for `lease_s` anyone may take. `on_wait` is called before waiting, if another attempt has a key,
    and `pace` about every second of it: it may raise to end it.
    """
    wanted = sorted(set(keys))
    claimed_at = _take(engine, owner, wanted, lease_s)
    if claimed_at is None:
        on_wait()
        with _hearing(engine) as wait_a_moment:
            while (claimed_at := _take(engine, owner, wanted, lease_s)) is None:
                wait_a_moment()
                pace(0)
    claim = Claim(engine, owner, wanted, what, lease_s, claimed_at)
    try:
        yield claim
    finally:
        # The work under the claim is committed by now, or failed; a claim that is not given back ends alone.
        with suppress(MigratorError, SQLAlchemyError):
            claim.give_back()


def _take(engine: Engine, owner: Owner, keys: Sequence[str], lease_s: float) -> datetime | None:
    """Take all the keys if each is free; since when they are the owner's, None if they are not."""
    with autocommit(engine) as conn:
        taken = conn.scalars(
            sql(f"""
                set local synchronous_commit = off;
                insert into dataset_claims (dataset_hash)
                select key from unnest(cast(:keys as text[])) as key order by key on conflict do nothing;
                with asked as (
                    select c.dataset_hash,
                           c.owner is null or c.owner = :job and c.attempt <= :attempt or {_IS_OVER} as is_free
                    from dataset_claims c where c.dataset_hash = any(:keys) order by c.dataset_hash for update)
                update dataset_claims c
                set owner = :job, attempt = :attempt, claimed_at = now(),
                    expires_at = clock_timestamp() + make_interval(secs => :lease_s)
                from asked where c.dataset_hash = asked.dataset_hash
                  and (select count(*) = :count and bool_and(is_free) from asked)
                returning c.claimed_at"""),  # noqa: S608 - constants
            {
                "keys": keys,
                "count": len(keys),
                "job": owner.job,
                "attempt": owner.attempt,
                "lease_s": lease_s,
            },
        ).all()
    return taken[0] if len(taken) == len(keys) else None


def give_back_for(conn: Connection, owner: Owner) -> None:
    """Let others have what an attempt that is dead held; in the transaction that says so."""
    conn.execute(
        sql(f"""
            with mine as (select dataset_hash from dataset_claims
                          where owner = :job and attempt <= :attempt order by dataset_hash for update) {_FREE}"""),  # noqa: S608 - a constant
        {"job": owner.job, "attempt": owner.attempt},
    )


@contextmanager
def _hearing(engine: Engine) -> Iterator[Callable[[], None]]:
    """Waits until a claim is given back, or for a moment; by LISTEN, on a connection that is the waiter's own
    meanwhile, where no pooler is in between.
    """
    if is_pooled(engine):
        yield lambda: time.sleep(_POLL_S)
        return
    proxy = engine.raw_connection()
    driver = proxy.driver_connection
    assert driver is not None  # noqa: S101 - for the type checker: it has just been checked out

    def say(statement: str) -> None:
        with driver.cursor() as cursor:
            cursor.execute(statement)

    def wait_a_moment() -> None:
        try:
            if select.select([driver], [], [], _POLL_S)[0]:
                driver.poll()
                driver.notifies.clear()
        except psycopg2.Error as error:
            # Whether the database is away says the next look.
            _log.info("notifications_not_heard", reason=str(error).partition("\n")[0])
            time.sleep(_POLL_S)

    try:
        with suppress(psycopg2.Error):
            driver.autocommit = True
            say(f"listen {_CHANNEL}")
        yield wait_a_moment
    finally:
        try:
            say(f"unlisten {_CHANNEL}")
            driver.autocommit = False
        except psycopg2.Error:
            # One that may still listen is given to no other caller.
            proxy.invalidate()
        proxy.close()
