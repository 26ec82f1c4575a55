"""What tests stand on: a real PostgreSQL and a real Valkey, started once a run, and real processes of ours.

A test that needs rows takes `database` (an engine on a database of its own, tables made), or `empty_database`. One that
needs more of the world takes `site`, or its parts: `settings`, `settings_env`, `data_dir`, `legacy_root`, `redis_url`,
`run_producer`, `workers`. Starting a worker takes seconds; tests that can share one take `shared_site`, which belongs to the
module, has a worker running, and is emptied before each test.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import redis
from sqlalchemy import URL, Engine, create_engine, make_url, text

from producer.local.child_process import Child
from producer.local.stack import Addresses, Stack, run_workers
from producer.local.stack import stack as local_stack
from tests.support.waiting import PATIENCE_S
from worker.db import engine as engine_module
from worker.db import schema
from worker.db.engine import connect, when_free
from worker.settings import Settings

TEMPLATE = "template_label"
LEASE_S = 5
_REDIS_DATABASES = 1024
_names = (f"test_{number}" for number in itertools.count(1))
_redis_numbers = itertools.cycle(range(1, _REDIS_DATABASES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One installation of the migrator: its own database, broker, store and legacy projects, and processes that use them."""

    engine: Engine
    redis_url: str
    folder: Path
    data_dir: Path
    legacy_root: Path
    env: dict[str, str]
    settings: Settings

    def run_producer(
        self, *args: str, timeout_s: float = PATIENCE_S, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `producer` as an operator does, in a directory of its own; `env` adds to the site's environment."""
        return subprocess.run(
            [sys.executable, "-m", "producer", *args],
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def workers(
        self, count: int = 1, *, concurrency: int = 1, **env: str
    ) -> AbstractContextManager[list[Child]]:
        """Run real workers that take tasks when the block begins; their logs are in the site's folder."""
        return run_workers(
            {**self.env, **env},
            count,
            concurrency=concurrency,
            log_folder=self.folder,
            name=f"{next(_names)}-worker",
            stop_within_s=20,
        )

    def empty(self) -> None:
        """Forget all rows and files, but keep tables and running workers."""
        _truncate(self.engine)
        for folder in (self.data_dir, self.legacy_root):
            _remove(folder)
            folder.mkdir()


# The fast tier --------------------------------------------------------------------------------------------------

hypothesis.settings.register_profile("fast", max_examples=10)


@pytest.fixture(scope="session")
def _starts_servers() -> None:
    """Whatever starts a server, or a browser, asks for this: by it `make test-fast` knows what to leave out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need servers: those that ask, directly or through others, for `_starts_servers`."""
    for item in items:
        if "_starts_servers" in getattr(item, "fixturenames", ()):
            item.add_marker("servers")


# The servers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _connections_are_always_pinged() -> Iterator[None]:
    """Tests end connections from the server's side and ask again at once, sooner than any restart of a server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "_PING_AFTER_S", 0.0)
        yield


@pytest.fixture(scope="session")
def stack(_starts_servers: None) -> Iterator[Stack]:
    """PostgreSQL and Valkey, once a run. A server that does not start is an error, never a skip."""
    # Not below pytest's own temporary directory: that is closed to the user whom root runs PostgreSQL as.
    folder = Path(tempfile.mkdtemp(prefix="label-tests-"))
    try:
        with local_stack(
            folder, durable=False, with_tables=False, redis_databases=_REDIS_DATABASES
        ) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _template(stack: Stack) -> None:
    """Make a database with all tables, to be cloned: that takes a tenth of the time of making them."""
    _administer(stack, f"create database {TEMPLATE}")
    engine = connect(_url(stack.addresses, TEMPLATE), application_name="tests")
    try:
        schema.apply(engine, with_baseline=True)
    finally:
        engine.dispose()


@pytest.fixture
def empty_database(stack: Stack) -> Iterator[Engine]:
    """Give an engine on a new database without any table."""
    with _database(stack, template="template1") as engine:
        yield engine


@pytest.fixture
def database(stack: Stack, _template: None) -> Iterator[Engine]:
    """Give an engine on a new database with all tables, Label's and ours, and no rows."""
    with _database(stack, template=TEMPLATE) as engine:
        yield engine


@contextmanager
def _database(stack: Stack, *, template: str) -> Iterator[Engine]:
    name = next(_names)
    _administer(stack, f"create database {name} template {template} strategy file_copy")
    engine = connect(_url(stack.addresses, name), application_name="tests")
    try:
        yield engine
    finally:
        engine.dispose()
        _administer(stack, f"drop database {name} with (force)")


def _administer(stack: Stack, statement: str) -> None:
    """Run one of the statements that PostgreSQL allows in no transaction."""
    engine = create_engine(_url(stack.addresses, "postgres"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()


def _url(addresses: Addresses, database: str) -> URL:
    return make_url(addresses.database_url).set(drivername="postgresql+psycopg2", database=database)


def _truncate(engine: Engine) -> None:
    """Empty every table but those that the schema itself fills.

    A worker's parent looks at several tables in one transaction. Whoever waits for both could close a circle with it, so
    this gives way long before the server looks for circles, and comes again.
    """

    def truncate() -> None:
        with engine.begin() as connection:
            tables = connection.scalars(
                text("select quote_ident(tablename) from pg_tables where schemaname = 'public'")
            )
            of_people = [table for table in tables if table not in {"schema_steps", "migration_state_arrows"}]
            connection.execute(text("set local lock_timeout = '200ms'"))
            connection.execute(text(f"truncate {', '.join(of_people)} restart identity cascade"))

    when_free(truncate)


@pytest.fixture
def redis_url(stack: Stack) -> str:
    """Give the address of an empty Valkey database that no other test uses."""
    return _empty_redis(stack)


def _empty_redis(stack: Stack) -> str:
    url = make_url(stack.addresses.redis_url).set(database=str(next(_redis_numbers)))
    plain = url.render_as_string(hide_password=False)
    with redis.Redis.from_url(plain) as client:
        client.flushdb()
    return plain


# One site a test ------------------------------------------------------------------------------------------------


@pytest.fixture
def site(database: Engine, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """Give one test a whole installation."""
    with _site(database, redis_url, tmp_path) as made:
        yield made


@pytest.fixture
def settings_env(site: Site) -> dict[str, str]:
    """Give the environment for real processes that use this test's site."""
    return site.env


@pytest.fixture
def settings(site: Site) -> Settings:
    """Give the settings that a process with `settings_env` reads."""
    return site.settings


@pytest.fixture
def data_dir(site: Site) -> Path:
    """Give the directory that this test's store is in."""
    return site.data_dir


@pytest.fixture
def legacy_root(site: Site) -> Path:
    """Give a directory in which projects may lie, besides `data_dir`."""
    return site.legacy_root


@pytest.fixture
def run_producer(site: Site) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m producer …` as a real process; see `Site.run_producer`."""
    return site.run_producer


@pytest.fixture
def workers(site: Site) -> Iterator[Callable[..., list[Child]]]:
    """Start real workers, as in `workers(2, LEASE_S="2")`; they are stopped when the test ends. See `Site.workers`."""
    with ExitStack() as running:

        def start(count: int = 1, *, concurrency: int = 1, **env: str) -> list[Child]:
            return running.enter_context(site.workers(count, concurrency=concurrency, **env))

        yield start


# One site a module ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _module_site(stack: Stack, _template: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the tests of one module an installation with one running worker of two children."""
    with (
        _database(stack, template=TEMPLATE) as engine,
        _site(engine, _empty_redis(stack), tmp_path_factory.mktemp("site")) as made,
        made.workers(concurrency=2),
    ):
        yield made


@pytest.fixture
def shared_site(_module_site: Site) -> Site:
    """Empty the module's installation, whose worker takes tasks. Leave no run unfinished in it."""
    _module_site.empty()
    return _module_site


@contextmanager
def _site(engine: Engine, redis_url: str, folder: Path) -> Iterator[Site]:
    data_dir, legacy_root = folder / "label_data", folder / "legacy"
    for each in (data_dir, legacy_root):
        each.mkdir()
    variables = {
        "DATABASE_URL": engine.url.set(drivername="postgresql").render_as_string(hide_password=False),
        "REDIS_URL": redis_url,
        "DATA_DIR": str(data_dir),
        "LEGACY_ROOTS": f"{data_dir}:{legacy_root}",
        "LEASE_S": str(LEASE_S),
        "HASH_THREADS": "2",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }
    # Whatever the caller of pytest has set for an installation of his own is none of ours.
    others = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    try:
        yield Site(
            engine=engine,
            redis_url=redis_url,
            folder=folder,
            data_dir=data_dir,
            legacy_root=legacy_root,
            env=others | variables,
            settings=_settings(variables),
        )
    finally:
        for each in (data_dir, legacy_root):
            _remove(each)


def _settings(variables: dict[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as environment:
        for name in Settings.model_fields:
            environment.delenv(name.upper(), raising=False)
        for name, value in variables.items():
            environment.setenv(name, value)
        return Settings(_env_file=None)  # type: ignore[call-arg]


def _remove(folder: Path) -> None:
    """Remove a folder although the store makes its trees read-only, which stops everybody but root."""
    for above, names, _ in os.walk(folder):
        for directory in (Path(above, name) for name in names):
            if not directory.is_symlink():
                directory.chmod(0o700)
    shutil.rmtree(folder)
