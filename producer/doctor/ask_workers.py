"""Asks every worker to look at its machine, and gathers what they answer. Judges nothing."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from worker.broker import client as broker
from worker.messages import Evidence, Step
from worker.settings import Settings

_WITHIN_S = 25.0
"""How long all workers have for an examination: longer than one takes that hangs everywhere."""

_ASK_EVERY_S = 0.1

AllEvidence = Mapping[str, Evidence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came of asking: who answered with what, whose marks each one saw, and what became of the others."""

    evidence: AllEvidence
    marks: Mapping[str, frozenset[str]]
    silent: Mapping[str, str]


def ask_all(settings: Settings, workers: Sequence[str]) -> Asked:
    """Have every worker examine its machine; when all have left their marks, have each say whose it sees."""
    token = uuid.uuid4().hex
    silent: dict[str, str] = {}
    evidence: dict[str, Evidence] = {}
    try:
        for name, answer in _ask(settings, workers, (token, Step.EXAMINE, ()), silent).items():
            try:
                evidence[name] = Evidence.from_json(answer["evidence"])
            except (KeyError, ValidationError):
                silent[name] = "answers in words of another version of the program"
        # One worker alone sees its own mark, or none could be made.
        several = sorted(evidence) if len(evidence) > 1 else []
        made = [said.machine.mark for said in evidence.values() if said.machine.mark is not None]
        seen = _ask(settings, several, (token, Step.LOOK, made), silent)
    finally:
        broker.ask(settings, workers, token, Step.END)
    marks = {name: frozenset(answer.get("marks", ())) for name, answer in seen.items()}
    return Asked(evidence=evidence, marks=marks, silent=silent)


def _ask(
    settings: Settings,
    workers: Sequence[str],
    question: tuple[str, Step, Sequence[str]],
    silent: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Ask again and again until all have come to an end; who does not, and why, goes to `silent`."""
    done: dict[str, dict[str, Any]] = {}
    pending = set(workers)
    deadline = time.monotonic() + _WITHIN_S
    while pending and time.monotonic() < deadline:
        for name, answer in broker.ask(settings, sorted(pending), *question).items():
            match answer.get("state"):
                case "examining":
                    continue
                case "done":
                    done[name] = answer
                case "silent":
                    silent[name] = str(answer.get("because"))
                case _:
                    # Celery's own words for a command that it does not know, or that failed.
                    silent[name] = f"does not know the question: {answer.get('error')}"
            pending.discard(name)
        if pending:
            time.sleep(_ASK_EVERY_S)
    silent |= dict.fromkeys(pending, f"did not answer within {_WITHIN_S:.0f} s")
    return done
