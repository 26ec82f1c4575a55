"""The local stack of `producer up`, demo and tests: servers, workers, Flower, one lock. Knows no project."""

import fcntl
import http.client
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from dotenv import dotenv_values
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy import make_url

from producer.local.child_process import (
    Child,
    await_ready,
    start,
    stop,
)
from producer.local.servers import (
    LOOPBACK,
    Server,
    free_port,
    postgres,
    servers_folder,
    valkey,
    write_secret,
)
from producer.local.signals import stopped_by_signals
from worker.broker.config import create_app
from worker.db import schema
from worker.db.engine import connect
from worker.errors import UsageError
from worker.settings import ENV_FILE, STACK_FILE, STACK_LOCK, Settings

_WORKER_START_WITHIN_S = 90.0
# A worker that is told to stop lets its tasks hand their jobs back; see worker_soft_shutdown_timeout in
# worker/broker/config.py.
_WORKER_STOP_WITHIN_S = 75.0
_ANSWER_WITHIN_S = 0.5
_POLL_EVERY_S = 0.1

_FLOWER_OPTIONS = (
    # It shows; what may be done to a run, the producer does.
    "--read-only",
    "--persistent",
    "--state-save-interval=60000",
    # Every task has the same name; its arguments say which project it is.
    "--tasks-columns=args,state,exception,result,received",
    # Seconds: a project takes from less than one to hours.
    "--task-runtime-metric-buckets=0.1,1,10,60,300,1800,7200,28800",
)

FLOWER_PASSWORD = "flower.password"  # noqa: S105 - its name, not itself
"""The file, beside the stack's addresses, with the password of Flower's user `label`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the two servers are. Both hold passwords and stay out of `repr`."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A running stack. `state` is the folder that was asked for; `servers` is where the servers'
    folders are.
    """

    state: Path
    servers: Path
    data_dir: Path
    addresses: Addresses
    children: tuple[Child, ...]
    flower_url: str | None = None

    @property
    def env(self) -> dict[str, str]:
        """The environment for a process that is to use this stack."""
        return _process_env(self.addresses, self.data_dir)


@contextmanager
def stack(
    state: Path,
    *,
    data_dir: Path | None = None,
    workers: int = 0,
    concurrency: int = 1,
    flower: bool = False,
    durable: bool = True,
    with_tables: bool = True,
    redis_databases: int = 16,
) -> Iterator[Stack]:
    """Run the servers, `workers` Celery workers of `concurrency` children each and Flower, while the block
    runs.

    Everything is kept below `state` and found again by the next call. Workers stop first, PostgreSQL last.
    Meanwhile `worker.settings.load` in the directory above `state` finds the addresses by itself (if `state`
    is `.state`). Raises `UsageError` if another stack is using the folder, `SettingsError` if the servers'
    packages are missing and `LocalStackError` if a part does not start.
    """
    state = state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    data_dir = (data_dir or state / "data").resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as parts:  # stops in reverse order
        parts.enter_context(_alone_in(state))
        servers = servers_folder(state)
        database = parts.enter_context(postgres(servers, durable=durable))
        broker = parts.enter_context(valkey(servers, durable=durable, databases=redis_databases))
        addresses = Addresses(database_url=database.url, redis_url=broker.url)
        if with_tables:
            _create_tables(database.url)
        env = _process_env(addresses, data_dir)
        children = [database.child, broker.child]
        flower_url = None
        if flower:
            watcher = parts.enter_context(run_flower(env, state))
            flower_url = watcher.url
            children.append(watcher.child)
        children += parts.enter_context(run_workers(env, workers, concurrency=concurrency, log_folder=state))
        parts.enter_context(_announced(state / STACK_FILE.name, addresses, data_dir))
        yield Stack(
            state=state,
            servers=servers,
            data_dir=data_dir,
            addresses=addresses,
            children=tuple(children),
            flower_url=flower_url,
        )


