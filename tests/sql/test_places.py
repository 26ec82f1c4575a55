"""Label's tables in a schema of any name, copies of them beside it, and people at work in them while a step
is applied.
"""

import threading
import time

import pytest
from sqlalchemy import Engine, text

from tests.support.psql import EVERY_STEP, SQL, STEPS, psql
from worker.db import schema, tables
from worker.db.engine import connect
from worker.errors import RowsHiddenError, SchemaMissingError

PATHS = ("public, label", "label", '"$user", public, label')


def make_label_tables(engine: Engine, name: str) -> None:
    """Label's own tables in a schema of this name."""
    psql(
        engine,
        "-c",
        f"create schema if not exists {name}; set search_path = {name}",
        "-f",
        str(SQL / "label_app_baseline.sql"),
    )


def run(engine: Engine, statements: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statements)


def alter_path(engine: Engine, path: str) -> None:
    run(engine, f"alter database {engine.url.database} set search_path = {path}")
    engine.dispose()


def things_in(engine: Engine, name: str) -> set[str]:
    """Tables and functions of a schema."""
    query = text("""
        select relname::text from pg_class where relnamespace = to_regnamespace(:name) and relkind = 'r'
        union select proname::text from pg_proc where pronamespace = to_regnamespace(:name)""")
    with engine.connect() as connection:
        return set(connection.scalars(query, {"name": name}))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("by_psql", [False, True], ids=["producer", "psql"])
def test_all_tables_are_made_in_the_schema_of_label(
    empty_database: Engine, path: str, *, by_psql: bool
) -> None:
    make_label_tables(empty_database, "label")
    alter_path(empty_database, path)

    if by_psql:
        for step in STEPS:
            psql(empty_database, "-f", str(SQL / f"{step}.sql"))
    else:
        assert [step.name for step in schema.apply(empty_database)] == list(STEPS)

    tables.require(empty_database)
    assert things_in(empty_database, "public") == set()
    assert {"raw_datasets", "migration_jobs", "migration_check_arrow"} <= things_in(empty_database, "label")
    assert {step.state for step in schema.status(empty_database)} == {"missing" if by_psql else "applied"}


def test_a_role_gets_its_rights_in_the_schema_of_label(empty_database: Engine) -> None:
    make_label_tables(empty_database, "label")
    alter_path(empty_database, "public, label")
    schema.apply(empty_database)
    role = f"placed_{empty_database.url.database}"

    psql(empty_database, "-v", f"migrator={role}", "-f", str(SQL / "create_migrator_role.sql"))

    with empty_database.begin() as connection:
        try:
            assert connection.scalar(text(f"select has_schema_privilege('{role}', 'label', 'usage')"))
            assert connection.scalar(
                text(f"select has_table_privilege('{role}', 'label.migration_runs', 'insert')")
            )
        finally:
            connection.execute(text(f"drop owned by {role}; drop role {role}"))


def test_of_two_copies_of_label_the_one_in_the_url_is_changed(empty_database: Engine) -> None:
    for name in ("label", "public"):
        make_label_tables(empty_database, name)
    alter_path(empty_database, "public, label")
    before = things_in(empty_database, "public")

    for call in (schema.apply, schema.status, tables.require):
        with pytest.raises(SchemaMissingError, match=r"more than once: .* public and label"):
            call(empty_database)

    chosen = connect(
        empty_database.url.update_query_dict({"options": "-csearch_path=label"}), application_name="tests"
    )
    try:
        schema.apply(chosen)
        tables.require(chosen)
    finally:
        chosen.dispose()
    assert things_in(empty_database, "public") == before
    assert "raw_datasets" in things_in(empty_database, "label")


def test_tables_that_were_made_in_another_schema_are_named_with_the_way_to_label(
    empty_database: Engine,
) -> None:
    """As an earlier version made them: in the first schema of the search path, wherever Label's own are."""
    make_label_tables(empty_database, "label")
    alter_path(empty_database, "label")
    schema.apply(empty_database)
    run(empty_database, "alter table label.raw_datasets set schema public")
    alter_path(empty_database, "public, label")

    with pytest.raises(
        SchemaMissingError,
        match=r"finds public\.raw_datasets\. .* alter table public\.raw_datasets set schema label",
    ):
        tables.require(empty_database)
    with pytest.raises(SchemaMissingError, match=r"public\.raw_datasets"):
        schema.apply(empty_database)

    run(empty_database, "alter table public.raw_datasets set schema label")
    tables.require(empty_database)
    assert schema.apply(empty_database) == []


def test_policies_that_would_hide_rows_are_refused_before_anything_is_done(database: Engine) -> None:
    role = f"blind_{database.url.database}"
    run(
        database,
        f"create role {role} login password 'pass'; grant select on all tables in schema public to {role};"
        "alter table sessions enable row level security; create policy few on sessions using (session_id < 2)",
    )
    blind = connect(database.url.set(username=role, password="pass"), application_name="tests")  # noqa: S106 - made up
    try:
        with pytest.raises(RowsHiddenError, match="hides rows of sessions from our role"):
            tables.require(blind)
        run(database, f"alter role {role} bypassrls")
        blind.dispose()
        tables.require(blind)
    finally:
        blind.dispose()
        run(database, f"drop owned by {role}; drop role {role}")


def test_files_are_in_ascii_so_that_a_database_of_any_encoding_takes_them() -> None:
    for name in (*EVERY_STEP, "create_migrator_role"):
        assert (SQL / f"{name}.sql").read_bytes().isascii(), name


def test_applying_the_schema_never_ends_a_person_s_transaction(database: Engine) -> None:
    """A person has read sessions and then changes a project, as a split does, while a step has the projects
    and wants the sessions: PostgreSQL would end the one of the two that has waited for `deadlock_timeout`.
    """
    applied: list[list[schema.Step]] = []
    applying = threading.Thread(target=lambda: applied.append(schema.apply(database)))
    waits = text(
        "select count(*) from pg_locks where not granted and relation in ('sessions'::regclass, 'projects'::regclass)"
    )
    run(database, "update schema_steps set checksum = '' where name = 'create_raw_datasets_tables'")

    person = connect(database.url, application_name="a person")
    try:
        with person.begin() as at_work:
            at_work.execute(text("select count(*) from sessions"))
            applying.start()
            deadline = time.monotonic() + 20
            while not at_work.scalar(waits):
                assert time.monotonic() < deadline, "the step never came to the table"
            # Longer than `deadlock_timeout`: a step that still waits has looked for a circle already, and
            # will not again.
            at_work.execute(text("select pg_sleep(1.2)"))
            at_work.execute(text("update projects set project_name = project_name"))
        applying.join(30)
    finally:
        person.dispose()

    assert [step.name for step in applied[0]] == ["create_raw_datasets_tables"]
