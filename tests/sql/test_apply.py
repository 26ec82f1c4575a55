"""Applying the steps: once, twice, at once, by psql, and when it goes wrong."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text

from tests.support.psql import EVERY_STEP, SQL, STEPS, catalog, contents, psql
from tests.support.waiting import PATIENCE_S, eventually
from worker.db import schema, sql_files, tables
from worker.db.engine import connect
from worker.errors import (
    DatabaseBusyError,
    DatabaseUnavailableError,
    PermanentError,
    SchemaMissingError,
)


@pytest.fixture
def sql_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of sql/ that the program uses in this test, to be changed by it."""
    folder = tmp_path / "sql"
    shutil.copytree(SQL, folder)
    monkeypatch.setattr(sql_files, "_folder", lambda: folder)
    return folder


def names(steps: list[schema.Step]) -> tuple[str, ...]:
    return tuple(step.name for step in steps)


# Once and twice ---------------------------------------------------------------------------------------------


def test_an_empty_database_gets_every_step_in_order(empty_database: Engine) -> None:
    applied = schema.apply(empty_database, with_baseline=True)

    assert names(applied) == EVERY_STEP
    assert {step.state for step in applied} == {"applied"}
    assert [step.checksum for step in applied] == [
        sha256((SQL / f"{name}.sql").read_bytes()).hexdigest() for name in EVERY_STEP
    ]
    assert schema.status(empty_database) == applied
    tables.require(empty_database)


def test_schema_steps_are_dated_in_utc(empty_database: Engine) -> None:
    (first, *_) = schema.apply(empty_database, with_baseline=True)

    assert first.applied_at is not None
    assert first.applied_at.utcoffset() == timedelta()
    assert abs(datetime.now(UTC) - first.applied_at) < timedelta(minutes=5)


def test_applying_twice_changes_nothing(empty_database: Engine) -> None:
    schema.apply(empty_database, with_baseline=True)
    before = catalog(empty_database), contents(empty_database, "schema_steps")

    assert schema.apply(empty_database, with_baseline=True) == []
    assert schema.apply(empty_database) == []

    assert (catalog(empty_database), contents(empty_database, "schema_steps")) == before


def test_a_fixture_database_is_the_same_as_a_new_one(database: Engine, empty_database: Engine) -> None:
    """So that other tests, which use clones, test what an operator has."""
    schema.apply(empty_database, with_baseline=True)

    assert catalog(database) == catalog(empty_database)


def test_labels_own_tables_are_made_on_request_only(empty_database: Engine) -> None:
    psql(empty_database, "-f", str(SQL / "label_app_baseline.sql"))

    applied = schema.apply(empty_database)

    assert names(applied) == STEPS
    assert names(schema.status(empty_database)) == STEPS


def test_two_callers_at_once_do_the_work_once(empty_database: Engine) -> None:
    start = threading.Barrier(2)

    def apply() -> list[schema.Step]:
        start.wait(timeout=PATIENCE_S)
        return schema.apply(empty_database, with_baseline=True)

    with ThreadPoolExecutor(2) as callers:
        both = [each.result(timeout=PATIENCE_S) for each in [callers.submit(apply) for _ in range(2)]]

    assert sorted(names(both[0]) + names(both[1])) == sorted(EVERY_STEP)
    tables.require(empty_database)


def test_a_caller_that_waits_for_another_asks_in_a_new_transaction_each_time(database: Engine) -> None:
    """The building of an index waits for whole transactions: it would wait for a caller that waits for it."""
    happened: list[str] = []

    @event.listens_for(database, "before_cursor_execute")
    def asked(*arguments: object) -> None:
        if "pg_try_advisory_xact_lock" in str(arguments[2]):
            happened.append("asked")

    event.listen(database, "rollback", lambda _: happened.append("ended"))
    with ThreadPoolExecutor(1) as callers:
        with database.connect() as other:
            schema._lock_steps(other)
            happened.clear()
            with database.begin() as connection:
                connection.execute(text("delete from schema_steps where name = 'create_indexes'"))
            waiting = callers.submit(schema.apply, database)
            eventually(lambda: happened.count("asked") > 1, "the lock was asked for twice")
            assert happened[happened.index("asked") :][:3] == ["asked", "ended", "asked"]
            other.rollback()
        assert names(waiting.result(timeout=PATIENCE_S)) == ("create_indexes",)


# psql -f ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--single-transaction",)], ids=["as it is", "in one transaction"])
def test_psql_makes_the_same_tables(
    empty_database: Engine, database: Engine, options: tuple[str, ...]
) -> None:
    for _ in ("once", "again"):
        for name in EVERY_STEP:
            # An index is not built beside others in a transaction with something else.
            these = () if name == sql_files.INDEXES else options
            psql(empty_database, *these, "-f", str(SQL / f"{name}.sql"))

    tables.require(empty_database)
    with database.begin() as connection:
        connection.execute(text("drop table schema_steps"))
    assert catalog(empty_database) == catalog(database)


