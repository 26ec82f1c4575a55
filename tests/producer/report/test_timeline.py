"""The time line: jobs that ran at once lie in rows of their own, and nothing is drawn that did not happen."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings

from producer.report import document as report
from producer.report.timeline import MOST_LANES, timeline
from tests.support.reports import (
    BEGIN,
    any_outcomes,
    failed,
    migrated,
    run_facts,
    skipped,
)


def _details(*jobs: tuple[str, float, float], **changes: Any) -> list[dict[str, Any]]:
    """Jobs as worker, start and end in seconds."""
    outcomes = [
        migrated(
            number,
            worker=worker,
            started_at=BEGIN + timedelta(seconds=start),
            finished_at=BEGIN + timedelta(seconds=end),
            **changes,
        )
        for number, (worker, start, end) in enumerate(jobs, 1)
    ]
    return report.build(run_facts(), outcomes)["details"]


def test_a_lane_of_the_timeline_has_jobs_one_after_the_other():
    found = timeline(_details(("a", 0, 40), ("a", 40, 100)))

    assert found is not None
    ((spans,),) = [lane.rows for lane in found.lanes]
    assert [(span.start, span.width, span.label) for span in spans] == [
        (0, 40, "Project 1"),
        (40, 60, "Project 2"),
    ]
    assert found.seconds == 100


def test_jobs_at_once_on_one_worker_get_rows_of_their_own_and_count_as_busy_once():
    found = timeline(_details(("a", 0, 50), ("a", 25, 50), ("b", 90, 100)))

    assert found is not None
    assert [len(lane.rows) for lane in found.lanes] == [2, 1]
    assert [lane.busy_percent for lane in found.lanes] == pytest.approx([50, 10])


def test_short_jobs_side_by_side_become_one_span_that_says_how_many_failed():
    outcomes = [
        build(
            number,
            worker="a",
            started_at=BEGIN + timedelta(seconds=number / 10),
            finished_at=BEGIN + timedelta(seconds=number / 10 + 0.1),
        )
        for number, build in enumerate([migrated] * 19 + [failed], 1)
    ]
    outcomes.append(migrated(99, worker="b", started_at=BEGIN, finished_at=BEGIN + timedelta(hours=1)))

    found = timeline(report.build(run_facts(), outcomes)["details"])

    assert found is not None
    ((span,),) = found.lanes[0].rows
    assert (span.label, span.kind) == ("20 jobs, 1 failed", "done")
    assert span.failed_share == pytest.approx(0.05)


def test_jobs_that_no_worker_took_are_not_drawn():
    assert timeline(report.build(run_facts(), [skipped(1), failed(2)])["details"]) is None
    assert timeline([]) is None


def test_more_workers_than_can_be_drawn_are_counted():
    found = timeline(_details(*((f"worker-{number:03}", 0, 1) for number in range(MOST_LANES + 5))))

    assert found is not None
    assert (len(found.lanes), found.left_out) == (MOST_LANES, 5)


@pytest.mark.parametrize(
    ("seconds", "marks"),
    [
        (0.9, [0, 0.2, 0.4, 0.6, 0.8]),
        (47, [0, 10, 20, 30, 40]),
        (310, [0, 120, 240]),
        (4 * 86400, [0, 86400, 172800, 259200, 345600]),
        (400 * 86400, [0, 81 * 86400, 162 * 86400, 243 * 86400, 324 * 86400]),
    ],
)
def test_the_axis_of_the_timeline_has_few_round_marks(seconds, marks):
    found = timeline(_details(("a", 0, seconds)))

    assert found is not None
    assert [tick.seconds for tick in found.ticks] == pytest.approx(marks)
    assert all(0 <= tick.at <= 100 for tick in found.ticks)


@settings(deadline=None)
@given(any_outcomes())
def test_every_job_with_times_is_in_exactly_one_lane(case):
    details = report.build(*case)["details"]

    found = timeline(details)

    drawn = sum(lane.jobs for lane in found.lanes) if found else 0
    begun = [d for d in details if d["worker"] and d["started_at"] and d["finished_at"]]
    assert drawn == len(begun) or all(d["started_at"] == d["finished_at"] for d in begun)
