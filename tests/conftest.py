"""What tests stand on: a real PostgreSQL and a real Valkey, started once a run, and real processes of ours.

A test that needs rows takes `database` (an engine on a database of its own, tables made), or
`empty_database`. One that needs more of the world takes `site`, or its parts: `settings`, `settings_env`,
`data_dir`, `legacy_root`, `redis_url`, `run_producer`, `workers`, `tools`. Tests that can share an
installation take `emptied_site`, which belongs to the module and is emptied before each test, or
`shared_site`, the same with a worker running: to start one takes seconds.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine

from producer.local.stack import Stack
from producer.local.stack import stack as local_stack
from tests.support.forking import PROGRAMS, Forks, forks
from tests.support.runs import tools_of
from tests.support.servers import REDIS_DATABASES, Databases, database_like, empty_redis
from tests.support.sites import Site, site_in
from tests.support.workers import Worker
from worker.db import engine as engine_module
from worker.jobs.tools import Tools
from worker.settings import Settings

# The fast tier ----------------------------------------------------------------------------------------------

hypothesis.settings.register_profile("fast", max_examples=5)


@pytest.fixture(scope="session")
def _starts_servers() -> None:
    """Whatever starts a server, or a browser, asks for this: by it `make test-fast` knows what to leave
    out.
    """


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need servers: those that ask, directly or through others, for `_starts_servers`."""
    for item in items:
        if "_starts_servers" in getattr(item, "fixturenames", ()):
            item.add_marker("servers")


# The servers ------------------------------------------------------------------------------------------------


@pytest.fixture
def every_connection_is_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that end connections from the server's side and ask again at once, sooner than any restart of
    a server.
    """
    monkeypatch.setattr(engine_module, "_PING_AFTER_S", 0.0)


@pytest.fixture(scope="session")
def stack(_starts_servers: None) -> Iterator[Stack]:
    """PostgreSQL and Valkey, once a run. A server that does not start is an error, never a skip."""
    # Not below pytest's own temporary directory: that is closed to the user whom root runs PostgreSQL as.
    folder = Path(tempfile.mkdtemp(prefix="label-tests-"))
    try:
        with local_stack(
            folder, durable=False, with_tables=False, redis_databases=REDIS_DATABASES
        ) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def databases(stack: Stack) -> Iterator[Databases]:
    """Databases with all tables; a test whose predecessor left only rows gets that one's."""
    with closing(Databases(stack)) as made:
        yield made


@pytest.fixture
def empty_database(stack: Stack) -> Iterator[Engine]:
    """Give an engine on a new database without any table."""
    with database_like(stack, "template1") as engine:
        yield engine


@pytest.fixture
def database(databases: Databases) -> Iterator[Engine]:
    """Give an engine on a database of this test's own with all tables, Label's and ours, and no rows."""
    with databases.one() as engine:
        yield engine


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Start what forks producers and workers, which have their modules then: to load these takes each of
    them a second.
    """
    with forks(tmp_path_factory.mktemp("programs"), PROGRAMS) as running:
        yield running


@pytest.fixture
def redis_url(stack: Stack) -> str:
    """Give the address of an empty Valkey database that no other test uses."""
    return empty_redis(stack)


# One site a test --------------------------------------------------------------------------------------------


@pytest.fixture
def site(database: Engine, redis_url: str, tmp_path: Path, programs: Forks) -> Iterator[Site]:
    """Give one test a whole installation."""
    with site_in(tmp_path, database, redis_url, programs) as made:
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
def tools(site: Site) -> Iterator[Tools]:
    """Give what a worker process of this test's site has."""
    with tools_of(site) as made:
        yield made


@pytest.fixture
def run_producer(site: Site) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m producer …` as a real process; see `Site.run_producer`."""
    return site.run_producer


@pytest.fixture
def workers(site: Site) -> Iterator[Callable[..., list[Worker]]]:
    """Start real workers, as in `workers(2, LEASE_S="2")`; they are stopped when the test ends. See
    `Site.workers`.
    """
    with ExitStack() as running:

        def start(count: int = 1, *, concurrency: int = 1, **env: str) -> list[Worker]:
            return running.enter_context(site.workers(count, concurrency=concurrency, **env))

        yield start


# One site a module ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def make_site(
    stack: Stack, databases: Databases, programs: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], AbstractContextManager[Site]]:
    """Make as many installations as wanted, each for the time of a `with` block."""

    @contextmanager
    def make() -> Iterator[Site]:
        with (
            databases.one() as engine,
            site_in(tmp_path_factory.mktemp("site"), engine, empty_redis(stack), programs) as made,
        ):
            yield made

    return make


@pytest.fixture(scope="module")
def module_site(make_site: Callable[[], AbstractContextManager[Site]]) -> Iterator[Site]:
    """Give the tests of one module an installation without workers."""
    with make_site() as made:
        yield made


@pytest.fixture
def emptied_site(module_site: Site) -> Site:
    """Empty the module's installation: that takes a third of the time of making one."""
    module_site.empty()
    return module_site


@pytest.fixture(scope="module")
def _module_worker(module_site: Site) -> Iterator[None]:
    """Let one worker of two children take the tasks of the module's installation."""
    with module_site.workers(concurrency=2):
        yield


@pytest.fixture
def shared_site(_module_worker: None, emptied_site: Site) -> Site:
    """Empty the module's installation, whose worker takes tasks. Leave no run unfinished in it."""
    return emptied_site
