"""What a database server says of itself, and of our rights in it. Judges nothing and opens no transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql
from worker.db.refusals import NUMBERED, catch_up

NEEDED_RIGHTS = {
    "projects": ("select", "update"),
    "sessions": ("select", "update"),
    "raw_datasets": ("select", "insert", "update", "delete"),
    "raw_dataset_sessions": ("select", "insert", "update", "delete"),
    "project_dataset_refs": ("select", "insert", "delete"),
    "project_split_configs": ("select", "insert", "delete"),
    "project_conversions": ("select", "insert", "update"),
    "migration_state_arrows": ("select",),
    "migration_runs": ("select", "insert", "update"),
    "migration_jobs": ("select", "insert", "update"),
    "migration_waves": ("select", "insert", "update"),
    "migration_job_counts": ("select", "insert", "update", "delete"),
    "migration_dry_run_blobs": ("select", "insert", "update", "delete"),
    "migration_recording_counts": ("select", "insert", "update"),
    "migration_blob_checks": ("select", "insert", "update", "delete"),
    "migration_remembered_digests": ("select", "insert", "update", "delete"),
    "dataset_claims": ("select", "insert", "update", "delete"),
    "migration_dataset_blobs": ("select", "insert", "delete"),
    "migration_indexed_datasets": ("select", "insert", "update", "delete"),
    "migration_blob_readers": ("select", "insert", "delete"),
    "migration_label_hashes": ("select", "insert"),
    "migration_reclaims": ("select", "insert", "update"),
    "migration_adoptions": ("select", "insert", "update"),
    "migration_unreferenced": ("select", "insert", "update", "delete"),
    "migration_store": ("select", "insert", "update"),
    "schema_steps": ("select",),
}
"""What all verbs do to which table; `update` also to lock a row (PostgreSQL, "SELECT")."""

_NUMBERED_EARLY = {"raw_datasets": "dataset_id", "raw_dataset_sessions": "raw_session_id"}
"""The tables whose sequences are asked for numbers before there are rows for them."""

_LABEL_COLUMNS = {
    "projects": ("project_id", "project_name", "path"),
    "sessions": ("session_id", "project_id", "session_name", "start_ns", "stop_ns"),
}
"""Label's own columns that our statements name; the others are made by sql/."""

_TEXTS = {
    "projects": ("project_name", "path", "legacy_path"),
    "sessions": ("session_name", "parent_session_data_path", "raw_session_name"),
}
"""The texts among Label's columns that are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the server is, whether it can be written to, and how it sees us. `encrypted` is None where there
    is no network in between; `sees_all`: may our role see what the sessions of others do? `room` counts the
    connections that ordinary roles may have, `others` those that are in use and not the migrator's;
    `replicas` those by which others follow it, for which its commits wait if it `is_synchronous`.
    """

    version: str
    version_number: int
    encrypted: bool | None
    role: str
    is_superuser: bool
    is_owner: bool
    sees_all: bool
    room: int
    others: int
    replicas: int
    is_synchronous: bool
    encoding: str
    takes_no_writes_because: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Sequences that give numbers which their tables have already: the statements that set them right; and
    the tables whose sequence our role may not read.
    """

    behind: list[str]
    unseen: list[str]


def server(conn: Connection) -> Server:
    """One look at the server and our role in it."""
    row = conn.execute(
        sql("""
            select current_setting('server_version') as version,
                   current_setting('server_version_num')::integer as version_number,
                   case when inet_server_addr() is not null
                        then (select ssl from pg_stat_ssl where pid = pg_backend_pid()) end as encrypted,
                   current_user as role, current_setting('server_encoding') as encoding,
                   coalesce((select rolsuper from pg_roles where rolname = current_user), false) as is_superuser,
                   coalesce((select pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass('projects')), false)
                       as is_owner,
                   pg_has_role('pg_read_all_stats', 'usage') as sees_all,
                   current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
                       - coalesce(current_setting('reserved_connections', true), '0')::integer as room,
                   -- Of a session that we may not see, its kind is hidden as well; the server's own are in no database.
                   (select count(*) from pg_stat_activity
                    where datid is not null and coalesce(backend_type, 'client backend') = 'client backend'
                      and application_name not like 'label-migrator%') as others,
                   -- Of these a role that may not see them learns that they are there.
                   (select count(*) from pg_stat_replication) as replicas,
                   current_setting('synchronous_standby_names') <> '' as is_synchronous""")
    ).one()
    because = takes_no_writes_because(conn)
    return Server(**row._mapping, takes_no_writes_because=because)  # noqa: SLF001 - the public name of a row as a mapping


def takes_no_writes_because(conn: Connection) -> str | None:
    """Why nothing can be written now, where that is so: then workers wait."""
    row = conn.execute(
        sql("""
            select pg_is_in_recovery() as is_standby,
                   current_setting('default_transaction_read_only')::boolean as is_read_only""")
    ).one()
    if row.is_standby:
        return "PostgreSQL is a standby (in recovery) and takes no writes"
    if row.is_read_only:
        return "PostgreSQL takes no writes: default_transaction_read_only is on, for the server, the database or our role"
    return None


def numbers(conn: Connection, numbered: Mapping[str, str] = NUMBERED) -> Numbers:
    """Compare each sequence that numbers rows of these tables, by default of ours, with its table; what is
    imported with its numbers does not move it.
    """
    found = Numbers(behind=[], unseen=[])
    for table, column in numbered.items():
        row = conn.execute(
            sql("""
                select n.nspname::text as schema, seq.name, has_sequence_privilege(seq.name, 'select')
                       and has_column_privilege(a.attrelid, a.attnum, 'select') as is_seen
                from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
                cross join lateral pg_get_serial_sequence(a.attrelid::regclass::text, a.attname) as seq (name)
                where a.attrelid = to_regclass(:table) and a.attname = :column and seq.name is not null"""),
            {"table": table, "column": column},
        ).one_or_none()
        if row is None:
            continue
        if not row.is_seen:
            found.unseen.append(table)
        elif conn.scalar(
            sql(f"""
                select (select max({column}) from {table}) > case when is_called then last_value else last_value - 1 end
                from {row.name}""")  # noqa: S608 - constants, and a name as the catalog quotes it
        ):
            found.behind.append(catch_up(row.schema, table, column))
    return found


def undecodable(conn: Connection, limit: int) -> list[str]:
    """Rows of Label's whose names are not UTF-8, as `sessions 7 (session_name)`; only SQL_ASCII has any."""
    return [
        f"{table} {row.key} ({column})"
        for table, columns in _TEXTS.items()
        for column in columns
        for row in conn.execute(
            sql(f"""
                select {table.removesuffix("s")}_id as key, convert_to({column}, 'SQL_ASCII') as bytes from {table}
                where encode(convert_to({column}, 'SQL_ASCII'), 'hex') ~ '^(..)*[89a-f].' order by 1""")  # noqa: S608 - constants
        )
        if not _is_utf8(bytes(row.bytes))
    ][:limit]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def clock_ahead_s(conn: Connection) -> float:
    """How far this machine's clock is ahead of the database's, by which leases run, to half a round trip."""
    before = datetime.now(UTC)
    theirs: datetime = conn.execute(sql("select clock_timestamp()")).scalar_one()
    return (before + (datetime.now(UTC) - before) / 2 - theirs).total_seconds()


