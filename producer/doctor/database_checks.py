"""What the doctor asks PostgreSQL: is it there, is it Label's, may we do what we have to, is anybody in the way."""

import ipaddress

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.doctor.findings import Chapter, Notes
from worker.db import column_types, health, schema
from worker.db.engine import autocommit
from worker.db.health import Server
from worker.errors import MigratorError, RowsHiddenError, SchemaMissingError
from worker.findings import Check, failed, passed, warned

OLDEST = 14
"""The oldest PostgreSQL that sql/ needs."""

WAITS_TOO_LONG_S = 60.0
STATEMENT_S = 5.0
"""A statement of the doctor that takes longer fails: it only wants to know."""

_CLOCKS_APART_S = 5.0
_ALIKE_S = 0.1
_EXAMPLES = 10
_REST = (
    "version",
    "encryption",
    "writable",
    "encoding",
    "tables",
    "column types",
    "schema steps",
    "numbers",
    "rights",
    "role",
    "clock",
    "in the way",
)


def look(engine: Engine) -> Chapter:
    """Everything about the database; if it cannot be reached, that."""
    notes = Notes("PostgreSQL")
    try:
        with autocommit(engine) as conn:
            _look(notes, engine, conn, health.server(conn))
    except (MigratorError, SQLAlchemyError) as error:
        words = str(error).partition("\n")[0]
        notes.add(failed("reachable", words, "Check DATABASE_URL and that PostgreSQL runs and lets us in."))
        notes.leave_out(_REST, "PostgreSQL cannot be asked")
    return notes.chapter()


def _look(notes: Notes, engine: Engine, conn: Connection, server: Server) -> None:
    notes.add(
        passed("reachable", f"{_address(engine)} as {server.role}"),
        version_check(server),
        encryption_check(engine.url.host, server),
    )
    notes.add(writable_check(server))
    notes.look("encoding", lambda: _encoding(conn, server))
    notes.look("tables", lambda: _tables(engine, conn))
    notes.look("column types", lambda: _column_types(conn))
    notes.look("schema steps", lambda: _steps(engine))
    notes.look("numbers", lambda: _numbers(conn))
    notes.look("rights", lambda: _rights(conn))
    notes.add(role_check(server))
    notes.look("clock", lambda: clock_check(health.clock_ahead_s(conn)))
    notes.look("in the way", lambda: _in_the_way(conn, server))


def is_local(host: str | None) -> bool:
    """Does an address stay on this machine? A name is not looked up: only the usual one is known."""
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def version_check(server: Server) -> Check:
    """Is it a version that knows all that sql/ uses?"""
    if server.version_number // 10_000 < OLDEST:
        return failed("version", server.version, f"Label's database needs PostgreSQL {OLDEST} or newer.")
    return passed("version", server.version)


def encryption_check(host: str | None, server: Server) -> Check:
    """Whoever is between us and the database could read it, and the password."""
    name = "encryption"
    if server.encrypted:
        return passed(name, "TLS")
    if is_local(host) or server.encrypted is None:
        return passed(name, "none, and none is needed on this machine")
    return warned(
        name, f"the connection to {host} is not encrypted", "Add ?sslmode=verify-full to DATABASE_URL."
    )


def writable_check(server: Server) -> Check:
    """Every verb that does anything writes, if only into the ledger."""
    if (because := server.takes_no_writes_because) is not None:
        return failed("writable", because, "Let DATABASE_URL name the primary, and let it be written to.")
    return passed("writable", "yes")


def _encoding(conn: Connection, server: Server) -> Check:
    """Can the database hold every name that a disk can have?"""
    name, words = "encoding", server.encoding
    if words == "SQL_ASCII":
        if rows := health.undecodable(conn, _EXAMPLES):
            return failed(
                name,
                f"{words}; not UTF-8: {', '.join(rows)}",
                "Correct these rows; the migrator reads UTF-8 only.",
            )
        return passed(name, f"{words}; every name in it is UTF-8")
    if words != "UTF8":
        remedy = (
            "Nothing, if all names are of its language; a project with another one is refused and says so."
        )
        return warned(name, f"{words} cannot hold every name that a disk can", remedy)
    return passed(name, words)


