"""A worker that dies at a chosen point of its talk with PostgreSQL, and the process that brings up one after the other.

`python -m tests.fidelity.dying` takes one order a line on standard input and answers each with one line. It forks a child
for each order, so that imports are paid once; engines and threads are made in the child alone.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy import Engine, event

from tests.support.runs import WORK
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker import settings as settings_module
from worker.jobs.tools import Tools, connect
from worker.messages import JobRef, Verb
from worker.runtime import log


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a worker ended: did it die, and which points had it come to? The last one is that of its death."""

    died: bool
    points: tuple[str, ...]


class Points:
    """Every point that any life came to, for the next one to die at. The first life may go on to its end (None).

    What a worker asks depends on what others left behind, so that no life shows all points there are.
    """

    def __init__(self) -> None:
        self._tried: set[str | None] = set()
        self._known: dict[str | None, None] = {None: None}

    def __iter__(self) -> Iterator[str | None]:
        while (point := next((one for one in self._known if one not in self._tried), self)) is not self:
            assert point is None or isinstance(point, str)
            self._tried.add(point)
            yield point

    def learn(self, end: End) -> None:
        """Remember where a life came to."""
        self._known |= dict.fromkeys(end.points)


class Nursery:
    """The process that brings up workers which die when they are told to."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers

    def do(self, verb: Verb, ref: JobRef, *, die_at: str | None) -> End:
        """Let a new worker do a job, and kill itself at a point, if it comes to it."""
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
        return End(died=answer["code"] != 0, points=tuple(answer["points"]))


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
        assert process.wait(timeout=PATIENCE_S) == 0


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
        with os.fdopen(readable) as words:
            points = words.read().splitlines()
        _, status = os.waitpid(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "points": points}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _work(order: dict[str, object], writable: int) -> int:
    """What a Celery child does for one task, up to its death."""
    settings = settings_module.load()
    log.configure(log_format="console", level="error")
    engine = connect(settings, "dying worker")
    _die_at(engine, order["die_at"], writable)
    ref = JobRef(run_id=uuid.UUID(str(order["run_id"])), project_id=int(str(order["project_id"])))
    with ThreadPoolExecutor(2) as threads:
        tools = Tools(settings=settings, engine=engine, threads=threads)
        WORK[Verb(str(order["verb"]))](tools, ref, "dying worker")
    return 0


def _die_at(engine: Engine, point: object, writable: int) -> None:
    """Tell of each statement, commit and rollback of the work before it happens, and die at one of them.

    The heartbeat beside the work comes when it likes, and does not count.
    """
    times: Counter[str] = Counter()

    def pass_by(what: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        words = " ".join(what.split())[:100]
        times[words] += 1
        here = f"{words} ({times[words]})"
        os.write(writable, f"{here}\n".encode())
        if here == point:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "before_cursor_execute", lambda *args: pass_by(args[2]))
    event.listen(engine, "commit", lambda _conn: pass_by("commit"))
    event.listen(engine, "rollback", lambda _conn: pass_by("rollback"))


if __name__ == "__main__":
    _serve()
