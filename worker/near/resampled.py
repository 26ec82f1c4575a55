"""Label's resampling to 50 Hz, part by part. Reads no file.

As an upload does it (label contract, section 3): the records of each 20 ms of the watch's clock become one,
at the beginning of these 20 ms, with the mean of each axis; where there are none, the values before them
stand again. A silence of more than 30 minutes is never filled: Label does not resample over it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from worker.errors import SessionUnreadableError
from worker.near.records import MOST_RECORDS, NONE, Records

BIN_NS = 20_000_000
"""20 ms: 50 Hz."""

GAP_NS = 30 * 60 * 1_000_000_000
"""A time step that is longer begins a new session in Label."""


class Resampled:
    """A recording resampled, interval by interval; after a silence there are no more."""

    def __init__(self, parts: Iterator[Records]) -> None:
        """Take a recording's records in order of time."""
        self._parts = parts
        self._rows = NONE
        """The records of which the intervals were made that were given last."""
        self._before: NDArray[np.float64] | None = None
        """The values of the last interval before these."""
        self._next_bin = 0

    def __iter__(self) -> Iterator[Records]:
        """The intervals, each as a record. Raises `SessionUnreadableError` for one with too many records."""
        rows = NONE
        for part in self._parts:
            rows = rows.and_then(part)
            gaps = np.flatnonzero(np.diff(rows.times) > GAP_NS)
            if len(gaps):
                rows = rows[: gaps[0] + 1]
                break
            bins = np.floor_divide(rows.times, BIN_NS)
            begun = int(np.searchsorted(bins, bins[-1])) if len(bins) else 0
            yield from self._intervals(rows[:begun])
            rows = rows[begun:]
            if len(rows) > MOST_RECORDS:
                raise SessionUnreadableError(f"more than {MOST_RECORDS:,} records are within 20 ms")
        yield from self._intervals(rows)

    def as_cut(self, time: float) -> Records:
        """What the interval at this time becomes if the recording ends in it: after its first record, its
        second, and so on. None for an interval before those that were given last.
        """
        rows = self._rows[np.flatnonzero(np.floor_divide(self._rows.times, BIN_NS) == time // BIN_NS)]
        is_there = ~np.isnan(rows.readings)
        counts = is_there.cumsum(axis=0)
        sums = np.where(is_there, rows.readings, 0.0).cumsum(axis=0)
        means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        return Records(np.full(len(rows), time), means)

    def _intervals(self, rows: Records) -> Iterator[Records]:
        """Complete intervals, with those that are empty between them."""
        if not len(rows):
            return
        self._rows = rows
        times, means = _means(rows, self._before)
        bins = np.floor_divide(times, BIN_NS).astype(np.int64)
        if self._before is None:
            self._next_bin = int(bins[0])
            self._before = means[0]
        yield from self._filled(int(bins[0]))
        for begin in range(int(bins[0]), int(bins[-1]) + 1, MOST_RECORDS):
            wanted = np.arange(begin, min(begin + MOST_RECORDS, int(bins[-1]) + 1))
            yield Records(
                wanted.astype(np.float64) * BIN_NS, means[np.searchsorted(bins, wanted, side="right") - 1]
            )
        self._before, self._next_bin = means[-1], int(bins[-1]) + 1

    def _filled(self, end: int) -> Iterator[Records]:
        """The empty intervals up to this one."""
        for begin in range(self._next_bin, end, MOST_RECORDS):
            wanted = np.arange(begin, min(begin + MOST_RECORDS, end), dtype=np.float64)
            yield Records(wanted * BIN_NS, np.repeat(self._before[None, :], len(wanted), axis=0))  # type: ignore[index]


def _means(
    rows: Records, before: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The beginning and the mean of each interval that has records; without the values that are missing, and
    where all are, those of the interval before.
    """
    bins = np.floor_divide(rows.times, BIN_NS)
    begins = np.flatnonzero(np.concatenate(([True], np.diff(bins) > 0)))
    is_there = ~np.isnan(rows.readings)
    sums = np.add.reduceat(np.where(is_there, rows.readings, 0.0), begins, axis=0)
    counts = np.add.reduceat(is_there, begins, axis=0, dtype=np.int64)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    if np.isnan(means).any():
        _fill(means, before)
    return bins[begins] * BIN_NS, means


def _fill(means: NDArray[np.float64], before: NDArray[np.float64] | None) -> None:
    if before is not None:
        means[0] = np.where(np.isnan(means[0]), before, means[0])
    for axis in range(means.shape[1]):
        column = means[:, axis]
        known = np.where(np.isnan(column), 0, np.arange(len(column)))
        means[:, axis] = column[np.maximum.accumulate(known)]
