"""Made-up wrist recordings that look real, written fast enough to fill a disk. Files only; no database.

A recording is a row of activities: rest, walking, and smoking with its hand-to-mouth gestures. Gravity turns
with the posture of the arm, movements and noise are added to it, and every number of every file is computed:
no two seeds share a row. Equal arguments give equal bytes on one machine.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import numpy as np

from producer.demo.csv_text import Floats, Integers, csv_lines

ACCELEROMETER = "accelerometer_data.csv"
GYROSCOPE = "gyroscope_data.csv"
LABELS = "labels.json"

RATE_HZ = 50
_STEP_NS = 1_000_000_000 // RATE_HZ
_BLOCK_ROWS = 1 << 13
"""Rows computed at once: few enough that the allocator keeps the memory; fresh pages cost more than sums."""

_GAP_NS = 35 * 60 * 1_000_000_000
"""A silence that Label takes for a gap: it splits at more than 30 minutes."""

_GRAVITY = 9.80665
_NOISE_ROWS = 1 << 16


class Form(StrEnum):
    """The forms that Label leaves on disk."""

    RECORDED = "recorded"
    """As the watch wrote it: columns x,y,z, whole nanoseconds at an uneven rate."""

    UPLOADED = "uploaded"
    """After an upload: columns accel_x,accel_y,accel_z, whole nanoseconds on a 20 ms grid."""

    GAPPED = "gapped"
    """After an upload with gaps: as uploaded, but at the uneven rate, and times are written as floats."""


class LabelsForm(StrEnum):
    """The two forms of labels.json that people bring."""

    OBJECTS = "objects"
    LISTS = "lists"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bout:
    """A time in which the person smoked, in nanoseconds of the recording's clock, both ends inclusive."""

    start_ns: int
    end_ns: int
    label: str = "smoking"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What was written into a session's directory.

    `rows` are data rows of accelerometer_data.csv, `size_bytes` is the size of all files together. `segments`
    are the half-open ranges of rows between the gaps: one, the whole file, where there is no gap.
    """

    directory: Path
    rows: int
    size_bytes: int
    start_ns: int
    stop_ns: int
    segments: tuple[tuple[int, int], ...]
    bouts: tuple[Bout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recording that is still to be written.

    `rows` is at least 2. A gap lies before each row in `gaps`, in rising order, none before the first.
    """

    rows: int
    seed: int
    form: Form = Form.UPLOADED
    gaps: tuple[int, ...] = ()
    gyroscope: bool = False
    labels: LabelsForm | None = None

    def __post_init__(self) -> None:
        borders = (0, *self.gaps, self.rows)
        if self.rows < 2 or any(one >= other for one, other in pairwise(borders)):
            raise ValueError(f"{self.rows} rows with gaps before {self.gaps} are no recording")


