"""Made-up recordings look like real ones to Label, differ from each other, and are written fast."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.demo.csv_text import csv_lines
from producer.demo.recordings import (
    ACCELEROMETER,
    GYROSCOPE,
    LABELS,
    Bout,
    Form,
    LabelsForm,
    Plan,
    Recording,
    labels_json,
    rows_for,
    write_session,
)
from worker.sessions_csv import Reader, SessionRow, count_records, read

HEADERS = {
    Form.RECORDED: ["ns_since_reboot", "x", "y", "z"],
    Form.UPLOADED: ["ns_since_reboot", "accel_x", "accel_y", "accel_z"],
    Form.GAPPED: ["ns_since_reboot", "accel_x", "accel_y", "accel_z"],
}


def as_label_reads(recording: Recording) -> pd.DataFrame:
    session = SessionRow(
        session_id=1,
        session_name=recording.directory.name,
        project_path=str(recording.directory.parent),
        parent_session_data_path=None,
        data_start_offset=None,
        data_end_offset=None,
        start_ns=recording.start_ns,
        stop_ns=recording.stop_ns,
        dataset_id=None,
        raw_session_name=None,
        dataset_file_path=None,
    )
    return read(session, Reader.PLOT, recording.directory)


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("rows", [2, 3, 100, 8192, 8193, 30_000])
def test_label_reads_as_many_rows_as_were_asked_for(tmp_path: Path, form: Form, rows: int):
    recording = write_session(tmp_path / "session", Plan(rows=rows, seed=1, form=form))

    frame = as_label_reads(recording)

    assert len(frame) == recording.rows == rows == count_records(tmp_path / "session" / ACCELEROMETER)
    assert not frame.isna().any().any()
    assert (frame["ns_since_reboot"].iloc[0], frame["ns_since_reboot"].iloc[-1]) == (
        recording.start_ns,
        recording.stop_ns,
    )


@pytest.mark.parametrize("form", list(Form))
def test_header_and_times_of_a_made_up_recording_are_those_of_label(tmp_path: Path, form: Form):
    write_session(tmp_path, Plan(rows=5000, seed=2, form=form))

    frame = pd.read_csv(tmp_path / ACCELEROMETER)

    steps = frame["ns_since_reboot"].diff().dropna()
    assert list(frame.columns) == HEADERS[form]
    assert frame["ns_since_reboot"].dtype == ("float64" if form is Form.GAPPED else "int64")
    assert steps.min() > 0
    assert (steps == 20_000_000).all() == (form is Form.UPLOADED)
    assert (frame["ns_since_reboot"].iloc[0] % 20_000_000 == 0) == (form is Form.UPLOADED)


def test_gaps_of_a_recording_are_longer_than_those_at_which_label_splits(tmp_path: Path):
    recording = write_session(tmp_path, Plan(rows=1000, seed=3, form=Form.GAPPED, gaps=(200, 900)))

    steps = pd.read_csv(tmp_path / ACCELEROMETER)["ns_since_reboot"].diff()

    assert steps[steps > 30 * 60e9].index.tolist() == [200, 900]
    assert recording.segments == ((0, 200), (200, 900), (900, 1000))


def test_values_of_a_made_up_recording_are_those_of_a_wrist(tmp_path: Path):
    """At rest there is gravity and little else; walking shakes the arm; smoking turns it."""
    recording = write_session(tmp_path, Plan(rows=100_000, seed=4))

    values = pd.read_csv(tmp_path / ACCELEROMETER)[["accel_x", "accel_y", "accel_z"]].to_numpy()

    strength = np.linalg.norm(values, axis=1)
    assert 9.5 < strength.mean() < 10.2
    assert strength[:1000].std() < 0.2
    assert strength.max() > 11
    assert np.abs(values).max() < 30
    bout = recording.bouts[0]
    first, last = ((edge - recording.start_ns) // 20_000_000 for edge in (bout.start_ns, bout.end_ns))
    assert values[first:last].std(axis=0)[2] > 3


def test_a_day_has_several_bouts_in_order_and_even_a_minute_has_one(tmp_path: Path):
    day = write_session(tmp_path / "day", Plan(rows=500_000, seed=5))
    minute = write_session(tmp_path / "minute", Plan(rows=3000, seed=5))

    edges = [edge for bout in day.bouts for edge in (bout.start_ns, bout.end_ns)]
    assert len(day.bouts) > 2
    assert len(minute.bouts) >= 1
    assert edges == sorted(set(edges))
    assert day.start_ns <= edges[0]
    assert edges[-1] <= day.stop_ns


def test_equal_plans_give_equal_bytes_and_other_seeds_others(tmp_path: Path):
    written = []
    for name, seed in (("a", 6), ("b", 6), ("c", 7)):
        write_session(
            tmp_path / name, Plan(rows=20_000, seed=seed, gyroscope=True, labels=LabelsForm.OBJECTS)
        )
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})

    assert written[0] == written[1]
    assert written[0].keys() == {ACCELEROMETER, GYROSCOPE, LABELS}
    lines = [set(files[ACCELEROMETER].splitlines()[1:]) for files in written]
    assert not lines[0] & lines[2]


def test_hardly_any_two_rows_of_a_long_recording_have_the_same_values(tmp_path: Path):
    write_session(tmp_path, Plan(rows=200_000, seed=8))

    values = pd.read_csv(tmp_path / ACCELEROMETER)[["accel_x", "accel_y", "accel_z"]]

    assert values.duplicated().sum() < 20


def test_the_gyroscope_has_the_same_times(tmp_path: Path):
    write_session(tmp_path, Plan(rows=3000, seed=9, form=Form.RECORDED, gyroscope=True))

    accelerometer, gyroscope = (pd.read_csv(tmp_path / name) for name in (ACCELEROMETER, GYROSCOPE))

    assert list(gyroscope.columns) == ["ns_since_reboot", "x", "y", "z"]
    assert gyroscope["ns_since_reboot"].equals(accelerometer["ns_since_reboot"])
    assert gyroscope["y"].abs().max() > 0.5


@pytest.mark.parametrize("form", list(LabelsForm))
def test_labels_are_the_bouts_in_both_forms_of_the_file(tmp_path: Path, form: LabelsForm):
    recording = write_session(tmp_path, Plan(rows=3000, seed=10, labels=form))

    entries = json.loads((tmp_path / LABELS).read_text(encoding="utf-8"))

    as_lists = entries if form is LabelsForm.LISTS else [list(entry.values()) for entry in entries]
    assert as_lists == [[bout.start_ns, bout.end_ns, "smoking"] for bout in recording.bouts]
    assert recording.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_labels_of_no_bouts_are_an_empty_list():
    assert labels_json([], LabelsForm.OBJECTS) == "[]"
    assert json.loads(labels_json([Bout(start_ns=1, end_ns=2, label="chewing")], LabelsForm.LISTS)) == [
        [1, 2, "chewing"]
    ]


@pytest.mark.parametrize("form", list(Form))
def test_a_wanted_size_is_met_within_a_tenth(tmp_path: Path, form: Form):
    recording = write_session(tmp_path, Plan(rows=rows_for(2_000_000, form), seed=11, form=form))

    assert 1_800_000 < recording.size_bytes < 2_200_000


@pytest.mark.parametrize(
    ("rows", "gaps"), [(1, ()), (0, ()), (10, (0,)), (10, (10,)), (10, (5, 5)), (10, (6, 3))]
)
def test_a_plan_that_is_no_recording_is_refused(rows: int, gaps: tuple[int, ...]):
    with pytest.raises(ValueError, match="no recording"):
        Plan(rows=rows, seed=0, gaps=gaps)


def test_recordings_are_written_fast(tmp_path: Path):
    """Sixty megabytes a second of a core's time is what the demo counts on; half of it is asked for on a busy
    machine.
    """
    write_session(tmp_path / "warm", Plan(rows=10_000, seed=12))
    rates = []
    for attempt in range(3):
        started = time.process_time()
        recording = write_session(tmp_path / str(attempt), Plan(rows=400_000, seed=12))
        rates.append(recording.size_bytes / (time.process_time() - started))

    assert max(rates) > 30e6


@given(
    st.lists(
        st.tuples(
            st.integers(10**12, 10**16 - 1), *[st.floats(-99.999999, 99.999999, allow_subnormal=False)] * 3
        ),
        min_size=1,
        max_size=20,
    )
)
def test_fast_formatting_gives_the_lines_of_ordinary_formatting(rows: list[tuple[int, float, float, float]]):
    """The values go through the same rounding to millionths first: how a half is rounded is nobody's
    business.
    """
    times = np.array([row[0] for row in rows], dtype=np.int64)
    values = np.array([row[1:] for row in rows]).T
    millionths = np.rint(np.abs(values) * 1e6) * np.where(values < 0, -1, 1)

    lines = csv_lines(times, values)
    as_floats = csv_lines(times, values, times_as_floats=True)

    expected = [
        "{},{:.6f},{:.6f},{:.6f}".format(time, *(one / 1e6 for one in row))
        for time, row in zip(times, millionths.T, strict=True)
    ]
    assert lines.decode().splitlines() == expected
    assert as_floats.decode() == "".join(f"{line.replace(',', '.0,', 1)}\n" for line in expected)