def identity(conn: Connection) -> str:
    """Tells this database from every other one, however its address is spelt: the cluster's own number, and
    the database's.
    """
    found: str = conn.execute(
        sql("""
            select format('%s/%s', (select system_identifier from pg_control_system()),
                          (select oid from pg_database where datname = current_database()))""")
    ).scalar_one()
    return found


def missing_rights(conn: Connection) -> list[str]:
    """Those of `NEEDED_RIGHTS` that our role has not, as `update on sessions`, and those on sequences. A
    right on some columns only counts as one; tables that are not there are another check's finding.
    """
    needed = [(table, right) for table, rights in NEEDED_RIGHTS.items() for right in rights]
    rows = conn.execute(
        sql("""
            select needed.right_name || ' on ' || needed.table_name
            from unnest(cast(:tables as text[]), cast(:rights as text[])) with ordinality
                 as needed (table_name, right_name, place)
            where to_regclass(needed.table_name) is not null
              and not has_table_privilege(to_regclass(needed.table_name), needed.right_name)
              and not case when needed.right_name in ('select', 'insert', 'update')
                           then has_any_column_privilege(to_regclass(needed.table_name), needed.right_name)
                           else false end
            order by needed.place"""),
        {"tables": [table for table, _ in needed], "rights": [right for _, right in needed]},
    )
    return [*rows.scalars(), *_missing_rights_on_sequences(conn)]


def _missing_rights_on_sequences(conn: Connection) -> Sequence[str]:
    rows = conn.execute(
        sql("""
            select 'usage on sequence ' || seq.name
            from unnest(cast(:tables as text[]), cast(:columns as text[])) as numbered (table_name, column_name)
            join pg_attribute a on a.attrelid = to_regclass(numbered.table_name) and a.attname = numbered.column_name
            cross join lateral pg_get_serial_sequence(a.attrelid::regclass::text, a.attname) as seq (name)
            where not has_sequence_privilege(seq.name, 'usage') order by 1"""),
        {"tables": list(_NUMBERED_EARLY), "columns": list(_NUMBERED_EARLY.values())},
    )
    return rows.scalars().all()


def missing_columns(conn: Connection) -> list[str]:
    """Those of Label's own columns that the migrator uses and that are not there, as `sessions.bouts`."""
    needed = [(table, column) for table, columns in _LABEL_COLUMNS.items() for column in columns]
    rows = conn.execute(
        sql("""
            select needed.table_name || '.' || needed.column_name
            from unnest(cast(:tables as text[]), cast(:columns as text[])) as needed (table_name, column_name)
            left join pg_attribute a on a.attrelid = to_regclass(needed.table_name)
                                    and a.attname = needed.column_name and not a.attisdropped
            where a.attname is null order by 1"""),
        {"tables": [table for table, _ in needed], "columns": [column for _, column in needed]},
    )
    return [row[0] for row in rows]


def in_the_way(conn: Connection, longer_than_s: float) -> Sequence[Row[Any]]:
    """Sessions of this database that have kept a transaction open, or waited for a lock, for that long.

    Of other roles' sessions only members of `pg_read_all_stats` see more than that they are there.
    """
    return conn.execute(
        sql("""
            select pid, coalesce(nullif(application_name, ''), 'unnamed') as application, usename as role,
                   state = 'idle in transaction' as idle,
                   extract(epoch from clock_timestamp() - state_change)::float8 as seconds
            from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
              and (state like 'idle in transaction%' or wait_event_type = 'Lock')
              and state_change < clock_timestamp() - make_interval(secs => :longer)
              and application_name not like 'label-migrator%'
            order by state_change"""),
        {"longer": longer_than_s},
    ).all()
