"""The records of one recording in order of time, some thousands at once. Knows no other recording."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.errors import SessionUnreadableError
from worker.runtime.throttle import Pace, unlimited
from worker.sessions_csv import ACCELEROMETER, COLUMNS, GYROSCOPE, chunks_of
from worker.store.digest import printable

MOST_RECORDS = 1 << 16
"""More are never in one part."""

_HELD_BACK = 4_096
"""By so many records one may come too late and still be put into order."""


class Sensor(StrEnum):
    """The two files of a session that hold recordings, by their names (label contract, section 3)."""

    ACCELEROMETER = "accelerometer_data.csv"
    GYROSCOPE = "gyroscope_data.csv"


SPELLINGS: Mapping[Sensor, Mapping[str, str]] = {
    Sensor.ACCELEROMETER: ACCELEROMETER,
    Sensor.GYROSCOPE: GYROSCOPE,
}


@dataclass(frozen=True, slots=True)
class Records:
    """Some records: `times` in nanoseconds since the watch booted, `readings` a row of three axes each."""

    times: NDArray[np.float64]
    readings: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, some: slice | NDArray[np.intp]) -> "Records":
        return Records(self.times[some], self.readings[some])

    def and_then(self, other: "Records") -> "Records":
        """These, and then the others."""
        if not len(self):
            return other
        return Records(
            np.concatenate((self.times, other.times)), np.concatenate((self.readings, other.readings))
        )


NONE = Records(np.empty(0), np.empty((0, 3)))


def joined(parts: Iterable[Records]) -> Records:
    """All of them at once."""
    records = NONE
    for part in parts:
        records = records.and_then(part)
    return records


class WithoutLast:
    """All records of a recording but its last one, which is `last` after the iteration."""

    def __init__(self, parts: Iterator[Records]) -> None:
        """Take a recording in any order: the last record is what is read last."""
        self._parts = parts
        self.last = NONE

    def __iter__(self) -> Iterator[Records]:
        """All but the last."""
        for part in self._parts:
            if len(part):
                yield self.last.and_then(part[:-1])
                self.last = part[-1:]


def read(path: Path, sensor: Sensor, pace: Pace = unlimited, *, most: int | None = None) -> Iterator[Records]:
    """The records of a recording in the order of its file, or the first `most` of them.

    Columns are found by their names, in any order, as Label does. Raises `SessionUnreadableError` naming the
    file and the reason for what pandas cannot read, and for a record without a time.
    """
    count = 0
    for chunk in chunks_of(path, (0, most), pace, spellings=SPELLINGS[sensor]):
        if chunk.names != COLUMNS:
            raise SessionUnreadableError(f"{printable(str(path))} is not a recording: it has a column twice")
        times = chunk.columns[0]
        if not np.isfinite(times).all():
            without = count + int(np.argmin(np.isfinite(times))) + 1
            raise SessionUnreadableError(
                f"{printable(str(path))} is not a recording: record {without:,} has no time"
            )
        count += len(times)
        yield Records(times, np.column_stack(chunk.columns[1:]))


def in_order(parts: Iterator[Records], path: Path) -> Iterator[Records]:
    """The same in order of time, as Label sorts them before it resamples; equal times keep their order.

    A record that comes too late by more than some thousand others raises `SessionUnreadableError`: to sort
    all of a recording takes all of it in memory.
    """
    held, given = NONE, -np.inf
    for part in parts:
        held = held.and_then(part)
        if not is_in_order(held.times):
            held = held[held.times.argsort(kind="stable")]
        if len(held) and held.times[0] < given:
            break
        ready = max(0, len(held) - _HELD_BACK)
        if ready:
            given = held.times[ready - 1]
            yield held[:ready]
            held = held[ready:]
    else:
        if len(held):
            yield held
        return
    raise SessionUnreadableError(
        f"{printable(str(path))} is not in order of time: a record comes more than {_HELD_BACK:,} others too late"
    )


def is_in_order(times: NDArray[np.float64]) -> bool:
    """Is no time earlier than the one before it?"""
    return bool((times[:-1] <= times[1:]).all())
