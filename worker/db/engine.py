"""The connection to PostgreSQL: one engine a process, with what every connection has set. Knows no table."""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, TextClause, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, PoolProxiedConnection

from worker import database_url
from worker.db.pooler import Pooler
from worker.db.refusals import in_our_words

_PING_AFTER_S = 0.05
"""Shorter than any restart of a server; longer than a job keeps its connections in the pool."""
_RETURNED_AT = "returned_at"

_SETTINGS = {
    # What is said is read in these forms, and what is written is meant so.
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "array_nulls": "on",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "xmloption": "content",
    # How transactions behave. What is meant to count is not here: search_path, TimeZone,
    # default_transaction_read_only.
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # What a policy hides from our role is not "not there": the server has to raise.
    "row_security": "off",
}
"""What every connection of ours has, whatever role, database, DATABASE_URL or PGOPTIONS say. Any role may set
all of it.
"""

_SETTINGS_SINCE = {170000: {"transaction_timeout": "0"}}
"""The same, by the version of the server that first knows them; an older one would refuse the connection."""

_OURS_UNLESS_GIVEN = {
    "connect_timeout": ("PGCONNECT_TIMEOUT", 5),
    # A vanished server must not hold a worker for the two hours of the kernel's default.
    "keepalives_idle": (None, 30),
    "keepalives_interval": (None, 10),
    "keepalives_count": (None, 3),
    # And one that vanishes while an answer is waited for must not hold it for the retransmissions' quarter
    # hour.
    "tcp_user_timeout": (None, 30_000),
}
"""Parameters of libpq that DATABASE_URL, or the variable of libpq that is named, may set otherwise."""

_WITH_SEVERAL_HOSTS = {"target_session_attrs": ("PGTARGETSESSIONATTRS", "read-write")}
"""The same where DATABASE_URL names more than one: of these the primary is meant, and libpq takes any."""

_IN_UTC = psycopg2.extensions.new_type(
    (1184,),  # timestamptz, in pg_type.dat
    "TIMESTAMPTZ_IN_UTC",
    lambda value, cursor: _utc(psycopg2.extensions.PYDATETIMETZ(value, cursor)),
)


def connect(
    url: URL,
    *,
    application_name: str,
    keeps_connections: bool = True,
    idle_limit_s: float | None = None,
    statement_limit_s: float | None = None,
) -> Engine:
    """An engine that opens connections when they are first needed, never at import or before a fork.

    Three connections are the most one job uses at once: its lease and claims, a transaction of its own, and
    what waits for a claim. A process that forks must not keep any while it does: without `keeps_connections`
    each lives for one use only. The server ends a transaction whose client says nothing for `idle_limit_s`: a
    process that is stopped must not keep its row locks; and a statement that takes longer than
    `statement_limit_s`, for those who only want to know.

    What DATABASE_URL and PGOPTIONS say counts, and ours is added to it. Everything that we set is set when
    the connection starts, or, behind a pooler, which gives a connection to others after each transaction, at
    the beginning of each: nothing stays on it. Raises `DatabaseUnavailableError` from any later call that
    cannot reach the server.
    """
    ours = _OURS_UNLESS_GIVEN | (_WITH_SEVERAL_HOSTS if len(database_url.hosts(url)) > 1 else {})
    limits = {
        "idle_in_transaction_session_timeout": idle_limit_s,
        "statement_timeout": statement_limit_s,
    }
    settings = _SETTINGS | {
        name: str(int(seconds * 1000)) for name, seconds in limits.items() if seconds is not None
    }
    engine = create_engine(
        url,
        **({"pool_size": 3, "max_overflow": 2} if keeps_connections else {"poolclass": NullPool}),
        connect_args={
            **{
                name: value
                for name, (variable, value) in ours.items()
                if name not in url.query and not (variable and os.environ.get(variable))
            },
            "application_name": f"{application_name} {_given(url, 'application_name', 'PGAPPNAME')}".strip(),
            "client_encoding": "utf8",
            # The server takes the last of several values.
            "options": f"{_given(url, 'options', 'PGOPTIONS')} {_options(settings)}".strip(),
        },
        hide_parameters=True,
        # Each new connection would be asked whether the database has this type, which no table of ours does.
        use_native_hstore=False,
    )
    pooler = _poolers[engine] = Pooler()
    event.listen(engine, "do_connect", partial(_open, pooler))
    event.listen(engine, "begin", pooler.note_begin)
    event.listen(engine, "before_cursor_execute", pooler.set_up, retval=True)
    event.listen(engine, "handle_error", in_our_words)
    event.listen(engine, "checkin", _note_time)
    event.listen(engine, "checkout", _ping_if_idle)
    return engine


def _given(url: URL, parameter: str, variable: str) -> str:
    """What the operator has set: in DATABASE_URL, otherwise by libpq's own variable, as libpq takes them."""
    given = url.query.get(parameter)
    if given is None:
        return os.environ.get(variable, "")
    return given if isinstance(given, str) else " ".join(given)


def _options(settings: Mapping[str, str]) -> str:
    """Settings as the command-line options that a start-up packet carries."""
    escaped = {name: re.sub(r"([\\ ])", r"\\\1", value) for name, value in settings.items()}
    return " ".join(f"-c {name}={value}" for name, value in escaped.items())


_poolers: WeakKeyDictionary[Engine, Pooler] = WeakKeyDictionary()


def is_pooled(engine: Engine) -> bool:
    """Has a pooler answered in the server's place? Then nothing can be kept from one transaction to the next,
    such as what is listened to.
    """
    return _poolers[engine].answers


def _open(
    pooler: Pooler,
    dialect: Dialect,
    _record: ConnectionPoolEntry,
    args: tuple[Any, ...],
    parameters: dict[str, Any],
) -> DBAPIConnection:
    """Connect; once more, and from then on, with what only a server of this version knows, or without what a
    pooler does not take.
    """
    try:
        connection = dialect.connect(*args, **parameters)
        if "options" in parameters:
            newer = [one for since, one in _SETTINGS_SINCE.items() if connection.server_version >= since]
            missing = [options for one in newer if (options := _options(one)) not in parameters["options"]]
            if missing:
                connection.close()
                parameters["options"] = " ".join([parameters["options"], *missing])
                connection = dialect.connect(*args, **parameters)
            pooler.check_arrived(connection, parameters)
    except psycopg2.OperationalError as error:
        if not pooler.refused(error, parameters):
            raise
        connection = dialect.connect(*args, **parameters)
    psycopg2.extensions.register_type(_IN_UTC, connection)
    return connection


def _utc(time: datetime | None) -> datetime | None:
    """The session's time zone is the database's own, so that what `now()` writes into a column without zone
    is as Label's.
    """
    return time.astimezone(UTC) if time is not None else None


def _note_time(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_RETURNED_AT] = time.monotonic()


def _ping_if_idle(
    connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Notice that the server closed a connection before work is put on it.

    A job borrows a connection a dozen times a second; only one that lay in the pool for a while is worth a
    round trip.
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
    """A statement with its parameters found, once a process: looking for them costs about a round trip."""
    return text(statement)


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """A connection on which each statement is its own transaction: one round trip, where `begin` takes three.

    Several statements in one text are one transaction, too. By the driver's own flag, which is no talk with
    the server: SQLAlchemy's isolation level `AUTOCOMMIT` takes as long as the statement.
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
