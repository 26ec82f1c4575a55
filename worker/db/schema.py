"""Brings the database's tables to what the files of sql/ describe. Knows nothing of what the rows mean."""

import hashlib
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, Engine, Row, text

from worker.db.engine import when_free
from worker.errors import (
    DatabaseBusyError,
    DatabaseRefusedError,
    MigratorError,
    PermanentError,
    RowsHiddenError,
    SchemaMissingError,
    TablesRefusedError,
)

_BASELINE = "label_app_baseline"
_STEPS = ("add_virtual_split_columns", "create_raw_datasets_tables", "create_migration_ledger")
_OWN_TABLES = ("projects", "sessions")
"""What only Label makes: a database without these is not Label's."""

_PATIENCE_S = 5.0
"""How long a table's lock is waited for. What comes after us waits behind us, and people would feel it."""

_LOCK_WAIT_MS = 400
"""How long at a time, with all that is locked already in hand: shorter than half of `deadlock_timeout` in any
case. A person's transaction that needs one of our tables while it has another one closes a circle, and
PostgreSQL would end theirs.
"""

_INSUFFICIENT_PRIVILEGE = "42501"

_COMMENT = re.compile(r"--.*")
_MAKES = re.compile(
    r"create table if not exists (?P<new>\w+) \((?P<body>.*?)^\);"
    r"|alter table (?P<old>\w+)|add column if not exists (?P<column>\w+)",
    re.MULTILINE | re.DOTALL,
)
_COLUMN = re.compile(r"^ {4}(?!constraint\b)(\w+) ", re.MULTILINE)


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
    the work once.

    Raises:
        SchemaMissingError: Label's own tables are absent or there twice, or a column is gone that no step adds again.
        DatabaseBusyError: a table was in use for five seconds; the steps before stay applied.
        PermanentError: PostgreSQL refused a step, for instance for want of rights; the steps before stay applied.

    """
    with engine.begin() as connection:
        _refuse_two_places(connection)
        _go_home(connection)
        names = _names(_recorded(connection), with_baseline=with_baseline)
        steps = _steps(connection, names)
        if _BASELINE not in names:
            _refuse_wrong_database(connection)
    pending = [step.name for step in steps if step.state != "applied"]
    applied = [step for name in pending if (step := _apply_when_free(engine, name))]
    if applied and (gone := [one for step in applied for one in step.gone]):
        raise TablesRefusedError(
            f"{', '.join(gone)} is not there and no step adds it again: "
            "restore it from a backup, or rename what took its place back"
        )
    return applied


def status(engine: Engine) -> list[Step]:
    """Say how every step stands, in order: what is recorded, and whether what it made is there; the baseline
    only where it was applied. Writes nothing.

    Raises `SchemaMissingError` when it cannot be said which tables are meant.
    """
    with engine.begin() as connection:
        _refuse_two_places(connection)
        _go_home(connection)
        return _steps(connection, _names(_recorded(connection)))


def refusal(engine: Engine) -> TablesRefusedError | None:
    """Why `apply` would refuse the database as not Label's; None if it would not."""
    try:
        with engine.begin() as connection:
            _refuse_wrong_database(connection)
    except TablesRefusedError as error:
        return error
    return None


def require(engine: Engine) -> None:
    """Return if every table and column that this program needs is there, however it came to be, each table in
    the schema of Label's own, and no row of it hidden from our role; one query.

    Raises:
        SchemaMissingError: names what is missing or elsewhere; says so if the database is not Label's at all.
        RowsHiddenError: names the tables with policies that count for our role.

    """
    with engine.connect() as connection:
        found = _find(connection, [*((table, None) for table in _OWN_TABLES), *_needed()])
        _refuse(connection, found)
        if hidden := found.hidden:
            raise RowsHiddenError(
                f"Row-level security hides rows of {', '.join(hidden)} from our role: "
                "what it does not see would count as not there"
            )


# Applying -------------------------------------------------------------------------------------------------------


def _apply_when_free(engine: Engine, name: str) -> Step | None:
    """Apply one step, in as many tries as it takes to find its tables free."""
    try:
        return when_free(lambda: _apply_step(engine, name), patience_s=_PATIENCE_S)
    except (DatabaseRefusedError, DatabaseBusyError) as error:
        raise _explain(name, error) from error


