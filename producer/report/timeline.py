"""Which worker ran which job when, as shares of the run's time, ready to be drawn. Knows no HTML."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.messages import THE_STORE, Subject, subject_words

MOST_LANES = 32
"""Workers drawn; the others are counted."""

_MOST_ROWS = (
    16  # rows a worker; a node with more processes than this has its jobs drawn over each other in the last
)
_NARROW = 0.25  # percent of the run: too narrow to be seen alone, so that such neighbours become one span
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One detail with its times in seconds since the first start."""

    start: float
    end: float
    kind: str
    label: str
    bytes_read: int


def timeline(details: Iterable[Mapping[str, Any]]) -> Timeline | None:
    """Arrange the jobs that a worker began and ended; None if there are none or they took no time at all."""
    begun = [
        detail for detail in details if detail["worker"] and detail["started_at"] and detail["finished_at"]
    ]
    if not begun:
        return None
    zero = min(datetime.fromisoformat(detail["started_at"]) for detail in begun)
    by_worker: dict[str, list[_Job]] = defaultdict(list)
    for detail in begun:
        by_worker[detail["worker"]].append(_job(detail, zero))
    seconds = max(job.end for jobs in by_worker.values() for job in jobs)
    if seconds <= 0:
        return None
    workers = sorted(by_worker)
    return Timeline(
        lanes=tuple(_lane(worker, by_worker[worker], seconds) for worker in workers[:MOST_LANES]),
        ticks=_ticks(seconds),
        seconds=seconds,
        left_out=max(0, len(workers) - MOST_LANES),
    )


def _job(detail: Mapping[str, Any], zero: datetime) -> _Job:
    start, end = (datetime.fromisoformat(detail[key]) for key in ("started_at", "finished_at"))
    return _Job(
        start=(start - zero).total_seconds(),
        # Two machines' clocks may disagree; a job never ends before it starts.
        end=max((end - zero).total_seconds(), (start - zero).total_seconds()),
        kind={"failed": "failed", "skipped": "other", "cancelled": "other"}.get(detail["status"], "done"),
        label=detail["project_name"] or detail.get("dataset_name") or _about(detail),
        bytes_read=detail["bytes_read"] or detail.get("bytes_verified", 0),
    )


def _about(detail: Mapping[str, Any]) -> str:
    subject = Subject(detail["subject"])
    return subject_words(subject, detail.get(f"{subject}_id") or THE_STORE)


def _lane(worker: str, jobs: Sequence[_Job], seconds: float) -> Lane:
    """Pack a worker's jobs into as few rows as hold them without overlap: a node may run several at once."""
    rows: list[list[_Job]] = []
    for job in sorted(jobs, key=lambda job: (job.start, job.end)):
        free = next((row for row in rows if row[-1].end <= job.start), None)
        if free is not None:
            free.append(job)
        elif len(rows) < _MOST_ROWS:
            rows.append([job])
        else:
            rows[-1].append(job)
    return Lane(
        worker=worker,
        rows=tuple(_spans(row, seconds) for row in rows),
        jobs=len(jobs),
        bytes_read=sum(job.bytes_read for job in jobs),
        busy_percent=100 * _busy_s(jobs) / seconds,
    )


def _spans(row: Sequence[_Job], seconds: float) -> tuple[Span, ...]:
    """Turn jobs into spans, joining neighbours that would be drawn as slivers beside each other."""
    groups: list[list[_Job]] = []
    narrow_s = seconds * _NARROW / 100
    for job in row:
        last = groups[-1][-1] if groups else None
        joins = last is not None and all(
            length < narrow_s for length in (job.end - job.start, last.end - last.start, job.start - last.end)
        )
        if joins:
            groups[-1].append(job)
        else:
            groups.append([job])
    return tuple(_span(group, seconds) for group in groups)


def _span(group: Sequence[_Job], seconds: float) -> Span:
    kinds = [job.kind for job in group]
    end = max(job.end for job in group)
    return Span(
        start=100 * group[0].start / seconds,
        width=max(100 * (end - group[0].start) / seconds, _NARROW),
        kind=next(kind for kind in ("done", "failed", "other") if kind in kinds),
        failed_share=kinds.count("failed") / len(kinds),
        label=_span_label(group),
    )


def _span_label(group: Sequence[_Job]) -> str:
    if len(group) == 1:
        return group[0].label
    failed = sum(job.kind == "failed" for job in group)
    return f"{len(group)} jobs" + (f", {failed} failed" if failed else "")


def _busy_s(jobs: Iterable[_Job]) -> float:
    """Seconds during which at least one of the jobs ran."""
    busy = covered_until = 0.0
    for job in sorted(jobs, key=lambda job: job.start):
        busy += max(0.0, job.end - max(job.start, covered_until))
        covered_until = max(covered_until, job.end)
    return busy


def _ticks(seconds: float) -> tuple[Tick, ...]:
    """At most five round steps from zero on."""
    step = next((step for step in _STEPS_S if seconds / step <= 5), 86400 * (1 + seconds // (5 * 86400)))
    return tuple(
        Tick(at=100 * number * step / seconds, seconds=number * step)
        for number in range(int(seconds / step) + 1)
    )
