"""Near-duplicates are found among recordings, each kind of them, and nothing else is taken for one."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.alike import FORMS, GAP_NS, GRAVITY, TIME, frame, recorded, scaled, uploaded, write
from worker.errors import StoredBytesMismatchError
from worker.near.agreement import Precision
from worker.near.compare import Kind
from worker.near.records import Sensor
from worker.near.search import Found, Recording, Search
from worker.runtime.throttle import Throttle

Pairs = dict[tuple[str, str], Kind]
"""What was found: of (poorer, richer) the kind."""


def search(
    paths: Sequence[Path],
    *,
    wanted: Sequence[str] = (),
    beside: Mapping[str, str] | None = None,
    check: Callable[..., None] = lambda _recording, _pace: None,
) -> Found:
    names = [path.name for path in paths]
    recordings = [
        Recording(
            path=path,
            sensor=Sensor.GYROSCOPE if path.name.startswith("gyro") else Sensor.ACCELEROMETER,
            size_bytes=path.stat().st_size,
            tag=place,
            beside=names.index(beside[path.name]) if beside and path.name in beside else None,
        )
        for place, path in enumerate(paths)
    ]
    with ThreadPoolExecutor(2) as threads:
        return Search(
            recordings,
            wanted=frozenset(names.index(one) for one in wanted) if wanted else None,
            check=check,
            pace=lambda _bytes: None,
            limit=Throttle(None),
            on_progress=lambda _progress: None,
        ).run(threads)


def pairs(found: Found, paths: Sequence[Path]) -> Pairs:
    return {(paths[one.poorer].name, paths[one.richer].name): one.match.kind for one in found.pairs}


def found_in(folder: Path, tables: Mapping[str, pd.DataFrame], **options: Any) -> Pairs:
    """Write these recordings and search; the kinds of the pairs by name."""
    paths = [write(table, folder / name) for name, table in tables.items()]
    found = search(paths, **options)
    assert found.refusals == []
    return pairs(found, paths)


@pytest.mark.parametrize("form", FORMS)
def test_a_recording_in_another_form_is_found(tmp_path: Path, form: str):
    paths = [write(recorded(1), tmp_path / "as written"), FORMS[form](recorded(1), tmp_path / "other form")]

    found = search(paths)

    assert pairs(found, paths) == {("other form", "as written"): Kind.FORMAT}
    assert found.pairs[0].match.records == 400


def test_what_an_upload_leaves_is_found_with_what_it_leaves_the_next_time(tmp_path: Path):
    (once,) = uploaded(recorded(1))
    (twice,) = uploaded(once)

    assert found_in(tmp_path, {"once": once, "twice": twice, "raw": recorded(1)}) == {
        ("once", "raw"): Kind.RESAMPLED,
        ("twice", "raw"): Kind.RESAMPLED,
    }
    assert found_in(tmp_path, {"twice": twice, "once": once}) == {("twice", "once"): Kind.LAST_RECORD}


def test_an_upload_with_a_gap_drops_a_record_and_an_old_one_the_rest_too(tmp_path: Path):
    raw = recorded(1)
    raw.loc[250:, TIME] += GAP_NS + 1
    (with_gap,) = uploaded(raw)
    (first_segment,) = uploaded(raw.iloc[:251])

    assert found_in(tmp_path, {"gap": with_gap, "segment": first_segment, "raw": raw}) == {
        ("gap", "raw"): Kind.LAST_RECORD,
        ("segment", "raw"): Kind.RESAMPLED,
    }


def test_records_out_of_order_are_sorted_before_they_are_compared(tmp_path: Path):
    raw = recorded(1)
    order = [*range(100), 105, 104, 101, 103, 102, *range(106, 400)]
    (once,) = uploaded(raw.iloc[order])

    assert found_in(tmp_path, {"once": once, "raw": raw.iloc[order]}) == {("once", "raw"): Kind.RESAMPLED}


@pytest.mark.parametrize("rows", [397, 398, 399])
def test_a_prefix_and_its_resampling_are_found_wherever_it_ends(tmp_path: Path, rows: int):
    raw = recorded(1)
    (cut,) = uploaded(raw.iloc[:rows])

    kind = Kind.LAST_RECORD if rows == 399 else Kind.PREFIX
    assert found_in(tmp_path, {"first": raw.iloc[:rows], "cut": cut, "raw": raw}) == {
        ("first", "raw"): kind,
        ("cut", "raw"): Kind.RESAMPLED,
    }


def test_a_hole_that_a_resampling_fills_is_no_difference(tmp_path: Path):
    (grid,) = uploaded(recorded(1))
    with_hole = grid.drop(range(120, 150)).rename(columns=lambda name: name.removeprefix("accel_"))
    (filled,) = uploaded(with_hole)

    assert found_in(tmp_path, {"filled": filled, "hole": with_hole}) == {("filled", "hole"): Kind.RESAMPLED}


def test_missing_values_are_left_out_of_means(tmp_path: Path):
    raw = recorded(1, rate_hz=120)
    raw.loc[50:53, "x"] = np.nan
    raw.loc[200, "y"] = np.nan
    (once,) = uploaded(raw)

    assert found_in(tmp_path, {"once": once, "raw": raw}) == {("once", "raw"): Kind.RESAMPLED}


def test_a_beginning_of_two_recordings_is_found_in_both(tmp_path: Path):
    raw, other = recorded(1), recorded(1)
    other.loc[300:, "x"] += 0.25

    assert found_in(tmp_path, {"first": raw.iloc[:250], "one": raw, "other": other}) == {
        ("first", "one"): Kind.PREFIX,
        ("first", "other"): Kind.PREFIX,
    }


def test_a_resampling_of_a_rounded_copy_is_found_in_the_copy(tmp_path: Path):
    raw = recorded(1)
    rounded = raw.round(4)
    (once,) = uploaded(rounded)

    found = found_in(tmp_path, {"raw": raw, "rounded": rounded, "once": once})

    assert found == {("rounded", "raw"): Kind.FORMAT, ("once", "rounded"): Kind.RESAMPLED}


def test_the_finer_digits_are_the_richer_ones(tmp_path: Path):
    paths = [write(recorded(1).round(4), tmp_path / "coarse"), write(recorded(1), tmp_path / "fine")]

    (pair,) = search(paths).pairs

    assert (paths[pair.poorer].name, pair.match.digits) == ("coarse", "4 decimals")
    assert pair.match.precision is Precision.ROUNDED


LOOK_ALIKES: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "later by one record": lambda raw: raw.assign(**{axis: raw[axis].shift(1).bfill() for axis in "xyz"}),
    "without its first record": lambda raw: raw.iloc[1:],
    "a millionth larger": lambda raw: scaled(raw, 1 + 1e-6),
    "a millionth larger, rounded": lambda raw: scaled(raw, 1 + 1e-6).round(6),
    "a ten-millionth more": lambda raw: raw.assign(x=raw["x"] + 3e-7, y=raw["y"] + 3e-7, z=raw["z"] + 3e-7),
    "axes swapped": lambda raw: raw.rename(columns={"x": "y", "y": "x"})[[TIME, "x", "y", "z"]],
    "one reading": lambda raw: raw.assign(z=raw["z"].where(raw.index != 390, raw["z"] + 1e-5)),
    "one time": lambda raw: raw.assign(**{TIME: raw[TIME].where(raw.index != 390, raw[TIME] + 100)}),
    "another clock": lambda raw: raw.assign(**{TIME: raw[TIME] + 20_000_000}),
    "the sign": lambda raw: scaled(raw, -1),
    "one reading missing": lambda raw: raw.assign(z=raw["z"].where(raw.index != 390)),
    "one record repeated": lambda raw: raw.iloc[[*range(201), *range(200, 400)]],
}


@pytest.mark.parametrize("what", LOOK_ALIKES)
@pytest.mark.parametrize("decimals", [6, None])
def test_what_only_looks_alike_is_never_taken_for_the_same(tmp_path: Path, what: str, decimals: int | None):
    raw = recorded(1) if decimals is None else recorded(1).round(decimals)
    other = LOOK_ALIKES[what](raw)
    (once,), (other_once,) = uploaded(raw), uploaded(other)

    found = found_in(tmp_path, {"raw": raw, "other": other, "once": once, "other once": other_once})

    # What is left of the two after a resampling may be the same by right: only the end differs, or only times
    # within 20 ms.
    assert ("other", "raw") not in found
    assert ("raw", "other") not in found
    assert found[("once", "raw")] is Kind.RESAMPLED


@pytest.mark.parametrize("rest", [0.0, 9.80665])
def test_sensors_that_say_the_same_all_the_time_prove_nothing(tmp_path: Path, rest: float):
    times = 10**12 + np.arange(400) * 10_000_000
    long, short = (frame(times[:rows], np.full((rows, 3), rest)) for rows in (400, 300))
    noise = frame(times, rest + np.random.default_rng(1).normal(0, 1e-4, (400, 3)))
    paths = [
        write(table, tmp_path / name)
        for name, table in {"long": long, "short": short, "50 Hz": uploaded(long)[0], "noise": noise}.items()
    ]

    found = search([*paths, write(long, tmp_path / "again", lineterminator="\r\n")])

    assert [one.match.kind for one in found.pairs] == [Kind.FORMAT]
    assert {one.match.kind for one in found.unproven} == {Kind.PREFIX, Kind.RESAMPLED}
    assert all(one.poorer in {1, 2} for one in found.unproven)


def test_two_devices_at_rest_are_two_recordings(tmp_path: Path):
    times = 10**12 + np.arange(400) * 10_000_000
    rest = GRAVITY + np.random.default_rng(1).normal(0, 2e-3, (2, 400, 3))

    assert (
        found_in(tmp_path, {str(number): frame(times, one.round(3)) for number, one in enumerate(rest)}) == {}
    )


@pytest.mark.parametrize("late_ns", [0, 137_000_000, 3_000_000_000])
def test_a_session_with_two_sensors_is_found_in_what_it_was_before(tmp_path: Path, late_ns: int):
    raw, turns = recorded(1, 900), recorded(1, 900)
    turns[TIME] += late_ns + 1_234_567
    turns[["x", "y", "z"]] = recorded(2, 900)[["x", "y", "z"]]
    once, turns_once = uploaded(raw, turns)

    found = found_in(
        tmp_path,
        {"raw": raw, "gyro raw": turns, "once": once, "gyro once": turns_once},
        beside={"raw": "gyro raw", "gyro raw": "raw", "once": "gyro once", "gyro once": "once"},
    )

    assert found == {("once", "raw"): Kind.RESAMPLED, ("gyro once", "gyro raw"): Kind.RESAMPLED}


def test_only_pairs_that_are_asked_for_are_read(tmp_path: Path):
    tables = {f"raw {seed}": recorded(seed) for seed in range(3)}
    tables |= {f"once {seed}": uploaded(recorded(seed))[0] for seed in range(3)}
    paths = [write(table, tmp_path / name) for name, table in tables.items()]

    found = search(paths, wanted=["once 1"])

    assert pairs(found, paths) == {("once 1", "raw 1"): Kind.RESAMPLED}
    assert found.comparisons == 1


UNREADABLE = {
    "empty": b"",
    "no records": b"ns_since_reboot,x,y,z\n",
    "no columns": b"what,is,this\n1,2,3\n",
    "words": b"ns_since_reboot,x,y,z\n1,2,3,four\n",
    "a time missing": b"ns_since_reboot,x,y,z\n1,2,3,4\n,2,3,4\n",
    "bytes": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_is_no_recording_is_named_and_the_rest_is_compared(tmp_path: Path, what: str):
    paths = [write(recorded(1), tmp_path / "raw"), write(uploaded(recorded(1))[0], tmp_path / "once")]
    bad = tmp_path / "bad"
    bad.write_bytes(UNREADABLE[what])

    found = search([bad, *paths])

    assert [(one.key, one.is_damaged) for one in found.refusals] == [(0, False)]
    assert str(bad) in found.refusals[0].reason
    assert [(one.poorer, one.richer) for one in found.pairs] == [(2, 1)]


def test_what_cannot_be_read_in_the_middle_is_named(tmp_path: Path):
    paths = [write(recorded(1), tmp_path / name) for name in ("good", "bad", "once")]
    lines = paths[1].read_text().splitlines()
    lines[350] = "1,2,3,4,5,6,7"
    paths[1].write_text("\n".join(lines))
    write(uploaded(recorded(1))[0], paths[2])

    found = search(paths)

    assert [one.key for one in found.refusals] == [1]
    assert pairs(found, paths)[("once", "good")] is Kind.RESAMPLED


def test_a_pair_of_a_damaged_recording_is_not_reported(tmp_path: Path):
    paths = [write(recorded(1), tmp_path / "raw"), write(uploaded(recorded(1))[0], tmp_path / "once")]

    def check(recording: Recording, _pace: object) -> None:
        if recording.path == paths[1]:
            raise StoredBytesMismatchError("not its bytes")

    found = search(paths, check=check)

    assert found.pairs == []
    assert [(one.key, one.is_damaged) for one in found.refusals] == [(1, True)]
