"""Which worker ran which job when, as shares of the run's time, ready to be drawn. Knows no HTML.

Of each job only some numbers are kept: there may be very many.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.messages import THE_STORE, Subject, subject_words

MOST_LANES = 32
"""Workers drawn; the others are counted."""

_MOST_ROWS = (
    16  # rows a worker; a node with more processes than this has its jobs drawn over each other in the last
)
_NARROW = 0.25  # percent of the run: too narrow to be seen alone, so that such neighbours become one span
_MOST_SPANS = 5_000  # spans of all workers: where there would be more, wider ones are joined, too
_MOST_OF_A_NAME = 80  # characters of a span's label
_KINDS = ("done", "failed", "other")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One job, or neighbours too narrow to be told apart. `start` and `width` are percent of the run's time.

    `kind` is `done` if any of its jobs succeeded, else `failed` if any failed, else
    `other`; `failed_share` (0 to 1) says how many failed, so that one failure among
    hundreds of short jobs is seen but does not colour them all.
    """

    start: float
    width: float
    kind: str
    failed_share: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One worker. `rows` hold spans that do not overlap; `busy_percent` of the run's time it ran a job."""

    worker: str
    rows: tuple[tuple[Span, ...], ...]
    jobs: int
    bytes_read: int
    busy_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on the axis: percent of the run's time, and seconds since its start."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All workers from the first start to the last end of a job; `left_out` counts workers not drawn."""

    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    seconds: float
    left_out: int


class _Worker:
    """The jobs of one worker as columns of numbers: begin and end in microseconds since 1970, kind (a place
    in `_KINDS`), place in the details.
    """

    def __init__(self) -> None:
        self.starts, self.ends = array("q"), array("q")
        self.kinds, self.indexes = bytearray(), array("Q")
        self.bytes_read = 0

    def __len__(self) -> int:
        return len(self.starts)

    def in_order(self) -> list[int]:
        """The jobs by when they began."""
        return sorted(range(len(self)), key=lambda job: (self.starts[job], self.ends[job]))


