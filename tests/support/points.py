"""Workers of one job that die or fall asleep at a chosen point of their way.

Points are statements, commits and rollbacks and, for one that is to fall asleep, whatever is done to names in
the store, too. There are many, and a death at most of them leaves the same rows as one before or after it:
`some_points` stops at those that differ and at a share of the others, `every_point` at all (make chaos).
"""

import os
import re
import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import event

from tests.support.forking import Forks, Process, forks
from tests.support.runs import WORK
from tests.support.sites import Site
from tests.support.tiers import some_or_all
from worker import settings as settings_module
from worker.jobs.tools import Tools, connect
from worker.messages import JobRef, Subject, Verb
from worker.runtime import log

_FILE_EVENTS = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "open"}
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{12,64}|(?<=-)[0-9a-f]{8}\b|\d+")
"""What differs from life to life: a point that had it in its name would be a new one each time."""
_WRITES = re.compile(r"\b(insert into|delete from|update) \w")
_OUR_THREADS = "ingest"
_EVERY = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """How far a worker got: did it die or fall asleep, and which points had it come to? The last one is that
    of its stop.
    """

    process: Process
    stopped: bool
    points: tuple[str, ...]


class Points:
    """Every point that any life came to, for the next one to stop at. The first life may go on to its end
    (None).

    What a worker asks depends on what others left behind, so that no life shows all points there are.
    """

    are_all = True

    def __init__(self) -> None:
        self._tried: set[str | None] = set()
        self._known: dict[str | None, None] = {None: None}

    def __iter__(self) -> Iterator[str | None]:
        while (point := next((one for one in self._known if one not in self._tried), self)) is not self:
            assert point is None or isinstance(point, str)
            self._tried.add(point)
            yield point

    def learn(self, life: Life) -> None:
        """Remember where a life came to."""
        self._known |= dict.fromkeys(self._chosen(life.points))

    def _chosen(self, points: Sequence[str]) -> Sequence[str]:
        return points


class SomePoints(Points):
    """Of all points the first and the last one, the end of each transaction that writes, where none of it is
    there though all was said, each statement that the test asks for, and every seventh.
    """

    are_all = False

    def __init__(self, always: Sequence[str]) -> None:
        super().__init__()
        self._always = always

    def _chosen(self, points: Sequence[str]) -> Sequence[str]:
        chosen, writes = [], False
        for number, point in enumerate(points):
            is_an_end = point.startswith(("commit", "rollback"))
            is_asked_for = any(statement in point for statement in self._always)
            if (is_an_end and writes) or is_asked_for or not number % _EVERY or number == len(points) - 1:
                chosen.append(point)
            writes = not is_an_end and (writes or _WRITES.search(point) is not None)
        return chosen


def some_points(*always: str) -> Points:
    """The representatives: those that hold one of these pieces of a statement among them."""
    return SomePoints(always)


def every_point(*always: str) -> Points:
    """All points there are."""
    del always
    return Points()


Walk = Callable[..., Points]
SOME_OR_ALL = some_or_all(some_points, every_point)
"""The ways of a test through its points: in the default suite, and in the long one."""


class Lives:
    """Brings up a new worker for each job."""

    def __init__(self, site: Site, processes: Forks, env: Mapping[str, str]) -> None:
        self._site = site
        self._forks = processes
        self._env = site.env | env
        self._names = (f"life{number}" for number in count(1))

    def until_death(self, verb: Verb, ref: JobRef, *, at: str | None) -> Life:
        """Let a worker do a job, and kill itself at a point, if it comes to it."""
        return self._live(verb, ref, at, signal.SIGKILL)

    def until_sleep(self, verb: Verb, ref: JobRef, *, at: str | None) -> Life:
        """Let a worker do a job until it ends, or falls asleep at a point with all its threads."""
        return self._live(verb, ref, at, signal.SIGSTOP)

    def wake(self, life: Life) -> Life:
        """Let a worker that is asleep go on to its end."""
        life.process.signal(signal.SIGCONT)
        return self._wait(life.process)

    def _live(self, verb: Verb, ref: JobRef, at: str | None, stop: signal.Signals) -> Life:
        order = {
            "verb": verb.value,
            "run_id": str(ref.run_id),
            "subject": ref.subject.value,
            "subject_id": ref.subject_id,
            "at": at,
            "stop": stop,
        }
        called = f"{__name__}:live"
        return self._wait(
            self._forks.call(next(self._names), called, order, env=self._env, folder=self._site.folder)
        )

    def _wait(self, process: Process) -> Life:
        code = self._forks.wait(process)
        assert code in {0, None, -signal.SIGKILL}, process.log.read_text()
        return Life(process=process, stopped=code != 0, points=tuple(process.output.read_text().splitlines()))


@contextmanager
def lives(site: Site, **env: str) -> Iterator[Lives]:
    """Start the process that forks workers with the site's settings, and these."""
    with forks(site.folder, [__name__, "sqlalchemy.dialects.postgresql.psycopg2"]) as processes:
        yield Lives(site, processes, env)


# In a worker ------------------------------------------------------------------------------------------------


def live(order: Mapping[str, Any]) -> None:
    """What a Celery child does for one task, up to its stop."""
    settings = settings_module.load()
    log.configure(log_format="console", level="error")
    engine = connect(settings, "worker of one job")
    watch = _Watch(order["at"], order["stop"], f"{settings.data_dir}")
    event.listen(engine, "before_cursor_execute", lambda *args: watch.pass_by(args[2]))
    event.listen(engine, "commit", lambda _conn: watch.pass_by("commit"))
    event.listen(engine, "rollback", lambda _conn: watch.pass_by("rollback"))
    if order["stop"] == signal.SIGSTOP:
        sys.addaudithook(watch.hear)
    ref = JobRef(
        run_id=uuid.UUID(order["run_id"]), subject_id=order["subject_id"], subject=Subject(order["subject"])
    )
    # One thread, so that files come in the same order each time.
    with ThreadPoolExecutor(1, thread_name_prefix=_OUR_THREADS) as threads:
        tools = Tools(settings=settings, engine=engine, threads=threads)
        WORK[Verb(order["verb"]), ref.subject](tools, ref, "worker of one job")


class _Watch:
    """Tells of each point before it is passed, and stops the process at one of them."""

    def __init__(self, point: str | None, stop: int, data_dir: str) -> None:
        self._point = point
        self._stop = stop
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
        thread = threading.current_thread()
        if thread is not threading.main_thread() and not thread.name.startswith(_OUR_THREADS):
            return
        words = _IDS.sub("#", " ".join(what.split()))[:300]
        self._times[words] += 1
        here = f"{words} ({self._times[words]})"
        os.write(1, f"{here}\n".encode())
        if here == self._point:
            os.kill(os.getpid(), self._stop)
