"""What the doctor found, as values: checks in chapters, and what could not be looked at and why. Knows nothing of what it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from worker.errors import MigratorError
from worker.findings import Check, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class NotChecked:
    """Something that could not be looked at, and why."""

    name: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """What was looked at in one place, in order."""

    title: str
    checks: tuple[Check, ...]
    not_checked: tuple[NotChecked, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that was looked at."""

    chapters: tuple[Chapter, ...]

    def count(self, verdict: Verdict) -> int:
        """How many checks said so."""
        return sum(check.verdict is verdict for chapter in self.chapters for check in chapter.checks)

    def names(self, verdict: Verdict) -> str:
        """Which checks said so, by chapter."""
        by_chapter = {
            chapter.title: ", ".join(check.name for check in chapter.checks if check.verdict is verdict)
            for chapter in self.chapters
        }
        return "; ".join(f"{title}: {names}" for title, names in by_chapter.items() if names)

    @property
    def is_well(self) -> bool:
        """No check failed, and every check ran: one that could not run has not passed. There may be warnings."""
        return not self.count(Verdict.FAIL) and not any(chapter.not_checked for chapter in self.chapters)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "verdict": "pass" if self.is_well else "fail",
            "counts": {verdict.value: self.count(verdict) for verdict in Verdict},
            "checks": [
                {
                    "chapter": chapter.title,
                    "name": check.name,
                    "verdict": check.verdict.value,
                    "finding": check.finding,
                    "remedy": check.remedy,
                }
                for chapter in self.chapters
                for check in chapter.checks
            ],
            "not_checked": [
                {"chapter": chapter.title, "name": one.name, "because": one.because}
                for chapter in self.chapters
                for one in chapter.not_checked
            ],
        }


class Notes:
    """Collects what one chapter finds. A look that cannot be done becomes a note that says why."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._checks: list[Check] = []
        self._not_checked: list[NotChecked] = []

    def add(self, *checks: Check) -> None:
        """Keep what was found."""
        self._checks += checks

    def leave_out(self, names: Sequence[str], because: str) -> None:
        """Say what was not looked at."""
        self._not_checked += [NotChecked(name=name, because=because) for name in names]

    def look(self, name: str, look: Callable[[], Check]) -> None:
        """Look, if that can be done."""
        try:
            self.add(look())
        except (MigratorError, SQLAlchemyError) as error:
            self.leave_out([name], str(error).partition("\n")[0])

    def chapter(self) -> Chapter:
        """What there is."""
        return Chapter(title=self._title, checks=tuple(self._checks), not_checked=tuple(self._not_checked))
