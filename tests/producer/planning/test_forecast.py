"""The arithmetic of forecasts: nothing negative, nothing counted twice, and more work takes no less time."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.planning.forecast import (
    Band,
    Load,
    Pace,
    Rehearsed,
    busy_seconds,
    freed_by,
    measuring,
    peak_of,
    seconds_of,
    source_of,
    stored_by,
)


def size_of(content: int) -> int:
    return content * 37


def rehearse(trees: list[frozenset[int]], stored_before: frozenset[int] = frozenset()) -> list[Rehearsed]:
    """What a dry run finds of projects with these contents, by the rule: the lowest id owns what is new."""
    seen = set(stored_before)
    found = []
    for number, tree in enumerate(trees, start=1):
        new = tree - seen
        seen |= new
        found.append(
            Rehearsed(
                project_id=number,
                ready=True,
                dataset_hash=str(sorted(tree)),
                read_bytes=sum(map(size_of, tree)),
                first_bytes=sum(map(size_of, new)),
                new_bytes=sum(map(size_of, new)),
                new_files=len(new),
                sessions=1,
            )
        )
    return found


def migrate(trees: list[frozenset[int]], stored_before: frozenset[int] = frozenset()) -> int:
    """What is really stored of them."""
    return sum(map(size_of, frozenset().union(*trees) - stored_before))


_TREES = st.lists(st.frozensets(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=8)
_STORED = st.frozensets(st.integers(1, 30), max_size=10)


@given(_TREES, _STORED)
def test_stored_and_deduplicated_are_the_total_and_the_forecast_is_exact(trees, before):
    rehearsed = rehearse(trees, before)

    stored = stored_by(rehearsed)

    total = sum(one.read_bytes for one in rehearsed)
    deduplicated = sum(sum(map(size_of, tree)) for tree in trees) - migrate(trees, before)
    assert stored.bytes.is_exact
    assert stored.bytes.likely == migrate(trees, before)
    assert stored.bytes.likely + deduplicated == total


@given(_TREES, _STORED, st.data())
def test_a_duplicate_of_a_project_adds_no_stored_byte(trees, before, data):
    twin = data.draw(st.sampled_from(trees))

    stored = stored_by(rehearse([*trees, twin], before))

    assert stored == stored_by(rehearse(trees, before))


@given(_TREES, _STORED, st.data())
def test_what_some_of_the_rehearsed_projects_store_lies_in_the_band(trees, before, data):
    chosen = data.draw(st.sets(st.integers(1, len(trees))))

    band = stored_by(rehearse(trees, before), chosen).bytes

    real = migrate([trees[number - 1] for number in sorted(chosen)], before)
    assert band.holds(real)
    assert band.high <= sum(size_of(content) for tree in trees for content in tree)


@given(_TREES)
def test_projects_that_are_not_ready_store_nothing(trees):
    blocked = [replace(one, ready=False) for one in rehearse(trees)]

    assert stored_by(blocked).bytes == Band.exactly(0)


@given(st.integers(0, 10**13), st.integers(0, 10**13), st.booleans())
def test_what_is_freed_is_never_negative_nor_more_than_is_there(legacy, stored, may_share):
    freed = freed_by(legacy, Band.exactly(stored), may_share=may_share)

    assert 0 <= freed.low <= freed.high == legacy
    assert may_share or freed.is_exact


@given(st.integers(0, 10**13), st.integers(0, 10**6), st.integers(0, 10**5), st.booleans())
def test_the_peak_is_never_below_what_is_stored_unless_blocks_are_shared(
    stored, files, directories, may_share
):
    peak = peak_of(Band.exactly(stored), Band.exactly(files), directories, may_share=may_share)

    assert peak.high >= peak.likely >= stored
    assert peak.low == (0 if may_share else stored)


@pytest.mark.parametrize("values", [(-1, 0, 0), (2, 1, 3), (0, 4, 3), (float("nan"), 1, 2)])
def test_what_is_no_band_is_refused(values):
    low, likely, high = values

    with pytest.raises(ValueError, match="no band"):
        Band(low=low, likely=likely, high=high)


# Time -------------------------------------------------------------------------------------------------------

_JOBS = st.lists(st.tuples(st.integers(0, 10**12), st.floats(0.001, 10_000)), min_size=1, max_size=20)


def pace(
    jobs: list[tuple[int, float]], *, dry_run: bool = False, at_once: float = 1, workers: int = 1
) -> Pace:
    made = Pace(dry_run=dry_run, workers=workers)
    for work, seconds in jobs:
        made.add(work, seconds)
    made.busy_s = made.seconds / at_once
    return made


@given(_JOBS)
def test_costs_are_never_negative_and_add_up_to_what_was_measured(jobs):
    measured = pace(jobs)

    per_job, per_byte = measured.costs()

    assert per_job >= 0
    assert per_byte >= 0
    assert per_job * measured.jobs + per_byte * measured.work == pytest.approx(measured.seconds, rel=1e-3)


@given(st.floats(0.01, 10), st.floats(1e-9, 1e-6), st.lists(st.integers(0, 10**9), min_size=3, unique=True))
def test_a_line_is_found_again(per_job, per_byte, works):
    measured = pace([(work, per_job + per_byte * work) for work in [0, *works, 10**9]])

    assert measured.costs() == pytest.approx((per_job, per_byte), rel=1e-3, abs=1e-6)


@given(_JOBS, st.integers(1, 1_000), st.integers(0, 10**13), st.integers(0, 10**12), st.booleans())
def test_more_work_takes_no_less_time_and_more_workers_no_more(jobs, count, work, more, dry_run):
    paces = [pace(jobs, dry_run=dry_run, at_once=2)]
    less, heavier = (
        seconds_of(Load(jobs=count, work=Band.exactly(size)), paces) for size in (work, work + more)
    )

    assert less is not None
    assert heavier is not None
    for small, large in ((less.low, heavier.low), (less.likely, heavier.likely), (less.high, heavier.high)):
        assert 0 <= small <= large * (1 + 1e-9)
    doubled = seconds_of(Load(jobs=count, work=Band.exactly(work)), paces, workers=2)
    assert doubled is not None
    assert doubled.likely <= less.likely * (1 + 1e-9)


def test_a_run_ends_no_sooner_than_its_longest_job_whatever_the_workers():
    measured = pace([(0, 1.0), (10**9, 11.0), (0, 1.0), (10**9, 11.0)], workers=1)

    band = seconds_of(
        Load(jobs=100, work=Band.exactly(5 * 10**9), largest=4 * 10**9), [measured], workers=1_000
    )

    assert band is not None
    assert band.likely == pytest.approx(41.0)


def test_a_limit_on_bytes_is_a_floor():
    measured = pace([(0, 1.0), (10**9, 2.0)])
    load = Load(jobs=10, work=Band.exactly(10**12))

    limited = seconds_of(load, [measured], limit_bytes_per_second=10**6)

    assert limited is not None
    assert limited.low >= 10**6


def test_migrations_of_a_size_count_before_a_dry_run_and_a_tiny_pilot_after_it():
    load = Load(jobs=1_000, work=Band.exactly(10**12))
    rehearsal = pace([(10**9, 5.0)] * 1_000, dry_run=True)
    pilot = pace([(10**6, 1.0)])
    night = pace([(10**9, 9.0)] * 400)

    assert measuring(load, [rehearsal, pilot]) == [rehearsal]
    assert measuring(load, [rehearsal, pilot, night]) == [night]
    assert measuring(load, [pilot]) == [pilot]
    assert [source_of(measuring(load, of)) for of in ([], [rehearsal], [night])] == [
        None,
        "dry_run",
        "migrations",
    ]


def test_nothing_is_foretold_where_nothing_was_measured():
    load = Load(jobs=3, work=Band.exactly(10**9))

    assert seconds_of(load, []) is None
    assert seconds_of(load, [Pace(dry_run=False)]) is None
    assert seconds_of(Load(jobs=0, work=Band.exactly(0)), [pace([(1, 1.0)])]) is None


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted), max_size=20))
def test_overlapping_spans_count_once(spans):
    seconds = {second for begin, end in spans for second in range(begin, end)}
    shuffled = random.Random(0).sample(spans, len(spans))

    assert busy_seconds(map(tuple, shuffled)) == len(seconds)