def test_steps_applied_by_psql_are_unrecorded_and_may_be_applied_again(empty_database: Engine) -> None:
    for name in EVERY_STEP:
        psql(empty_database, "-f", str(SQL / f"{name}.sql"))

    assert {step.state for step in schema.status(empty_database)} == {"missing"}
    assert names(schema.apply(empty_database)) == STEPS
    assert {step.state for step in schema.status(empty_database)} == {"applied"}


def test_no_step_opens_or_ends_a_transaction_of_its_own() -> None:
    for name in EVERY_STEP:
        path = SQL / f"{name}.sql"
        statements = {line.strip().lower() for line in path.read_text().splitlines()}

        assert not statements & {"begin;", "commit;", "rollback;", "start transaction;"}, path.name


# Indexes of large tables ------------------------------------------------------------------------------------


def indexes(engine: Engine) -> dict[str, bool]:
    """Every index of the migrator's last step that is there, and whether it is valid."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("""
                select c.relname, i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid
                where c.relname ~ '^(migration_jobs_|sessions_(migration|dataset_id_idx|raw|split)|project_conversions_(place|dataset|hash))'
                  and not i.indisunique""")
        )
        return {row.relname: row.indisvalid for row in rows}


def test_nobody_waits_for_an_index_and_one_of_a_cancelled_build_is_built_again(database: Engine) -> None:
    all_of_them = indexes(database)
    with database.begin() as connection:
        for name in all_of_them:
            connection.execute(text(f"drop index {name}"))
        connection.execute(text("delete from schema_steps where name = 'create_indexes'"))
        connection.execute(text("insert into participants (participant_code) values ('P1')"))
        connection.execute(text("insert into projects (project_name, participant_id) values ('study', 1)"))
    builder = connect(database.url, application_name="cancelled", statement_limit_s=0.5)
    write = text("insert into sessions (project_id, session_name, start_ns, stop_ns) values (1, :name, 0, 1)")

    with database.connect() as person:
        # An index waits for those who have written to the table before, while others go on writing.
        person.execute(write, {"name": "walk"})
        with pytest.raises(DatabaseUnavailableError, match="canceling statement"):
            schema.apply(builder)
        with database.begin() as other:
            other.execute(text("set local lock_timeout = '100ms'"))
            other.execute(write, {"name": "run"})
        assert not all(indexes(database).values())
        person.rollback()
    builder.dispose()

    assert names(schema.apply(database)) == ("create_indexes",)
    assert indexes(database) == dict.fromkeys(all_of_them, True)


def test_an_index_that_is_gone_is_said_and_built_again_and_a_person_s_own_will_do(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("drop index migration_jobs_queued, sessions_dataset_id_idx"))
        connection.execute(text("create index of_a_person on sessions (dataset_id)"))

    (damaged,) = [step for step in schema.status(database) if step.state == "damaged"]
    assert damaged.gone == ("migration_jobs_queued",)
    assert names(schema.apply(database)) == ("create_indexes",)
    assert "sessions_dataset_id_idx" not in indexes(database)
    assert "migration_jobs_queued" in indexes(database)


def test_what_is_locked_and_for_how_long_is_said_before(database: Engine) -> None:
    assert schema.announce(database) == []
    with database.begin() as connection:
        connection.execute(text("delete from schema_steps where name ~ 'ledger|indexes'"))
    assert schema.announce(database) == []

    with database.begin() as connection:
        connection.execute(text("update pg_class set reltuples = 1000000 where relname = 'migration_jobs'"))
        connection.execute(text("update pg_class set reltuples = 20000000 where relname = 'sessions'"))

    locked, built = schema.announce(database)
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum sessions, migration_jobs"))
    assert (
        locked == "migration_jobs is locked against changes while its 1,000,000 jobs are counted, about 5 s"
    )
    assert built.startswith(
        "indexes of sessions (20,000,000 rows), migration_jobs (1,000,000 rows) are built while people"
    )


# Changed files ----------------------------------------------------------------------------------------------


def test_a_changed_step_is_applied_again_and_no_other(database: Engine, sql_folder: Path) -> None:
    path = sql_folder / "create_migration_ledger.sql"
    path.write_text(
        path.read_text() + "alter table dataset_claims add column if not exists claimed_by text;\n"
    )
    before = {step.name: step for step in schema.status(database)}

    assert before["create_migration_ledger"].state == "changed"
    assert before["create_raw_datasets_tables"].state == "applied"
    with pytest.raises(SchemaMissingError, match=r"dataset_claims\.claimed_by"):
        tables.require(database)

    (again,) = schema.apply(database)

    assert again.name == "create_migration_ledger"
    assert again.applied_at > before["create_migration_ledger"].applied_at
    assert again.checksum != sha256((SQL / path.name).read_bytes()).hexdigest()
    assert schema.apply(database) == []
    tables.require(database)


def test_a_changed_baseline_is_applied_again_where_it_was_asked_for_before(
    database: Engine, sql_folder: Path
) -> None:
    path = sql_folder / "label_app_baseline.sql"
    path.write_text(path.read_text() + "-- A remark.\n")

    assert names(schema.apply(database)) == ("label_app_baseline",)


# When it goes wrong -----------------------------------------------------------------------------------------


def test_a_step_that_fails_leaves_nothing_and_the_next_call_goes_on(
    empty_database: Engine, sql_folder: Path
) -> None:
    path = sql_folder / "create_raw_datasets_tables.sql"
    good = path.read_text()
    path.write_text(good + "select 1 / 0;\n")

    with pytest.raises(PermanentError, match=r"create_raw_datasets_tables was not applied.*division by zero"):
        schema.apply(empty_database, with_baseline=True)

    states = {step.name: step.state for step in schema.status(empty_database)}
    assert states == dict(zip(EVERY_STEP, ["applied", "applied", *["missing"] * 3], strict=True))
    with empty_database.connect() as connection:
        assert connection.scalar(text("select to_regclass('raw_datasets')")) is None

    path.write_text(good)
    assert names(schema.apply(empty_database)) == STEPS[1:]


def test_percent_signs_and_colons_in_a_file_mean_themselves(database: Engine, sql_folder: Path) -> None:
    path = sql_folder / "create_migration_ledger.sql"
    path.write_text(
        path.read_text() + "comment on table dataset_claims is '100 % of :them, %s and %(all)s';\n"
    )

    schema.apply(database)

    with database.connect() as connection:
        comment = connection.scalar(text("select obj_description('dataset_claims'::regclass)"))
    assert comment == "100 % of :them, %s and %(all)s"


def test_a_table_in_use_is_not_waited_for_without_end(
    database: Engine, sql_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody who needs the table would wait behind us."""
    monkeypatch.setattr(schema, "_PATIENCE_S", 0.1)
    path = sql_folder / "add_virtual_split_columns.sql"
    path.write_text(path.read_text() + "-- A remark.\n")

    with database.begin() as reader:
        reader.execute(text("select count(*) from sessions"))
        with pytest.raises(
            DatabaseBusyError, match=r"add_virtual_split_columns was not applied.*run producer"
        ):
            schema.apply(database)

    assert names(schema.apply(database)) == ("add_virtual_split_columns",)


