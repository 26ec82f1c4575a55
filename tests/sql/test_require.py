"""`require`: the tables themselves are looked at, not the record of what was applied."""

import pytest
from sqlalchemy import Engine, event, text

from tests.support.psql import SQL, psql
from worker.db import schema, sql_files, tables
from worker.errors import SchemaMissingError


def complaint(engine: Engine) -> str:
    with pytest.raises(SchemaMissingError) as caught:
        tables.require(engine)
    return str(caught.value)


def test_a_database_without_labels_tables_is_called_the_wrong_one(empty_database: Engine) -> None:
    said = complaint(empty_database)

    assert f"'{empty_database.url.database}' on {empty_database.url.host} is not Label's" in said
    assert "no table projects and no table sessions" in said
    assert "DATABASE_URL" in said
    assert "raw_datasets" not in said


def test_tables_in_another_schema_or_with_capitals_are_named_with_the_remedy(
    empty_database: Engine,
) -> None:
    with empty_database.begin() as connection:
        connection.exec_driver_sql(
            'create schema "Lab"; create table "Lab".projects (); create table "Lab"."Sessions" ()'
        )
    said = complaint(empty_database)
    remedies = said.partition("if that is Label's: ")[2].partition("; producer schema apply")[0]

    assert "It has Lab.Sessions, Lab.projects" in said
    with empty_database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in remedies.split("; "):
            connection.exec_driver_sql(statement)
    # Connections know the search path from their beginning.
    empty_database.dispose()
    with empty_database.begin() as connection:
        tables.refuse_wrong_database(connection)


def test_nothing_is_created_in_a_wrong_database(empty_database: Engine) -> None:
    with pytest.raises(SchemaMissingError, match="is not Label's"):
        schema.apply(empty_database)

    with empty_database.connect() as connection:
        assert connection.scalar(text("select count(*) from pg_tables where schemaname = 'public'")) == 0


def test_the_error_about_tables_has_no_password(empty_database: Engine) -> None:
    password = empty_database.url.password

    assert password is None or str(password) not in complaint(empty_database)


def test_a_missing_table_or_column_is_named_with_the_remedy(empty_database: Engine) -> None:
    psql(empty_database, "-f", str(SQL / "label_app_baseline.sql"))

    said = complaint(empty_database)

    for missing in ("sessions.data_start_offset", "projects.legacy_path", "raw_datasets", "migration_jobs"):
        assert missing in said
    assert "producer schema apply" in said
    assert "raw_datasets.metadata" not in said  # its table is missing as a whole


@pytest.mark.parametrize(
    ("harm", "missing"),
    [
        ("alter table sessions drop column raw_session_name", "lacks sessions.raw_session_name."),
        ("alter table raw_datasets drop column metadata", "lacks raw_datasets.metadata."),
        ("drop table dataset_claims", "lacks dataset_claims."),
        ("drop table sessions cascade", "no table sessions."),
    ],
)
def test_a_recorded_step_without_its_tables_is_not_enough(database: Engine, harm: str, missing: str) -> None:
    with database.begin() as connection:
        connection.execute(text(harm))

    assert missing in complaint(database)
    damaged = [step for step in schema.status(database) if step.state == "damaged"]
    tables_gone = [gone for step in damaged if step.name != sql_files.INDEXES for gone in step.gone]
    assert all(gone in harm.replace(" drop column ", ".") for gone in tables_gone)
    assert damaged


@pytest.mark.parametrize(
    "harm", ["alter table raw_datasets drop column metadata", "drop table migration_blob_checks"]
)
def test_a_table_that_is_gone_comes_back_by_applying_again(database: Engine, harm: str) -> None:
    with database.begin() as connection:
        connection.execute(text(harm))

    assert len(schema.apply(database)) == 1

    tables.require(database)
    assert schema.apply(database) == []


def test_a_column_that_no_step_adds_again_is_named(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("alter table migration_jobs drop column phase"))

    assert "lacks migration_jobs.phase" in complaint(database)
    with pytest.raises(SchemaMissingError, match=r"migration_jobs\.phase is not there"):
        schema.apply(database)


def test_tables_without_a_recorded_step_are_enough(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("drop table schema_steps"))

    tables.require(database)


def test_all_that_the_steps_make_is_required(database: Engine, empty_database: Engine) -> None:
    """`require` reads from the files what they make: no table, and no column added to Label's own, may escape
    it.
    """
    psql(empty_database, "-f", str(SQL / "label_app_baseline.sql"))
    tables = text(
        "select tablename from pg_tables where schemaname = 'public' and tablename <> 'schema_steps'"
    )
    columns = text("""
        select table_name || '.' || column_name from information_schema.columns
        where table_name in ('projects', 'sessions')
    """)
    with database.connect() as after, empty_database.connect() as before:
        made = set(after.scalars(tables)) - set(before.scalars(tables))
        added = set(after.scalars(columns)) - set(before.scalars(columns))

    needed = list(sql_files.needed())

    assert {table for table, column in needed if column is None} == made
    assert {f"{table}.{column}" for table, column in needed if table in {"projects", "sessions"}} == added


def test_requiring_the_tables_takes_one_query(database: Engine) -> None:
    statements = []
    event.listen(database, "before_cursor_execute", lambda *args: statements.append(args[2]))

    tables.require(database)

    assert len(statements) == 1
