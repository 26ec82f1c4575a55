"""Which projects an operator means by a call, and which are left out, with the reason. Asks no database."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.db.projects import Project
from worker.errors import UsageError
from worker.messages import RunOptions, Subject

_EXCLUDED = "excluded"
_BEYOND_LIMIT = "beyond --limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A project or dataset that gets no message, and why."""

    subject_id: int
    subject_name: str
    reason: str
    subject: Subject = Subject.PROJECT

    def to_json(self) -> dict[str, Any]:
        """As run and report keep it; a project under the names that it has there."""
        return {
            "subject": self.subject.value,
            f"{self.subject}_id": self.subject_id,
            f"{self.subject}_name": self.subject_name,
            "reason": self.reason,
        }


def check_ids(
    options: RunOptions,
    possible: Iterable[Project],
    found: Mapping[int, Project],
    why_not: Callable[[Project], str],
    done: str,
) -> None:
    """Every id that was typed must mean something: a chosen one be among the `possible` projects, an excluded
    one exist.

    `found` are the named projects that exist; `why_not` says why one is not possible, `done` what it cannot
    be. Raises `UsageError` naming all ids that mean nothing, each with the reason.
    """
    possible_ids = {project.project_id for project in possible}
    chosen = [number for number in options.project_ids if number not in possible_ids]
    excluded = [number for number in options.exclude if number not in found]
    both = [number for number in options.project_ids if number in set(options.exclude)]
    problems = [
        *(f"{number} ({_reason(number, found, why_not)})" for number in chosen),
        *(f"{number} (to be excluded, but {_reason(number, found, why_not)})" for number in excluded),
        *(f"{number} (both chosen and excluded)" for number in both),
    ]
    if problems:
        raise UsageError(f"These project ids cannot be {done}: {', '.join(problems)}")


def _reason(number: int, found: Mapping[int, Project], why_not: Callable[[Project], str]) -> str:
    if number < 1:
        return "ids begin at 1"
    return why_not(found[number]) if number in found else "no such project"


def choose(
    options: RunOptions, candidates: Sequence[Project], failed: Mapping[int, str] | None = None
) -> tuple[list[Project], list[LeftOut]]:
    """Those of the candidates that a run is to have, and the others with the reason; `failed` says by id why
    a project's turn is not now. A legacy project without a path does not count towards the limit.
    """
    only = set(options.project_ids)
    reasons = {**(failed or {}), **dict.fromkeys(options.exclude, _EXCLUDED)}
    left_out: list[LeftOut] = []
    chosen: list[Project] = []
    counted = 0
    for project in candidates:
        if only and project.project_id not in only:
            continue
        full = options.limit is not None and counted >= options.limit
        reason = reasons.get(project.project_id, _BEYOND_LIMIT if full else None)
        if reason is None:
            chosen.append(project)
            counted += bool(project.path) or not project.is_legacy
        else:
            left_out.append(
                LeftOut(subject_id=project.project_id, subject_name=project.project_name, reason=reason)
            )
    return chosen, left_out
