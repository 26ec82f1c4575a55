"""What PostgreSQL refuses, by SQLSTATE and in our own words. Knows no statement; repeats no value but names.

The server's primary message is said as it is; its DETAIL, its CONTEXT and the text of the statement are not:
they hold the values of rows.
"""

import re
import traceback
from pathlib import Path

import psycopg2
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InterfaceError, OperationalError

from worker import database_url
from worker.db import texts
from worker.errors import (
    DatabaseBusyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    EncodingRefusedError,
    MigratorError,
    RowsHiddenError,
    SequenceBehindError,
    SettingsError,
)
from worker.runtime import log

_log = log.get(__name__)

_BUSY = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
}
_OUTAGE = (
    "08",  # connection_exception
    "25006",  # read_only_sql_transaction: a standby, or a server or database that was closed for writing
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "53",  # insufficient_resources: disk, memory, connections
    "57014",  # query_canceled
    "57P",  # admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped, idle_session_timeout
    "58",  # system_error: its disk
)
"""Beginnings of SQLSTATEs by which a server says that it cannot work now (PostgreSQL, appendix A)."""

_NOT_IN_ENCODING = {
    "22021",  # character_not_in_repertoire
    "22P05",  # untranslatable_character
}
_INSUFFICIENT_PRIVILEGE = "42501"
_UNIQUE_VIOLATION = "23505"
_ROW_SECURITY = "check_enable_rls"
"""The server's function that refuses when `row_security` is off and a policy would hide rows; its words
depend on a locale.
"""

_OF_VALUES = "22"
_VALUE = re.compile(r""": ["'(].*""")
"""A data exception quotes a value at the end of its message, behind a colon; a constraint's name has none."""

_OURS = ("42", "XX")
"""Classes of SQLSTATEs that tell of a defect, ours or the server's, and are worth the place in the source."""

NUMBERED = {
    "raw_datasets": "dataset_id",
    "raw_dataset_sessions": "raw_session_id",
    "project_dataset_refs": "ref_id",
    "project_split_configs": "config_id",
    "project_conversions": "conversion_id",
}
"""The tables to which rows are added that a sequence numbers, and the column that it fills."""


def in_our_words(context: ExceptionContext) -> None:
    """Translate what the driver raised, so that no caller knows psycopg2. For SQLAlchemy's `handle_error`."""
    error = context.original_exception
    if context.is_pre_ping:
        return
    translated = _translated(context, error)
    if translated is not None:
        raise translated from error


def _translated(context: ExceptionContext, error: BaseException) -> MigratorError | None:
    if isinstance(error, UnicodeError):
        return _of_a_text(error)
    if not isinstance(error, psycopg2.Error):
        return None
    return _passing(context, error, error.pgcode or "") or _refused(context, error, error.pgcode or "")


def _passing(context: ExceptionContext, error: psycopg2.Error, state: str) -> MigratorError | None:
    """What has nothing to do with the statement: another transaction, or the server itself."""
    if state in _BUSY:
        return DatabaseBusyError(f"The database could not finish the statement now: {primary(error)}")
    if context.connection is None and isinstance(error, psycopg2.ProgrammingError):
        # No server was asked yet: the driver does not know what follows the question mark.
        return SettingsError(f"DATABASE_URL is not usable: {primary(error)}")
    lost = context.is_disconnect or context.connection is None
    if lost and isinstance(context.sqlalchemy_exception, OperationalError | InterfaceError):
        return DatabaseUnavailableError(f"Database connection failed: {_address(context)}{primary(error)}")
    if state.startswith(_OUTAGE):
        return DatabaseUnavailableError(
            f"The database takes no work now: {_address(context)}{primary(error)} (SQLSTATE {state})"
        )
    return None


