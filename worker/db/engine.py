"""The door to PostgreSQL: one engine a process, and connection errors in our own words. Knows no table."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import InterfaceError, OperationalError

from worker import log
from worker.errors import DatabaseBusyError, DatabaseUnavailableError

T = TypeVar("T")

_log = log.get(__name__)

_PATIENCE_S = 30.0
"""How long a transaction is tried again that gave way to somebody else's."""

_CONNECT_TIMEOUT_S = 5
_BUSY = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
}


def connect(url: URL, *, application_name: str) -> Engine:
    """An engine that opens connections when they are first needed, never at import or before a fork.

    Four connections are the most one job uses at once: two claims, its lease, and a transaction of its own.
    Raises `DatabaseUnavailableError` from any later call that cannot reach the server.
    """
    engine = create_engine(
        url,
        pool_size=4,
        max_overflow=2,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "application_name": application_name,
            # A vanished server must not hold a worker for the two hours of the kernel's default.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            # And one that vanishes while an answer is waited for must not hold it for the retransmissions' quarter hour.
            "tcp_user_timeout": 30_000,
            "options": "-c timezone=UTC",
        },
    )
    event.listen(engine, "handle_error", _in_our_words)
    return engine


def when_free(transaction: Callable[[], T]) -> T:
    """Do a transaction; when it gave way to somebody else's (`DatabaseBusyError`), do it again, a little later."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return transaction()
        except DatabaseBusyError as error:
            if time.monotonic() > deadline:
                raise
            _log.info("gave_way", reason=str(error))
            time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - so that two who gave way do not meet again


def _in_our_words(context: ExceptionContext) -> None:
    """Translate the driver's connection and lock errors once, so that no caller needs to know psycopg2."""
    if context.is_pre_ping:
        return
    error = context.original_exception
    if getattr(error, "pgcode", None) in _BUSY:
        raise DatabaseBusyError(
            f"The database could not finish the statement now: {_first_line(error)}"
        ) from error
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
