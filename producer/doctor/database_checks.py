"""What the doctor asks PostgreSQL: is it there and Label's, may we work, is another session in the way."""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.doctor.findings import Chapter
from worker.database_url import hosts, places
from worker.db import column_types, health, schema, tables
from worker.db.engine import autocommit, is_pooled
from worker.db.health import Server
from worker.doctor.machine_checks import clock_check
from worker.errors import MigratorError, RowsHiddenError, SchemaMissingError
from worker.findings import Check, failed, passed, warned

OLDEST = 14
"""The oldest PostgreSQL that sql/ needs."""

WAITS_TOO_LONG_S = 60.0
STATEMENT_S = 5.0
"""A statement of the doctor that takes longer fails: it only wants to know."""

_EXAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Database:
    engine: Engine
    conn: Connection
    server: Server


CHECKS: Mapping[str, Callable[[_Database], Check]] = {
    "version": lambda it: version_check(it.server),
    "encryption": lambda it: encryption_check(hosts(it.engine.url), it.server),
    "writable": lambda it: writable_check(it.server),
    "failover": lambda it: failover_check(hosts(it.engine.url), it.server),
    "encoding": lambda it: _encoding(it.conn, it.server),
    "tables": lambda it: _tables(it.engine, it.conn),
    "column types": lambda it: _column_types(it.conn),
    "schema steps": lambda it: _steps(it.engine),
    "numbers": lambda it: _numbers(it.conn),
    "rights": lambda it: _rights(it.conn),
    "role": lambda it: role_check(it.server),
    "clock": lambda it: clock_check(health.clock_ahead_s(it.conn)),
    "in the way": lambda it: _in_the_way(it.conn, it.server),
}


def check_database(engine: Engine) -> Chapter:
    """Everything about the database; if it cannot be reached, that."""
    chapter = Chapter("PostgreSQL")
    try:
        with autocommit(engine) as conn:
            server = health.server(conn)
            way = ", through a pooler" if is_pooled(engine) else ""
            chapter.checks["reachable"] = passed(f"{_address(conn)} as {server.role}{way}")
            chapter.carry_out(CHECKS, _Database(engine=engine, conn=conn, server=server))
    except (MigratorError, SQLAlchemyError) as error:
        finding = str(error).partition("\n")[0]
        remedy = "Check DATABASE_URL and that PostgreSQL runs and lets us in."
        chapter.checks["reachable"] = failed(finding, remedy)
        chapter.leave_out(CHECKS, "PostgreSQL cannot be asked")
    return chapter


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
        return failed(server.version, f"Label's database needs PostgreSQL {OLDEST} or newer.")
    return passed(server.version)


def encryption_check(hosts: Sequence[str], server: Server) -> Check:
    """Without it, everything in between could read the connection and the password."""
    if server.encrypted:
        return passed("TLS")
    if all(map(is_local, hosts)) or server.encrypted is None:
        return passed("none, and none is needed on this machine")
    return warned(
        f"the connection to {', '.join(hosts)} is not encrypted", "Add ?sslmode=verify-full to DATABASE_URL."
    )


def failover_check(hosts: Sequence[str], server: Server) -> Check:
    """Would another server take its place, and would it have every commit? Without, the last ones of the
    ledger may be lost, which `datasets rebuild` and the next run find.
    """
    if server.replicas:
        kind = (
            "synchronous" if server.is_synchronous else "asynchronous: a failover may lose the last commits"
        )
        plural = "" if server.replicas == 1 else "s"
        return passed(f"{server.replicas} replica{plural}, {kind}")
    if len(hosts) > 1:
        remedy = "Attach a replica to the primary; until then none can take its place."
        return warned(f"DATABASE_URL names {len(hosts)} hosts, and no replica follows the primary", remedy)
    return passed("one server, none takes its place")


def writable_check(server: Server) -> Check:
    """Every verb that does anything writes, if only into the ledger."""
    if (because := server.takes_no_writes_because) is not None:
        return failed(because, "Let DATABASE_URL name the primary, and let it be written to.")
    return passed("yes")