def _apply_step(engine: Engine, name: str) -> Step | None:
    """Apply one step in one transaction, or return None if another caller just did."""
    with engine.begin() as connection:
        # Held until the end: a second caller waits here, then finds the step applied.
        connection.execute(text("select pg_advisory_xact_lock(hashtextextended('schema_steps', 0))"))
        _go_home(connection)
        _create_record(connection)
        if _step(connection, name).state == "applied":
            return None
        _run(connection, name)
        return _step(connection, name)


def _run(connection: Connection, name: str) -> None:
    """Run one file and record it."""
    sql = _sql(name)
    connection.execute(
        text("""
            select set_config('lock_timeout', least(:wait, setting::integer / 2)::text, true)
            from pg_settings where name = 'deadlock_timeout'"""),
        {"wait": _LOCK_WAIT_MS},
    )
    # Without parameters the driver leaves percent signs alone.
    connection.exec_driver_sql(sql.decode("ascii"), execution_options={"no_parameters": True})
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
            f"{refused}; its tables were in use for {_PATIENCE_S:g} s, run producer schema apply again: {error}"
        )
    if error.sqlstate == _INSUFFICIENT_PRIVILEGE:
        return PermanentError(f"{refused}; run producer schema apply as the owner of Label's tables: {error}")
    return PermanentError(f"{refused}: {error}")


# What is recorded -----------------------------------------------------------------------------------------------


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
    return (_BASELINE, *_STEPS) if with_baseline or _BASELINE in recorded else _STEPS


def _step(connection: Connection, name: str) -> Step:
    (step,) = _steps(connection, (name,))
    return step


def _steps(connection: Connection, names: Sequence[str]) -> list[Step]:
    """Compare what is recorded of the steps with the files, and what the files make with what is there."""
    recorded = _recorded(connection)
    steps = []
    for name in names:
        checksum, row = _checksum(_sql(name)), recorded.get(name)
        gone = tuple(_find(connection, list(_needed((name,)))).missing) if row is not None else ()
        state: Literal["applied", "missing", "changed", "damaged"] = "applied"
        if row is None:
            state = "missing"
        elif row.checksum != checksum:
            state = "changed"
        elif gone:
            state = "damaged"
        at = row.applied_at.astimezone(UTC) if row is not None else None
        steps.append(Step(name=name, checksum=checksum, state=state, applied_at=at, gone=gone))
    return steps


# What is there --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What of the needed tables and columns is absent, elsewhere, or not to be seen whole."""

    missing: list[str]
    elsewhere: dict[str, str]
    hidden: list[str]
    home: str | None
    homes: list[str]
    """The schemas of the search path that have a table `projects`; the first is the one that counts."""


def _go_home(connection: Connection) -> None:
    """Let names mean the schema of `projects` until the transaction ends, so that all is made there."""
    connection.execute(
        text("""
            select set_config('search_path', quote_ident(nspname) || ', ' || current_setting('search_path'), true)
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.oid = to_regclass('projects') and nspname <> current_schema()""")
    )


def _needed(names: Sequence[str] = _STEPS) -> Iterator[tuple[str, str | None]]:
    """Every table, and every (table, column), that these steps make.

    The files say it themselves: to be repeatable they have no other way to make a table or a later column
    than the phrases looked for here.
    """
    for name in names:
        table = ""
        for made in _MAKES.finditer(_COMMENT.sub("", _sql(name).decode())):
            table = made["new"] or made["old"] or table
            if made["new"]:
                yield table, None
                for column in _COLUMN.findall(made["body"]):
                    yield table, column
            elif made["column"]:
                yield table, made["column"]


