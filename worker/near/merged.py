"""Accelerometer and gyroscope of one session merged, as Label does before it resamples. Reads no file.

Where a session has both, an upload leaves out the last record of each and gives every accelerometer record
the nearest gyroscope record, if that is no further away than one interval of theirs; records without one are
dropped, and so are those with a missing value. Both files are then written from these records, with the
times of the accelerometer (label contract, section 3).
"""

from collections.abc import Iterator

import numpy as np

from worker.near.records import MOST_RECORDS, NONE, Records, Sensor

_PART = 4_096
_WINDOW = 4 * MOST_RECORDS


def reach_ns(accelerometer: Records, gyroscope: Records) -> float:
    """How far the nearest record may be away. The first records of both stand for all, where Label takes the
    median of all intervals.
    """
    if min(len(accelerometer), len(gyroscope)) < 2:
        return 0.0
    with np.errstate(divide="ignore"):
        rates = [1 / (np.median(np.diff(one.times)) * 1e-9) for one in (accelerometer, gyroscope)]
        return float(np.floor(1e9 / min(rates)))


def merge(
    accelerometer: Iterator[Records],
    gyroscope: Iterator[Records],
    wanted: Sensor,
    within_ns: float | None = None,
) -> Iterator[Records]:
    """The merged records of one sensor. Takes both in order of time and without their last records.

    Ends early where one of them has very many more records than the other, which Label refuses to merge.
    """
    window = next(gyroscope, NONE)
    for part in accelerometer:
        if within_ns is None:
            within_ns = reach_ns(part, window)
        for begin in range(0, len(part), _PART):
            some = part[begin : begin + _PART]
            while not len(window) or window.times[-1] <= some.times[-1] + within_ns:
                more = next(gyroscope, None)
                if more is None:
                    break
                window = window.and_then(more)
                if len(window) > _WINDOW:
                    return
            if len(window):
                yield _nearest(some, window, wanted, within_ns)
                window = window[
                    max(0, int(np.searchsorted(window.times, some.times[-1], side="right")) - 1) :
                ]


def _nearest(some: Records, window: Records, wanted: Sensor, within_ns: float) -> Records:
    """Those records that have one near enough; of two equally near, the earlier counts."""
    last = len(window) - 1
    before = np.searchsorted(window.times, some.times, side="right") - 1
    after = np.searchsorted(window.times, some.times, side="left")
    back = np.where(before >= 0, some.times - window.times[np.maximum(before, 0)], np.inf)
    ahead = np.where(after <= last, window.times[np.minimum(after, last)] - some.times, np.inf)
    nearest = np.where(back <= ahead, np.maximum(before, 0), np.minimum(after, last))
    values = window.readings[nearest]
    kept = np.flatnonzero(
        (np.minimum(back, ahead) <= within_ns)
        & ~np.isnan(values).any(axis=1)
        & ~np.isnan(some.readings).any(axis=1)
    )
    own = some.readings if wanted is Sensor.ACCELEROMETER else values
    return Records(some.times[kept], own[kept])
