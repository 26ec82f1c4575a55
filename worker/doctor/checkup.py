"""What a worker's parent answers the doctor: begun at the first question, told when it is asked again. Knows no Celery.

The parent's event loop must not wait for a disk or a database. So each question is answered at once, with what is known by
then; the looking is done by a thread, and all that touches files by a process of its own (`worker.doctor.probe`).
"""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.db import engine as engine_module
from worker.db import health
from worker.doctor.probe import WITHIN_S, Lines
from worker.doctor.protocol import Evidence, Machine, Step, edition
from worker.doctor.store_checks import Request
from worker.errors import MigratorError
from worker.findings import Check, failed, passed, warned
from worker.runtime import log
from worker.settings import Settings

_log = log.get(__name__)

_GRACE_S = 4.0
"""What a new process may take beyond the time that it gives the disks."""

_LIMIT_S = 20.0
"""After this an examination is over, whatever hangs in it."""

_WAITS_FOR_WORDS_S = 30.0
_MOST = 4
"""So many examinations at once: whoever can write to the broker must not be able to fill the machine with processes."""

_STATEMENT_S = 3.0
_SAMPLE = 50
_CLOCKS_APART_S = 5.0
_ALIKE_S = 0.1


class Checkup:
    """One examination of this worker. Nothing here makes the caller wait."""

    def __init__(
        self, settings: Settings, token: str, *, processes: int, beside: Callable[[], tuple[Check, ...]]
    ) -> None:
        self._settings = settings
        self._token = token
        self._processes = processes
        self._beside = beside
        self._begun = time.monotonic()
        self._doing = "asking PostgreSQL"
        self._evidence: Evidence | None = None
        self._wanted: Sequence[str] = ()
        self._marks: list[str] | None = None
        self._look = threading.Event()
        self._ended = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="checkup", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Has it come to its end, or had its time?"""
        return self._over or time.monotonic() - self._begun > _LIMIT_S + 2 * _WAITS_FOR_WORDS_S

    def answer(self, step: Step, marks: Sequence[str] = ()) -> dict[str, Any]:
        """What is known by now, as JSON. `state`: done, examining (ask again), or silent (it hangs, and where)."""
        match step:
            case Step.EXAMINE if self._evidence is not None:
                return {"state": "done", "evidence": self._evidence.to_json()}
            case Step.LOOK if self._marks is not None:
                return {"state": "done", "marks": self._marks}
            case Step.LOOK if not self._look.is_set():
                self._wanted = marks
                self._look.set()
            case Step.END:
                self._ended.set()
                self._look.set()
                return {"state": "done"}
            case _:
                pass
        if self._over or time.monotonic() - self._begun > _LIMIT_S:
            return {"state": "silent", "because": f"it did not get beyond {self._doing}"}
        return {"state": "examining"}

    def _run(self) -> None:
        try:
            self._examine()
        except Exception:  # noqa: BLE001 - said with its trace; the doctor hears where it ended
            _log.exception("checkup_failed")
            self._over = True

    def _examine(self) -> None:
        seen = _ask_database(self._settings, self._token)
        self._doing = "looking at its machine's files"
        request = Request(
            token=self._token,
            data_dir=str(self._settings.data_dir),
            store_digest=self._settings.store_digest,
            legacy_roots=tuple(map(str, self._settings.legacy_roots)),
            projects=seen.projects,
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.doctor.probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._converse(process, request, seen)
        finally:
            self._over = True
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                # It may hang in the kernel, where the kill reaches it when it comes back. This thread alone waits for that.
                process.wait()

    def _converse(self, process: subprocess.Popen[bytes], request: Request, seen: "_Seen") -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
        with process.stdin as words, process.stdout as answers:
            lines = Lines(answers.fileno())
            words.write(json.dumps(request.to_json()).encode() + b"\n")
            words.flush()
            found = lines.next(WITHIN_S + _GRACE_S)
            if found is None:
                return
            self._evidence = self._put_together(seen, Machine.from_json(json.loads(found)))
            self._doing = "looking for marks"
            if self._look.wait(_WAITS_FOR_WORDS_S) and not self._ended.is_set():
                words.write(json.dumps(self._wanted).encode() + b"\n")
                words.flush()
                marks = lines.next(WITHIN_S + _GRACE_S)
                self._marks = json.loads(marks) if marks is not None else None
                self._ended.wait(_WAITS_FOR_WORDS_S)
            words.write(b"null\n")

    def _put_together(self, seen: "_Seen", machine: Machine) -> Evidence:
        return Evidence(
            edition=edition(),
            settings=self._settings.common,
            processes=self._processes,
            checks=(*seen.checks, *self._beside()),
            database=seen.identity,
            sampled=len(seen.projects),
            machine=machine,
        )


class Checkups:
    """The examinations of one worker, by the token of whoever asks. Old ones are forgotten."""

    def __init__(self, settings: Settings, beside: Callable[[], tuple[Check, ...]]) -> None:
        self._settings = settings
        self._beside = beside
        self._by_token: dict[str, Checkup] = {}
        # What runs here, and not what the files say when somebody asks.
        edition()

    def answer(self, token: str, step: str, marks: Sequence[str] = (), *, processes: int) -> dict[str, Any]:
        """The answer to one question; see `Checkup.answer`. The first one begins an examination.

        Raises `ValueError` for what is no token or no step: both came through the broker, and the token becomes a part of
        a file's name.
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
            checkup = Checkup(self._settings, token, processes=processes, beside=self._beside)
            self._by_token[token] = checkup
        return checkup.answer(asked, marks)


# The database, as this worker sees it -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a worker learned from its database; nothing, where it cannot get there."""

    checks: tuple[Check, ...]
    identity: str | None = None
    projects: dict[int, str] = field(default_factory=dict)


def _ask_database(settings: Settings, token: str) -> _Seen:
    name = "database from workers"
    # For these few questions only: the parent forks, and keeps no connection while it does.
    engine = engine_module.connect(
        settings.sqlalchemy_url,
        application_name="label-migrator checkup",
        keeps_connections=False,
        statement_limit_s=_STATEMENT_S,
    )
    try:
        return _questions(engine, token, passed(name, "answers"))
    except (MigratorError, SQLAlchemyError) as error:
        words = str(error).partition("\n")[0]
        remedy = "Check DATABASE_URL on that worker's machine and the network between."
        return _Seen(checks=(failed(name, words, remedy),))
    finally:
        engine.dispose()


def _questions(engine: Engine, token: str, answers: Check) -> _Seen:
    with engine_module.autocommit(engine) as conn:
        ahead_s = health.clock_ahead_s(conn)
        identity: str | None = None
        projects: dict[int, str] = {}
        # A table that is missing, or a right: the producer's own look at the database says so.
        with suppress(MigratorError, SQLAlchemyError):
            identity = health.identity(conn)
            projects = health.sample_of_legacy(conn, token, _SAMPLE)
    return _Seen(checks=(answers, clock_check(ahead_s)), identity=identity, projects=projects)


def clock_check(ahead_s: float) -> Check:
    """Leases run by the database's clock alone; reports and logs hold the machine's."""
    name = "clocks of workers"
    if abs(ahead_s) < _ALIKE_S:
        return passed(name, "the same as the database's")
    words = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s >= 0 else 'behind'} the database's"
    if abs(ahead_s) > _CLOCKS_APART_S:
        return warned(
            name, words, "Let the machine's clock be set by NTP; times in reports and logs are off."
        )
    return passed(name, words)