def _encoding(conn: Connection, server: Server) -> Check:
    """Can the database hold every name that a disk can have?"""
    encoding = server.encoding
    if encoding == "SQL_ASCII":
        if rows := health.undecodable(conn, _EXAMPLES):
            return failed(
                f"{encoding}; not UTF-8: {', '.join(rows)}",
                "Correct these rows; the migrator reads UTF-8 only.",
            )
        return passed(f"{encoding}; every name in it is UTF-8")
    if encoding != "UTF8":
        remedy = (
            "Nothing, if all names are of its language; a project with another one is refused and says so."
        )
        return warned(f"{encoding} cannot hold every name that a disk can", remedy)
    return passed(encoding)


def _numbers(conn: Connection) -> Check:
    """Do the sequences go on behind the rows that are there?"""
    numbers = health.numbers(conn)
    if numbers.behind:
        return failed(
            "sequences give numbers that rows have already, which fails what adds to their tables",
            f"As the tables' owner: {'; '.join(numbers.behind)}",
        )
    if numbers.unseen:
        remedy = (
            "Run sql/create_migrator_role.sql again, or grant select on these sequences and their columns."
        )
        return warned(f"our role may not read the sequences of {', '.join(numbers.unseen)}", remedy)
    return passed("sequences go on behind the rows that are there")


def _tables(engine: Engine, conn: Connection) -> Check:
    """Label's and ours, with every column that is used."""
    try:
        tables.require(engine)
    except (SchemaMissingError, RowsHiddenError) as error:
        return failed(str(error), error.remedy)
    if missing := health.missing_columns(conn):
        return failed(
            f"Label's tables lack {', '.join(missing)}",
            "Check that DATABASE_URL names Label's database; Label itself makes these columns.",
        )
    return passed("Label's and ours are there")


def _column_types(conn: Connection) -> Check:
    """Can every column that is written be written to, whichever program made the tables?"""
    types = column_types.ask(conn)
    if misfits := types.misfits():
        finding = "; ".join(f"{one.place} {one.reason}" for one in misfits)
        return failed(finding, f"As the tables' owner: {'; '.join(one.remedy for one in misfits)}")
    if limited := types.limited():
        places = ", ".join(f"{one.place} ({one.limit})" for one in limited)
        return passed(f"all can be written; limited in their characters: {places}")
    return passed("all can be written")


def _steps(engine: Engine) -> Check:
    steps = schema.status(engine)
    late = [f"{step.name} is {step.state}" for step in steps if step.state != "applied"]
    # What they make is there, or the check before has failed: a step may have been applied with psql.
    if late:
        return warned("; ".join(late), "Run: producer schema apply")
    return passed(f"{len(steps)} applied, none changed since")


def _rights(conn: Connection) -> Check:
    missing = health.missing_rights(conn)
    if missing:
        finding = f"our role may not {', '.join(missing)}"
        return failed(finding, f"As the tables' owner: grant {missing[0]} to our role, and so on.")
    return passed("enough for migration and rollback")


def role_check(server: Server) -> Check:
    """A role that can drop Label's tables can lose them by one mistake."""
    if server.is_superuser or server.is_owner:
        what = "is a superuser" if server.is_superuser else "owns Label's tables"
        return warned(
            f"{server.role} {what} and could drop them",
            "Let the migrator have a role of its own that may only read and change rows; the owner applies the schema.",
        )
    return passed(f"{server.role} cannot drop Label's tables")


def _in_the_way(conn: Connection, server: Server) -> Check:
    rows = health.in_the_way(conn, WAITS_TOO_LONG_S)
    if not rows:
        finding = f"no transaction is forgotten, none waits longer than {WAITS_TOO_LONG_S:.0f} s"
        blind = " (as far as our role sees: it is no member of pg_read_all_stats)"
        return passed(finding if server.sees_all else finding + blind)
    finding = "; ".join(
        f"{row.application} ({row.role}, process {row.pid}) {'left a transaction open' if row.idle else 'waits for a lock'} "
        f"{row.seconds:.0f} s ago"
        for row in rows[:5]
    )
    return warned(
        finding,
        f"Find out which program that is; end it if it is not needed: select pg_terminate_backend({rows[0].pid})",
    )


def _address(conn: Connection) -> str:
    """Host, port and database, never user or password; of several hosts the one that was taken."""
    named, driver = places(conn.engine.url), conn.connection.driver_connection
    database = f"database {conn.engine.url.database}"
    if len(named) == 1 or driver is None:
        return f"{named[0]}, {database}"
    return f"{driver.info.host}:{driver.info.port} of {', '.join(named)}, {database}"