def _numbers(conn: Connection) -> Check:
    """Do the sequences go on behind the rows that are there?"""
    name, numbers = "numbers", health.numbers(conn)
    if numbers.behind:
        return failed(
            name,
            "sequences give numbers that rows have already, which fails what adds to their tables",
            f"As the tables' owner: {'; '.join(numbers.behind)}",
        )
    if numbers.unseen:
        remedy = (
            "Run sql/create_migrator_role.sql again, or grant select on these sequences and their columns."
        )
        return warned(name, f"our role may not read the sequences of {', '.join(numbers.unseen)}", remedy)
    return passed(name, "sequences go on behind the rows that are there")


def _tables(engine: Engine, conn: Connection) -> Check:
    """Label's and ours, with every column that is used."""
    name = "tables"
    try:
        schema.require(engine)
    except (SchemaMissingError, RowsHiddenError) as error:
        return failed(name, str(error), error.remedy)
    if missing := health.missing_columns(conn):
        return failed(
            name,
            f"Label's tables lack {', '.join(missing)}",
            "Check that DATABASE_URL names Label's database; Label itself makes these columns.",
        )
    return passed(name, "Label's and ours are there")


def _column_types(conn: Connection) -> Check:
    """Whatever made the tables, and with which types: can every column that is written be written to?"""
    types = column_types.ask(conn)
    if misfits := types.misfits():
        words = "; ".join(f"{one.place} {one.reason}" for one in misfits)
        return failed(
            "column types", words, f"As the tables' owner: {'; '.join(one.remedy for one in misfits)}"
        )
    if limited := types.limited():
        words = ", ".join(f"{one.place} ({one.limit})" for one in limited)
        return passed("column types", f"all can be written; limited in their characters: {words}")
    return passed("column types", "all can be written")


def _steps(engine: Engine) -> Check:
    name = "schema steps"
    remedy = "Run: producer schema apply"
    steps = schema.status(engine)
    late = [f"{step.name} is {step.state}" for step in steps if step.state != "applied"]
    # What they make is there, or the check before has failed: a step may have been applied with psql.
    return (
        warned(name, "; ".join(late), remedy)
        if late
        else passed(name, f"{len(steps)} applied, none changed since")
    )


def _rights(conn: Connection) -> Check:
    missing = health.missing_rights(conn)
    if missing:
        words = f"our role may not {', '.join(missing)}"
        return failed("rights", words, f"As the tables' owner: grant {missing[0]} to our role, and so on.")
    return passed("rights", "enough for migration and rollback")


def role_check(server: Server) -> Check:
    """A role that can drop Label's tables can lose them by one mistake."""
    if server.is_superuser or server.is_owner:
        what = "is a superuser" if server.is_superuser else "owns Label's tables"
        return warned(
            "role",
            f"{server.role} {what} and could drop them",
            "Let the migrator have a role of its own that may only read and change rows; the owner applies the schema.",
        )
    return passed("role", f"{server.role} cannot drop Label's tables")


def clock_check(ahead_s: float) -> Check:
    """Leases run by the database's clock alone; a report's name and the times of a plan are this machine's."""
    name = "clock"
    if abs(ahead_s) < _ALIKE_S:
        return passed(name, "this machine's is the same as the database's")
    words = (
        f"this machine's is {abs(ahead_s):.1f} s {'ahead of' if ahead_s >= 0 else 'behind'} the database's"
    )
    if abs(ahead_s) > _CLOCKS_APART_S:
        return warned(name, words, "Let both be set by NTP: times in reports are off.")
    return passed(name, words)


def _in_the_way(conn: Connection, server: Server) -> Check:
    name = "in the way"
    rows = health.in_the_way(conn, WAITS_TOO_LONG_S)
    if not rows:
        words = f"no transaction is forgotten, nobody waits longer than {WAITS_TOO_LONG_S:.0f} s"
        blind = " (as far as our role sees: it is no member of pg_read_all_stats)"
        return passed(name, words if server.sees_all else words + blind)
    words = "; ".join(
        f"{row.application} ({row.role}, process {row.pid}) {'left a transaction open' if row.idle else 'waits for a lock'} "
        f"{row.seconds:.0f} s ago"
        for row in rows[:5]
    )
    return warned(
        name,
        words,
        f"Ask who that is; end it if nobody needs it: select pg_terminate_backend({rows[0].pid})",
    )


def _address(engine: Engine) -> str:
    """Host, port and database, never user or password."""
    return f"{engine.url.host or 'local socket'}:{engine.url.port or 5432}, database {engine.url.database}"