def test_a_user_without_rights_gets_a_clear_error(database: Engine, sql_folder: Path) -> None:
    path = sql_folder / "add_virtual_split_columns.sql"
    path.write_text(path.read_text() + "-- A remark.\n")

    with (
        as_ordinary_user(database),
        pytest.raises(PermanentError, match="run producer schema apply as the owner of Label's tables"),
    ):
        schema.apply(database)


def test_a_user_without_rights_may_ask_when_there_is_nothing_to_do(database: Engine) -> None:
    with as_ordinary_user(database):
        assert schema.apply(database) == []
        assert names(schema.status(database)) == EVERY_STEP
        tables.require(database)


@contextmanager
def as_ordinary_user(engine: Engine) -> Iterator[None]:
    """Let the engine's new connections be those of a user who may use the database but owns nothing."""
    role = f"ordinary_{engine.url.database}"

    def become(connection, _record) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"set role {role}")
        connection.commit()

    with engine.begin() as connection:
        connection.execute(text(f"create role {role}"))
        connection.execute(text(f"grant all on all tables in schema public to {role}"))
    engine.dispose()
    event.listen(engine, "connect", become)
    try:
        yield
    finally:
        event.remove(engine, "connect", become)
        engine.dispose()
        with engine.begin() as connection:
            connection.execute(text(f"drop owned by {role}"))
            connection.execute(text(f"drop role {role}"))


# The files --------------------------------------------------------------------------------------------------


def test_an_installed_package_brings_its_own_sql_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel has sql/ inside the package, a checkout has it beside the package."""
    assert sql_files._folder() == SQL

    (tmp_path / "sql").mkdir()
    monkeypatch.setattr(sql_files.resources, "files", {"worker": tmp_path}.__getitem__)

    assert sql_files._folder() == tmp_path / "sql"
