"""An operator, who opens runs, follows them, pauses them, and tries again what met a server that
was away.
"""

import itertools
import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from tests.support.forking import Forks, Process
from worker.broker import client as broker
from worker.messages import JobRef, Message, Verb
from worker.settings import Settings

_WITHIN_S = 120.0
_NOT_READY = 5
_USAGE = 2
_SOME_FAILED = 3
_MAY_END_WITH = {0, _NOT_READY}
_MAY_FOLLOW_TO = {0, 3, 4, _NOT_READY, 8}
"""How a verification may end, which follows its run: what it found is looked at in the ledger."""


class CommandError(Exception):
    """A command of the producer ended as it must not end; the message has its last words."""


class Operator:
    """Every command is a process of its own. `tick` is called while one is waited for."""

    def __init__(
        self,
        processes: Forks,
        engine: Engine,
        settings: Settings,
        env: Mapping[str, str],
        folder: Path,
        *,
        restores: bool,
        waves: str | None = None,
    ) -> None:
        self.runs: list[uuid.UUID] = []
        self.tick: Callable[[], None] = lambda: time.sleep(0.02)
        self._forks = processes
        self._engine = engine
        self._settings = settings
        self._env = env
        self._folder = folder
        self._numbers = itertools.count(1)
        self._opens = {
            Verb.MIGRATE: ("enqueue", "--json"),
            Verb.ROLLBACK: ("rollback", *(["--restore-files"] if restores else []), "--json"),
        }
        self._in_waves = ("--waves", waves) if waves is not None else ()
        self.verb = Verb.MIGRATE
        self._collector: Process | None = None
        self._producers: list[Process] = []

    # Opening runs -------------------------------------------------------------------------------------------

    def open(self, verb: Verb) -> uuid.UUID:
        """Open a run over all projects that the verb concerns; a migration in waves, if it is to go so."""
        self.verb = verb
        opened = self._open(*self._first(verb))
        assert opened is not None
        return opened

    def _first(self, verb: Verb) -> tuple[str, ...]:
        """How the first run of a verb is opened. Later ones do what is left, which may be nothing."""
        return (*self._opens[verb], *(self._in_waves if verb is Verb.MIGRATE else ()))

    def open_another(self) -> uuid.UUID:
        """Open one more, as soon as the servers let it. It returns when the run is in the ledger: its
        messages may be on their way yet, and the producer, which then looks for workers, still there.
        """
        opened = self._open(*self._opens[self.verb])
        assert opened is not None
        return opened

    def open_beside(self, *arguments: str) -> uuid.UUID | None:
        """Open a run of another verb likewise; None when the command found nothing that it could be done
        to.
        """
        return self._open(*arguments, "--json", may_refuse=True)

    def _open(self, *arguments: str, may_refuse: bool = False) -> uuid.UUID | None:
        deadline = time.monotonic() + _WITHIN_S
        while True:
            known = self._known_runs()
            process = self._start(*arguments)
            while not (opened := self._known_runs() - known) and self._forks.ended(process) is None:
                self.tick()
            if opened or (opened := self._known_runs() - known):
                break
            if may_refuse and self._wait(process) in {0, _USAGE}:
                return None
            self._check_not_ready(process, deadline)
        self._producers.append(process)
        # Whoever was waited for may have opened one, too.
        self.runs.extend(opened.difference(self.runs))
        return self.runs[-1]

    def rebuild(self) -> list[dict[str, str]]:
        """Make lost rows of datasets again; what else does not fit."""
        code, process = self._run("datasets", "rebuild", "--json")
        if code not in {0, _SOME_FAILED}:
            raise CommandError(f"{process.name} ended with {code}: {_tail(process.log)}")
        drift: list[dict[str, str]] = _document(process)["drift"]
        return drift

    def check_producers(self) -> None:
        """Every producer that opened a run has ended well, or said that a server was away."""
        while self._producers:
            process = self._producers.pop()
            may_end_with = _MAY_FOLLOW_TO if process.name.endswith("-verify") else _MAY_END_WITH
            if self._wait(process) not in may_end_with:
                raise CommandError(f"{process.name} ended with {self._wait(process)}: {_tail(process.log)}")

    def open_and_die(self, verb: Verb, which: int) -> str:
        """Open a run by a producer that is killed meanwhile, and see to it that one is open then; what was
        done.
        """
        self.verb = verb
        known = self._known_runs()
        process = self._start(*self._first(verb))
        chance = random.Random(which)
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0.0, 0.3))
        else:
            self._await_run(process, known)
            time.sleep(chance.choice((0.0, 0.002, 0.005, 0.01, 0.02, 0.05)))
        process.signal(signal.SIGKILL)
        self._wait(process)
        opened = self._known_runs() - known
        if not opened:
            return f"killed before a run was there; opened {self.open_another()}"
        self.runs.extend(opened)
        if chance.random() < 0.5:
            return f"killed when run {self.runs[-1]} was there; left to the workers"
        resumed = self.rein("resume", self.runs[-1])
        return f"killed when run {self.runs[-1]} was there; {'resumed' if resumed else 'it had ended'}"

    def _await_run(self, process: Process, known: set[uuid.UUID]) -> None:
        while self._forks.ended(process) is None and self._known_runs() == known:
            time.sleep(0.001)

    def _check_not_ready(self, process: Process, deadline: float) -> None:
        """A command that has failed may be tried again if it says that a server is away."""
        code = self._wait(process)
        if code != _NOT_READY or time.monotonic() > deadline:
            raise CommandError(f"{process.name} ended with {code}: {_tail(process.log)}")

    def _known_runs(self) -> set[uuid.UUID]:
        """The runs in the ledger that were opened by a command, as soon as there is a database: no gates."""
        deadline = time.monotonic() + _WITHIN_S
        while True:
            try:
                with self._engine.connect() as conn:
                    return set(
                        conn.scalars(
                            text(
                                "select run_id from migration_runs where not coalesce(options ? 'gate_of', false)"
                            )
                        )
                    )
            except OperationalError:
                if time.monotonic() > deadline:
                    raise
            self.tick()

    # The reins ----------------------------------------------------------------------------------------------

    def rein(self, verb: str, run_id: uuid.UUID, *options: str) -> bool:
        """Pause, resume, cancel or retry a run; False when it has ended before."""
        deadline = time.monotonic() + _WITHIN_S
        while True:
            code, process = self._run(verb, str(run_id), *options, "--json")
            if code in {0, _USAGE}:
                return code == 0
            self._check_not_ready(process, deadline)

    def skip_gates(self) -> int:
        """Let every run go on that a gate has stopped, whatever that found; how many."""
        with self._engine.connect() as conn:
            stopped = conn.scalars(
                text("""
                    select run_id from migration_runs join migration_waves w using (run_id)
                    where migration_runs.state = 'paused' and w.state = 'stopped'""")
            ).all()
        return sum(self.rein("resume", run_id, "--skip-gate") for run_id in stopped)

    def send_again(self, times: int) -> int:
        """Publish the message of every job of every run once more, several times; how many."""
        with self._engine.connect() as conn:
            rows = conn.execute(
                text(
                    "select run_id, subject, subject_id, verb"
                    " from migration_jobs join migration_runs using (run_id)"
                )
            ).all()
        messages = [
            Message(
                ref=JobRef.from_row(row),
                verb=Verb(row.verb),
                subject_name="once more",
                size_bytes=None,
            )
            for row in rows
        ] * times
        random.Random(times).shuffle(messages)
        broker.send(self._settings, messages)
        return len(messages)

    def changes_of_jobs(self) -> int:
        """How often any job has changed, as far as the database knows."""
        with self._engine.connect() as conn:
            return conn.scalar(text("select count(*) from chaos_history")) or 0

    def cut_connections(self) -> int:
        """Let the server end every connection of the program, whatever is under way in it; how many."""
        with self._engine.begin() as conn:
            ended = conn.scalars(
                text(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name like 'label-migrator%' and datname = current_database()"
                )
            )
            return len(ended.all())

    # Collecting ---------------------------------------------------------------------------------------------

    def start_collector(self, run_id: uuid.UUID) -> None:
        """Begin to follow a run."""
        folder = self._folder / "reports of the killed"
        self._collector = self._start("collect", str(run_id), "--report-dir", str(folder), "--json")

    def kill_collector(self) -> bool:
        """Kill whoever follows a run; False when nobody does."""
        process, self._collector = self._collector, None
        if process is None or self._forks.ended(process) is not None:
            return False
        process.signal(signal.SIGKILL)
        return True

    def collect(self, run_id: uuid.UUID, times: int) -> list[Path]:
        """Collect a run that has ended, so many times at once; its reports."""
        options = ("--report-dir", str(self._folder / "reports"), "--timeout", "60", "--json")
        processes = [self._start("collect", str(run_id), *options) for _ in range(times)]
        return [self._report_of(process) for process in processes]

    def _report_of(self, process: Process) -> Path:
        code = self._wait(process)
        document = _document(process)
        if code not in {0, 3, 4, 8} or not document.get("report_path"):
            raise CommandError(f"{process.name} ended with {code}, {document}: {_tail(process.log)}")
        return self._folder / str(document["report_path"])

    # Processes ----------------------------------------------------------------------------------------------

    def _start(self, *arguments: str) -> Process:
        name = f"producer{next(self._numbers)}-{arguments[0]}"
        return self._forks.run(name, "producer", arguments, env=self._env, folder=self._folder)

    def _run(self, *arguments: str) -> tuple[int, Process]:
        process = self._start(*arguments)
        return self._wait(process), process

    def _wait(self, process: Process) -> int:
        deadline = time.monotonic() + _WITHIN_S
        while (code := self._forks.ended(process)) is None:
            if time.monotonic() > deadline:
                process.signal(signal.SIGABRT)
                raise CommandError(f"{process.name} does not end: {_tail(process.log)}")
            self.tick()
        return code


def _document(process: Process) -> dict[str, Any]:
    """What a command wrote for a script."""
    content = process.output.read_text() if process.output.exists() else ""
    return json.loads(content) if content.strip() else {}


def _tail(path: Path) -> str:
    return os.linesep.join(path.read_text(errors="replace").splitlines()[-8:]) if path.exists() else ""
