"""The steps over databases that already have what they make, or parts of it, in another equivalent form."""

import pytest
from sqlalchemy import Connection, Engine, text

from tests.sql.hand_made import PORTS, Port
from tests.support.psql import SQL, STEPS, catalog, psql
from worker.db import schema, tables

TABLES = (
    "projects",
    "sessions",
    "raw_datasets",
    "raw_dataset_sessions",
    "project_dataset_refs",
    "project_split_configs",
)
ports = pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)


def run(engine: Engine, sql: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(sql)


def rows(connection: Connection) -> dict[str, list[str]]:
    """Every row of the tables the steps touch, as text."""
    return {
        table: sorted(connection.scalars(text(f"select cast(t as text) from {table} t"))) for table in TABLES
    }


def files(connection: Connection) -> dict[str, int]:
    """The file that holds each table; a rewrite gives it a new one."""
    query = text("select pg_relation_filenode(to_regclass(:table))")
    return {table: connection.scalar(query, {"table": table}) for table in TABLES}


@ports
def test_rows_stay_as_they_are_and_no_table_is_rewritten(empty_database: Engine, port: Port) -> None:
    run(empty_database, port.label + port.seed)
    with empty_database.connect() as connection:
        rows_before, files_before = rows(connection), files(connection)

    schema.apply(empty_database)

    tables.require(empty_database)
    with empty_database.connect() as connection:
        assert rows(connection) == rows_before
        assert files(connection) == files_before


@ports
def test_applying_again_by_hand_changes_nothing(empty_database: Engine, port: Port) -> None:
    run(empty_database, port.label + port.seed)
    schema.apply(empty_database)
    before = catalog(empty_database)

    for step in STEPS:
        psql(empty_database, "-f", str(SQL / f"{step}.sql"))

    assert catalog(empty_database) == before


@ports
def test_keys_and_indexes_that_are_there_are_not_made_twice(empty_database: Engine, port: Port) -> None:
    run(empty_database, port.label + port.seed)
    twice = text("""
        select conrelid::regclass || ' ' || array_to_string(conkey, ',') from pg_constraint
        where contype in ('f', 'u') and conrelid::regclass::text not like 'migration%'
        group by contype, conrelid, conkey having count(*) > 1
        union all
        select indrelid::regclass || ' index ' || cast(indkey as text) from pg_index
        where indnkeyatts = 1 and not indisunique
        group by indrelid, indkey, pg_get_expr(indpred, indrelid) having count(*) > 1
    """)

    schema.apply(empty_database)

    with empty_database.connect() as connection:
        assert list(connection.scalars(twice)) == []


@ports
def test_columns_that_a_ported_table_lacks_are_added(empty_database: Engine, port: Port) -> None:
    """Every wide column, default, key and index of the contract is there afterwards, whatever was there
    before.
    """
    run(empty_database, port.label + port.seed)

    schema.apply(empty_database)

    with empty_database.connect() as connection:
        narrow = connection.scalars(
            text("""
                select attname from pg_attribute join pg_class c on c.oid = attrelid
                where relkind = 'r' and attname like '%path' and atttypid = 'varchar'::regtype
            """)
        )
        assert list(narrow) == []
        keys = connection.scalars(
            text("""
                select array_to_string(array(
                    select attname from unnest(conkey) n join pg_attribute on attrelid = conrelid and attnum = n), ',')
                from pg_constraint where conrelid = 'sessions'::regclass and contype = 'f'
            """)
        )
        assert sorted(keys) == ["dataset_id", "project_id", "split_config_id"]
        connection.execute(text("insert into projects (project_name, participant_id) values ('new', 1)"))
        kind = connection.scalar(
            text("select cast(project_type as text) from projects where project_name = 'new'")
        )
        assert kind == "legacy"


@ports
def test_a_session_with_a_dangling_dataset_can_still_be_labelled(empty_database: Engine, port: Port) -> None:
    run(empty_database, port.label + port.seed)
    schema.apply(empty_database)

    with empty_database.begin() as connection:
        changed = connection.execute(text("update sessions set bouts = '[1]', keep = true, status = 'Split'"))

    assert changed.rowcount == 3


@ports
def test_an_update_of_a_row_sets_updated_at_in_a_ported_table(empty_database: Engine, port: Port) -> None:
    run(empty_database, port.label + port.seed)
    schema.apply(empty_database)

    with empty_database.begin() as connection:
        later = connection.scalar(
            text("with old as (select updated_at from raw_datasets) update raw_datasets set description = 'x' "
                 "returning updated_at > (select updated_at from old)")
        )  # fmt: skip

    assert later is True


@ports
def test_only_labels_own_tables_in_a_ported_form(empty_database: Engine, port: Port) -> None:
    run(empty_database, port.label)
    with empty_database.connect() as connection:
        query = text("select pg_relation_filenode('projects'), pg_relation_filenode('sessions')")
        before = connection.execute(query).one()

    schema.apply(empty_database)

    tables.require(empty_database)
    with empty_database.connect() as connection:
        assert connection.execute(query).one() == before
        assert set(connection.scalars(text("select project_type from projects"))) == {"legacy"}


def test_a_half_made_table_is_completed(empty_database: Engine) -> None:
    run(
        empty_database,
        PORTS[0].label
        + """
            alter table projects alter column path set not null;
            create table raw_datasets (
                dataset_id serial primary key, dataset_name text not null, dataset_hash text not null,
                file_path varchar(500) not null
            );
            create unique index on raw_datasets (dataset_hash);
        """,
    )

    schema.apply(empty_database)

    tables.require(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("update projects set path = null"))
        connection.execute(
            text("""
                insert into raw_datasets (dataset_name, dataset_hash, file_path, metadata) values ('d', 'h', '/d', '{}')
                on conflict (dataset_hash) do nothing
            """)
        )


def test_a_view_on_a_path_keeps_the_column_as_it_is_and_all_else_goes_on(empty_database: Engine) -> None:
    """PostgreSQL changes the type of no column that a view uses; a laboratory's view is not ours to drop."""
    run(
        empty_database,
        PORTS[0].label + PORTS[0].seed + "create view paths as select path, parent_session_data_path "
        "from projects join sessions using (project_id)",
    )

    schema.apply(empty_database)

    tables.require(empty_database)
    with empty_database.connect() as connection:
        kept = connection.scalars(
            text("select attname from pg_attribute where attrelid = 'paths'::regclass and atttypmod > 0")
        )
        assert sorted(kept) == ["parent_session_data_path", "path"]


def test_psql_says_which_column_keeps_its_limit(empty_database: Engine) -> None:
    run(empty_database, PORTS[0].label + "create view paths as select path from projects")

    said = psql(empty_database, "-f", str(SQL / "create_raw_datasets_tables.sql"))

    assert "projects.path keeps its limit of characters" in said
