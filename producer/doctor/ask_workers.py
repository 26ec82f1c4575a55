"""Has every worker examine its machine, and gathers the answers. Judges nothing."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from worker.broker import client as broker
from worker.doctor.protocol import COMMAND, Evidence, Step
from worker.settings import Settings

_WITHIN_S = 25.0
"""How long all workers have for an examination: longer than one takes that hangs everywhere."""

_ASK_EVERY_S = 0.1

AllEvidence = Mapping[str, Evidence]
"""What each worker found, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The answers, by worker: what each found, whose marks it saw, or why it did not come to an end."""

    evidence: AllEvidence
    marks: Mapping[str, frozenset[str]]
    silent: Mapping[str, str]


def ask_all(settings: Settings, workers: Sequence[str]) -> Asked:
    """Have every worker examine its machine; when all have left their marks, have each say which it sees.

    Raises `BrokerUnavailableError` when the broker goes away meanwhile.
    """
    examination = _Examination(settings)
    try:
        evidence = examination.evidence(workers)
        # One worker alone sees its own mark, or none could be made.
        several = sorted(evidence) if len(evidence) > 1 else []
        made = [found.machine.mark for found in evidence.values() if found.machine.mark is not None]
        return Asked(
            evidence=evidence,
            marks=examination.marks_seen(several, made),
            silent=examination.silent,
        )
    finally:
        examination.end(workers)


class _Examination:
    """One examination of some workers: each step is asked again and again until all have come to its end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._token = uuid.uuid4().hex
        self.silent: dict[str, str] = {}
        """The workers that did not come to an end, and why."""

    def evidence(self, workers: Sequence[str]) -> dict[str, Evidence]:
        found: dict[str, Evidence] = {}
        for name, answer in self._ask_until_done(workers, Step.EXAMINE).items():
            try:
                found[name] = Evidence.from_json(answer["evidence"])
            except (KeyError, ValidationError):
                self.silent[name] = "answers in the format of another version of the program"
        return found

    def marks_seen(self, workers: Sequence[str], made: Sequence[str]) -> dict[str, frozenset[str]]:
        answers = self._ask_until_done(workers, Step.LOOK, made)
        return {name: frozenset(answer.get("marks", ())) for name, answer in answers.items()}

    def end(self, workers: Sequence[str]) -> None:
        self._ask(workers, Step.END)

    def _ask_until_done(
        self, workers: Sequence[str], step: Step, marks: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        done: dict[str, dict[str, Any]] = {}
        pending = set(workers)
        deadline = time.monotonic() + _WITHIN_S
        while pending and time.monotonic() < deadline:
            for name, answer in self._ask(sorted(pending), step, marks).items():
                match answer.get("state"):
                    case "examining":
                        continue
                    case "done":
                        done[name] = answer
                    case "silent":
                        self.silent[name] = str(answer.get("because"))
                    case _:
                        # Celery's own words for a command that it does not know, or that failed.
                        self.silent[name] = f"does not know the question: {answer.get('error')}"
                pending.discard(name)
            if pending:
                time.sleep(_ASK_EVERY_S)
        self.silent |= dict.fromkeys(pending, f"did not answer within {_WITHIN_S:.0f} s")
        return done

    def _ask(
        self, workers: Sequence[str], step: Step, marks: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        arguments = {"token": self._token, "step": step.value, "marks": list(marks)}
        return broker.ask(self._settings, workers, COMMAND, arguments)
