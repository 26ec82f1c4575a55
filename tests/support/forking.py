"""A process that starts others by forking, with the modules they need loaded already. Of our own it knows
names alone.

A worker or a producer spends a second on importing pandas, Celery and SQLAlchemy, and a third of one on our
own modules. Here that is done once, and what is started runs a module as `python -m` does, or calls a
function. It has a session, an environment and a working directory of its own, and is told apart by nothing
that it could see.
"""

import ctypes
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from tests.support.waiting import PATIENCE_S

_OURS = (
    "producer.cli.app",
    "worker.doctor.checkup",
    "worker.jobs.adopt",
    "worker.jobs.collect_garbage",
    "worker.jobs.migrate",
    "worker.jobs.reaper",
    "worker.jobs.reclaim",
    "worker.jobs.rollback",
    "worker.jobs.tools",
    "worker.jobs.verify",
    "worker.jobs.verify_store",
)
"""Not what tells Celery of itself as it is loaded (the app, tasks and boot steps): a producer has none of
them. Nor what a worker shares with its children from its loading on (`worker.runtime.shutdown`).
"""

PROGRAMS = (
    *_OURS,
    "blake3",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.worker.consumer",
    "dotenv",
    "jinja2",
    "kombu.transport.redis",
    "numpy",
    "pandas",
    "psycopg2",
    "pydantic_settings",
    "redis",
    "rich.console",
    "rich.progress",
    "rich.table",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "structlog",
    "tenacity",
    "typer",
)
"""What workers and producers load."""

_ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that was forked. What it writes is in `log`, its standard output in `output`."""

    name: str
    pid: int
    log: Path
    output: Path

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. It is there, or at least its entry: only `Forks` lets it go."""
        os.kill(self.pid, number)


class Forks:
    """The way to the process that forks. Whatever it started ends with it, and it ends with us."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers
        self._one_at_a_time = threading.Lock()
        # By process and not by number: a machine that starts so many gives the same number again.
        self._ends: dict[Process, int] = {}

    def run(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        terminal: str | None = None,
    ) -> Process:
        """Run a module with arguments in `folder`, where its log and its output go, too. With a `terminal` it
        reads from there what is typed, and writes there instead of to its log.
        """
        order = {"module": module, "arguments": list(arguments)}
        run = "tests.support.forking:run_module"
        return self.call(name, run, order, env=env, folder=folder, terminal=terminal)

    def call(
        self,
        name: str,
        function: str,
        order: Mapping[str, Any],
        *,
        env: Mapping[str, str],
        folder: Path,
        terminal: str | None = None,
    ) -> Process:
        """Call `module:function` with the order in a process that ends when it returns."""
        files = {
            "input": terminal or os.devnull,
            "log": terminal or str(folder / f"{name}.log"),
            "output": str(folder / f"{name}.out"),
        }
        asked = {"function": function, "order": order, "env": dict(env), "folder": str(folder), **files}
        pid = self._ask({"start": asked})
        return Process(name=name, pid=pid, log=Path(files["log"]), output=Path(files["output"]))

    def ended(self, process: Process) -> int | None:
        """The status that a process ended with (of a killed one the negative signal), or None while it
        runs.
        """
        return self._look(process, os.WNOHANG)

    def await_end(self, process: Process, what: str) -> int:
        """Wait until a process ends, without asking again and again; its status."""
        if process not in self._ends:
            descriptor = os.pidfd_open(process.pid)
            try:
                has_ended = select.poll()
                has_ended.register(descriptor, select.POLLIN)
                assert has_ended.poll(PATIENCE_S * 1000), f"not within {PATIENCE_S:g} s: {what}"
            finally:
                os.close(descriptor)
        code = self.ended(process)
        assert code is not None
        return code

    def wait(self, process: Process) -> int | None:
        """Wait until a process ends, and its status, or until it was stopped: None."""
        return self._look(process, os.WUNTRACED)

    def _look(self, process: Process, how: int) -> int | None:
        if process not in self._ends:
            code = self._ask({"pid": process.pid, "how": how})
            if code is not None:
                self._ends[process] = code
        return self._ends.get(process)

    def _ask(self, order: Mapping[str, Any]) -> Any:
        with self._one_at_a_time:
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()
            return json.loads(self._answers.readline())


@contextmanager
def forks(folder: Path, modules: Sequence[str], *, within: Sequence[str] = (), **env: str) -> Iterator[Forks]:
    """Start the process that forks, with these modules loaded; its log is in the folder. `within` is a
    command that becomes another one, such as nsenter: it and all that it starts run there.
    """
    with (
        (folder / "forks.log").open("a") as log,
        subprocess.Popen(
            [*within, sys.executable, "-m", "tests.support.forking", str(os.getpid()), *modules],
            cwd=_ROOT,
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Forks(process.stdin, process.stdout)
        finally:
            process.kill()


# In that process --------------------------------------------------------------------------------------------


def _serve(parent_pid: str, *modules: str) -> None:
    _die_with(int(parent_pid))
    for name in modules:
        import_module(name)
    # What the children do not touch they need not copy.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _start(asked["start"]) if "start" in asked else _status(**asked)
        print(json.dumps(answer), flush=True)


def _status(*, pid: int, how: int) -> int | None:
    found, status = os.waitpid(pid, how)
    return os.waitstatus_to_exitcode(status) if found and not os.WIFSTOPPED(status) else None


def _start(asked: Mapping[str, Any]) -> int:
    server_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    _die_with(server_pid)
    os.setsid()
    _open(0, asked["input"], os.O_RDONLY)
    _open(1, asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _open(2, asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    module, _, name = asked["function"].partition(":")
    getattr(import_module(module), name)(asked["order"])
    os._exit(0)


def run_module(order: Mapping[str, Any]) -> None:
    """Do as `python -m` does. As there, `sys.exit` goes up to the interpreter, which then ends in its
    ordinary way.
    """
    sys.argv = [order["module"], *order["arguments"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    sys.exit()


def _open(descriptor: int, path: str, flags: int) -> None:
    opened = os.open(path, flags | os.O_NOCTTY, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it was gone before the kernel knew of our wish
        os._exit(1)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
