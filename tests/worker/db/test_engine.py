"""The door to PostgreSQL: what goes wrong there is said in our own words, and never with a password."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import URL, Engine, text

from producer.local.servers import free_port
from tests.support.ledger_rows import processes
from tests.support.waiting import PATIENCE_S
from worker.db import projects
from worker.db.engine import connect
from worker.db.retry import GIVE_WAY, when_free
from worker.errors import (
    DatabaseBusyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    RowsHiddenError,
    SequenceBehindError,
    TransientError,
)


def ask(engine: Engine, statement: str = "select 1") -> object:
    with engine.connect() as conn:
        return conn.execute(text(statement)).scalar()


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# Away -------------------------------------------------------------------------------------------------------


def test_no_connection_is_opened_before_it_is_needed(database: Engine):
    connect(database.url.set(port=unused_port()), application_name="tests").dispose()


def test_a_server_that_is_not_there_is_named_by_host_and_port_and_nothing_else(database: Engine):
    port = unused_port()
    url = database.url.set(host="127.0.0.1", port=port, username="label", password="s3cret")  # noqa: S106
    engine = connect(url, application_name="tests")

    with pytest.raises(
        DatabaseUnavailableError, match=f"^Database connection failed: 127.0.0.1:{port}: .*Connection refused"
    ) as raised:
        ask(engine)

    assert "s3cret" not in str(raised.value)
    assert "label" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, TransientError)


def test_a_host_that_has_no_address_is_named(database: Engine):
    url = database.url.set(host="no-such-host.invalid", password="s3cret")  # noqa: S106 - made up
    engine = connect(url, application_name="tests")

    with pytest.raises(
        DatabaseUnavailableError,
        match=rf"^Database connection failed: no-such-host\.invalid:{database.url.port}: ",
    ) as raised:
        ask(engine)

    assert "s3cret" not in str(raised.value)


def test_a_wrong_password_is_not_repeated(database: Engine):
    engine = connect(database.url.set(password="wr0ng-s3cret"), application_name="tests")  # noqa: S106 - made up

    with pytest.raises(DatabaseUnavailableError, match="password authentication failed") as raised:
        ask(engine)

    assert "wr0ng" not in str(raised.value)


def test_a_database_that_does_not_exist_is_named(database: Engine):
    engine = connect(database.url.set(database="nowhere"), application_name="tests")

    with pytest.raises(DatabaseUnavailableError, match='database "nowhere" does not exist'):
        ask(engine)


def test_a_connection_that_the_server_ended_is_an_error_and_the_next_one_is_new(database: Engine):
    with processes(database, 1) as (engine,):
        with engine.connect() as conn:
            pid = conn.scalar(text("select pg_backend_pid()"))
            ask(database, f"select pg_terminate_backend({pid}, 10000)")

            with pytest.raises(DatabaseUnavailableError, match=r"^Database connection failed: "):
                conn.execute(text("select 1"))

        assert ask(engine) == 1


@pytest.mark.usefixtures("every_connection_is_pinged")
def test_a_pooled_connection_that_the_server_ended_is_replaced_unnoticed(database: Engine):
    with processes(database, 1) as (engine,):
        pid = ask(engine, "select pg_backend_pid()")
        ask(database, f"select pg_terminate_backend({pid}, 10000)")

        assert ask(engine) == 1


# Busy -------------------------------------------------------------------------------------------------------


def lock_one_row_each_then_the_others(engines: list[Engine]) -> list[BaseException | None]:
    """Two transactions that wait for each other; what each of them got for it."""
    both_hold_one = threading.Barrier(2)

    def lock(first: int, second: int) -> Callable[[Engine], None]:
        def locked(engine: Engine) -> None:
            with engine.begin() as conn:
                conn.execute(text("set local deadlock_timeout = '50ms'"))
                conn.execute(text(f"update numbers set number = number where number = {first}"))
                both_hold_one.wait(PATIENCE_S)
                conn.execute(text(f"update numbers set number = number where number = {second}"))

        return locked

    with ThreadPoolExecutor(2) as threads:
        waiting = [
            threads.submit(call, engine)
            for call, engine in zip((lock(1, 2), lock(2, 1)), engines, strict=True)
        ]
        return [one.exception(30) for one in waiting]


@pytest.fixture
def _numbers(database: Engine) -> None:
    with database.begin() as conn:
        conn.execute(text("create table numbers (number integer primary key)"))
        conn.execute(text("insert into numbers values (1), (2)"))


@pytest.mark.usefixtures("_numbers")
def test_a_deadlock_is_a_transient_error(database: Engine):
    with processes(database, 2) as engines:
        errors = lock_one_row_each_then_the_others(engines)

    (error,) = (one for one in errors if one is not None)
    assert isinstance(error, DatabaseBusyError)
    assert isinstance(error, TransientError)
    assert str(error) == "The database could not finish the statement now: deadlock detected"


@pytest.mark.usefixtures("_numbers")
def test_a_lock_that_came_too_late_is_a_transient_error(database: Engine):
    with processes(database, 1) as (other,), database.begin() as holding:
        holding.execute(text("update numbers set number = 3 where number = 1"))

        with other.connect() as conn:
            conn.execute(text("select set_config('lock_timeout', '50ms', true)"))
            with pytest.raises(DatabaseBusyError, match="lock timeout"):
                conn.execute(text("update numbers set number = 4 where number = 1"))


@pytest.mark.usefixtures("_numbers")
def test_a_serialization_failure_is_a_transient_error(database: Engine):
    with processes(database, 1) as (other,), other.connect() as conn:
        conn.execution_options(isolation_level="REPEATABLE READ")
        conn.execute(text("select * from numbers"))
        with database.begin() as faster:
            faster.execute(text("update numbers set number = 3 where number = 1"))

        with pytest.raises(DatabaseBusyError, match="could not serialize access"):
            conn.execute(text("update numbers set number = 4 where number = 1"))


def test_a_transaction_that_gave_way_is_done_again():
    given_way: list[int] = []

    def transaction() -> str:
        if len(given_way) < 2:
            given_way.append(1)
            raise DatabaseBusyError("deadlock detected")
        return "done"

    assert when_free(transaction) == "done"


def test_a_transaction_that_failed_otherwise_is_not_done_again():
    tries: list[int] = []

    def transaction() -> None:
        tries.append(1)
        raise DatabaseUnavailableError("Database connection failed")

    with pytest.raises(DatabaseUnavailableError):
        when_free(transaction)

    assert tries == [1]


# Refused ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_numbers")
@pytest.mark.parametrize(
    ("statement", "sqlstate"),
    [
        ("insert into numbers values (1), (2)", "23505"),
        ("select from nowhere", "42P01"),
        ("select 1 +", "42601"),
        ("select cast('a secret' as integer)", "22P02"),
    ],
)
def test_a_refusal_is_reported_without_the_statement_and_its_values(
    database: Engine, statement: str, sqlstate: str
):
    with database.connect() as conn, pytest.raises(DatabaseRefusedError) as raised:
        conn.execute(text(statement))

    assert raised.value.sqlstate == sqlstate
    assert sqlstate in str(raised.value)
    for told in ("SQL:", "select 1", "insert", "Key (", "LINE 1", "parameters", "a secret", "\n"):
        assert told not in str(raised.value)


@pytest.mark.parametrize("sqlstate", ["25006", "53100", "53200", "53300", "57014", "57P03", "58030", "08006"])
def test_a_server_that_answers_that_it_cannot_work_is_a_transient_error(database: Engine, sqlstate: str):
    """As a standby, a full disk or an administrator would make it answer."""
    refuse = (
        f"do $$ begin raise exception 'not now' using errcode = '{sqlstate}', detail = 'a secret'; end $$"
    )

    with (
        database.connect() as conn,
        pytest.raises(
            DatabaseUnavailableError, match=rf"^The database takes no work now: .*not now .*{sqlstate}"
        ) as raised,
    ):
        conn.execute(text(refuse))

    assert "secret" not in str(raised.value)


def test_a_database_closed_for_writing_takes_no_work_and_may_be_read(database: Engine):
    alter(database, "set default_transaction_read_only = on")

    with processes(database, 1) as (engine,):
        assert ask(engine, "select count(*) from projects") == 0
        with pytest.raises(DatabaseUnavailableError, match="read-only transaction"), engine.begin() as conn:
            conn.execute(text("delete from projects"))


def test_rows_that_a_policy_hides_are_refused_and_not_taken_for_absent(database: Engine):
    with ordinary_role(database) as role:
        with database.begin() as conn:
            conn.execute(
                text(
                    f"grant select on projects to {role}; alter table projects enable row level security;"
                    "create policy own on projects using (project_id = 1)"
                )
            )
        with (
            engine_as(database, role) as engine,
            pytest.raises(RowsHiddenError, match='"projects"'),
        ):
            ask(engine, "select count(*) from projects")


def test_a_sequence_behind_its_table_is_reported_with_the_statement_that_corrects_it(database: Engine):
    add = "insert into raw_datasets (dataset_name, dataset_hash, file_path) values ('d', md5('{0}'), '/{0}')"
    with database.begin() as conn:
        conn.execute(text("alter sequence raw_datasets_dataset_id_seq restart with 1"))
        conn.execute(
            text(
                "insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path) values (1, 'd', 'h', '/')"
            )
        )

    with database.begin() as conn, pytest.raises(SequenceBehindError, match=r"select setval\(") as raised:
        conn.execute(text(add.format("x")))

    remedy = str(raised.value).partition("owner: ")[2]
    with database.begin() as conn:
        conn.execute(text(remedy))
        conn.execute(text(add.format("x")))
    with database.begin() as conn, pytest.raises(DatabaseRefusedError, match="dataset_hash_key"):
        conn.execute(text(add.format("x")))


# What counts ------------------------------------------------------------------------------------------------


def alter(database: Engine, change: str) -> None:
    with database.begin() as conn:
        conn.execute(text(f"alter database {database.url.database} {change}"))


@contextmanager
def ordinary_role(database: Engine) -> Iterator[str]:
    """A role that owns nothing, for one test."""
    role = f"ordinary_{database.url.database}"
    with database.begin() as conn:
        conn.execute(text(f"create role {role} login password 'pass'"))
    try:
        yield role
    finally:
        with database.begin() as conn:
            conn.execute(text(f"drop owned by {role}; drop role {role}"))


@contextmanager
def engine_as(database: Engine, role: str) -> Iterator[Engine]:
    engine = connect(database.url.set(username=role, password="pass"), application_name="tests")  # noqa: S106 - made up
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    ("query", "environment"),
    [
        ({"options": "-csearch_path=elsewhere"}, {}),
        ({"options": "-c search_path=elsewhere -c statement_timeout=1"}, {}),
        ({}, {"PGOPTIONS": "-c search_path=elsewhere"}),
        ({"options": "-csearch_path=elsewhere"}, {"PGOPTIONS": "-c search_path=nowhere"}),
    ],
)
def test_the_operators_options_count_and_ours_where_they_must(
    database: Engine, monkeypatch: pytest.MonkeyPatch, query: dict[str, str], environment: dict[str, str]
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = database.url.update_query_dict({**query, "connect_timeout": "7", "application_name": "mine"})
    engine = connect(url, application_name="ours", idle_limit_s=9)
    try:
        assert ask(engine, "show search_path") == "elsewhere"
        assert ask(engine, "show statement_timeout") == "0"
        assert ask(engine, "show idle_in_transaction_session_timeout") == "9s"
        assert ask(engine, "show application_name") == "ours mine"
        with engine.connect() as conn:
            assert conn.connection.driver_connection.info.dsn_parameters["connect_timeout"] == "7"
    finally:
        engine.dispose()


def test_settings_of_a_role_or_a_database_do_not_leak_in(database: Engine):
    theirs = {
        "statement_timeout": "40ms",
        "lock_timeout": "1ms",
        "idle_in_transaction_session_timeout": "40ms",
        "transaction_timeout": "40ms",
        "default_transaction_isolation": "serializable",
        "bytea_output": "escape",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "sql_standard",
        "standard_conforming_strings": "off",
        "row_security": "on",
        "client_encoding": "LATIN1",
        "quote_all_identifiers": "on",
    }
    for name, value in theirs.items():
        alter(database, f"set {name} = '{value}'")

    with processes(database, 1) as (engine,):
        for name, value in theirs.items():
            assert ask(engine, f"show {name}") != value, name
        with engine.begin() as conn:
            conn.execute(text("select pg_sleep(0.1)"))
        assert bytes(ask(engine, "select bytea '\\x00ff'")) == b"\x00\xff"


def test_times_come_in_utc_and_are_written_in_the_databases_own_zone(database: Engine):
    """A column without zone gets what it gets from Label's own sessions."""
    alter(database, "set timezone = 'Asia/Kathmandu'")

    with processes(database, 1) as (engine,), engine.connect() as conn:
        row = conn.execute(
            text(
                "select now() as read, extract(epoch from localtimestamp - now() at time zone 'utc') as ahead"
            )
        ).one()

    assert row.read.utcoffset() == timedelta()
    assert float(row.ahead) == 5.75 * 3600


