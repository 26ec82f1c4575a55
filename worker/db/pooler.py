"""What is set at the beginning of each transaction where a pooler answers in PostgreSQL's place (PgBouncer).

Directly, all of it travels in the start-up packet's `options`. A pooler refuses these, or ignores them if it
was told to, and in its transaction mode nothing may stay on a connection that it gives to others. Knows no
table.
"""

import re
from contextlib import closing
from typing import Any

import psycopg2
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor, ExecutionContext

from worker.errors import DatabaseRefusedError

_IS_NEW = "transaction is new"
_REFUSED = re.compile(r"unsupported startup parameter(?: in options)?: ")
_ALONE = re.compile(r"\s*(create|drop) index concurrently ", re.IGNORECASE)
"""What PostgreSQL takes in no transaction, and so not together with anything else."""

_WITNESS = ("row_security", "off")
"""A setting of ours that no server has by itself: it tells whether `options` arrived."""


class Pooler:
    """What one engine knows of a pooler. Found out at its first connection."""

    def __init__(self) -> None:
        self.answers = False
        """Does one answer?"""
        self._is_known = False
        self._settings = ""

    def refused(self, error: psycopg2.OperationalError, parameters: dict[str, Any]) -> bool:
        """Was it a pooler that refused to connect, for the `options` among the parameters? Then these go, and
        the next connection can be had. Raises `DatabaseRefusedError` for an option that is no setting.
        """
        if "options" not in parameters or not _REFUSED.search(str(error)):
            return False
        self._go_on_without(parameters)
        return True

    def check_arrived(self, connection: DBAPIConnection, parameters: dict[str, Any]) -> None:
        """Find out, once, whether the options of a new connection came to the server."""
        if self._is_known:
            return
        name, value = _WITNESS
        with closing(connection.cursor()) as cursor:
            cursor.execute(f"show {name}")
            found = cursor.fetchone()
        connection.rollback()
        self._is_known = True
        if found is None or found[0] != value:
            self._go_on_without(parameters)

    def note_begin(self, conn: Connection) -> None:
        """A transaction begins, whose first statement is still to come."""
        conn.info[_IS_NEW] = True

    def set_up(
        self,
        conn: Connection,
        _cursor: DBAPICursor,
        statement: str,
        parameters: Any,
        context: ExecutionContext | None,
        _executes_many: bool,  # noqa: FBT001 - as SQLAlchemy calls it
    ) -> tuple[str, Any]:
        """Before the first statement of a transaction, set what is ours."""
        if self.answers:
            driver = conn.connection.driver_connection
            assert driver is not None  # noqa: S101 - for the type checker: it is executing
            if driver.autocommit:
                if _ALONE.match(statement):
                    return statement, parameters
                # Each text is a transaction. Without parameters the driver leaves percent signs alone.
                is_plain = context is not None and context.execution_options.get("no_parameters")
                return (
                    self._settings if is_plain else self._settings.replace("%", "%%")
                ) + statement, parameters
            if conn.info.pop(_IS_NEW, False):
                with closing(driver.cursor()) as cursor:
                    cursor.execute(self._settings)
        return statement, parameters

    def _go_on_without(self, parameters: dict[str, Any]) -> None:
        settings = parsed(parameters.pop("options"))
        isolation = settings.pop("default_transaction_isolation", "read committed")
        settings.pop("default_transaction_deferrable", None)
        ours = ", ".join(
            f"set_config({_literal(name)}, {_literal(value)}, true)" for name, value in settings.items()
        )
        # The level first: it counts for the transaction that has not looked at anything yet.
        self._settings = f"set transaction isolation level {isolation}; select {ours}; "
        self.answers = True


def parsed(options: str) -> dict[str, str]:
    """The settings in command-line options, as PostgreSQL reads them; the last of several values counts.
    Raises `DatabaseRefusedError` for an option that is no setting.
    """
    words = iter(re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|[^\\\s])+", options))
    found: dict[str, str] = {}
    for word in words:
        given = next(words, "") if word == "-c" else word
        name, equals, value = re.sub(r"^(-c|--)", "", given).partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
            raise DatabaseRefusedError(
                f"A pooler answers in PostgreSQL's place, and the option {word!r} cannot be set through it"
            )
        found[name.replace("-", "_")] = value
    return found


def _literal(value: str) -> str:
    escaped = value.replace("'", "''")
    return f"'{escaped}'"
