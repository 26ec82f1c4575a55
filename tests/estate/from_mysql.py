"""A Label database as a conversion of a MySQL one leaves it: native enums, `json`, 64-bit keys, limited
texts, its own schema.
"""

from sqlalchemy import Engine, text

from worker.db import schema

SCHEMA = "label"
_KEPT = 500
"""Characters of the paths that a view of the laboratory holds on to: `schema apply` cannot widen these."""

_STATEMENTS = f"""
create schema {SCHEMA};
create type {SCHEMA}.projects_project_type as enum ('legacy', 'dataset_based');
create type {SCHEMA}.project_split_configs_split_strategy as enum ('time_based', 'bout_based', 'custom');
alter table projects drop constraint projects_project_type_check, alter column project_type drop default,
    alter column project_type type {SCHEMA}.projects_project_type using project_type::{SCHEMA}.projects_project_type;
alter table projects alter column project_type set default 'legacy';
alter table project_split_configs drop constraint project_split_configs_split_strategy_check,
    alter column split_strategy drop default,
    alter column split_strategy type {SCHEMA}.project_split_configs_split_strategy
        using split_strategy::{SCHEMA}.project_split_configs_split_strategy;
do $$
declare
    old record;
begin
    for old in
        select a.attrelid::regclass as table_name, a.attname, a.atttypid::regtype as type
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
          and (a.atttypid = 'jsonb'::regtype or a.atttypid = 'integer'::regtype
               or a.attname in ('path', 'legacy_path', 'file_path', 'session_path', 'parent_session_data_path'))
    loop
        execute format('alter table %s alter column %I type %s', old.table_name, old.attname,
                       case old.type when 'jsonb'::regtype then 'json' when 'integer'::regtype then 'bigint'
                                     else 'varchar({_KEPT})' end);
    end loop;
    for old in select c.oid::regclass as table_name from pg_class c
               where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' loop
        execute format('alter table %s set schema {SCHEMA}', old.table_name);
    end loop;
end $$;
create view {SCHEMA}.places as
    select p.legacy_path, s.parent_session_data_path from {SCHEMA}.projects p join {SCHEMA}.sessions s using (project_id);
"""

_LEDGER = (
    "migration_runs",
    "migration_jobs",
    "migration_state_arrows",
    "migration_dry_run_blobs",
    "project_conversions",
    "migration_recording_counts",
    "migration_blob_checks",
    "dataset_claims",
    "schema_steps",
)


def convert_database(engine: Engine, *, apply: bool = True) -> None:
    """Turn a database with all tables and no rows into one of this kind, found by its `search_path`; then
    apply the schema.
    """
    with engine.begin() as conn:
        conn.execute(text(f"drop table {', '.join(_LEDGER)} cascade"))
        conn.exec_driver_sql(_STATEMENTS, execution_options={"no_parameters": True})
        conn.execute(text(f"alter database {engine.url.database} set search_path to {SCHEMA}, public"))
    # Connections know the search path from their beginning.
    engine.dispose()
    if apply:
        schema.apply(engine)
