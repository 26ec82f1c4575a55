"""A worker that dies at the N-th point of its talk with PostgreSQL, and the process that brings up one after the other.

`python -m tests.fidelity.dying` takes one order a line on standard input and answers each with one line. It forks a child
for each order, so that imports are paid once; engines and threads are made in the child alone.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

from sqlalchemy import Engine, event

from tests.conftest import Site
from tests.fidelity.runs import WORK
from worker import log
from worker import settings as settings_module
from worker.db.engine import connect
from worker.job import Tools
from worker.messages import JobRef, Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a child ended. `statement` is the one before which it died; None: it lived to the end."""

    statement: str | None


class Nursery:
    """The process that brings up workers which die when they are told to."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers

    def do(self, verb: Verb, ref: JobRef, *, die_at: int | None) -> End:
        """Let a new worker do a job, and kill itself at point `die_at` (from 1), if it comes to it."""
        order = {
            "verb": verb.value,
            "run_id": str(ref.run_id),
            "project_id": ref.project_id,
            "die_at": die_at,
        }
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        answer = json.loads(self._answers.readline())
        assert answer["code"] in {0, -signal.SIGKILL}, answer
        return End(statement=answer["statement"] if answer["code"] else None)


@contextmanager
def nursery(site: Site) -> Iterator[Nursery]:
    """Start the process with the site's settings."""
    root = Path(__file__).parents[2]
    with (
        (site.folder / "dying.log").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.fidelity.dying"],
            cwd=site.folder,
            env=site.env | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        yield Nursery(process.stdin, process.stdout)
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def _serve() -> None:
    # What the children do not touch they need not copy.
    gc.freeze()
    for line in sys.stdin:
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(readable)
            os._exit(_work(json.loads(line), writable))
        os.close(writable)
        with os.fdopen(readable) as last_words:
            statement = last_words.read()
        _, status = os.waitpid(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "statement": statement}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _work(order: dict[str, object], writable: int) -> int:
    """What a Celery child does for one task, up to its death."""
    settings = settings_module.load()
    log.configure(log_format="console", level="error")
    engine = connect(settings.sqlalchemy_url, application_name="dying worker")
    if isinstance(order["die_at"], int):
        _die_at(engine, order["die_at"], writable)
    ref = JobRef(run_id=uuid.UUID(str(order["run_id"])), project_id=int(str(order["project_id"])))
    with ThreadPoolExecutor(2) as threads:
        tools = Tools(settings=settings, engine=engine, threads=threads)
        WORK[Verb(str(order["verb"]))](tools, ref, "dying worker")
    return 0


def _die_at(engine: Engine, point: int, writable: int) -> None:
    """Before each statement, each commit and each rollback the counter goes on."""
    points = count(1)

    def pass_by(what: str) -> None:
        if next(points) == point:
            os.write(writable, " ".join(what.split())[:120].encode())
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "before_cursor_execute", lambda *args: pass_by(args[2]))
    event.listen(engine, "commit", lambda _conn: pass_by("commit"))
    event.listen(engine, "rollback", lambda _conn: pass_by("rollback"))


if __name__ == "__main__":
    _serve()