def _refused(context: ExceptionContext, error: psycopg2.Error, state: str) -> MigratorError:
    """What will be refused the next time as well."""
    if state == _INSUFFICIENT_PRIVILEGE and error.diag.source_function == _ROW_SECURITY:
        return RowsHiddenError(f"Row-level security hides rows from our role: {primary(error)}")
    if state == _UNIQUE_VIOLATION and (statement := _catches_up(error)) is not None:
        return SequenceBehindError(f"{primary(error)}: the numbers of rows are used up to there. {statement}")
    if state in _NOT_IN_ENCODING:
        return EncodingRefusedError(_unholdable(context, error))
    if state.startswith(_OURS) and state != _INSUFFICIENT_PRIVILEGE:
        _log.error("statement_refused", sqlstate=state, reason=primary(error), place=_place())
    said = _VALUE.sub("", primary(error)) if state.startswith(_OF_VALUES) else primary(error)
    return DatabaseRefusedError(
        f"PostgreSQL refused a statement: {said} (SQLSTATE {state or 'unknown'})",
        sqlstate=state,
        constraint=error.diag.constraint_name,
    )


def primary(error: BaseException) -> str:
    """The first line of what is said: of the server's answer, its primary message."""
    diag = error.diag if isinstance(error, psycopg2.Error) else None
    words = (diag.message_primary if diag is not None else None) or str(error)
    lines = words.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def catch_up(schema: str, table: str, column: str) -> str:
    """The statement by which the sequence that fills a column goes on behind its highest number."""
    name = f"{_quoted(schema)}.{_quoted(table)}"
    literal = "'" + name.replace("'", "''") + "'"
    return f"select setval(pg_get_serial_sequence({literal}, '{column}'), (select max({column}) from {name}))"  # noqa: S608 - shown


def _catches_up(error: psycopg2.Error) -> str | None:
    """What to do about a number that was given twice; None when another key is the one that is there
    twice.
    """
    table, key = error.diag.table_name or "", error.diag.message_detail or ""
    if table not in NUMBERED or f"({NUMBERED[table]})=" not in key:
        return None
    return f"As the tables' owner: {catch_up(error.diag.schema_name or 'public', table, NUMBERED[table])}"


def _quoted(name: str) -> str:
    return name if name.isidentifier() and name.islower() else '"' + name.replace('"', '""') + '"'


def _unholdable(context: ExceptionContext, error: psycopg2.Error) -> str:
    """Name the text that the database's encoding has no bytes for; if none was sent, one that it holds."""
    encoding = texts.server_encoding(context.connection) if context.connection is not None else "UTF8"
    found = texts.first_unholdable(context.parameters, encoding)
    if found is None:
        return (
            f"The database, in {encoding}, holds a text that is not what its encoding says: {primary(error)}; "
            "producer doctor names the row"
        )
    return f"The database is in {encoding} and cannot hold {found}"


def _of_a_text(error: UnicodeError) -> MigratorError | None:
    """The driver could not turn a text into UTF-8, or what the server sent into a text."""
    if isinstance(error, UnicodeDecodeError):
        shown = texts.shown(bytes(error.object).decode("utf-8", "backslashreplace"))
        return EncodingRefusedError(
            f"The database holds a text that is not UTF-8: {shown}; producer doctor names the row"
        )
    if isinstance(error, UnicodeEncodeError):
        shown = texts.shown(error.object.encode("utf-8", "backslashreplace").decode())
        return EncodingRefusedError(f"The database cannot hold {shown}: it is not UTF-8")
    return None


def _address(context: ExceptionContext) -> str:
    """Hosts and ports, never user or password."""
    url = context.engine.url if context.engine is not None else None
    if url is None:
        return ""
    return f"{', '.join(database_url.places(url))}: "


def _place() -> str:
    """Where in our source the statement was run: what a defect's report needs, without the statement."""
    rooms = Path(__file__).parents[2]
    here = {Path(__file__).name, "engine.py"}
    frames = [
        frame
        for frame in traceback.extract_stack()
        if Path(frame.filename).is_relative_to(rooms)
        and ".venv" not in frame.filename
        and Path(frame.filename).name not in here
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
