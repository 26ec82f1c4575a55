"""What a check found, as a value that workers and the doctor share. Knows neither what is checked nor how it travels."""

from enum import StrEnum

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


class Verdict(StrEnum):
    """What a check says, from good to bad: a warning is worth a look, a failure stands in the way of the work."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Check:
    """One thing that was looked at: what was found, and the operator's next step unless all is well."""

    name: str
    verdict: Verdict
    finding: str
    remedy: str | None = None


def passed(name: str, finding: str) -> Check:
    """All is well."""
    return Check(name=name, verdict=Verdict.PASS, finding=finding)


def warned(name: str, finding: str, remedy: str) -> Check:
    """Work goes on, but somebody should know."""
    return Check(name=name, verdict=Verdict.WARN, finding=finding, remedy=remedy)


def failed(name: str, finding: str, remedy: str) -> Check:
    """Work cannot go on, or not safely."""
    return Check(name=name, verdict=Verdict.FAIL, finding=finding, remedy=remedy)