def _find(connection: Connection, needed: Sequence[tuple[str, str | None]]) -> _Found:
    """Look for tables and columns, as `table` or `table.column`; a missing table hides its columns."""
    query = text("""
        with home as (
            select array_agg(p.name::text order by p.place) as names
            from unnest(current_schemas(false)) with ordinality as p (name, place)
            where to_regclass(quote_ident(p.name) || '.projects') is not null)
        select needed.table_name, needed.column_name, n.nspname::text as found_in, home.names as homes,
               coalesce(needed.column_name is null and row_security_active(t.oid), false) as hidden
        from unnest(cast(:tables as text[]), cast(:columns as text[])) with ordinality
             as needed (table_name, column_name, place)
        cross join home
        left join pg_class t on t.oid = to_regclass(needed.table_name)
        left join pg_namespace n on n.oid = t.relnamespace
        left join pg_attribute a on a.attrelid = t.oid and a.attname = needed.column_name and not a.attisdropped
        where case when needed.column_name is null
                   then t.oid is null or n.nspname <> home.names[1] or row_security_active(t.oid)
                        or needed.table_name = 'projects'
                   else t.oid is not null and a.attname is null
              end
        order by needed.place
    """)
    tables, columns = zip(*needed, strict=True)
    rows = connection.execute(query, {"tables": list(tables), "columns": list(columns)}).all()
    homes: list[str] = next((row.homes for row in rows if row.homes), [])
    home = homes[0] if homes else None
    return _Found(
        missing=[
            row.table_name + (f".{row.column_name}" if row.column_name else "")
            for row in rows
            if row.column_name or row.found_in is None
        ],
        elsewhere={
            row.table_name: row.found_in
            for row in rows
            if not row.column_name and row.found_in not in {None, home}
        },
        hidden=[row.table_name for row in rows if row.hidden],
        home=home,
        homes=homes,
    )


def _refuse_wrong_database(connection: Connection) -> None:
    """Raise `SchemaMissingError` if Label's own tables are absent."""
    _refuse(connection, _find(connection, [(table, None) for table in _OWN_TABLES]))


def _refuse_two_places(connection: Connection) -> None:
    """Raise `SchemaMissingError` if the search path finds tables in two schemas: one is another's copy."""
    tables = [(table, None) for table in dict.fromkeys([*_OWN_TABLES, *(table for table, _ in _needed())])]
    _refuse_copies(connection, _find(connection, tables))


def _refuse_copies(connection: Connection, found: _Found) -> None:
    if len(found.homes) > 1:
        raise TablesRefusedError(
            f"{_where(connection)} has Label's tables more than once: projects is in the schemas "
            f"{' and '.join(found.homes)} of the search_path. Say which is meant, by a search_path with one of them: "
            f"DATABASE_URL=...?options=-csearch_path%3D{found.homes[0]}, or alter role ... set search_path"
        )
    if found.home is not None and found.elsewhere:
        copies = [f"{schema}.{table}" for table, schema in found.elsewhere.items()]
        raise TablesRefusedError(
            f"{_where(connection)} has projects in the schema {found.home}, but the search_path finds {', '.join(copies)}. "
            f"If that is Label's: alter table {copies[0]} set schema {found.home}, and so on; "
            f"if it is another copy, take its schema out of the search_path"
        )


def _refuse(connection: Connection, found: _Found) -> None:
    """Raise `SchemaMissingError` if anything is missing or elsewhere, in words that tell a wrong database
    from an unprepared one.
    """
    if own := [table for table in _OWN_TABLES if table in found.missing]:
        raise TablesRefusedError(
            f"{_where(connection)} is not Label's: it has no table {' and no table '.join(own)}. Check DATABASE_URL "
            "(and the search_path of its user); producer schema apply does not make Label's own tables"
        )
    _refuse_copies(connection, found)
    if found.missing:
        raise SchemaMissingError(
            f"{_where(connection)} lacks {', '.join(found.missing)}. Run: producer schema apply"
        )


def _where(connection: Connection) -> str:
    url = connection.engine.url
    return f"database {url.database!r} on {url.host or 'the local socket'}"


# The files ------------------------------------------------------------------------------------------------------


def _folder() -> Traversable:
    """Where the files are: inside the package once it is installed, beside it in a checkout."""
    installed = resources.files("worker") / "sql"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sql"


def _sql(name: str) -> bytes:
    return (_folder() / f"{name}.sql").read_bytes()


def _checksum(sql: bytes) -> str:
    return hashlib.sha256(sql).hexdigest()
