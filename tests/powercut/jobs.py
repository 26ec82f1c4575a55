"""Jobs done at once, by workers with connections of their own: at every commit they note how long the disk's
log was, and where the rows led.

`python -m tests.powercut.jobs LOG` does the same in a process of its own, so that a library can stand before
its calls: tasks come on standard input and what became of them goes to standard output, pickled both.
"""

import os
import pickle
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from sqlalchemy import Connection, event

from tests.support.runs import WORK
from worker import settings as settings_module
from worker.jobs.tools import Tools, connect
from worker.messages import JobRef, Outcome, Verb
from worker.runtime import log
from worker.runtime.throttle import Throttle
from worker.settings import Settings

PLACES = """
    select p.project_id, coalesce(d.file_path, p.path), d.dataset_hash
    from projects p left join project_dataset_refs r using (project_id) left join raw_datasets d using (dataset_id)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A job, and when it begins: when another thing lies at a path than before, or at once."""

    verb: Verb
    ref: JobRef
    begins_with: str | None = None
    bytes_per_second: int | None = None


Places = dict[int, tuple[str, str | None]]
"""Where the rows of each project lead to, with the dataset's digest if it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The moment just before a commit: the length of the disk's log, and where rows lead to after it."""

    position: int
    places: Places


Done = tuple[list["Outcome | None"], list[Commit]]
"""How jobs ended, and every commit meanwhile that may matter."""


class _Witness:
    """Notes every commit that may have changed where rows lead to."""

    def __init__(self, disk_log: Path) -> None:
        self._log = disk_log
        self._lock = threading.Lock()
        self.commits: list[Commit] = []

    def note(self, conn: Connection) -> None:
        """Look with the eyes of the transaction that is about to be committed, and only then at the disk's
        log.
        """
        driver = conn.connection.driver_connection
        if driver is None or driver.closed:
            return
        with self._lock, driver.cursor() as cursor:
            cursor.execute(PLACES)
            places = {number: (path, digest) for number, path, digest in cursor.fetchall()}
            if not self.commits or places != self.commits[-1].places:
                self.commits.append(Commit(position=self._log.stat().st_size, places=places))


def do(tasks: Sequence[Task], disk_log: Path, settings: Settings) -> Done:
    """Do all jobs at once; their outcomes, and the commits."""
    witness = _Witness(disk_log)
    doing: list[Future[Outcome | None]] = []
    with ThreadPoolExecutor(len(tasks)) as workers:
        for task in tasks:
            before = _inode(task.begins_with)
            doing.append(workers.submit(_do, task, before, witness, settings, tuple(doing)))
    return [job.result() for job in doing], witness.commits


def _do(
    task: Task,
    before: int | None,
    witness: _Witness,
    settings: Settings,
    others: Sequence[Future[Outcome | None]],
) -> Outcome | None:
    """Do one job by a worker that is ready before it begins; if what it waits for does not come it follows
    the others.
    """
    engine = connect(settings, f"worker of project {task.ref.subject_id}")
    engine.connect().close()
    event.listen(engine, "commit", witness.note)
    while task.begins_with is not None and _inode(task.begins_with) in {before, None}:
        if not wait(others, timeout=0.001).not_done:
            break
    with ThreadPoolExecutor(2) as threads:
        tools = Tools(
            settings=settings, engine=engine, threads=threads, limit=Throttle(task.bytes_per_second)
        )
        outcome = WORK[task.verb, task.ref.subject](tools, task.ref, "worker")
    engine.dispose()
    return outcome


def _inode(path: str | None) -> int | None:
    try:
        return os.lstat(path).st_ino if path is not None else None
    except OSError:
        return None


def main(disk_log: str) -> None:
    """Do as a process what `do` does."""
    log.configure(log_format="console", level="error")
    done = do(pickle.load(sys.stdin.buffer), Path(disk_log), settings_module.load())  # noqa: S301 - from our own parent
    pickle.dump(done, sys.stdout.buffer)


if __name__ == "__main__":
    # By its name: what is pickled here is to be known by the same name there.
    import_module("tests.powercut.jobs").main(sys.argv[1])
