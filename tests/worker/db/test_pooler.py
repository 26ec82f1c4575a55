"""What every connection of ours has set counts behind a pooler, too, and stays on none of its connections."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL

from tests.support.pooler import pgbouncer
from worker.db import schema
from worker.db.engine import autocommit, connect, is_pooled
from worker.db.pooler import parsed
from worker.errors import DatabaseRefusedError, DatabaseUnavailableError


@contextmanager
def engine_at(url: URL, **options: float) -> Iterator[Engine]:
    engine = connect(url, application_name="tests", **options)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(scope="module", params=[False, True], ids=["refuses options", "ignores options"])
def ignores_options(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def pooled(database: Engine, *, ignores_options: bool) -> Iterator[URL]:
    """Give the address of a pooler with one connection to the test's database."""
    with pgbouncer(database.url, connections=1, ignores_options=ignores_options) as url:
        yield url


ASKED = {
    "row_security": "off",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "7s",
    "transaction_isolation": "read committed",
    "IntervalStyle": "postgres",
}


def said(url: URL, name: str) -> str:
    """What another client of the pooler finds set."""
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg2.connect(address)) as conn, conn.cursor() as cursor:
        cursor.execute(f"show {name}")
        return str(cursor.fetchone()[0])  # type: ignore[index]


def test_what_is_ours_is_set_in_each_transaction_and_stays_on_no_connection(pooled: URL, database: Engine):
    with database.begin() as conn:
        name = conn.engine.url.database
        conn.execute(text(f"alter database {name} set default_transaction_isolation = 'serializable'"))
        conn.execute(text(f"alter database {name} set lock_timeout = '3s'"))
    with engine_at(pooled, idle_limit_s=7) as engine:
        for _ in range(2):
            with engine.connect() as conn:
                found = {setting: conn.scalar(text(f"show {setting}")) for setting in ASKED}
            assert found == ASKED
            with autocommit(engine) as conn:
                found = {setting: conn.scalar(text(f"show {setting}")) for setting in ASKED}
            assert found == ASKED
        assert is_pooled(engine)
    assert said(pooled, "row_security") == "on"
    assert said(pooled, "lock_timeout") == "3s"


def test_what_a_transaction_sets_for_itself_counts_to_its_end(pooled: URL):
    with engine_at(pooled) as engine:
        with engine.begin() as conn:
            conn.execute(text("set local lock_timeout = '400ms'"))
            conn.execute(text("select 1"))
            assert conn.scalar(text("show lock_timeout")) == "400ms"
        with engine.begin() as conn:
            assert conn.scalar(text("show lock_timeout")) == "0"


def test_the_operators_search_path_counts(pooled: URL, database: Engine):
    with database.begin() as conn:
        conn.execute(text('create schema "lab 1"; create table "lab 1".here ()'))
    options = r'-csearch_path="lab\ 1",public --work_mem=3MB -c geqo=off'
    with engine_at(pooled.update_query_dict({"options": options})) as engine, engine.connect() as conn:
        assert conn.scalar(text("select current_schemas(false)")) == ["lab 1", "public"]
        assert conn.scalar(text("show work_mem")) == "3MB"
        assert conn.scalar(text("show geqo")) == "off"


def test_a_percent_sign_in_an_option_is_one(pooled: URL):
    given = pooled.update_query_dict({"options": "-clabel.note=100%"})
    with engine_at(given) as engine, autocommit(engine) as conn:
        assert conn.scalar(text("select current_setting('label.note') || :other"), {"other": "%"}) == "100%%"


def test_without_a_pooler_all_travels_with_the_connection(database: Engine):
    with engine_at(database.url) as engine, engine.connect() as conn:
        assert conn.scalar(text("show row_security")) == "off"
        assert not is_pooled(engine)
        conn.rollback()
        with closing(conn.connection.cursor()) as cursor:
            cursor.execute("show row_security")
            assert cursor.fetchone() == ("off",)


def test_all_tables_and_indexes_are_made_through_a_pooler(empty_database: Engine):
    with pgbouncer(empty_database.url, connections=2) as url, engine_at(url) as engine:
        schema.apply(engine, with_baseline=True)

        assert {step.state for step in schema.status(engine)} == {"applied"}
    with empty_database.connect() as conn:
        assert conn.scalar(text("select count(*) from pg_index where not indisvalid")) == 0


def test_a_server_that_is_away_is_no_pooler(database: Engine):
    with engine_at(database.url.set(port=1)) as engine, pytest.raises(DatabaseUnavailableError):
        engine.connect()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("-c a=1 -cb=2 --c-d=3", {"a": "1", "b": "2", "c_d": "3"}),
        ("-c a=1 -c a=2", {"a": "2"}),
        (r"-c a=with\ space\\", {"a": "with space\\"}),
        ("-c a=b=c", {"a": "b=c"}),
    ],
)
def test_options_are_read_as_postgresql_reads_them(options: str, settings: dict[str, str]):
    assert parsed(options) == settings


@pytest.mark.parametrize("options", ["-e", "-c", "-c a", "-d 5", "a;b=c"])
def test_an_option_that_is_no_setting_is_refused(options: str):
    with pytest.raises(DatabaseRefusedError, match="A pooler answers"):
        parsed(options)