def rows_for(size_bytes: int, form: Form = Form.UPLOADED) -> int:
    """How many rows of accelerometer_data.csv take about `size_bytes` (within a tenth)."""
    return max(2, size_bytes // (46 if form is Form.GAPPED else 44))


def write_session(directory: Path, plan: Plan) -> Recording:
    """Write the planned files into `directory`, which is made if need be, and say what they hold.

    Raises `OSError` as the disk does; whatever was written by then is left.
    """
    directory.mkdir(parents=True, exist_ok=True)
    course = _Course(plan)
    size_bytes = _write_csv(directory / ACCELEROMETER, course, "accel", course.acceleration)
    if plan.gyroscope:
        size_bytes += _write_csv(directory / GYROSCOPE, course, "gyro", course.rotation)
    bouts = tuple(course.bouts())
    if plan.labels is not None:
        size_bytes += (directory / LABELS).write_text(labels_json(bouts, plan.labels), encoding="utf-8")
    return Recording(
        directory=directory,
        rows=plan.rows,
        size_bytes=size_bytes,
        start_ns=int(course.times(0, 1)[0]),
        stop_ns=int(course.times(plan.rows - 1, plan.rows)[0]),
        segments=tuple(pairwise((0, *plan.gaps, plan.rows))),
        bouts=bouts,
    )


def labels_json(bouts: Sequence[Bout], form: LabelsForm) -> str:
    """The text of a labels.json: objects with start, end and label, or lists of the three."""
    if form is LabelsForm.OBJECTS:
        return json.dumps(
            [{"start": bout.start_ns, "end": bout.end_ns, "label": bout.label} for bout in bouts]
        )
    return json.dumps([[bout.start_ns, bout.end_ns, bout.label] for bout in bouts])


class _Course:
    """What the wrist does from row to row. Every value is a function of the seed and the row, so blocks can
    be computed one by one and both sensors agree.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        chance = np.random.default_rng(plan.seed)
        # From twenty minutes to eleven days since the watch booted; on the grid that an upload resamples to.
        self._start_ns = int(chance.integers(60_000, 50_000_000)) * _STEP_NS
        self._noise = chance.standard_normal((3, min(_NOISE_ROWS, plan.rows)))
        self._phase, self._step_hz, self._cycle_s = chance.uniform((0, 0.8, 20), (6.28, 1.1, 35))
        self._ends, self._kinds = _schedule(plan.rows, chance)

    def times(self, first: int, last: int) -> Integers:
        """Nanoseconds since the watch booted of the rows [first, last), rising."""
        rows = np.arange(first, last, dtype=np.int64)
        times = rows * _STEP_NS + self._start_ns
        if self.plan.form is not Form.UPLOADED:
            # Up to 3 ms early or late, by a multiplicative hash: neighbours differ and any row can be
            # computed alone.
            times += (rows * 2_654_435_761 + self.plan.seed) % 6_000_001 - 3_000_000
        if self.plan.gaps:
            times += np.searchsorted(np.array(self.plan.gaps), rows, side="right") * _GAP_NS
        return times

    def acceleration(self, first: int, last: int) -> Floats:
        """Metres per second squared along x, y, z, one row each: gravity as the arm lies, movement, noise."""
        walking, smoking, angle, swing = self._movement(first, last)
        noise = self._noise_of(first, last) * (0.04 + 0.35 * walking + 0.1 * smoking)
        roll = 0.15 * swing * walking
        values = np.empty((3, last - first))
        values[0] = -_GRAVITY * np.cos(angle) + 1.8 * swing * walking
        values[1] = _GRAVITY * np.sin(roll) + 0.9 * walking * swing * swing
        values[2] = _GRAVITY * np.sin(angle) + 1.2 * walking * (0.5 - swing * swing)
        return np.clip(values + noise, -78, 78)

    def rotation(self, first: int, last: int) -> Floats:
        """Radians a second about x, y, z, one row each."""
        walking, smoking, angle, swing = self._movement(first, last)
        noise = self._noise_of(first, last) * (0.01 + 0.08 * walking + 0.04 * smoking)
        values = np.empty((3, last - first))
        values[0] = 0.9 * swing * walking
        values[1] = np.gradient(angle) * RATE_HZ if last - first > 1 else 0.0
        values[2] = 0.4 * swing * (walking - 0.2 * smoking)
        return np.clip(values + noise, -34, 34)

    def bouts(self) -> Iterator[Bout]:
        """The times of smoking."""
        firsts = [0, *self._ends[:-1]]
        for first, end, kind in zip(firsts, self._ends, self._kinds, strict=True):
            if kind == _SMOKING:
                yield Bout(
                    start_ns=int(self.times(first, first + 1)[0]), end_ns=int(self.times(end - 1, end)[0])
                )

    def _movement(self, first: int, last: int) -> tuple[Floats, Floats, Floats, Floats]:
        """How much of walking and smoking there is (0 to 1), the forearm's angle, and the arm's swing (-1 to
        1).
        """
        rows = np.arange(first, last, dtype=np.float64)
        seconds = rows / RATE_HZ
        walking, smoking = (self._share(rows, kind) for kind in (_WALKING, _SMOKING))
        swing = np.sin(seconds * (6.2832 * self._step_hz) + self._phase)
        # A gesture: up within a second, three seconds at the mouth, down again, once a cycle.
        since_s = (seconds + self._phase) % self._cycle_s
        lift = np.clip(since_s, 0, 1) * np.clip(5 - since_s, 0, 1)
        lift *= lift * (3 - 2 * lift)
        at_rest = 1.45 + 0.08 * np.sin(seconds / 17 + self._phase)
        angle = at_rest - 1.3 * walking - 2.3 * lift * smoking
        return walking, smoking, angle, swing

    def _share(self, rows: Floats, kind: int) -> Floats:
        """1 within activities of a kind, 0 outside, with a second (or half a short activity) in between."""
        borders = np.array(self._ends[:-1], dtype=np.float64)
        is_kind = np.array([each == kind for each in self._kinds], dtype=np.float64)
        ramp = min(RATE_HZ / 2, np.diff(borders, prepend=0).min() / 2.5)
        knots = np.stack([borders - ramp, borders + ramp], axis=1).ravel()
        return np.interp(rows, knots, np.stack([is_kind[:-1], is_kind[1:]], axis=1).ravel())

    def _noise_of(self, first: int, last: int) -> Floats:
        """Noise for some rows: a piece of one table, because drawing it anew would cost more than the
        rest.
        """
        spare = self._noise.shape[1] - (last - first)
        offset = (first // _BLOCK_ROWS * 7919) % (spare + 1)
        return self._noise[:, offset : offset + last - first]


_REST, _WALKING, _SMOKING = range(3)
_SECONDS = {_REST: (120, 900), _WALKING: (40, 300), _SMOKING: (240, 420)}
"""From how short to how long an activity is."""


def _schedule(rows: int, chance: np.random.Generator) -> tuple[list[int], list[int]]:
    """The rows at which activities end, and what they are, with smoking even in a short recording."""
    # A recording under half an hour holds the same activities, but shorter ones.
    scale = min(1.0, rows / RATE_HZ / 1800)
    ends: list[int] = []
    kinds: list[int] = []
    row = 0
    for kind in _activities(chance):
        row += max(1, round(chance.uniform(*_SECONDS[kind]) * RATE_HZ * scale))
        ends.append(min(row, rows))
        kinds.append(kind)
        if row >= rows:
            return ends, kinds
    raise AssertionError("activities never end")  # pragma: no cover


def _activities(chance: np.random.Generator) -> Iterator[int]:
    """Rest, walking and smoking for ever; a person rests after each walk and each cigarette."""
    yield from (_REST, _SMOKING, _REST, _WALKING)
    while True:
        yield _REST
        yield _SMOKING if chance.random() < 0.3 else _WALKING


def _write_csv(path: Path, course: _Course, prefix: str, values: Callable[[int, int], Floats]) -> int:
    """Write one sensor's file block by block; return its size in bytes."""
    plan = course.plan
    names = ("x", "y", "z") if plan.form is Form.RECORDED else tuple(f"{prefix}_{axis}" for axis in "xyz")
    with path.open("wb") as file:
        size_bytes = file.write(f"ns_since_reboot,{','.join(names)}\n".encode())
        for first in range(0, plan.rows, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, plan.rows)
            as_floats = plan.form is Form.GAPPED
            size_bytes += file.write(
                csv_lines(course.times(first, last), values(first, last), times_as_floats=as_floats)
            )
    return size_bytes