@contextmanager
def _alone_in(state: Path) -> Iterator[None]:
    """Hold the folder's lock. The kernel gives it back however this process ends."""
    with (state / STACK_LOCK.name).open("w") as lock:
        # Longer than worker.settings takes to check: that holds the lock for a moment, too.
        deadline = time.monotonic() + 1
        while not _is_locked(lock):
            if time.monotonic() > deadline:
                raise UsageError(f"another stack is using {state}; stop that one or name another folder")
            time.sleep(_POLL_EVERY_S)
        # The lock says that a stack is running here; the addresses of a killed one must not pass for ours.
        (state / STACK_FILE.name).unlink(missing_ok=True)
        yield


def _is_locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _announced(stack_file: Path, addresses: Addresses, data_dir: Path) -> Iterator[None]:
    """Leave the addresses, with their passwords, where only our user finds them."""
    lines = (f"{name}={_quoted(value)}\n" for name, value in _variables(addresses, data_dir).items())
    write_secret(stack_file, "".join(lines))
    try:
        yield
    finally:
        stack_file.unlink(missing_ok=True)


def _quoted(value: str) -> str:
    """As python-dotenv reads it back, and a shell too unless it holds a quote."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _process_env(addresses: Addresses, data_dir: Path) -> dict[str, str]:
    return {**os.environ, **_variables(addresses, data_dir)}


def _variables(addresses: Addresses, data_dir: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": addresses.database_url,
        "REDIS_URL": addresses.redis_url,
        "DATA_DIR": str(data_dir),
    }


def _create_tables(database_url: str) -> None:
    """Apply what is missing, Label's own tables included: this database is the stack's own."""
    engine = connect(
        make_url(database_url).set(drivername="postgresql+psycopg2"), application_name="producer up"
    )
    try:
        schema.apply(engine, with_baseline=True)
    finally:
        engine.dispose()


# Workers and Flower -----------------------------------------------------------------------------------------


@contextmanager
def run_workers(
    env: Mapping[str, str],
    count: int,
    *,
    concurrency: int,
    log_folder: Path,
    name: str = "worker",
    stop_within_s: float = _WORKER_STOP_WITHIN_S,
) -> Iterator[list[Child]]:
    """Run `count` Celery workers for the servers in `env`; the block begins when all of them take tasks."""
    answers = _remote_control(env["REDIS_URL"])
    children: list[Child] = []
    try:
        for each in (f"{name}{number}" for number in range(1, count + 1)):
            log_file = log_folder / f"{each}.log"
            children.append(start_worker(env, name=each, concurrency=concurrency, log_file=log_file))
        for child in children:
            await_ready(child, partial(answers, child.name), within_s=_WORKER_START_WITHIN_S)
        yield children
    finally:
        stop(children, within_s=stop_within_s)


def start_worker(env: Mapping[str, str], *, name: str, concurrency: int, log_file: Path) -> Child:
    """Start one Celery worker. It dies with this process; its jobs fall to others when their leases end."""
    node = f"{name}@{socket.gethostname()}"
    # Workers need nothing of each other that is not in the ledger; asking takes a second.
    quiet = ["--without-mingle", "--without-gossip"]
    # No -E: that workers send events is a setting, which applies however one is started.
    options = ["--concurrency", str(concurrency), "--hostname", node, *quiet]
    return start(
        node,
        [sys.executable, "-m", "celery", "-A", "worker.app", "worker", *options],
        log_file=log_file,
        on_parent_death=signal.SIGKILL,
        env=env,
    )


def _remote_control(redis_url: str) -> Callable[[str], bool]:
    """Make a function that asks a worker by name; remote control is the last thing a starting one sets up."""
    # Only the broker is asked for anything, so no other setting is needed.
    app = create_app(Settings.model_construct(redis_url=SecretStr(redis_url)), with_results=False)

    def answers(node: str) -> bool:
        with app.connection_for_write() as connection:
            return bool(app.control.ping(destination=[node], timeout=_ANSWER_WITHIN_S, connection=connection))

    return answers


@contextmanager
def run_flower(env: Mapping[str, str], state: Path) -> Iterator[Server]:
    """Run Flower on the loopback interface; the password of its user `label` is in
    `state`/flower.password.
    """
    password = secrets.token_urlsafe(18)
    write_secret(state / FLOWER_PASSWORD, password)
    port = free_port()
    child = start(
        "Flower",
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker.app",
            "flower",
            f"--address={LOOPBACK}",
            f"--port={port}",
            f"--db={state / 'flower.db'}",
            *_FLOWER_OPTIONS,
        ],
        log_file=state / "flower.log",
        on_parent_death=signal.SIGKILL,
        # Not as an option: every user of the machine can read those.
        env={**env, "FLOWER_BASIC_AUTH": f"label:{password}"},
    )
    try:
        await_ready(child, partial(_flower_answers, port))
        yield Server(child=child, url=f"http://{LOOPBACK}:{port}")
    finally:
        stop([child], within_s=10)
        (state / FLOWER_PASSWORD).unlink(missing_ok=True)


def _flower_answers(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=3)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# producer up ------------------------------------------------------------------------------------------------


def up(state: Path, *, workers: int, flower: bool, data_dir: Path | None) -> int:
    """Run a stack in the foreground until Ctrl-C or SIGTERM (0), or until a part of it ends by itself (1).

    Interrupted before everything ran: 130. Tells people, on standard error, where things are and never a
    password.
    """
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    if data_dir is None and (named := _set_by_operator("DATA_DIR")):
        data_dir = Path(named)  # other commands use that one, so the workers must not have another
    try:
        with (
            stopped_by_signals(),
            stack(state, data_dir=data_dir, workers=workers, flower=flower) as running,
        ):
            try:
                console.print(_introduction(running, workers))
                lost = _first_to_end(running.children)
            except KeyboardInterrupt:
                console.print("Stopping; running jobs return to the queue …")
                return 0
            console.print(
                f"{lost.name} ended unexpectedly with status {lost.process.returncode}; stopping the rest. "
                f"Its log is {lost.log_file} and ends with:\n{lost.log_tail()}"
            )
            return 1
    except KeyboardInterrupt:
        console.print("Interrupted before everything ran; nothing is left running.")
        return 130


def _set_by_operator(name: str) -> str | None:
    """Find a variable where every other command in this directory finds it, too."""
    return os.environ.get(name) or dotenv_values(ENV_FILE).get(name)


def _introduction(running: Stack, workers: int) -> str:
    """Tell what an operator wants to know about a stack that has come up."""
    database, broker = (
        make_url(url) for url in (running.addresses.database_url, running.addresses.redis_url)
    )
    flower = f"{running.flower_url} (user label, password in {running.state / FLOWER_PASSWORD})"
    parts = {
        "PostgreSQL": f"{database.host}:{database.port}",
        "Valkey": f"{broker.host}:{broker.port}",
        "their passwords": str(running.state / STACK_FILE.name),
        "their files": str(running.servers),
        "DATA_DIR": str(running.data_dir),
        "workers": str(workers),
        "Flower": flower if running.flower_url else "not started (--flower starts it)",
        "logs": str(running.state),
    }
    lines = (f"{name + ':':<17}{where}" for name, where in parts.items())
    return "\n".join([*lines, f"{_who_uses(running)} Ctrl-C stops it."])


def _who_uses(running: Stack) -> str:
    """Say whether other commands find this stack by themselves; see `worker.settings.load`."""
    if _set_by_operator("DATABASE_URL") or _set_by_operator("REDIS_URL"):
        return "DATABASE_URL or REDIS_URL is set here, so producer commands use that and not this stack."
    if running.state == STACK_FILE.parent.resolve():
        return "Every producer command in this directory uses this stack."
    return f"To use it, set the variables of {running.state / STACK_FILE.name}."


def _first_to_end(children: tuple[Child, ...]) -> Child:
    """Wait for as long as all of them run."""
    while True:
        for child in children:
            if child.process.poll() is not None:
                return child
        time.sleep(_POLL_EVERY_S)
