"""Brings the database's tables to the state that the files of sql/ describe; knows nothing of what the rows mean."""

import hashlib
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, Engine, Row, text

from worker.errors import (
    DatabaseBusyError,
    DatabaseRefusedError,
    MigratorError,
    PermanentError,
    SchemaMissingError,
)

_BASELINE = "label_app_baseline"
_STEPS = ("add_virtual_split_columns", "create_raw_datasets_tables", "create_migration_ledger")
_OWN_TABLES = ("projects", "sessions")
"""What only Label makes: a database without these is not Label's."""

_LOCK_WAIT = "5s"
"""While we wait for a table's lock, everybody who comes after us waits behind us: people would feel more than this."""

_INSUFFICIENT_PRIVILEGE = "42501"

_COMMENT = re.compile(r"--.*")
_MAKES = re.compile(
    r"(?P<verb>create table if not exists|alter table) (?P<table>\w+)|add column if not exists (?P<column>\w+)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One file of sql/ and where the database stands with it.

    `checksum` is the SHA-256 of the file as this program has it. `changed`: the database has had another version
    of the file. `missing`: nothing is recorded; a file applied by `psql -f` counts as missing too, and applying it
    again is harmless. `applied_at` is UTC, None when missing.
    """

    name: str
    checksum: str
    state: Literal["applied", "missing", "changed"]
    applied_at: datetime | None


def apply(engine: Engine, *, with_baseline: bool = False) -> list[Step]:
    """Apply every step that is missing or changed, in order, and return these; an empty list means nothing to do.

    `with_baseline` makes Label's own tables too, for demo and tests; asked for once, they are kept up to date. Each
    step is one transaction under an advisory lock, so that a failed one leaves nothing behind and
    two callers at once do the work once.

    Raises:
        SchemaMissingError: Label's own tables are absent; nothing was changed.
        DatabaseBusyError: a table was in use for five seconds; the steps before stay applied.
        PermanentError: PostgreSQL refused a step, for instance for want of rights; the steps before stay applied.

    """
    # Whoever waited for the advisory lock must see what its holder has committed since.
    engine = engine.execution_options(isolation_level="READ COMMITTED")
    with engine.connect() as connection:
        recorded = _recorded(connection)
        names = _names(recorded, with_baseline=with_baseline)
        if _BASELINE not in names:
            _refuse_wrong_database(connection)
    pending = [name for name in names if _step(name, recorded.get(name)).state != "applied"]
    return [step for name in pending if (step := _apply_step(engine, name))]


def status(engine: Engine) -> list[Step]:
    """Say how every step stands, in order, from what is recorded; the baseline only where it was applied. Writes nothing."""
    with engine.connect() as connection:
        recorded = _recorded(connection)
    return [_step(name, recorded.get(name)) for name in _names(recorded)]


def require(engine: Engine) -> None:
    """Return if every table and column that this program needs is there, however it came to be; one query.

    Raises:
        SchemaMissingError: names what is missing; says so if the database is not Label's at all.

    """
    with engine.connect() as connection:
        _refuse(connection, _missing(connection, [*((table, None) for table in _OWN_TABLES), *_needed()]))


# Applying -------------------------------------------------------------------------------------------------------


def _apply_step(engine: Engine, name: str) -> Step | None:
    """Apply one step in one transaction, or return None if somebody else just did."""
    try:
        with engine.begin() as connection:
            # Held until the end: a second caller waits here, then finds the step applied.
            connection.execute(text("select pg_advisory_xact_lock(hashtextextended('schema_steps', 0))"))
            _create_record(connection)
            if _step(name, _recorded(connection).get(name)).state == "applied":
                return None
            _run(connection, name)
            return _step(name, _recorded(connection)[name])
    except (DatabaseRefusedError, DatabaseBusyError) as error:
        raise _explain(name, error) from error


def _run(connection: Connection, name: str) -> None:
    """Run one file and record it."""
    sql = _sql(name)
    connection.execute(text("select set_config('lock_timeout', :wait, true)"), {"wait": _LOCK_WAIT})
    # Without parameters the driver leaves percent signs alone.
    connection.exec_driver_sql(sql.decode(), execution_options={"no_parameters": True})
    connection.execute(
        text("""
            insert into schema_steps (name, checksum, applied_at) values (:name, :checksum, now())
            on conflict (name) do update set checksum = excluded.checksum, applied_at = excluded.applied_at
        """),
        {"name": name, "checksum": _checksum(sql)},
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
    """Say which step PostgreSQL refused, why, and what is left behind: nothing of it."""
    refused = f"schema step {name} was not applied, and nothing of it was kept"
    if isinstance(error, DatabaseBusyError):
        return DatabaseBusyError(
            f"{refused}; somebody is using its tables, run producer schema apply again: {error}"
        )
    if error.sqlstate == _INSUFFICIENT_PRIVILEGE:
        return PermanentError(f"{refused}; run producer schema apply as the owner of Label's tables: {error}")
    return PermanentError(f"{refused}: {error}")


# What is recorded -----------------------------------------------------------------------------------------------


def _recorded(connection: Connection) -> dict[str, Row[tuple[str, datetime]]]:
    """Read the recorded checksum and time of each step's name; nothing before the first apply."""
    if not connection.scalar(text("select to_regclass('schema_steps') is not null")):
        return {}
    rows = connection.execute(text("select name, checksum, applied_at from schema_steps"))
    return {row.name: row for row in rows}


def _names(recorded: Container[str], *, with_baseline: bool = False) -> tuple[str, ...]:
    """List the steps in order; the baseline among them if it is asked for now or was before."""
    return (_BASELINE, *_STEPS) if with_baseline or _BASELINE in recorded else _STEPS


def _step(name: str, recorded: Row[tuple[str, datetime]] | None) -> Step:
    """Compare what is recorded of one step with the file."""
    checksum = _checksum(_sql(name))
    if recorded is None:
        return Step(name=name, checksum=checksum, state="missing", applied_at=None)
    state: Literal["applied", "changed"] = "applied" if recorded.checksum == checksum else "changed"
    return Step(name=name, checksum=checksum, state=state, applied_at=recorded.applied_at.astimezone(UTC))


# What is there --------------------------------------------------------------------------------------------------


def _needed() -> Iterator[tuple[str, str | None]]:
    """Every table, and every (table, column) added to one, that the steps make.

    The files say it themselves: to be repeatable they have no other way to make a table or a later column
    than the two phrases looked for here.
    """
    for name in _STEPS:
        table = ""
        for made in _MAKES.finditer(_COMMENT.sub("", _sql(name).decode())):
            table = made["table"] or table
            if made["verb"] != "alter table":
                yield table, made["column"]


def _missing(connection: Connection, needed: list[tuple[str, str | None]]) -> list[str]:
    """Those of the tables and columns that are absent, as `table` or `table.column`; a missing table hides its columns."""
    query = text("""
        select needed.table_name || coalesce('.' || needed.column_name, '')
        from unnest(cast(:tables as text[]), cast(:columns as text[])) with ordinality
             as needed (table_name, column_name, place)
        left join pg_attribute a on a.attrelid = to_regclass(needed.table_name)
                                and a.attname = needed.column_name and not a.attisdropped
        where case when needed.column_name is null
                   then to_regclass(needed.table_name) is null
                   else to_regclass(needed.table_name) is not null and a.attname is null
              end
        order by needed.place
    """)
    tables, columns = zip(*needed, strict=True)
    return list(connection.scalars(query, {"tables": list(tables), "columns": list(columns)}))


def _refuse_wrong_database(connection: Connection) -> None:
    """Raise `SchemaMissingError` if Label's own tables are absent."""
    _refuse(connection, _missing(connection, [(table, None) for table in _OWN_TABLES]))


def _refuse(connection: Connection, missing: list[str]) -> None:
    """Raise `SchemaMissingError` if anything is missing, in words that tell a wrong database from an unprepared one."""
    where = (
        f"database {connection.engine.url.database!r} on {connection.engine.url.host or 'the local socket'}"
    )
    if own := [table for table in _OWN_TABLES if table in missing]:
        raise SchemaMissingError(
            f"{where} is not Label's: it has no table {' and no table '.join(own)}. Check DATABASE_URL "
            "(and the search_path of its user); producer schema apply does not make Label's own tables"
        )
    if missing:
        raise SchemaMissingError(f"{where} lacks {', '.join(missing)}. Run: producer schema apply")


# The files ------------------------------------------------------------------------------------------------------


def _folder() -> Traversable:
    """Where the files are: inside the package once it is installed, beside it in a checkout."""
    installed = resources.files("worker") / "sql"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sql"


def _sql(name: str) -> bytes:
    return (_folder() / f"{name}.sql").read_bytes()


def _checksum(sql: bytes) -> str:
    return hashlib.sha256(sql).hexdigest()
