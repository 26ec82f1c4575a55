"""A process that starts others by forking, with the libraries they need loaded already. Knows no code of ours.

A worker or a producer spends a second on importing pandas, Celery and SQLAlchemy. Here that is done once; the child then
runs `python -m celery …` or `python -m producer …` as if it had been started so: our own modules are imported in it,
it has a session, an environment and a working directory of its own, and it is told apart by nothing that it could see.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_LIBRARIES = (
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
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that the nursery started. What it writes is in `log`, its standard output in `output`."""

    name: str
    pid: int
    log: Path
    output: Path

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. It is there, or at least its entry: only `Nursery.ended` lets it go."""
        os.kill(self.pid, number)


class Nursery:
    """The way to the process that forks. Whatever it started ends with it, and it ends with us."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers
        # By process and not by number: a machine that starts so many gives the same number again.
        self._ends: dict[Process, int] = {}

    def start(
        self, name: str, module: str, arguments: Sequence[str], *, env: Mapping[str, str], folder: Path
    ) -> Process:
        """Run a module with arguments in `folder`, where its log and its output go, too."""
        process = {"log": str(folder / f"{name}.log"), "output": str(folder / f"{name}.out")}
        order = {"module": module, "arguments": list(arguments), "env": dict(env), "folder": str(folder)}
        pid = self._ask(order | process)
        return Process(name=name, pid=pid, log=Path(process["log"]), output=Path(process["output"]))

    def ended(self, process: Process) -> int | None:
        """The status that a process ended with (of a killed one the negative signal), or None while it runs."""
        if process not in self._ends:
            code = self._ask({"ended": process.pid})
            if code is not None:
                self._ends[process] = code
        return self._ends.get(process)

    def _ask(self, order: Mapping[str, Any]) -> Any:
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return json.loads(self._answers.readline())


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """Start the process that forks."""
    root = Path(__file__).parents[2]
    with (
        (folder / "nursery.log").open("a") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery", str(os.getpid())],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Nursery(process.stdin, process.stdout)
        finally:
            process.kill()


# In that process ------------------------------------------------------------------------------------------------------


def _serve() -> None:
    _die_with(int(sys.argv[1]))
    for name in _LIBRARIES:
        importlib.import_module(name)
    # What the children do not touch they need not copy.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        answer = _ended(order["ended"]) if "ended" in order else _start(order)
        print(json.dumps(answer), flush=True)


def _ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _start(order: Mapping[str, Any]) -> int:
    nursery_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    _die_with(nursery_pid)
    os.setsid()
    _open(0, os.devnull, os.O_RDONLY)
    _open(1, order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _open(2, order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [order["module"], *order["arguments"]]
    # As in a process of its own, `sys.exit` goes up to the interpreter, which then ends in its ordinary way.
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    sys.exit()


def _open(descriptor: int, path: str, flags: int) -> None:
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it was gone before the kernel knew of our wish
        os._exit(1)


if __name__ == "__main__":
    _serve()
