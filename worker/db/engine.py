"""The door to PostgreSQL: one engine a process, and connection errors in our own words. Knows no table."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from typing import TypeVar

import psycopg2
import tenacity
from sqlalchemy import Connection, Engine, TextClause, create_engine, event, text
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, PoolProxiedConnection

from worker import log
from worker.errors import DatabaseBusyError, DatabaseUnavailableError, MigratorError, SettingsError

T = TypeVar("T")

_log = log.get(__name__)

_GIVE_WAY_S = 30.0
"""How long a transaction is tried again that gave way to somebody else's."""

_CONNECT_TIMEOUT_S = 5
_PING_AFTER_S = 0.05
"""Shorter than any restart of a server; longer than a job keeps its connections in the pool."""
_RETURNED_AT = "returned_at"
_BUSY = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
}


def connect(
    url: URL,
    *,
    application_name: str,
    keeps_connections: bool = True,
    idle_limit_s: float | None = None,
) -> Engine:
    """An engine that opens connections when they are first needed, never at import or before a fork.

    Four connections are the most one job uses at once: two claims, its lease, and a transaction of its own. A process that
    forks must not keep any while it does: without `keeps_connections` each lives for one use only. The server ends a
    transaction whose client says nothing for `idle_limit_s`: a process that is stopped must not keep its row locks.
    Raises `DatabaseUnavailableError` from any later call that cannot reach the server.
    """
    engine = create_engine(
        url,
        **({"pool_size": 4, "max_overflow": 2} if keeps_connections else {"poolclass": NullPool}),
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "application_name": application_name,
            # A vanished server must not hold a worker for the two hours of the kernel's default.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            # And one that vanishes while an answer is waited for must not hold it for the retransmissions' quarter hour.
            "tcp_user_timeout": 30_000,
            "options": "-c timezone=UTC" + _idle_limit(idle_limit_s),
        },
    )
    event.listen(engine, "handle_error", _in_our_words)
    event.listen(engine, "checkin", _note_time)
    event.listen(engine, "checkout", _ping_if_idle)
    return engine


def _idle_limit(seconds: float | None) -> str:
    return "" if seconds is None else f" -c idle_in_transaction_session_timeout={int(seconds * 1000)}"


def _note_time(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_RETURNED_AT] = time.monotonic()


def _ping_if_idle(
    connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Notice that the server closed a connection before work is put on it.

    A job borrows a connection a dozen times a second; only one that lay in the pool for a while is worth a round trip.
    """
    returned_at = record.info.get(_RETURNED_AT)
    if returned_at is None or time.monotonic() - returned_at < _PING_AFTER_S:
        return
    try:
        connection.autocommit = True
        with closing(connection.cursor()) as cursor:
            cursor.execute("select 1")
        connection.autocommit = False
    except psycopg2.Error as error:
        # The pool opens a new connection in its place.
        raise DisconnectionError from error


@cache
def sql(statement: str) -> TextClause:
    """A statement with its parameters found. Once a process: to look for them costs about as much as a round trip."""
    return text(statement)


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """A connection on which each statement is a transaction of its own: one round trip, where `begin` takes three.

    Several statements in one text are one transaction, too. By the driver's own flag, which is no talk with the server:
    SQLAlchemy's isolation level `AUTOCOMMIT` takes as long as the statement.
    """
    with engine.begin() as conn:
        driver = conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - for the type checker: it has just been checked out
        driver.autocommit = True
        try:
            yield conn
        finally:
            if not driver.closed:
                driver.autocommit = False


def when_free(transaction: Callable[[], T]) -> T:
    """Do a transaction; when it gave way to somebody else's (`DatabaseBusyError`), do it again, a little later."""
    # At random, so that two who gave way do not meet again.
    return _again(transaction, DatabaseBusyError, _GIVE_WAY_S, tenacity.wait_random(0.02, 0.2))


def when_there(transaction: Callable[[], T], patience_s: float) -> T:
    """Do a transaction; while there is no database (`DatabaseUnavailableError`), wait for it, no longer than `patience_s`.

    A connection that breaks during the commit leaves open whether it took place: the transaction must be one that finds
    out, or may be done twice.
    """
    # Longer from time to time: hundreds of workers must not keep a server down that is starting up.
    return _again(
        transaction, DatabaseUnavailableError, patience_s, tenacity.wait_random_exponential(0.5, max=5)
    )


def _again(
    transaction: Callable[[], T],
    kind: type[MigratorError],
    patience_s: float,
    wait: tenacity.wait.wait_base,
) -> T:
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(kind),
        stop=tenacity.stop_after_delay(patience_s),
        wait=wait,
        before_sleep=lambda state: _log.info(
            "database_asked_again", reason=str(state.outcome.exception()) if state.outcome else ""
        ),
        reraise=True,
    )
    return attempts(transaction)


def _in_our_words(context: ExceptionContext) -> None:
    """Translate the driver's connection and lock errors once, so that no caller needs to know psycopg2."""
    if context.is_pre_ping:
        return
    error = context.original_exception
    if getattr(error, "pgcode", None) in _BUSY:
        raise DatabaseBusyError(
            f"The database could not finish the statement now: {_first_line(error)}"
        ) from error
    if context.connection is None and isinstance(error, psycopg2.ProgrammingError):
        # Nobody was asked yet: the driver does not know what follows the question mark.
        raise SettingsError(f"DATABASE_URL is not usable: {_first_line(error)}") from error
    lost = context.is_disconnect or context.connection is None
    if lost and isinstance(context.sqlalchemy_exception, OperationalError | InterfaceError):
        raise DatabaseUnavailableError(
            f"Database connection failed: {_address(context)}{_first_line(error)}"
        ) from error


def _address(context: ExceptionContext) -> str:
    """Host and port, never user or password."""
    url = context.engine.url if context.engine is not None else None
    return f"{url.host or 'local socket'}:{url.port or 5432}: " if url is not None else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