def test_nothing_that_is_set_stays_on_a_connection(database: Engine):
    """A pooler gives it to others."""
    changed = text("select name from pg_settings where source = 'session' order by 1")
    with processes(database, 1) as (engine,):
        for _ in range(2):
            with engine.begin() as conn:
                conn.execute(text(GIVE_WAY))
                assert projects.lock(conn, 1) is None
            with engine.begin() as conn:
                assert list(conn.scalars(changed)) == []


def test_a_connection_has_the_name_of_its_process(database: Engine):
    engine = connect(database.url, application_name="label-migrator worker 7")
    try:
        assert ask(engine, "show application_name") == "label-migrator worker 7"
    finally:
        engine.dispose()


def test_of_several_hosts_the_one_that_can_be_written_to_is_meant(database: Engine):
    closed_port = free_port()
    with database.begin() as conn:
        conn.execute(text(f"alter database {database.url.database} set default_transaction_read_only = on"))
    own = database.url
    host, port = str(own.host), str(own.port)
    nowhere_and_here = {"host": f"{host},{host}", "port": f"{closed_port},{port}"}
    several = URL.create(
        own.drivername, own.username, own.password, database=own.database, query=nowhere_and_here
    )
    anything = several.update_query_dict({"target_session_attrs": "any"})

    for url, is_taken in ((database.url, True), (several, False), (anything, True)):
        engine = connect(url, application_name="tests")
        try:
            if is_taken:
                with engine.connect() as conn:
                    assert conn.scalar(text("show transaction_read_only")) == "on"
                continue
            where = rf"^Database connection failed: {host}:{closed_port}, {host}:{port}: "
            with pytest.raises(DatabaseUnavailableError, match=where):
                engine.connect()
        finally:
            engine.dispose()
