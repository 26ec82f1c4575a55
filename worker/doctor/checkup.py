"""How a worker's parent answers the doctor: at once, with what is known by then. Knows no Celery and no file.

The parent's event loop must not wait for a disk or a database. The first question begins an examination,
later ones fetch its results: a thread asks the database, and all that touches files is done by a process
(`worker.doctor.probe`).
"""

import json
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from worker.doctor.database_checks import FromDatabase, ask_database
from worker.doctor.probe import WITHIN_S, Lines
from worker.doctor.protocol import Evidence, Machine, Request, Step, edition
from worker.findings import Checks
from worker.runtime import log
from worker.settings import Settings

_log = log.get(__name__)

_GRACE_S = 4.0
"""What a new process may take beyond the time that it gives the disks."""

_LIMIT_S = 20.0
"""After this an examination is over, whatever hangs in it."""

_NEXT_STEP_S = 30.0
"""How long an examination waits for the doctor's next step before it cleans up."""

_MOST = 4
"""So many examinations at once: messages must not be able to fill the machine with processes."""


class Checkup:
    """One examination of this worker. Nothing here makes the caller wait."""

    def __init__(
        self, settings: Settings, token: str, *, processes: int, other_checks: Callable[[], Checks]
    ) -> None:
        self._settings = settings
        self._token = token
        self._processes = processes
        self._other_checks = other_checks
        self._begun = time.monotonic()
        self._stage = "asking PostgreSQL"
        self._results: dict[Step, dict[str, Any]] = {}
        self._heard = {Step.EXAMINE}
        self._wanted: queue.Queue[Sequence[str] | None] = queue.Queue()
        """Marks to look for; None at the end."""
        self._over = False
        threading.Thread(target=self._run, name="checkup", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Has it come to its end, or had its time?"""
        return self._over or time.monotonic() - self._begun > _LIMIT_S + 2 * _NEXT_STEP_S

    def answer(self, step: Step, marks: Sequence[str] = ()) -> dict[str, Any]:
        """What is known by now, as JSON. `state`: done, examining (ask again), or silent (it hangs)."""
        if step not in self._heard:
            self._heard.add(step)
            self._wanted.put(None if step is Step.END else marks)
        if step in self._results or step is Step.END:
            return {"state": "done", **self._results.get(step, {})}
        if self._over or time.monotonic() - self._begun > _LIMIT_S:
            return {"state": "silent", "because": f"it did not get beyond {self._stage}"}
        return {"state": "examining"}

    def _run(self) -> None:
        try:
            self._examine()
        except Exception:  # noqa: BLE001 - logged with its trace; the doctor hears where it ended
            _log.exception("checkup_failed")
        finally:
            self._over = True

    def _examine(self) -> None:
        database = ask_database(self._settings, self._token)
        self._stage = "looking at its machine's files"
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.doctor.probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
            with process.stdin, process.stdout:
                self._converse(process.stdin, Lines(process.stdout.fileno()), database)
        finally:
            self._over = True
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                # It may hang in the kernel, where the kill reaches it when it comes back. This thread alone
                # waits for that.
                process.wait()

    def _converse(self, to_probe: IO[bytes], answers: Lines, database: FromDatabase) -> None:
        """Have the probe examine the machine and then, if the doctor asks, look for marks."""
        _write(to_probe, self._request(database).to_json())
        found = answers.next(WITHIN_S + _GRACE_S)
        if found is None:
            return
        evidence = self._evidence(database, Machine.from_json(json.loads(found)))
        self._results[Step.EXAMINE] = {"evidence": evidence.to_json()}
        self._stage = "looking for marks"
        # A doctor that has died says no more.
        with suppress(queue.Empty):
            while (marks := self._wanted.get(timeout=_NEXT_STEP_S)) is not None:
                _write(to_probe, marks)
                seen = answers.next(WITHIN_S + _GRACE_S)
                if seen is not None:
                    self._results[Step.LOOK] = {"marks": json.loads(seen)}
        _write(to_probe, None)

    def _request(self, database: FromDatabase) -> Request:
        return Request(
            token=self._token,
            data_dir=str(self._settings.data_dir),
            store_digest=self._settings.store_digest,
            legacy_roots=tuple(map(str, self._settings.legacy_roots)),
            projects=database.projects,
        )

    def _evidence(self, database: FromDatabase, machine: Machine) -> Evidence:
        return Evidence(
            edition=edition(),
            settings=self._settings.common,
            processes=self._processes,
            checks={**database.checks, **self._other_checks()},
            database=database.identity,
            sampled=len(database.projects),
            machine=machine,
        )


def _write(to_probe: IO[bytes], document: object) -> None:
    to_probe.write(json.dumps(document).encode() + b"\n")
    to_probe.flush()


class Checkups:
    """The examinations of one worker, by their tokens. Old ones are forgotten."""

    def __init__(self, settings: Settings, other_checks: Callable[[], Checks]) -> None:
        self._settings = settings
        self._other_checks = other_checks
        self._by_token: dict[str, Checkup] = {}
        # Of what runs here, and not of the files as they are when the doctor asks.
        edition()

    def answer(self, token: str, step: str, marks: Sequence[str] = (), *, processes: int) -> dict[str, Any]:
        """The answer to one question; see `Checkup.answer`. The first one begins an examination.

        Raises `ValueError` for what is no token or no step: both came through the broker, and the token
        becomes a part of a file's name.
        """
        token, asked = uuid.UUID(token).hex, Step(step)
        checkup = self._by_token.get(token)
        if checkup is None:
            if asked is not Step.EXAMINE:
                return {"state": "silent", "because": "it has forgotten the examination"}
            self._by_token = {
                known: checkup for known, checkup in self._by_token.items() if not checkup.is_over
            }
            if len(self._by_token) >= _MOST:
                return {"state": "examining"}
            checkup = Checkup(self._settings, token, processes=processes, other_checks=self._other_checks)
            self._by_token[token] = checkup
        return checkup.answer(asked, marks)
