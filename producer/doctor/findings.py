"""What the doctor found, as values: checks in chapters, and what could not be checked. Knows no check."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from worker.errors import MigratorError
from worker.findings import Check, Verdict

T = TypeVar("T")

FEW = 5
"""So many things of one kind are named; the others are counted."""


@dataclass(slots=True)
class Chapter:
    """What was checked of one thing, by name and in order, and what could not be checked, with the reason."""

    title: str
    checks: dict[str, Check] = field(default_factory=dict)
    not_checked: dict[str, str] = field(default_factory=dict)

    def carry_out(self, checks: Mapping[str, Callable[[T], Check]], subject: T) -> None:
        """Check the subject. A check that cannot be carried out is noted with the reason."""
        for name, check in checks.items():
            try:
                self.checks[name] = check(subject)
            except (MigratorError, SQLAlchemyError) as error:
                self.leave_out([name], str(error).partition("\n")[0])

    def leave_out(self, names: Iterable[str], because: str) -> None:
        """Note why these checks, as far as they are still to be done, were not carried out."""
        self.not_checked |= {name: because for name in names if name not in self.checks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that was checked."""

    chapters: tuple[Chapter, ...]

    def count(self, verdict: Verdict) -> int:
        """How many checks ended so."""
        return sum(check.verdict is verdict for chapter in self.chapters for check in chapter.checks.values())

    def names(self, verdict: Verdict) -> str:
        """Which checks ended so, by chapter."""
        by_chapter = {
            chapter.title: ", ".join(
                name for name, check in chapter.checks.items() if check.verdict is verdict
            )
            for chapter in self.chapters
        }
        return "; ".join(f"{title}: {names}" for title, names in by_chapter.items() if names)

    @property
    def is_well(self) -> bool:
        """No check failed, and every check ran: one that could not run has not passed. Warnings may
        remain.
        """
        return not self.count(Verdict.FAIL) and not any(chapter.not_checked for chapter in self.chapters)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "verdict": "pass" if self.is_well else "fail",
            "counts": {verdict.value: self.count(verdict) for verdict in Verdict},
            "checks": [
                {
                    "chapter": chapter.title,
                    "name": name,
                    "verdict": check.verdict.value,
                    "finding": check.finding,
                    "remedy": check.remedy,
                }
                for chapter in self.chapters
                for name, check in chapter.checks.items()
            ],
            "not_checked": [
                {"chapter": chapter.title, "name": name, "because": because}
                for chapter in self.chapters
                for name, because in chapter.not_checked.items()
            ],
        }


def first_few(things: Sequence[object]) -> str:
    """The first few of many, and how many more there are."""
    rest = f" and {len(things) - FEW} more" if len(things) > FEW else ""
    return ", ".join(str(thing) for thing in things[:FEW]) + rest
