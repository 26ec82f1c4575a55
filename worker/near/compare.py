"""Two recordings read side by side: is one the other in another form? Both are read as far as they agree."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from worker.near.agreement import Agreement, Precision, Side, Verdict
from worker.near.beginning import Beginning
from worker.near.records import NONE, Records, WithoutLast, joined
from worker.near.resampled import Resampled

Read = Callable[[], Iterator[Records]]
"""Begins to read a recording, in order of time."""

_TIME_NS = 1.0
"""Times are the same if they are within so much; text of another form never moves them further."""

_LEAST_CHANGES = 10


class Kind(StrEnum):
    """What one recording is of another one, the richer."""

    FORMAT = "format"
    """The same records: other digits, line ends, names or order of columns."""

    LAST_RECORD = "last record"
    """All but the last record, which Label drops whenever it rewrites a recording."""

    PREFIX = "prefix"
    """So many of the first records."""

    RESAMPLED = "resampled"
    """Label's resampling to 50 Hz, or the first part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What was found when two recordings were read: `richer` has all readings of the other, which has
    `records`; the richer one goes on for `more` (None where both rates differ). `changes` counts the
    records at which a reading is another than the one before: the weight of the evidence.

    `coarser` names the side whose readings were rounded, to `digits`; it may be the richer one.
    """

    kind: Kind
    richer: Side
    records: int
    more: int | None
    changes: int
    precision: Precision
    coarser: Side | None
    digits: str | None

    @property
    def is_proof(self) -> bool:
        """Do equal readings prove anything? Those of a sensor that says the same all the time do not, unless
        the two recordings are the same records from beginning to end.
        """
        return self.kind is Kind.FORMAT or self.changes >= _LEAST_CHANGES


def compare(first: Read, second: Read, begins: tuple[Beginning, Beginning]) -> Match | None:
    """Read two recordings; None if neither is the other in another form.

    `begins`: how they begin, which decides what one can be of the other. What reading raises comes through.
    """
    one, other = begins
    if _begin_the_same(one, other):
        found, may_be_filled = _same_records(first(), second())
        if found is not None or not may_be_filled:
            return found
    if _begins_resampled(one, other) and (found := _resampling(first(), second(), "first")) is not None:
        return found
    if _begins_resampled(other, one) and (found := _resampling(second(), first(), "second")) is not None:
        return found
    return None


def _begin_the_same(one: Beginning, other: Beginning) -> bool:
    return _agree_so_far(one.records, other.records)


def _begins_resampled(recorded: Beginning, resampled: Beginning) -> bool:
    """Could the second be a resampling of the first, by what is known of both without reading on?"""
    if not resampled.on_grid:
        return False
    # The last interval may go on.
    begins = joined(Resampled(iter((recorded.records,))))[:-1]
    return _agree_so_far(begins, resampled.records[:-1])


def _agree_so_far(some: Records, others: Records) -> bool:
    count = min(len(some), len(others))
    some, others = some[:count], others[:count]
    return _same_times(some, others) and Agreement().take(some.readings, others.readings)


def _same_times(some: Records, others: Records) -> bool:
    apart = np.abs(some.times - others.times)
    # Above 2^53 ns, a hundred days, a double has no single nanoseconds.
    return bool((apart <= np.maximum(_TIME_NS, np.abs(some.times) * 2.0**-51)).all())


def _same_records(first: Iterator[Records], second: Iterator[Records]) -> tuple[Match | None, bool]:
    """Record by record. And if not so: are it the times that are not the same, as after a hole that a
    resampling fills?
    """
    agreement, some, others = Agreement(), _Rest(first), _Rest(second)
    count = 0
    while some.is_more() and others.is_more():
        part, counterpart = _equally_many(some, others)
        if not _same_times(part, counterpart):
            return None, True
        if not agreement.take(part.readings, counterpart.readings):
            return None, False
        count += len(part)
    verdict = agreement.verdict()
    if verdict is None:
        return None, False
    more, more_there = some.count(), others.count()
    richer: Side = "second" if more_there or (not more and verdict.coarser == "first") else "first"
    goes_on = more or more_there
    kind = {0: Kind.FORMAT, 1: Kind.LAST_RECORD}.get(goes_on, Kind.PREFIX)
    return _match(kind, richer, count, goes_on, agreement, verdict), False


def _resampling(recorded: Iterator[Records], resampled: Iterator[Records], richer: Side) -> Match | None:
    """Is the second a resampling of the first, or of the first part of it?"""
    agreement, label, held = Agreement(), Resampled(recorded), WithoutLast(resampled)
    some, others = _Rest(iter(label)), _Rest(iter(held))
    count = 1
    while others.is_more():
        if not some.is_more():
            return None
        part, counterpart = _equally_many(some, others)
        if not _same_times(part, counterpart) or not agreement.take(part.readings, counterpart.readings):
            return None
        count += len(part)
    if not some.is_more() or not _ends_so(label, some.take(1), held.last, agreement):
        return None
    verdict = agreement.verdict()
    # The means of rounded readings have more digits than these: then it is no resampling of them.
    if verdict is None or verdict.coarser == "first":
        return None
    coarser: Side | None = None if verdict.coarser is None else ("second" if richer == "first" else "first")
    verdict = Verdict(precision=verdict.precision, coarser=coarser, digits=verdict.digits)
    return _match(Kind.RESAMPLED, richer, count, None, agreement, verdict)


def _ends_so(label: Resampled, whole: Records, last: Records, agreement: Agreement) -> bool:
    """Is this the last record of a resampling? Of the records of its interval all count, or the first few."""
    if not _same_times(whole, last):
        return False
    cut = label.as_cut(float(whole.times[0]))
    ends = np.concatenate((whole.readings, cut.readings))
    apart = np.nan_to_num(np.abs(ends - last.readings)).sum(axis=1)
    return agreement.take(ends[int(apart.argmin())][None, :], last.readings)


def _match(
    kind: Kind, richer: Side, records: int, more: int | None, agreement: Agreement, verdict: Verdict
) -> Match:
    return Match(
        kind=kind,
        richer=richer,
        records=records,
        more=more,
        changes=agreement.changes,
        precision=verdict.precision,
        coarser=verdict.coarser,
        digits=verdict.digits,
    )


class _Rest:
    """What is left of a recording that is read part by part."""

    def __init__(self, parts: Iterator[Records]) -> None:
        self._parts = parts
        self.here = NONE

    def is_more(self) -> bool:
        while not len(self.here):
            part = next(self._parts, None)
            if part is None:
                return False
            self.here = part
        return True

    def take(self, count: int) -> Records:
        taken, self.here = self.here[:count], self.here[count:]
        return taken

    def count(self) -> int:
        """How many records are left, all of which are read."""
        count = 0
        while self.is_more():
            count += len(self.here)
            self.here = NONE
        return count


def _equally_many(some: _Rest, others: _Rest) -> tuple[Records, Records]:
    count = min(len(some.here), len(others.here))
    return some.take(count), others.take(count)