class Lanes:
    """The timeline in the making: details come one by one."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}

    def add(self, index: int, detail: Mapping[str, Any]) -> None:
        """Take the next detail, if a worker began and ended its job."""
        if not (detail["worker"] and detail["started_at"] and detail["finished_at"]):
            return
        worker = self._workers.setdefault(detail["worker"], _Worker())
        start, end = _microseconds(detail["started_at"]), _microseconds(detail["finished_at"])
        worker.starts.append(start)
        # Two machines' clocks may disagree; a job never ends before it starts.
        worker.ends.append(max(start, end))
        worker.kinds.append({"failed": 1, "skipped": 2, "cancelled": 2}.get(detail["status"], 0))
        worker.indexes.append(index)
        worker.bytes_read += detail["bytes_read"] or detail.get("bytes_verified", 0)

    def drawn(self, details: Sequence[Mapping[str, Any]]) -> Timeline | None:
        """Arrange the jobs; None if there are none or they took no time at all."""
        if not self._workers:
            return None
        zero = min(min(worker.starts) for worker in self._workers.values())
        seconds = (max(max(worker.ends) for worker in self._workers.values()) - zero) / 1e6
        if seconds <= 0:
            return None
        names = sorted(self._workers)
        packed = {name: _Packed(self._workers[name], zero, seconds) for name in names[:MOST_LANES]}
        narrow = _NARROW
        while sum(one.count(narrow) for one in packed.values()) > _MOST_SPANS:
            narrow *= 2
        return Timeline(
            lanes=tuple(one.lane(name, narrow, details) for name, one in packed.items()),
            ticks=_ticks(seconds),
            seconds=seconds,
            left_out=max(0, len(names) - MOST_LANES),
        )


def timeline(details: Sequence[Mapping[str, Any]]) -> Timeline | None:
    """Arrange the jobs that a worker began and ended; None if there are none or they took no time at all."""
    lanes = Lanes()
    for index, detail in enumerate(details):
        lanes.add(index, detail)
    return lanes.drawn(details)


def _microseconds(moment: str) -> int:
    return (datetime.fromisoformat(moment) - _EPOCH) // _MICROSECOND


def _label(detail: Mapping[str, Any]) -> str:
    name: str = detail["project_name"] or detail.get("dataset_name") or _about(detail)
    return name if len(name) <= _MOST_OF_A_NAME else f"{name[: _MOST_OF_A_NAME - 1]}…"


def _about(detail: Mapping[str, Any]) -> str:
    subject = Subject(detail["subject"])
    return subject_words(subject, detail.get(f"{subject}_id") or THE_STORE)


class _Packed:
    """A worker's jobs in as few rows as hold them without overlap: a node may run several at once."""

    def __init__(self, worker: _Worker, zero: int, seconds: float) -> None:
        self._worker, self._zero, self._seconds = worker, zero, seconds
        self._rows: list[array[int]] = []
        self._busy = covered_until = 0
        for job in worker.in_order():
            start, end = worker.starts[job], worker.ends[job]
            self._busy += max(0, end - max(start, covered_until))
            covered_until = max(covered_until, end)
            self._put(job, start)

    def _put(self, job: int, start: int) -> None:
        free = next((row for row in self._rows if self._worker.ends[row[-1]] <= start), None)
        if free is not None:
            free.append(job)
        elif len(self._rows) < _MOST_ROWS:
            self._rows.append(array("Q", [job]))
        else:
            self._rows[-1].append(job)

    def count(self, narrow: float) -> int:
        """How many spans there are to draw."""
        return sum(1 for row in self._rows for _ in self._groups(row, narrow))

    def lane(self, name: str, narrow: float, details: Sequence[Mapping[str, Any]]) -> Lane:
        """What is drawn of the worker."""
        return Lane(
            worker=name,
            rows=tuple(
                tuple(self._span(group, details) for group in self._groups(row, narrow)) for row in self._rows
            ),
            jobs=len(self._worker),
            bytes_read=self._worker.bytes_read,
            busy_percent=100 * (self._busy / 1e6) / self._seconds,
        )

    def _groups(self, row: "array[int]", narrow: float) -> Iterator["array[int]"]:
        """Jobs of a row, neighbours together that would be drawn as slivers beside each other."""
        starts, ends = self._worker.starts, self._worker.ends
        # Compared in seconds as the spans are drawn.
        narrow_s = self._seconds * narrow / 100
        group = array("Q")
        for job in row:
            last = group[-1] if group else None
            joins = last is not None and all(
                length / 1e6 < narrow_s
                for length in (ends[job] - starts[job], ends[last] - starts[last], starts[job] - ends[last])
            )
            if group and not joins:
                yield group
                group = array("Q")
            group.append(job)
        yield group

    def _span(self, group: "array[int]", details: Sequence[Mapping[str, Any]]) -> Span:
        worker = self._worker
        kinds = [worker.kinds[job] for job in group]
        start = worker.starts[group[0]]
        end = max(worker.ends[job] for job in group)
        failed = kinds.count(_KINDS.index("failed"))
        label = f"{len(group)} jobs" + (f", {failed} failed" if failed else "")
        return Span(
            start=100 * ((start - self._zero) / 1e6) / self._seconds,
            width=max(100 * ((end - start) / 1e6) / self._seconds, _NARROW),
            kind=_KINDS[min(kinds)],
            failed_share=failed / len(kinds),
            label=label if len(group) > 1 else _label(details[worker.indexes[group[0]]]),
        )


def _ticks(seconds: float) -> tuple[Tick, ...]:
    """At most five round steps from zero on."""
    step = next((step for step in _STEPS_S if seconds / step <= 5), 86400 * (1 + seconds // (5 * 86400)))
    return tuple(
        Tick(at=100 * number * step / seconds, seconds=number * step)
        for number in range(int(seconds / step) + 1)
    )
