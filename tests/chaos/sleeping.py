"""A worker that falls asleep at a chosen point of its way, and the process that brings up one after the other.

Points are its statements, commits and rollbacks, and whatever it does to names in the store. `python -m tests.chaos.sleeping`
takes one order a line on standard input and answers each with one line. It forks a child for each order, so that imports
are paid once; engines and threads are made in the child alone.
"""

import gc
import json
import os
import re
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
from typing import IO, Any

from sqlalchemy import event

from tests.support.runs import WORK
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker import settings as settings_module
from worker.jobs.tools import Tools, connect
from worker.messages import JobRef, Verb
from worker.runtime import log

_ASLEEP = "asleep"
_FILE_EVENTS = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "open"}
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{12,64}|\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleeper:
    """How far a worker got: is it asleep, or did it come to its end? `points` are all that it came to."""

    asleep: bool
    points: tuple[str, ...]


class Bedroom:
    """The process that brings up workers which fall asleep when they are told to."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers

    def do(self, verb: Verb, ref: JobRef, *, sleep_at: str | None) -> Sleeper:
        """Let a new worker do a job, until it falls asleep at a point or ends."""
        return self._ask(
            {
                "verb": verb.value,
                "run_id": str(ref.run_id),
                "project_id": ref.project_id,
                "sleep_at": sleep_at,
            }
        )

    def wake(self) -> Sleeper:
        """Let the one that is asleep go on to its end."""
        return self._ask({})

    def _ask(self, order: dict[str, object]) -> Sleeper:
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        answer = json.loads(self._answers.readline())
        assert answer["code"] in {0, None}, answer
        return Sleeper(asleep=answer["code"] is None, points=tuple(answer["points"]))


@contextmanager
def bedroom(site: Site, **env: str) -> Iterator[Bedroom]:
    """Start the process with the site's settings."""
    root = Path(__file__).parents[2]
    with (
        (site.folder / "sleeping.log").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.sleeping"],
            cwd=site.folder,
            env=site.env | env | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # A process group that is left by its parent's session has its sleepers woken up by the kernel.
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        yield Bedroom(process.stdin, process.stdout)
        process.stdin.close()
        assert process.wait(timeout=PATIENCE_S) == 0


def _serve() -> None:
    # What the children do not touch they need not copy.
    gc.freeze()
    sleeper: tuple[int, IO[str]] | None = None
    for line in sys.stdin:
        order = json.loads(line)
        if sleeper is None:
            sleeper = _start(order)
        else:
            os.kill(sleeper[0], signal.SIGCONT)
        pid, words = sleeper
        points: list[str] = []
        for word in words:
            if word.strip() == _ASLEEP:
                answer: dict[str, Any] = {"code": None, "points": points}
                # The word comes a moment before the sleep.
                os.waitpid(pid, os.WUNTRACED)
                break
            points.append(word.strip())
        else:
            _, status = os.waitpid(pid, 0)
            answer = {"code": os.waitstatus_to_exitcode(status), "points": points}
            words.close()
            sleeper = None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _start(order: dict[str, Any]) -> tuple[int, IO[str]]:
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        os._exit(_work(order, writable))
    os.close(writable)
    return pid, os.fdopen(readable)


def _work(order: dict[str, Any], writable: int) -> int:
    """What a Celery child does for one task; asleep, none of its threads goes on."""
    settings = settings_module.load()
    log.configure(log_format="console", level="warning")
    engine = connect(settings, "sleeping worker")
    watch = _Watch(order["sleep_at"], writable, str(settings.data_dir))
    event.listen(engine, "before_cursor_execute", lambda *args: watch.pass_by(args[2]))
    event.listen(engine, "commit", lambda _conn: watch.pass_by("commit"))
    event.listen(engine, "rollback", lambda _conn: watch.pass_by("rollback"))
    sys.addaudithook(watch.hear)
    ref = JobRef(run_id=uuid.UUID(order["run_id"]), project_id=order["project_id"])
    with ThreadPoolExecutor(1) as threads:
        WORK[Verb(order["verb"])](
            Tools(settings=settings, engine=engine, threads=threads), ref, "sleeping worker"
        )
    return 0


class _Watch:
    """Tells of each point before it is passed, and falls asleep at one of them."""

    def __init__(self, point: str | None, writable: int, data_dir: str) -> None:
        self._point = point
        self._writable = writable
        self._data_dir = data_dir
        self._times: Counter[str] = Counter()

    def hear(self, what: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook (PEP 578): called before the interpreter does any of these things."""
        if what in _FILE_EVENTS:
            names = [str(one) for one in arguments if isinstance(one, str) and one.startswith(self._data_dir)]
            if names:
                self.pass_by(" ".join([what, *(name.removeprefix(self._data_dir) for name in names)]))

    def pass_by(self, what: str) -> None:
        """The heartbeat beside the work comes when it likes, and does not count."""
        if threading.current_thread().name.startswith("lease-"):
            return
        words = _IDS.sub("#", " ".join(what.split()))[:120]
        self._times[words] += 1
        here = f"{words} ({self._times[words]})"
        os.write(self._writable, f"{here}\n".encode())
        if here == self._point:
            os.write(self._writable, f"{_ASLEEP}\n".encode())
            os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    _serve()
