"""Real Celery workers, forked from a process that has their libraries: started, signalled, ended."""

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.forking import Forks, Process
from tests.support.waiting import eventually

_STOP_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker's parent process, by the name that the ledger knows it by. It leads a session of its own."""

    name: str
    process: Process
    programs: Forks

    @property
    def pid(self) -> int:
        """Its process id, also after it has ended."""
        return self.process.pid

    @property
    def log_file(self) -> Path:
        """Where it and its children write."""
        return self.process.log

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the parent alone."""
        self.process.signal(number)

    def has_ended(self) -> bool:
        """Is the parent gone?"""
        return self.programs.ended(self.process) is not None

    def await_end(self) -> None:
        """Wait until the parent is gone."""
        self.programs.await_end(self.process, f"{self.name} ends")

    def is_ready(self) -> bool:
        """Does it take tasks? To say so is the last thing that a starting worker does."""
        written = self.log_file.read_text() if self.log_file.exists() else ""
        assert not self.has_ended(), written
        return f"{self.name} ready" in written


@contextmanager
def running_workers(
    programs: Forks, names: list[str], *, concurrency: int, env: Mapping[str, str], folder: Path
) -> Iterator[list[Worker]]:
    """Run a worker for each name; the block begins when all of them take tasks."""
    started: list[Worker] = []
    try:
        for name in names:
            node = f"{name}@{socket.gethostname()}"
            # Workers need nothing of each other that is not in the ledger; asking takes a second.
            quiet = ("--without-mingle", "--without-gossip")
            options = ("--concurrency", str(concurrency), "--hostname", node, *quiet)
            process = programs.run(
                name, "celery", ("-A", "worker.app", "worker", *options), env=env, folder=folder
            )
            started.append(Worker(name=node, process=process, programs=programs))
        for worker in started:
            eventually(worker.is_ready, f"{worker.name} takes tasks")
        yield started
    finally:
        _end(started)


def _end(workers: list[Worker]) -> None:
    """Ask all of them at once to end, and kill what is left then, with its children."""
    deadline = time.monotonic() + _STOP_WITHIN_S
    for worker in workers:
        if not worker.has_ended():
            worker.signal(signal.SIGTERM)
    for worker in workers:
        while not worker.has_ended() and time.monotonic() < deadline:
            time.sleep(0.03)
        if not worker.has_ended():
            os.killpg(worker.pid, signal.SIGKILL)
            worker.await_end()
