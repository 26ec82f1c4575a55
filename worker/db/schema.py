"""Brings the database's tables to what the files of sql/ describe. Knows nothing of what the rows mean."""

import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Connection, Engine, Row, text

from worker.db.retry import when_free
from worker.db.sql_files import BASELINE, INDEXES, STEPS, checksum, needed, read
from worker.db.tables import find, go_home, refuse_two_places, refuse_wrong_database
from worker.errors import (
    DatabaseBusyError,
    DatabaseRefusedError,
    MigratorError,
    PermanentError,
    TablesRefusedError,
)

_PATIENCE_S = 5.0
"""How long a table's lock is waited for. What comes after us waits behind us, and people would feel it."""

_LOCK_WAIT_MS = 400
"""How long at a time, with all that is locked already in hand: shorter than half of `deadlock_timeout` in any
case. A person's transaction that needs one of our tables while it has another one closes a circle, and
PostgreSQL would end theirs.
"""

_ASK_AGAIN_S = 0.05

_LEDGER = "create_migration_ledger"

_LARGE_ROWS = 100_000
"""Of fewer rows all is done in a moment."""

_COUNTED_A_SECOND = 200_000
"""Jobs (docs/performance.md, "Growth")."""

_INSUFFICIENT_PRIVILEGE = "42501"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One file of sql/ and where the database stands with it.

    `checksum` is the SHA-256 of the file as this program has it. `changed`: the database has had another
    version of the file. `missing`: nothing is recorded; a file applied by `psql -f` counts as missing too,
    and applying it again is harmless. `damaged`: it was applied, and what it made is not all there any more;
    `gone` names that. `applied_at` is UTC, None when missing.
    """

    name: str
    checksum: str
    state: Literal["applied", "missing", "changed", "damaged"]
    applied_at: datetime | None
    gone: tuple[str, ...] = ()


def apply(engine: Engine, *, with_baseline: bool = False) -> list[Step]:
    """Apply every step that is missing, changed or damaged, in order, and return these; an empty list means
    nothing to do.

    Everything is made in the schema of `projects`, wherever that is in the search path. `with_baseline` makes
    Label's own tables too, for demo and tests; asked for once, they are kept up to date. Each step is one
    transaction under an advisory lock, so that a failed one leaves nothing behind and two callers at once do
    the work once. The last step builds the indexes of large tables outside of any transaction, beside the
    work of others: one that is cancelled leaves what it has built, and the next call goes on.

    Raises:
        SchemaMissingError: Label's own tables are absent or there twice, or a column is gone that no step
        adds. DatabaseBusyError: a table was in use for five seconds; the steps before stay applied.
        PermanentError: PostgreSQL refused a step, for instance for want of rights; those before stay applied.
    """
    with engine.begin() as connection:
        refuse_two_places(connection)
        go_home(connection)
        names = _names(_recorded(connection), with_baseline=with_baseline)
        steps = _steps(connection, names)
        if BASELINE not in names:
            refuse_wrong_database(connection)
    pending = [step.name for step in steps if step.state != "applied"]
    applied = [step for name in pending if (step := _apply_when_free(engine, name))]
    if applied and (gone := [one for step in applied for one in step.gone]):
        raise TablesRefusedError(
            f"{', '.join(gone)} is not there and no step adds it again: "
            "restore it from a backup, or rename what took its place back"
        )
    return applied


def announce(engine: Engine) -> list[str]:
    """What of `apply` takes long on the tables as they are: which of them is locked for how long, and which
    are read while people go on. Lines for people; none where no table is large. By estimates: reads no table.
    """
    with engine.begin() as connection:
        go_home(connection)
        names = _names(_recorded(connection))
        pending = {step.name for step in _steps(connection, names) if step.state != "applied"}
        large = _large_tables(connection)
    lines = []
    if _LEDGER in pending and (jobs := large.get("migration_jobs")):
        lines.append(
            f"migration_jobs is locked against changes while its {jobs:,} jobs are counted, "
            f"about {max(1, round(jobs / _COUNTED_A_SECOND)):,} s"
        )
    if INDEXES in pending and large:
        tables = ", ".join(f"{table} ({rows:,} rows)" for table, rows in large.items())
        lines.append(
            f"indexes of {tables} are built while people and workers go on; "
            f"for each, transactions that have begun before are waited for"
        )
    return lines


def _large_tables(connection: Connection) -> dict[str, int]:
    """About how many rows the tables have that the ledger and the indexes are made over, if that is many."""
    rows = connection.execute(
        text("""
            select relname, cast(reltuples as bigint) as rows from pg_class
            where oid in (select to_regclass(name) from unnest(cast(:tables as text[])) as name) and reltuples >= :large
            order by reltuples desc"""),
        {
            "tables": ["sessions", "migration_jobs", "project_conversions", "migration_recording_counts"],
            "large": _LARGE_ROWS,
        },
    )
    return {row.relname: row.rows for row in rows}


def status(engine: Engine) -> list[Step]:
    """Say how every step stands, in order: what is recorded, and whether what it made is there; the baseline
    only where it was applied. Writes nothing.

    Raises `SchemaMissingError` when it cannot be said which tables are meant.
    """
    with engine.begin() as connection:
        refuse_two_places(connection)
        go_home(connection)
        return _steps(connection, _names(_recorded(connection)))


# Applying ---------------------------------------------------------------------------------------------------


def _apply_when_free(engine: Engine, name: str) -> Step | None:
    """Apply one step, in as many tries as it takes to find its tables free."""
    try:
        return when_free(lambda: _apply_step(engine, name), patience_s=_PATIENCE_S)
    except (DatabaseRefusedError, DatabaseBusyError) as error:
        raise _explain(name, error) from error


def _apply_step(engine: Engine, name: str) -> Step | None:
    """Apply one step in one transaction, or return None if another caller just did."""
    with engine.connect() as connection:
        _lock_steps(connection)
        go_home(connection)
        _create_record(connection)
        if _step(connection, name).state == "applied":
            return None
        if name == INDEXES:
            _build_indexes(engine, _index_statements(connection))
        else:
            _run(connection, name)
        _record(connection, name)
        step = _step(connection, name)
        connection.commit()
        return step


def _build_indexes(engine: Engine, statements: Sequence[str]) -> None:
    """Run these statements, each outside of any transaction."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as builder:
        for statement in statements:
            builder.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _index_statements(connection: Connection) -> Sequence[str]:
    """What is to be run so that all indexes are there and valid, and no former one."""
    query = read(INDEXES).decode("ascii").removesuffix("\\gexec\n")
    return connection.exec_driver_sql(query, execution_options={"no_parameters": True}).scalars().all()


