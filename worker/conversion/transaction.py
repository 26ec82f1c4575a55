"""The one transaction in which a project's rows are written, for good or as a rehearsal. Knows no row, and
says what PostgreSQL refuses of them without SQL and without values.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine

from worker.db import column_types
from worker.db.column_types import ColumnTypes
from worker.db.engine import autocommit, sql
from worker.db.retry import when_free
from worker.errors import DatabaseRefusedError, RowRefusedError

T = TypeVar("T")

_OF_THE_ROWS = {"09", "21", "22", "23", "27", "2F", "38", "39", "42", "44", "55", "P0"}
"""Classes of SQLSTATE that speak of the statement, its values or its table, not of the server or the
connection.
"""

_CONSTRAINTS = {
    "23514": "the check constraint {} does not hold",
    "23505": "the unique key {} has such a row already",
    "23503": "the foreign key {} does not hold",
    "23P01": "the exclusion constraint {} does not hold",
}
_WRITES = re.compile(r"\b(?:insert\s+into|update|delete\s+from)\s+(\w+)", re.IGNORECASE)
_FUNCTION = re.compile(r"PL/pgSQL function ([^\n]+?\)) line")
_VALUE = re.compile(r"""(: ["'(]|\bDETAIL\b|\n).*""", re.DOTALL)
_LONGEST = 300


def in_one_transaction(
    engine: Engine,
    whose: str,
    write: Callable[[Connection], T],
    *,
    rehearse: bool = False,
    listen: Callable[[], None] = lambda: None,
) -> T:
    """Write a project's rows in one transaction, for good or as a rehearsal; `write` says what, and returns
    what it did.

    Gives way to other transactions, and calls `listen`, which may raise, before it tries again. Raises
    `RowRefusedError` for what the database does not let be written.
    """

    def once() -> T:
        with _in_our_words(engine, whose), _rehearsed(engine) if rehearse else engine.begin() as conn:
            return write(conn)

    return when_free(once, listen=listen)


@contextmanager
def _in_our_words(engine: Engine, whose: str) -> Iterator[None]:
    """Raise `RowRefusedError` for what the database does not let be written inside this block, the commit
    included.
    """
    try:
        yield
    except DatabaseRefusedError as error:
        if error.sqlstate[:2] not in _OF_THE_ROWS:
            raise
        # A column may have become another one since its type was asked for.
        column_types.forget(engine)
        with autocommit(engine) as conn:
            types = column_types.ask(conn)
        raise RowRefusedError(f"{whose}: PostgreSQL refuses {_said(error, types)}") from error


@contextmanager
def _rehearsed(engine: Engine) -> Iterator[Connection]:
    """A transaction that is done to its end, what is checked only then included, and then taken back as a
    whole.
    """
    with engine.connect() as conn:
        try:
            yield conn
            conn.execute(sql("set constraints all immediate"))
        finally:
            conn.rollback()


def _said(error: DatabaseRefusedError, types: ColumnTypes) -> str:
    driver = error.__cause__
    said = getattr(driver, "diag", None)
    table = getattr(said, "table_name", None) or _written_to(driver)
    return f"what is to be written{f' to {table}' if table else ''}: {_reason(said, error.sqlstate, table, types)}"


def _written_to(driver: BaseException | None) -> str | None:
    """Which table the statement writes to; of a statement nothing else is ever said."""
    query: bytes = getattr(getattr(driver, "cursor", None), "query", None) or b""
    found = _WRITES.search(query[:4096].decode("utf-8", "replace"))
    return found.group(1) if found else None


def _reason(said: object, state: str, table: str | None, types: ColumnTypes) -> str:
    named = {name: getattr(said, f"{name}_name", None) or "" for name in ("constraint", "column", "datatype")}
    words = _without_values(getattr(said, "message_primary", None) or "")
    function = _FUNCTION.search(getattr(said, "context", None) or "")
    if named["datatype"] and named["constraint"]:
        return f"the constraint {named['constraint']} of the domain {named['datatype']} does not hold"
    if named["constraint"] and state in _CONSTRAINTS:
        return _CONSTRAINTS[state].format(named["constraint"])
    if named["column"] and state == "23502":
        return f"the column {named['column']} must not be empty"
    if state == "22001":
        ways = "; ".join(f"{one.alter} type text" for one in types.limited(table) or types.limited())
        return "a text is longer than its column takes" + (f"; as the tables' owner: {ways}" if ways else "")
    if function:
        return f"the trigger function {function.group(1)} says: {words}"
    return f"{words} ({state})"


def _without_values(words: str) -> str:
    """The server's own sentence without the values that it quotes."""
    return _VALUE.sub("", words)[:_LONGEST]
