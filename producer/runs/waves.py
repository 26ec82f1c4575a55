"""Which project belongs to which wave of a run. Pure: knows no database."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise
from typing import Any

from worker.db.ledger import NewJob
from worker.db.waves import NewWave, Wave
from worker.errors import UsageError
from worker.messages import Gate

RULE = "a wave takes projects of all sizes, evenly: the first one is of middling size, the very largest come last"
"""How projects come into waves, in words for people. What cannot be seen from here comes last of all."""

_NUMBER = re.compile(r"(?P<number>\d{1,9}(\.\d{1,6})?)(?P<percent>%?)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waves:
    """What `--waves` and `--gate` ask for: to how many projects, or to which part of them, each wave goes."""

    asked_for: tuple[str, ...]
    gate: Gate

    def divide(self, jobs: Sequence[NewJob], *, hold: bool) -> tuple[list[NewJob], list[NewWave]]:
        """The jobs of a run, each with its wave, and the waves; `hold` those of later waves back. Waves that
        would add no project, as 5% of ten after 1, are left out.

        Raises `UsageError` if there is nothing to do, or the waves do not grow or do not end with all
        projects, as many as there are.
        """
        waiting = [job for job in jobs if not job.skipped]
        ends = self._ends(len(waiting))
        wave_of: dict[int, int] = {}
        waves: list[NewWave] = []
        left = sorted(waiting, key=_size)
        for number, (asked_for, count) in enumerate(ends, start=1):
            taken = _spread(left, count)
            wave_of |= dict.fromkeys((job.subject_id for job in taken), number)
            left = [job for job in left if job.subject_id not in wave_of]
            waves.append(
                NewWave(
                    wave=number,
                    asked_for=asked_for,
                    # Behind the last wave nothing is held back.
                    gate=self.gate if number < len(ends) else Gate.NONE,
                    projects=len(taken),
                    size_bytes=sum(job.size_bytes or 0 for job in taken),
                )
            )
        divided = [
            job
            if job.skipped
            else replace(job, wave=wave_of[job.subject_id], held=hold and wave_of[job.subject_id] > 1)
            for job in jobs
        ]
        return divided, waves

    def _ends(self, total: int) -> list[tuple[str, int]]:
        """Each wave that adds a project, and how many it adds."""
        if not total:
            raise UsageError(f"{self}: there is nothing to migrate, and nothing to divide into waves")
        before = 0
        ends: list[tuple[str, int]] = []
        for asked_for in self.asked_for:
            until = _until(asked_for, total)
            if until < before:
                raise UsageError(
                    f"{self}: of {total} projects {asked_for} is {until}, fewer than the {before} of the wave before"
                )
            if until > before:
                ends.append((asked_for, until - before))
            before = until
        if before < total:
            raise UsageError(f"{self}: the last wave ends with {before} of {total} projects; end with 100%")
        return ends

    def __str__(self) -> str:
        return f"--waves {','.join(self.asked_for)}"


def asked(text: str | None, gate: Gate | None) -> Waves | None:
    """What the options say; None without them. Raises `UsageError` for what cannot be meant, however many
    projects there are.
    """
    if text is None:
        if gate is not None:
            raise UsageError("--gate is what is done between waves: add --waves, such as --waves 1,5%,100%")
        return None
    parts = tuple(part.strip() for part in text.split(","))
    for part in parts:
        _check(text, part)
    for one, following in pairwise(parts):
        if one.endswith("%") == following.endswith("%") and _value(following) <= _value(one):
            raise UsageError(f"--waves {text}: {following} after {one} adds nothing; waves must grow")
    if parts[-1].endswith("%") and _value(parts[-1]) < 100:
        raise UsageError(f"--waves {text}: the last wave must take all projects; end with 100%")
    return Waves(asked_for=parts, gate=gate or Gate.VERIFY)


def _check(text: str, part: str) -> None:
    found = _NUMBER.fullmatch(part)
    if found is None or ("." in part and not found["percent"]):
        raise UsageError(
            f"--waves {text}: {part!r} is neither a number of projects nor a percentage such as 5%"
        )
    if not _value(part):
        raise UsageError(f"--waves {text}: {part} is no project at all; the first wave needs at least one")
    if found["percent"] and _value(part) > 100:
        raise UsageError(f"--waves {text}: {part} is more than all projects; the most is 100%")


def _value(part: str) -> Decimal:
    return Decimal(part.removesuffix("%"))


def _until(asked_for: str, total: int) -> int:
    """With how many of all projects a wave ends; a part of one is one."""
    value = _value(asked_for)
    if asked_for.endswith("%"):
        value = (value * total / 100).to_integral_value(ROUND_CEILING)
    return min(int(value), total)


def _size(job: NewJob) -> tuple[bool, int, int]:
    """First what can be seen from here and has sessions, by size; then all else."""
    is_seen = job.size_bytes is not None and bool(job.sessions)
    return not is_seen, job.size_bytes or 0, job.subject_id


def _spread(ordered: Sequence[NewJob], count: int) -> list[NewJob]:
    """The middle of each of so many equal parts; of what cannot be seen only when nothing else is left."""
    seen = [job for job in ordered if not _size(job)[0]]
    among = seen if count <= len(seen) else ordered[len(seen) :]
    always = [] if count <= len(seen) else seen
    more = count - len(always)
    return [*always, *(among[(2 * i + 1) * len(among) // (2 * more)] for i in range(more))]


def wave_json(one: Wave) -> dict[str, Any]:
    """A wave as status and report show it; `gate` is null behind the last one."""
    return {
        "wave": one.wave,
        "asked_for": one.asked_for,
        "projects": one.projects,
        "bytes": one.bytes_total,
        "state": one.state.value,
        "opened_at": _text(one.opened_at),
        "gate": None
        if one.gate is Gate.NONE
        else {
            "verb": one.gate.value,
            "run_id": None if one.gate_run_id is None else str(one.gate_run_id),
            "jobs": one.gate_jobs,
            "ended": one.gate_ended,
            "failed": one.gate_failed,
            "began_at": _text(one.gated_at),
            "ended_at": _text(one.decided_at),
            "reason": one.reason,
        },
    }


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