def _lock_steps(connection: Connection) -> None:
    """Wait until no other caller applies anything, and let none do so until the transaction ends, which is
    the caller's to end.

    Asked again and again, each time in a transaction of its own: the building of an index waits for the end
    of every transaction that had a snapshot when it looked. One that waited in the server, or was seen while
    it asked and then went on asking, would wait for the builder as the builder waits for it.
    """
    lock = text("select pg_try_advisory_xact_lock(hashtextextended('schema_steps', 0))")
    while not connection.scalar(lock):
        connection.rollback()
        time.sleep(_ASK_AGAIN_S)


def _run(connection: Connection, name: str) -> None:
    """Run one file."""
    connection.execute(
        text("""
            select set_config('lock_timeout', least(:wait, setting::integer / 2)::text, true)
            from pg_settings where name = 'deadlock_timeout'"""),
        {"wait": _LOCK_WAIT_MS},
    )
    # Without parameters the driver leaves percent signs alone.
    connection.exec_driver_sql(read(name).decode("ascii"), execution_options={"no_parameters": True})


def _record(connection: Connection, name: str) -> None:
    connection.execute(
        text("""
            insert into schema_steps (name, checksum, applied_at) values (:name, :checksum, now())
            on conflict (name) do update set checksum = excluded.checksum, applied_at = excluded.applied_at
        """),
        {"name": name, "checksum": checksum(read(name))},
    )


def _create_record(connection: Connection) -> None:
    """Make the one table that is not in sql/: it says what of sql/ was applied."""
    connection.execute(
        text("""
            create table if not exists schema_steps (
                name       text primary key,
                checksum   text        not null,
                applied_at timestamptz not null
            )
        """)
    )
    connection.execute(
        text(
            "comment on table schema_steps is 'Which file of the migrator''s sql/ was applied, and its SHA-256'"
        )
    )


def _explain(name: str, error: DatabaseRefusedError | DatabaseBusyError) -> MigratorError:
    """Say which step PostgreSQL refused, why, and what is left behind."""
    refused = (
        "not all indexes were built; run producer schema apply again"
        if name == INDEXES
        else f"schema step {name} was not applied, and nothing of it was kept"
    )
    if isinstance(error, DatabaseBusyError):
        return DatabaseBusyError(
            f"{refused}; its tables were in use for {_PATIENCE_S:g} s, run producer schema apply again: {error}"
        )
    if error.sqlstate == _INSUFFICIENT_PRIVILEGE:
        return PermanentError(f"{refused}; run producer schema apply as the owner of Label's tables: {error}")
    return PermanentError(f"{refused}: {error}")


# What is recorded -------------------------------------------------------------------------------------------


def _recorded(connection: Connection) -> dict[str, Row[tuple[str, datetime]]]:
    """Read the recorded checksum and time of each step's name; nothing before the first apply."""
    if not connection.scalar(
        text("select to_regclass(quote_ident(current_schema()) || '.schema_steps') is not null")
    ):
        return {}
    rows = connection.execute(text("select name, checksum, applied_at from schema_steps"))
    return {row.name: row for row in rows}


def _names(recorded: Container[str], *, with_baseline: bool = False) -> tuple[str, ...]:
    """List the steps in order; the baseline among them if it is asked for now or was before."""
    return (BASELINE, *STEPS) if with_baseline or BASELINE in recorded else STEPS


def _step(connection: Connection, name: str) -> Step:
    (step,) = _steps(connection, (name,))
    return step


def _steps(connection: Connection, names: Sequence[str]) -> list[Step]:
    """Compare what is recorded of the steps with the files, and what the files make with what is there."""
    recorded = _recorded(connection)
    steps = []
    for name in names:
        of_file, row = checksum(read(name)), recorded.get(name)
        gone = _gone(connection, name) if row is not None else ()
        state: Literal["applied", "missing", "changed", "damaged"] = "applied"
        if row is None:
            state = "missing"
        elif row.checksum != of_file:
            state = "changed"
        elif gone:
            state = "damaged"
        at = row.applied_at.astimezone(UTC) if row is not None else None
        steps.append(Step(name=name, checksum=of_file, state=state, applied_at=at, gone=gone))
    return steps


def _gone(connection: Connection, name: str) -> tuple[str, ...]:
    """What of a step is not there, or not as it was made."""
    if name == INDEXES:
        # create index concurrently NAME on …
        return tuple(one.split()[3] for one in _index_statements(connection) if one.startswith("create"))
    return tuple(find(connection, list(needed((name,)))).missing)
