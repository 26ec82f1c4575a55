"""What is computed part by part is what Label computes at once, wherever the parts end."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.alike import TIME, frame, uploaded
from worker.errors import SessionUnreadableError
from worker.near.merged import merge
from worker.near.records import NONE, Records, Sensor, WithoutLast, in_order, joined
from worker.near.resampled import Resampled

STEPS_NS = st.sampled_from([0, 1, 4_000_000, 10_000_000, 20_000_000, 45_000_000, 700_000_000])
READINGS = st.sampled_from([-12.5, -1e-3, 0.0, 0.1, 1 / 3, 9.81, float("nan")])


@st.composite
def recordings(draw: st.DrawFn, *, least: int = 3, missing: bool = True) -> pd.DataFrame:
    """A short recording with steps of any kind."""
    steps = draw(st.lists(STEPS_NS, min_size=least, max_size=40))
    values = READINGS if missing else READINGS.filter(lambda one: not np.isnan(one))
    rows = [draw(st.tuples(values, values, values)) for _ in steps]
    return frame(10**12 + draw(st.integers(0, 10**8)) + np.cumsum(steps), np.array(rows))


def records(table: pd.DataFrame) -> Records:
    return Records(table.iloc[:, 0].to_numpy(float), table.iloc[:, 1:].to_numpy(float))


def in_parts(whole: Records, ends: Sequence[int]) -> Iterator[Records]:
    begins = sorted({0, *(end % (len(whole) + 1) for end in ends)})
    for begin, end in zip(begins, [*begins[1:], len(whole)], strict=True):
        yield whole[begin:end]


def check_same(found: Records, expected: pd.DataFrame) -> None:
    assert found.times.tolist() == expected[TIME].tolist()
    np.testing.assert_allclose(found.readings, expected.iloc[:, 1:], rtol=1e-13, atol=1e-13)


@settings(deadline=None, max_examples=25)
@given(recordings(), st.lists(st.integers(0, 100), max_size=5))
def test_resampling_is_that_of_an_upload(table: pd.DataFrame, ends: list[int]):
    (expected,) = uploaded(table)

    check_same(joined(Resampled(in_parts(records(table[:-1]), ends))), expected)


@settings(deadline=None, max_examples=25)
@given(recordings(missing=False), st.lists(st.integers(0, 100), max_size=5), st.integers(1, 40))
def test_a_cut_recording_is_a_cut_resampling(table: pd.DataFrame, ends: list[int], rows: int):
    cut = joined(Resampled(iter((records(table[:rows]),))))
    label = Resampled(in_parts(records(table), ends))

    whole, ways = NONE, np.empty((0, 3))
    for part in label:
        whole = whole.and_then(part)
        if whole.times[-1] >= cut.times[-1]:
            ways = label.as_cut(float(cut.times[-1])).readings
            break

    assert whole.times[: len(cut)].tolist() == cut.times.tolist()
    np.testing.assert_allclose(whole.readings[: len(cut) - 1], cut.readings[:-1], rtol=1e-13, atol=1e-13)
    assert np.abs(ways - cut.readings[-1]).max(axis=1).min() < 1e-12


@settings(deadline=None, max_examples=25)
@given(
    recordings(missing=False),
    recordings(missing=False),
    st.lists(st.integers(0, 100), max_size=5),
    st.lists(st.integers(0, 100), max_size=5),
)
def test_merging_is_that_of_an_upload(
    accelerometer: pd.DataFrame, gyroscope: pd.DataFrame, ends: list[int], others: list[int]
):
    # Label's own reach for the nearest record is a median over all, which parts do not have.
    both = [table.drop_duplicates(TIME) for table in (accelerometer, gyroscope)]
    if min(map(len, both)) < 3:
        return
    medians = [np.median(np.diff(table[TIME].to_numpy(float)[:-1])) for table in both]
    within_ns = float(int(1e9 / min(1 / (median * 1e-9) for median in medians)))
    joined_up = pd.merge_asof(
        *(table[:-1].astype(float).add_suffix(f" {place}").rename(columns={f"{TIME} {place}": TIME})
          for place, table in enumerate(both)),
        on=TIME, tolerance=int(within_ns), direction="nearest",
    ).dropna()  # fmt: skip

    for sensor, columns in ((Sensor.ACCELEROMETER, slice(1, 4)), (Sensor.GYROSCOPE, slice(4, 7))):
        found = joined(
            merge(
                in_parts(records(both[0][:-1]), ends),
                in_parts(records(both[1][:-1]), others),
                sensor,
                within_ns,
            )
        )
        check_same(found, pd.concat([joined_up[[TIME]], joined_up.iloc[:, columns]], axis=1))


def test_a_silence_of_hours_is_not_filled_and_one_of_minutes_is_filled_bit_by_bit():
    half_an_hour, longer = 1_800_000_000_000.0, 1_800_000_000_001.0
    times = np.cumsum([1e12, half_an_hour, 20e6, longer, 20e6])

    parts = list(Resampled(iter((Records(times, np.arange(15.0).reshape(5, 3)),))))

    assert sum(map(len, parts)) == 90_002
    assert max(map(len, parts)) <= 1 << 16
    assert joined(parts).times[-1] == times[2]


def test_without_the_last_record_means_the_last_one_of_the_file():
    whole = records(frame(np.arange(10), np.arange(30.0).reshape(10, 3)))
    without = WithoutLast(iter((whole[:4], NONE, whole[4:9], whole[9:])))

    assert joined(without).times.tolist() == list(range(9))
    assert without.last.times.tolist() == [9]


def test_a_record_that_comes_far_too_late_is_an_error_and_a_little_late_is_none():
    times = np.arange(12_000.0)
    whole = Records(times, np.zeros((12_000, 3)))
    late, far_too_late = times.copy(), times.copy()
    late[[100, 3_000]] = late[[3_000, 100]]
    far_too_late[[100, 9_000]] = far_too_late[[9_000, 100]]

    def sorted_times(order: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[float]:
        parts = in_parts(whole[order.astype(np.intp)], range(0, 12_000, 500))
        return joined(in_order(parts, Path("a.csv"))).times.tolist()

    assert sorted_times(late) == times.tolist()
    with pytest.raises(SessionUnreadableError, match=r"a\.csv is not in order of time"):
        sorted_times(far_too_late)
