"""A schedule's workers: started, killed, stopped, put to sleep and woken. Knows processes and no task."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.forking import Forks, Process
from tests.support.process_tree import descendants

_READY_WITHIN_S = 120.0
_LOOK_EVERY_S = 0.02


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker. `node` is what the ledger knows it by."""

    process: Process
    node: str
    asleep: bool = False
    told_to_stop: bool = False


class Workers:
    """All workers that a schedule ever had."""

    def __init__(
        self, processes: Forks, env: Mapping[str, str], folder: Path, *, concurrency: int, hurried: bool
    ) -> None:
        self._forks = processes
        self._env = dict(env) | ({"CELERY_WORKER_INCLUDE": "tests.chaos.hurry"} if hurried else {})
        self._folder = folder
        self._concurrency = concurrency
        self.all: list[Worker] = []

    @property
    def alive(self) -> list[Worker]:
        """Those that run, also asleep, and were not told to stop."""
        return [one for one in self.running if not one.told_to_stop]

    @property
    def running(self) -> list[Worker]:
        """Those whose process has not ended."""
        return [one for one in self.all if self._forks.ended(one.process) is None]

    def start(self) -> Worker:
        """Start one more."""
        name = f"worker{len(self.all) + 1}"
        node = f"{name}@chaos"
        options = ["--concurrency", str(self._concurrency), "--task-events", "--hostname", node]
        process = self._forks.run(
            name,
            "celery",
            ["-A", "worker.app", "worker", *options, "--without-mingle", "--without-gossip"],
            env=self._env,
            folder=self._folder,
        )
        worker = Worker(process=process, node=node)
        self.all.append(worker)
        return worker

    def await_ready(self) -> None:
        """Wait until all that run take tasks."""
        deadline = time.monotonic() + _READY_WITHIN_S
        while not all(f"{one.node} ready" in _text(one.process.log) for one in self.running):
            if time.monotonic() > deadline:
                raise TimeoutError("a worker did not become ready")
            time.sleep(_LOOK_EVERY_S)

    def children(self, worker: Worker) -> list[int]:
        """The process ids of a worker's children."""
        return sorted(descendants({worker.process.pid}) - {worker.process.pid})

    def kill(self, worker: Worker) -> None:
        """End a worker and its children at once."""
        for pid in (worker.process.pid, *self.children(worker)):
            _send(pid, signal.SIGKILL)

    def kill_child(self, pid: int) -> None:
        """End one child."""
        _send(pid, signal.SIGKILL)

    def sleep(self, worker: Worker, *, only_child: int | None = None) -> list[int]:
        """Stop a worker with its children, or only one of these; the process ids to wake."""
        pids = [worker.process.pid, *self.children(worker)] if only_child is None else [only_child]
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        worker.asleep = only_child is None
        return pids

    def wake(self, worker: Worker, pids: list[int]) -> None:
        """Let them go on."""
        worker.asleep = False
        for pid in pids:
            _send(pid, signal.SIGCONT)

    def terminate(self, worker: Worker) -> None:
        """Ask a worker to end: it hands its jobs back."""
        worker.told_to_stop = True
        worker.process.signal(signal.SIGTERM)

    def end(self) -> None:
        """Kill all that is left."""
        for worker in self.running:
            self.kill(worker)


def _send(pid: int, number: signal.Signals) -> None:
    # A child may end between the look and the signal.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
