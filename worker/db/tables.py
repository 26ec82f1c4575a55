"""Whether the tables that this program needs are there, in Label's own schema and whole. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from worker import database_url
from worker.db.sql_files import needed
from worker.errors import RowsHiddenError, SchemaMissingError, TablesRefusedError

_OWN_TABLES = ("projects", "sessions")
"""What only Label makes: a database without these is not Label's."""


def require(engine: Engine) -> None:
    """Return if every table and column that this program needs is there, however it came to be, each table in
    the schema of Label's own, and no row of it hidden from our role; one query.

    Raises:
        SchemaMissingError: names what is missing or elsewhere; says so if the database is not Label's at all.
        RowsHiddenError: names the tables with policies that count for our role.

    """
    with engine.connect() as connection:
        found = find(connection, [*((table, None) for table in _OWN_TABLES), *needed()])
        _refuse(connection, found)
        if hidden := found.hidden:
            raise RowsHiddenError(
                f"Row-level security hides rows of {', '.join(hidden)} from our role: "
                "what it does not see would count as not there"
            )


def refusal(engine: Engine) -> TablesRefusedError | None:
    """Why `schema.apply` would refuse the database as not Label's; None if it would not."""
    try:
        with engine.begin() as connection:
            refuse_wrong_database(connection)
    except TablesRefusedError as error:
        return error
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What of the needed tables and columns is absent, elsewhere, or not to be seen whole."""

    missing: list[str]
    elsewhere: dict[str, str]
    hidden: list[str]
    home: str | None
    homes: list[str]
    """The schemas of the search path that have a table `projects`; the first is the one that counts."""


def go_home(connection: Connection) -> None:
    """Let names mean the schema of `projects` until the transaction ends, so that all is made there."""
    connection.execute(
        text("""
            select set_config('search_path', quote_ident(nspname) || ', ' || current_setting('search_path'), true)
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.oid = to_regclass('projects') and nspname <> current_schema()""")
    )


def find(connection: Connection, needed: Sequence[tuple[str, str | None]]) -> Found:
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
    return Found(
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


def refuse_wrong_database(connection: Connection) -> None:
    """Raise `SchemaMissingError` if Label's own tables are absent."""
    _refuse(connection, find(connection, [(table, None) for table in _OWN_TABLES]))


def refuse_two_places(connection: Connection) -> None:
    """Raise `SchemaMissingError` if the search path finds tables in two schemas: one is another's copy."""
    tables = [(table, None) for table in dict.fromkeys([*_OWN_TABLES, *(table for table, _ in needed())])]
    _refuse_copies(connection, find(connection, tables))


def _refuse_copies(connection: Connection, found: Found) -> None:
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


def _refuse(connection: Connection, found: Found) -> None:
    """Raise `SchemaMissingError` if anything is missing or elsewhere, in words that tell a wrong database
    from an unprepared one.
    """
    if own := [table for table in _OWN_TABLES if table in found.missing]:
        raise TablesRefusedError(
            f"{_where(connection)} is not Label's: it has no table {' and no table '.join(own)}. "
            + (_hidden_places(connection, own) or "Check DATABASE_URL (and the search_path of its user)")
            + "; producer schema apply does not make Label's own tables"
        )
    _refuse_copies(connection, found)
    if found.missing:
        raise SchemaMissingError(
            f"{_where(connection)} lacks {', '.join(found.missing)}. Run: producer schema apply"
        )


def _hidden_places(connection: Connection, own: Sequence[str]) -> str:
    """Where the database has these tables after all, as a conversion from MySQL may leave them, and the
    statements that let them be found; empty where it has not.
    """
    rows = connection.execute(
        text("""
            select n.nspname::text as schema, c.relname::text as name, lower(c.relname) as meant,
                   format('alter table %I.%I rename to %s', n.nspname, c.relname, lower(c.relname)) as rename,
                   format('alter database %I set search_path to %I, public', current_database(), n.nspname) as search
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind in ('r', 'p') and lower(c.relname) = any(:own) and has_schema_privilege(n.oid, 'usage')
            order by 1, 2"""),
        {"own": list(own)},
    ).all()
    seen = set(connection.scalars(text("select unnest(current_schemas(false))::text")))
    statements = [row.rename for row in rows if row.name != row.meant]
    statements += sorted({row.search for row in rows if row.schema not in seen})
    if not statements:
        return ""
    there = ", ".join(f"{row.schema}.{row.name}" for row in rows)
    return f"It has {there}; if that is Label's: {'; '.join(statements)}"


def _where(connection: Connection) -> str:
    url = connection.engine.url
    return f"database {url.database!r} on {', '.join(database_url.hosts(url)) or 'the local socket'}"
