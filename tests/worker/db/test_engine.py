"""The door to PostgreSQL: what goes wrong there is said in our own words, and never with a password."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from tests.worker.db.rows import processes
from worker.db.engine import connect, when_free
from worker.errors import DatabaseBusyError, DatabaseUnavailableError, MigratorError, TransientError

pytestmark = pytest.mark.stack


def ask(engine: Engine, statement: str = "select 1") -> object:
    with engine.connect() as conn:
        return conn.execute(text(statement)).scalar()


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# Away -----------------------------------------------------------------------------------------------------------


def test_nothing_is_opened_before_it_is_needed(database: Engine):
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


def test_a_connection_that_the_server_ended_is_told_and_the_next_call_gets_a_new_one(database: Engine):
    with processes(database, 1) as (engine,):
        with engine.connect() as conn:
            pid = conn.scalar(text("select pg_backend_pid()"))
            ask(database, f"select pg_terminate_backend({pid}, 10000)")

            with pytest.raises(DatabaseUnavailableError, match=r"^Database connection failed: "):
                conn.execute(text("select 1"))

        assert ask(engine) == 1


def test_a_pooled_connection_that_the_server_ended_is_not_noticed_by_anybody(database: Engine):
    with processes(database, 1) as (engine,):
        pid = ask(engine, "select pg_backend_pid()")
        ask(database, f"select pg_terminate_backend({pid}, 10000)")

        assert ask(engine) == 1


# Busy -----------------------------------------------------------------------------------------------------------


def lock_one_row_each_then_the_others(engines: list[Engine]) -> list[BaseException | None]:
    """Two transactions that wait for each other; what each of them got for it."""
    both_hold_one = threading.Barrier(2)

    def lock(first: int, second: int) -> Callable[[Engine], None]:
        def locked(engine: Engine) -> None:
            with engine.begin() as conn:
                conn.execute(text("set local deadlock_timeout = '50ms'"))
                conn.execute(text(f"update numbers set number = number where number = {first}"))
                both_hold_one.wait(30)
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
def test_a_deadlock_is_something_that_passes(database: Engine):
    with processes(database, 2) as engines:
        errors = lock_one_row_each_then_the_others(engines)

    (error,) = (one for one in errors if one is not None)
    assert isinstance(error, DatabaseBusyError)
    assert isinstance(error, TransientError)
    assert str(error) == "The database could not finish the statement now: deadlock detected"


@pytest.mark.usefixtures("_numbers")
def test_a_lock_that_came_too_late_is_something_that_passes(database: Engine):
    with processes(database, 1) as (other,), database.begin() as holding:
        holding.execute(text("update numbers set number = 3 where number = 1"))

        with other.connect() as conn:
            conn.execute(text("select set_config('lock_timeout', '50ms', true)"))
            with pytest.raises(DatabaseBusyError, match="lock timeout"):
                conn.execute(text("update numbers set number = 4 where number = 1"))


@pytest.mark.usefixtures("_numbers")
def test_transactions_that_cannot_be_put_in_an_order_are_something_that_passes(database: Engine):
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


# Ours -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_numbers")
@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("insert into numbers values (1)", IntegrityError),
        ("select from nowhere", ProgrammingError),
        ("select", ProgrammingError),
    ],
)
def test_a_mistake_of_ours_is_left_as_it_is(database: Engine, statement: str, error: type[Exception]):
    with database.connect() as conn, pytest.raises(error) as raised:
        conn.execute(text(statement + (" 1 +" if statement == "select" else "")))

    assert not isinstance(raised.value, MigratorError)


def test_times_come_in_utc(database: Engine):
    with processes(database, 1) as (engine,):
        assert ask(engine, "show timezone") == "UTC"


def test_a_connection_says_whose_it_is(database: Engine):
    engine = connect(database.url, application_name="label-migrator worker 7")
    try:
        assert ask(engine, "show application_name") == "label-migrator worker 7"
    finally:
        engine.dispose()
