"""Databases of the one PostgreSQL and of the one Valkey that all tests share. Knows no table."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from sqlalchemy import URL, Engine, create_engine, make_url, text

from producer.local.stack import Stack
from worker.db.engine import connect

TEMPLATE = "template_label"
REDIS_DATABASES = 1024
_numbers = itertools.count(1)
_redis_numbers = itertools.cycle(range(1, REDIS_DATABASES))


@contextmanager
def database_like(stack: Stack, template: str, options: str = "strategy file_copy") -> Iterator[Engine]:
    """An engine on a new database, a copy of the template, that is dropped when the block ends."""
    name = f"test_{next(_numbers)}"
    administer(stack, f"create database {name} template {template} {options}")
    engine = connect(url_of(stack, name), application_name="tests")
    try:
        yield engine
    finally:
        engine.dispose()
        administer(stack, f"drop database {name} with (force)")


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
