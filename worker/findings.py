"""What a check found, as a value of workers and doctor. Knows neither what is checked nor how it travels."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


class Verdict(StrEnum):
    """What a check says, from good to bad: a warning deserves attention, a failure stops the work."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Check:
    """What a check found, and the operator's next step if it is needed. Its name is its key in `Checks`."""

    verdict: Verdict
    finding: str
    remedy: str | None = None


Checks = Mapping[str, Check]
"""Checks by name, in the order in which they are shown."""


def passed(finding: str) -> Check:
    """All is well."""
    return Check(verdict=Verdict.PASS, finding=finding)


def warned(finding: str, remedy: str) -> Check:
    """Work goes on, but the operator should know."""
    return Check(verdict=Verdict.WARN, finding=finding, remedy=remedy)


def failed(finding: str, remedy: str) -> Check:
    """Work cannot go on, or not safely."""
    return Check(verdict=Verdict.FAIL, finding=finding, remedy=remedy)


def worst(checks: Iterable[Check]) -> Verdict:
    """The worst verdict of several checks; `PASS` if there are none."""
    return max((check.verdict for check in checks), key=list(Verdict).index, default=Verdict.PASS)
