"""What a database server says of itself, and of our rights in it. Judges nothing and opens no transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db.engine import sql

NEEDED_RIGHTS = {
    "projects": ("select", "update"),
    "sessions": ("select", "update"),
    "raw_datasets": ("select", "insert", "update"),
    "raw_dataset_sessions": ("insert",),
    "project_dataset_refs": ("select", "insert", "delete"),
    "project_split_configs": ("select", "insert", "delete"),
    "project_conversions": ("select", "insert", "update"),
    "migration_state_arrows": ("select",),
    "migration_runs": ("select", "insert", "update"),
    "migration_jobs": ("select", "insert", "update"),
    "migration_dry_run_blobs": ("select", "insert", "update"),
    "migration_recording_counts": ("select", "insert"),
    "migration_blob_checks": ("select", "insert", "update"),
    "dataset_claims": ("select", "insert", "update"),
    "migration_store": ("select", "insert", "update"),
    "schema_steps": ("select",),
}
"""What a migration and a rollback do to which table. `update` also where a row is only locked (PostgreSQL, "SELECT")."""

_LABEL_COLUMNS = {
    "projects": ("project_id", "project_name", "path"),
    "sessions": ("session_id", "project_id", "session_name", "start_ns", "stop_ns"),
}
"""Label's own columns that our statements name; the others are made by sql/."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the server is, and how it sees us. `encrypted` is None where there is no network in between; `sees_all`: may our
    role see what the sessions of others do? `room` counts the connections that ordinary roles may have, `others` those that are
    in use and not the migrator's.
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


def server(conn: Connection) -> Server:
    """One look at the server and our role in it."""
    row = conn.execute(
        sql("""
            select current_setting('server_version') as version,
                   current_setting('server_version_num')::integer as version_number,
                   case when inet_server_addr() is not null
                        then (select ssl from pg_stat_ssl where pid = pg_backend_pid()) end as encrypted,
                   current_user as role,
                   coalesce((select rolsuper from pg_roles where rolname = current_user), false) as is_superuser,
                   coalesce((select pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass('projects')), false)
                       as is_owner,
                   pg_has_role('pg_read_all_stats', 'usage') as sees_all,
                   current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
                       - coalesce(current_setting('reserved_connections', true), '0')::integer as room,
                   -- Of a session that we may not see, its kind is hidden as well; the server's own are in no database.
                   (select count(*) from pg_stat_activity
                    where datid is not null and coalesce(backend_type, 'client backend') = 'client backend'
                      and application_name not like 'label-migrator%') as others""")
    ).one()
    return Server(**row._mapping)  # noqa: SLF001 - the public name of a row as a mapping


def clock_ahead_s(conn: Connection) -> float:
    """How far this machine's clock is ahead of the database's, by which leases run; half the round trip may be wrong."""
    before = datetime.now(UTC)
    theirs: datetime = conn.execute(sql("select clock_timestamp()")).scalar_one()
    return (before + (datetime.now(UTC) - before) / 2 - theirs).total_seconds()


def identity(conn: Connection) -> str:
    """Tells this database from every other one, however its address is spelt: the cluster's own number, and the database's."""
    found: str = conn.execute(
        sql("""
            select format('%s/%s', (select system_identifier from pg_control_system()),
                          (select oid from pg_database where datname = current_database()))""")
    ).scalar_one()
    return found


def missing_rights(conn: Connection) -> list[str]:
    """Those of `NEEDED_RIGHTS` that our role has not, as `update on sessions`. A right on some columns only counts as one;
    tables that are not there are somebody else's finding.
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
    return [row[0] for row in rows]


def missing_columns(conn: Connection) -> list[str]:
    """Those of Label's own columns that the migrator reads or writes and that are not there, as `sessions.bouts`."""
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
    """Sessions of this database that have kept a transaction open without a word, or have waited for a lock, for that long.

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


def sample_of_legacy(conn: Connection, token: str, limit: int) -> dict[int, str]:
    """Paths of some legacy projects, drawn by `token`: whoever asks with the same one gets the same projects."""
    rows = conn.execute(
        sql("""
            select project_id, path from projects
            where (project_type is null or project_type = 'legacy') and path <> ''
            order by md5(:token || project_id) limit :limit"""),
        {"token": token, "limit": limit},
    )
    return {row.project_id: row.path for row in rows}
