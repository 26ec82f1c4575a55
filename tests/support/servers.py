"""Databases of the one PostgreSQL and of the one Valkey that all tests share."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from producer.local.stack import Stack
from worker.db import schema
from worker.db.engine import connect
from worker.db.retry import when_free
from worker.errors import MigratorError

REDIS_DATABASES = 1024

_TEMPLATE = "template_label"
_KEPT = ("schema_steps", "migration_state_arrows")
"""Tables that the schema itself fills."""

_CATALOG = (
    *("pg_attrdef", "pg_attribute", "pg_class", "pg_constraint", "pg_db_role_setting", "pg_default_acl"),
    *("pg_event_trigger", "pg_extension", "pg_index", "pg_namespace", "pg_policy", "pg_proc", "pg_rewrite"),
    *("pg_trigger", "pg_type", *_KEPT),
)
_BIG_BYTES = 16 << 20
"""A database that has grown so much would slow down whatever comes next."""

_numbers = itertools.count(1)
_redis_numbers = itertools.cycle(range(1, REDIS_DATABASES))


class Databases:
    """Databases with all tables, Label's and ours, and no rows.

    To make one takes half a second, to delete the few rows of a test a fiftieth of that. So the next test
    gets it again, unless its catalog has changed or many rows have left their room behind.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._free: list[str] = []
        self._cleaners: dict[str, Engine] = {}
        administer(stack, f"create database {_TEMPLATE}")
        with _engine(stack, _TEMPLATE) as engine:
            schema.apply(engine, with_baseline=True)
            self._catalog = _catalog(engine)

    @contextmanager
    def one(self) -> Iterator[Engine]:
        """An engine on a database for the time of a block."""
        name = self._free.pop() if self._free else create_database(self._stack, _TEMPLATE)
        with _engine(self._stack, name) as engine:
            yield engine
        if self._is_as_new(name):
            self._free.append(name)
        else:
            self._cleaners.pop(name).dispose()
            drop_database(self._stack, name)

    def _is_as_new(self, name: str) -> bool:
        """Throw out who is still connected and delete the rows; False when that is not enough.

        Each database keeps its connection for that: a new one has to learn all tables first.
        """
        if name not in self._cleaners:
            self._cleaners[name] = connect(url_of(self._stack, name), application_name="tests")
        engine = self._cleaners[name]
        try:
            with engine.begin() as conn:
                conn.execute(
                    text("""
                        select pg_terminate_backend(pid) from pg_stat_activity
                        where datname = current_database() and pid <> pg_backend_pid()""")
                )
                size_bytes = conn.scalar(text("select pg_database_size(current_database())"))
            if size_bytes > _BIG_BYTES or _catalog(engine) != self._catalog:
                return False
            forget_rows(engine)
        except (MigratorError, DBAPIError):
            return False
        return True

    def close(self) -> None:
        """Let the connections go."""
        for engine in self._cleaners.values():
            engine.dispose()


def _catalog(engine: Engine) -> list[tuple[object, ...]]:
    """What changes with every change of tables, triggers, rights and the like: how many rows, of which
    transactions.
    """
    each = " union all ".join(
        f"select count(*), sum(cast(cast(xmin as text) as bigint)) from {name}" for name in _CATALOG
    )
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(text(each))]


def forget_rows(engine: Engine) -> None:
    """Delete every row but those that the schema itself brings, and count ids from 1 again.

    Few rows are deleted in a fifth of the time in which many tables are truncated. Where a worker runs, its
    parent looks at several tables in one transaction. Whatever waits for both could close a circle with it,
    so this gives way long before the server looks for circles, and comes again.
    """

    def delete() -> None:
        with engine.begin() as conn:
            tables = conn.scalars(
                text(
                    "select quote_ident(tablename) from pg_tables where schemaname = 'public' and tablename <> all(:kept)"
                ),
                {"kept": list(_KEPT)},
            ).all()
            conn.execute(
                text("set local lock_timeout = '200ms'; set local session_replication_role = replica")
            )
            conn.execute(text("; ".join(f"delete from {table}" for table in tables)))
            conn.execute(
                text("""
                    select setval(format('%I.%I', schemaname, sequencename), start_value, false)
                    from pg_sequences where schemaname = 'public'""")
            )

    when_free(delete)


@contextmanager
def database_like(stack: Stack, template: str, options: str = "") -> Iterator[Engine]:
    """An engine on a new database, a copy of the template, that is dropped when the block ends."""
    name = create_database(stack, template, options)
    try:
        with _engine(stack, name) as engine:
            yield engine
    finally:
        drop_database(stack, name)


def create_database(stack: Stack, template: str, options: str = "") -> str:
    """Make a copy of a template; its name."""
    name = f"test_{next(_numbers)}"
    administer(stack, f"create database {name} template {template} {options}")
    return name


def drop_database(stack: Stack, name: str) -> None:
    """Drop a database, also one that has connections."""
    administer(stack, f"drop database {name} with (force)")


@contextmanager
def _engine(stack: Stack, database: str) -> Iterator[Engine]:
    engine = connect(url_of(stack, database), application_name="tests")
    try:
        yield engine
    finally:
        engine.dispose()


def administer(stack: Stack, statement: str) -> None:
    """Run one of the statements that PostgreSQL allows in no transaction."""
    engine = create_engine(url_of(stack, "postgres"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()


def url_of(stack: Stack, database: str) -> URL:
    """The address of one of the server's databases."""
    return make_url(stack.addresses.database_url).set(drivername="postgresql+psycopg2", database=database)


def empty_redis(stack: Stack) -> str:
    """The address of an empty Valkey database that no other test uses."""
    url = make_url(stack.addresses.redis_url).set(database=str(next(_redis_numbers)))
    plain = url.render_as_string(hide_password=False)
    with redis.Redis.from_url(plain) as client:
        client.flushdb()
    return plain
