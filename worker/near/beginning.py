"""How a recording begins, from a few kilobytes of it, in a form that no kind of near-duplicate changes.

Whatever is done to a recording (other digits, other line ends, records cut off its end, Label's resampling),
it begins in the same 20 ms of the watch's clock, and with the same means of its first such intervals. So
recordings that differ there need not be read. The first question costs less than to hash a small recording.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.errors import SessionUnreadableError
from worker.near.records import SPELLINGS, Records, Sensor, is_in_order, joined, read
from worker.near.resampled import BIN_NS
from worker.runtime.throttle import Pace, unlimited
from worker.sessions_csv import COLUMNS, TIME
from worker.store.digest import printable

_FIRST_BYTES = 2_048
_HEAD_BYTES = 4_096
_HEAD_RECORDS = 64
_MOST_BINS = 16
_PLAIN = b"0123456789+-.eE,\n"
"""Of nothing else is a record made that can be read without a parser."""

_NAMES = sorted(COLUMNS)

_LOOSE = 5.1e-4
"""Half a unit of the third decimal, or of the fourth digit, and a little: nothing coarser is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How a recording begins.

    `records` are its first, in order of time. `means` are those of its first complete intervals of 20 ms, an
    empty one having those of the interval before, as Label fills it; NaN where that is not known. `on_grid`:
    do its times go up by 20 ms on a clock of 20 ms, as after a resampling? `last_ns` is the time of its last
    record, if that is easily read: a hint.
    """

    records: Records
    first_bin: int
    means: NDArray[np.float64]
    on_grid: bool
    last_ns: float


def alike(many: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of many `means` could be those of a near-duplicate of a recording that begins in the same
    interval? The others are not.
    """
    apart = np.abs(many - one)
    near = apart <= _LOOSE * np.maximum(1.0, np.abs(one))
    return np.asarray((near | np.isnan(apart)).all(axis=(1, 2)))


def first_times(path: Path, sensor: Sensor, pace: Pace = unlimited) -> NDArray[np.float64]:
    """The times of the first few records, in their order. Raises `SessionUnreadableError` naming the file and
    the reason.
    """
    head, size_bytes = _read(path, _FIRST_BYTES, pace)
    plain = _plain_lines(head, sensor, is_all=size_bytes <= _FIRST_BYTES)
    if plain is not None:
        names, lines = plain
        place = names.index(TIME)
        with suppress(ValueError):
            times = np.array([float(line.split(b",", place + 1)[place]) for line in lines])
            if np.isfinite(times).all():
                times.sort()
                return times
    return np.sort(_first_records(path, sensor, pace).times)


def begin(path: Path, sensor: Sensor, pace: Pace = unlimited) -> Beginning:
    """Read how a recording begins. Raises `SessionUnreadableError` naming the file and the reason."""
    head, size_bytes = _read(path, _HEAD_BYTES, pace)
    tail, _ = _read(path, _HEAD_BYTES, pace, at=max(0, size_bytes - _HEAD_BYTES))
    plain = _plain_lines(head, sensor, is_all=size_bytes <= _HEAD_BYTES)
    records = _parsed(*plain) if plain is not None else None
    if records is None:
        records = _first_records(path, sensor, pace)
    if size_bytes > _HEAD_BYTES:
        # One that comes a little late may lie behind what was read.
        records = records[records.times.argsort(kind="stable")][: (len(records) + 1) // 2]
    return beginning_of(
        records,
        _last_time(tail, plain[0].index(TIME) if plain is not None else 0),
    )


def _read(path: Path, count: int, pace: Pace, *, at: int = 0) -> tuple[bytes, int]:
    """Some bytes of a file, and its size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.pread(descriptor, count, at)
            size_bytes = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SessionUnreadableError(f"cannot read {printable(str(path))}: {error.strerror}") from error
    pace(len(content))
    return content, size_bytes


def _first_records(path: Path, sensor: Sensor, pace: Pace) -> Records:
    """The first records as a parser finds them; at least one."""
    records = joined(read(path, sensor, pace, most=_HEAD_RECORDS))
    if not len(records):
        raise SessionUnreadableError(f"{printable(str(path))} is not a recording: it has no record")
    return records


def beginning_of(records: Records, last_ns: float) -> Beginning:
    """What the first records of a recording, at least one, say of it."""
    if not is_in_order(records.times):
        records = records[records.times.argsort(kind="stable")]
    bins = np.floor_divide(records.times, BIN_NS)
    return Beginning(
        records=records,
        first_bin=int(bins[0]),
        means=_means(bins, records.readings),
        on_grid=bool((records.times == bins * BIN_NS).all() and (np.diff(bins) == 1).all()),
        last_ns=last_ns,
    )


def _plain_lines(head: bytes, sensor: Sensor, *, is_all: bool) -> tuple[list[str], list[bytes]] | None:
    """The names of the columns and the first lines after them, if these are nothing but numbers; None where
    only a parser can tell.
    """
    lines = head.replace(b"\r\n", b"\n").split(b"\n")
    names = [SPELLINGS[sensor].get(name, name) for name in lines[0].decode("latin-1").split(",")]
    # The last line is one that the first bytes may not hold whole, unless these are all.
    body = lines[1:] if is_all and lines[-1] else lines[1:-1]
    body = body[:_HEAD_RECORDS]
    text = b"\n".join(body)
    if (
        sorted(names) != _NAMES
        or not body
        or text.translate(None, _PLAIN)
        or text.count(b",") != 3 * len(body)
    ):
        return None
    return names, body


def _parsed(names: list[str], lines: list[bytes]) -> Records | None:
    if any(line.count(b",") != 3 for line in lines):
        return None
    try:
        table = np.array(list(map(float, b",".join(lines).split(b",")))).reshape(-1, 4)
    except ValueError:
        return None
    table = table[:, [names.index(name) for name in COLUMNS]]
    return Records(table[:, 0], table[:, 1:]) if np.isfinite(table[:, 0]).all() else None


def _means(bins: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    found, begins = np.unique(bins, return_index=True)
    # The last interval may go on after the records that were read, or lack a record that was dropped.
    complete = found[:-1]
    means = np.full((_MOST_BINS, 3), np.nan)
    if not len(complete):
        return means
    sums = np.add.reduceat(values, begins, axis=0)[:-1]
    counts = np.diff(begins)[:, None]
    known = int(min(_MOST_BINS, found[-1] - found[0]))
    place = np.searchsorted(complete, found[0] + np.arange(known), side="right") - 1
    means[:known] = (sums / counts)[place]
    return means


def _last_time(tail: bytes, place: int) -> float:
    line = tail.rstrip(b"\r\n").rpartition(b"\n")[2]
    try:
        last_ns = float(line.split(b",")[place])
    except (ValueError, IndexError):
        return 0.0
    return last_ns if np.isfinite(last_ns) else 0.0
