"""A session is read as Label reads it: which rows, in which columns, and from which directory."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import long_fields
from worker.errors import ProjectError, SessionUnreadableError, WorkerStoppingError
from worker.sessions_csv import COLUMNS, RECORDING, Reader, SessionRow, count_records, locate, read

EVERY_READER = list(Reader)
PLOT_AND_SPLIT = [Reader.PLOT, Reader.SPLIT]
HEADERS = ["ns_since_reboot,x,y,z", "ns_since_reboot,accel_x,accel_y,accel_z"]


def row(**changes: Any) -> SessionRow:
    """A legacy session without a split, but for `changes`."""
    columns: dict[str, Any] = {
        "session_id": 7,
        "session_name": "session",
        "project_path": None,
        "parent_session_data_path": None,
        "data_start_offset": None,
        "data_end_offset": None,
        "start_ns": 0,
        "stop_ns": 10**15,
        "dataset_id": None,
        "raw_session_name": None,
        "dataset_file_path": None,
    }
    return SessionRow(**(columns | changes))


def child(directory: Path, offsets: tuple[int, int] | None = None, **changes: Any) -> SessionRow:
    """A session that is a part of the recording in `directory`."""
    start, end = offsets or (None, None)
    return row(
        parent_session_data_path=str(directory), data_start_offset=start, data_end_offset=end, **changes
    )


def write(directory: Path, times: Any, header: str = HEADERS[1], newline: str = "\n") -> Path:
    """A recording whose x is the number of its row; return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [header, *(f"{time},{number},0.5,-1" for number, time in enumerate(times))]
    (directory / RECORDING).write_bytes("".join(line + newline for line in lines).encode())
    return directory


def rows_of(session: SessionRow, reader: Reader, data_dir: Path) -> list[int]:
    """The numbers of the rows that were read, in the order they came."""
    return [int(number) for number in read(session, reader, data_dir)["x"]]


# Which rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", EVERY_READER)
def test_a_session_without_parent_path_is_the_whole_file(tmp_path: Path, reader: Reader):
    write(tmp_path / "session", range(100, 110))
    session = row(
        project_path=str(tmp_path), start_ns=103, stop_ns=105, data_start_offset=1, data_end_offset=2
    )

    assert rows_of(session, reader, tmp_path) == list(range(10))


@pytest.mark.parametrize("reader", EVERY_READER)
@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        pytest.param((0, 10), range(10), id="all"),
        pytest.param((0, 1), range(1), id="first"),
        pytest.param((9, 10), range(9, 10), id="last"),
        pytest.param((3, 7), range(3, 7), id="middle"),
        pytest.param((5, 5), range(0), id="none"),
        pytest.param((8, 500), range(8, 10), id="end beyond the file"),
        pytest.param((10, 20), range(0), id="start at the end of the file"),
        pytest.param((400, 500), range(0), id="start beyond the file"),
    ],
)
def test_offsets_are_half_open_and_ignore_times(
    tmp_path: Path, reader: Reader, offsets: tuple[int, int], expected: range
):
    write(tmp_path, range(100, 110))

    assert rows_of(child(tmp_path, offsets, start_ns=103, stop_ns=105), reader, tmp_path) == list(expected)


@pytest.mark.parametrize("reader", PLOT_AND_SPLIT)
def test_without_offsets_plot_and_split_take_the_rows_within_both_times(tmp_path: Path, reader: Reader):
    write(tmp_path, range(100, 110))

    assert rows_of(child(tmp_path, start_ns=103, stop_ns=105), reader, tmp_path) == [3, 4, 5]


def test_without_offsets_scoring_takes_the_whole_file_but_its_last_row(tmp_path: Path):
    write(tmp_path, range(100, 110))

    assert rows_of(child(tmp_path, start_ns=103, stop_ns=105), Reader.SCORING, tmp_path) == list(range(9))


def test_the_last_row_that_scoring_drops_is_the_last_of_the_file_not_of_the_time(tmp_path: Path):
    write(tmp_path, [30, 20, 10])

    assert rows_of(child(tmp_path), Reader.SCORING, tmp_path) == [1, 0]


@pytest.mark.parametrize("only", ["data_start_offset", "data_end_offset"])
def test_one_offset_without_the_other_counts_as_none(tmp_path: Path, only: str):
    write(tmp_path, range(100, 110))
    session = row(parent_session_data_path=str(tmp_path), start_ns=108, stop_ns=200, **{only: 2})

    assert rows_of(session, Reader.PLOT, tmp_path) == [8, 9]
    assert rows_of(session, Reader.SCORING, tmp_path) == list(range(9))


@pytest.mark.parametrize("offsets", [(5, 4), (0, -1)])
def test_an_end_before_the_start_is_unreadable(tmp_path: Path, offsets: tuple[int, int]):
    write(tmp_path, range(10))

    with pytest.raises(SessionUnreadableError, match=str(tmp_path)):
        read(child(tmp_path, offsets), Reader.PLOT, tmp_path)


def test_blank_lines_count_when_rows_are_skipped_and_not_when_they_are_read(tmp_path: Path):
    (tmp_path / RECORDING).write_text(
        "ns_since_reboot,x,y,z\n1,0,0,0\n\n2,1,0,0\n3,2,0,0\n\n4,3,0,0\n5,4,0,0\n"
    )

    assert rows_of(child(tmp_path, (0, 4)), Reader.PLOT, tmp_path) == [0, 1, 2, 3]
    assert rows_of(child(tmp_path, (2, 4)), Reader.PLOT, tmp_path) == [1, 2]
    assert rows_of(child(tmp_path, (3, 5)), Reader.PLOT, tmp_path) == [2, 3]


def test_offsets_reach_far_into_a_file_of_several_chunks(tmp_path: Path):
    write(tmp_path, range(200_000))

    assert rows_of(child(tmp_path, (65_530, 199_990)), Reader.PLOT, tmp_path) == list(range(65_530, 199_990))


_TOKENS = st.lists(
    st.sampled_from(
        [b"1,2,3,4\n", b"5,6,7,8\n", b"1", b"-2.5", b",", b",", b"\n", b"\r", b'"', b" ", b"x", b"\xff"]
    ),
    max_size=20,
)


@settings(max_examples=300, deadline=None)
@given(tokens=_TOKENS, start=st.integers(0, 5), length=st.integers(0, 5))
def test_any_bytes_are_read_as_the_one_call_of_pandas_in_label_reads_them(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[bytes], start: int, length: int
):
    """Chunks and a skipping function are used to save memory, and must not change what comes out."""
    directory = tmp_path_factory.mktemp("any")
    path = directory / RECORDING
    path.write_bytes(b"ns_since_reboot,x,y,z\n" + b"".join(tokens))
    try:
        expected = pd.read_csv(path, skiprows=range(1, start + 1), nrows=length)[list(COLUMNS)].astype(float)
    except (ValueError, KeyError):
        expected = None

    try:
        found = read(child(directory, (start, start + length)), Reader.SCORING, directory)
    except SessionUnreadableError:
        found = None

    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.equals(expected.sort_values("ns_since_reboot", kind="stable", ignore_index=True))


# In which form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("reader", EVERY_READER)
def test_both_headers_give_the_same_columns_as_floats(tmp_path: Path, header: str, reader: Reader):
    write(tmp_path, [1, 2, 3], header)

    frame = read(child(tmp_path, (0, 3)), reader, tmp_path)

    assert tuple(frame.columns) == COLUMNS
    assert {dtype.name for dtype in frame.dtypes} == {"float64"}
    assert frame["y"].tolist() == [0.5, 0.5, 0.5]
    assert frame.index.tolist() == [0, 1, 2]


def test_whole_and_float_times_read_alike(tmp_path: Path):
    whole = write(tmp_path / "whole", [1_000_000_000_000, 1_000_020_000_000])
    floats = write(tmp_path / "floats", ["1000000000000.0", "1000020000000.0"])

    frames = [read(child(directory, (0, 2)), Reader.PLOT, tmp_path) for directory in (whole, floats)]

    assert frames[0].equals(frames[1])


def test_further_columns_of_a_recording_are_left_out(tmp_path: Path):
    (tmp_path / RECORDING).write_text("note,z,y,x,ns_since_reboot\nhello,3,2,1,100\n")

    assert read(child(tmp_path, (0, 1)), Reader.PLOT, tmp_path).to_numpy().tolist() == [[100, 1, 2, 3]]


@pytest.mark.parametrize("reader", EVERY_READER)
def test_rows_are_sorted_by_time_and_equal_times_keep_the_order_of_the_file(tmp_path: Path, reader: Reader):
    write(tmp_path / "session", [30, 10, 20, 10, 5])

    assert rows_of(row(project_path=str(tmp_path)), reader, tmp_path) == [4, 1, 3, 2, 0]
    assert rows_of(child(tmp_path / "session", (0, 4)), reader, tmp_path) == [1, 3, 2, 0]


def test_a_missing_value_stays_missing(tmp_path: Path):
    (tmp_path / RECORDING).write_text("ns_since_reboot,x,y,z\n1,,2,nan\n")

    values = read(child(tmp_path, (0, 1)), Reader.PLOT, tmp_path).to_numpy()

    assert np.isnan(values).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_kind_of_newline_ends_a_line(tmp_path: Path, newline: str):
    write(tmp_path, range(10), newline=newline)

    assert rows_of(child(tmp_path, (4, 6)), Reader.PLOT, tmp_path) == [4, 5]
    assert count_records(tmp_path / RECORDING) == 10


def test_a_header_alone_is_a_session_without_rows(tmp_path: Path):
    write(tmp_path / "session", [])

    for reader in Reader:
        assert rows_of(row(project_path=str(tmp_path)), reader, tmp_path) == []
        assert rows_of(child(tmp_path / "session"), reader, tmp_path) == []
        assert rows_of(child(tmp_path / "session", (0, 5)), reader, tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"time,a,b\n1,2,3\n", id="other columns"),
        pytest.param(b"ns_since_reboot,x,y,z\n1,2,three,4\n", id="no number"),
        pytest.param(b"ns_since_reboot,x,y,z\n1,2,3,4\n1,2,3,4,5\n", id="uneven"),
        pytest.param(bytes(range(256)), id="no text"),
    ],
)
@pytest.mark.parametrize("reader", EVERY_READER)
def test_what_is_no_recording_is_unreadable_and_named(tmp_path: Path, reader: Reader, content: bytes):
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / RECORDING).write_bytes(content)

    with pytest.raises(SessionUnreadableError) as raised:
        read(row(project_path=str(tmp_path)), reader, tmp_path)

    assert str(tmp_path / "session" / RECORDING) in str(raised.value)
    assert "session 7" in str(raised.value)
    assert isinstance(raised.value, ProjectError)


def test_a_missing_file_is_unreadable_and_named(tmp_path: Path):
    with pytest.raises(
        SessionUnreadableError, match=f"cannot read {tmp_path}/session/{RECORDING}: No such file"
    ):
        read(row(project_path=str(tmp_path)), Reader.PLOT, tmp_path)


# From which directory ---------------------------------------------------------------------------------------


@pytest.fixture
def dataset_row() -> dict[str, Any]:
    """The columns of a session of a dataset, whose stored path is of another server."""
    return {
        "session_name": "2025.07.01.2",
        "dataset_id": 3,
        "raw_session_name": "2025.07.01",
        "dataset_file_path": "/elsewhere/raw_datasets/study-0a1b2c",
    }


def test_a_plot_takes_the_dataset_of_today_if_the_parent_path_is_gone(
    tmp_path: Path, dataset_row: dict[str, Any]
):
    session = row(**dataset_row, parent_session_data_path=str(tmp_path / "gone"), project_path=str(tmp_path))

    assert locate(session, Reader.PLOT, tmp_path) == tmp_path / "raw_datasets" / "study-0a1b2c" / "2025.07.01"


def test_a_plot_takes_the_dataset_if_there_is_no_parent_path(tmp_path: Path, dataset_row: dict[str, Any]):
    session = row(**dataset_row, project_path=str(tmp_path))

    assert locate(session, Reader.PLOT, tmp_path) == tmp_path / "raw_datasets" / "study-0a1b2c" / "2025.07.01"


def test_a_plot_takes_the_dataset_if_the_parent_path_was_joined_twice(
    tmp_path: Path, dataset_row: dict[str, Any]
):
    parent = tmp_path / "raw_datasets" / "raw_datasets" / "study"
    parent.mkdir(parents=True)

    directory = locate(row(**dataset_row, parent_session_data_path=str(parent)), Reader.PLOT, tmp_path)

    assert directory == tmp_path / "raw_datasets" / "study-0a1b2c" / "2025.07.01"


@pytest.mark.parametrize("raw_session_name", [None, ""])
def test_a_plot_guesses_the_raw_name_up_to_the_first_dot(
    tmp_path: Path, dataset_row: dict[str, Any], raw_session_name: str | None
):
    session = row(**(dataset_row | {"raw_session_name": raw_session_name}))

    assert locate(session, Reader.PLOT, tmp_path).name == "2025"


def test_a_plot_believes_a_parent_path_that_exists(tmp_path: Path, dataset_row: dict[str, Any]):
    session = row(**dataset_row, parent_session_data_path=str(tmp_path), project_path="/project")

    assert locate(session, Reader.PLOT, tmp_path) == tmp_path


def test_a_plot_goes_by_the_other_rules_if_the_dataset_is_no_more(
    tmp_path: Path, dataset_row: dict[str, Any]
):
    gone = {**dataset_row, "dataset_file_path": None}

    assert locate(row(**gone, parent_session_data_path="/parent"), Reader.PLOT, tmp_path) == Path("/parent")
    assert locate(row(**gone, project_path="/project"), Reader.PLOT, tmp_path) == Path(
        "/project/2025.07.01.2"
    )


@pytest.mark.parametrize("reader", [Reader.SPLIT, Reader.SCORING])
def test_splitting_and_scoring_ignore_the_dataset(
    tmp_path: Path, reader: Reader, dataset_row: dict[str, Any]
):
    assert locate(row(**dataset_row, parent_session_data_path="/gone"), reader, tmp_path) == Path("/gone")
    with pytest.raises(SessionUnreadableError, match="session 7"):
        locate(row(**dataset_row), reader, tmp_path)


@pytest.mark.parametrize("reader", EVERY_READER)
def test_a_parent_path_goes_before_the_project(tmp_path: Path, reader: Reader):
    both = row(parent_session_data_path="/parent/dir", project_path="/project")

    assert locate(both, reader, tmp_path) == Path("/parent/dir")


@pytest.mark.parametrize("reader", EVERY_READER)
@pytest.mark.parametrize("project_path", ["/project", "/project/", "//project//"])
def test_a_legacy_session_is_in_the_directory_of_its_name(tmp_path: Path, reader: Reader, project_path: str):
    directory = locate(row(project_path=project_path, parent_session_data_path=""), reader, tmp_path)

    assert Path(str(directory).replace("//", "/")) == Path("/project/session")


@pytest.mark.parametrize("reader", EVERY_READER)
@pytest.mark.parametrize("project_path", [None, ""])
def test_a_session_without_any_path_has_no_place(tmp_path: Path, reader: Reader, project_path: str | None):
    with pytest.raises(SessionUnreadableError, match="no parent path and its project has no path"):
        locate(row(project_path=project_path), reader, tmp_path)


@pytest.mark.parametrize("parent", ["/" + "n" * 300, "/x" * 3000])
def test_a_parent_path_that_cannot_exist_does_not_exist(
    tmp_path: Path, dataset_row: dict[str, Any], parent: str
):
    session = row(**dataset_row, parent_session_data_path=parent)

    assert locate(session, Reader.PLOT, tmp_path).parent.name == "study-0a1b2c"


def test_a_session_found_through_its_dataset_is_read_by_its_offsets(
    tmp_path: Path, dataset_row: dict[str, Any]
):
    write(tmp_path / "raw_datasets" / "study-0a1b2c" / "2025.07.01", range(10))
    session = row(
        **dataset_row,
        parent_session_data_path="/gone",
        data_start_offset=2,
        data_end_offset=4,
        project_path="/p",
    )

    assert rows_of(session, Reader.PLOT, tmp_path) == [2, 3]


# How many records -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "records"),
    [
        pytest.param("a,b\n1,2\n3,4\n", 2, id="plain"),
        pytest.param("a,b\n1,2\n3,4", 2, id="no last newline"),
        pytest.param("\n\na,b\n\n1,2\n\n\n3,4\n\n", 2, id="blank lines"),
        pytest.param("a,b\n1,2\n  \n3,4\n", 2, id="line of spaces"),
        pytest.param("a,b\r\n1,2\r\n\r\n3,4\r\n", 2, id="carriage returns"),
        pytest.param('a,b\n1,"two\nlines"\n3,4\n', 2, id="quoted newline"),
        pytest.param("\ufeffa,b\n1,2\n", 1, id="byte order mark"),
        pytest.param("a,b\n1\n", 1, id="short line"),
        pytest.param("a,b\n", None, id="header only"),
        pytest.param("a,b", None, id="header without newline"),
        pytest.param("", None, id="empty"),
        pytest.param("\n\n", None, id="blank"),
        pytest.param("a,b\n1,2\n1,2,3\n", None, id="uneven"),
        pytest.param('a,b\n1,"2\n', None, id="open quote"),
    ],
)
def test_records_are_counted_as_pandas_counts_them(tmp_path: Path, content: str, records: int | None):
    path = tmp_path / RECORDING
    path.write_bytes(content.encode())

    assert count_records(path) == records


def test_bytes_that_are_no_text_have_no_records(tmp_path: Path):
    (tmp_path / RECORDING).write_bytes(b"a,b\n1,\xff\n")

    assert count_records(tmp_path / RECORDING) is None


def test_a_file_that_cannot_be_opened_is_unreadable(tmp_path: Path):
    with pytest.raises(SessionUnreadableError, match=str(tmp_path)):
        count_records(tmp_path / RECORDING)


def test_counting_takes_no_more_memory_for_a_longer_file(tmp_path: Path):
    peaks = []
    for records in (150_000, 600_000):
        directory = write(tmp_path / str(records), range(records))
        tracemalloc.start()
        assert count_records(directory / RECORDING) == records
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < peaks[0] * 1.2


PIECES = [
    "1",
    ",",
    "\n",
    "1,2\n",
    '"',
    '""',
    '","',
    '"\n',
    '\n"',
    ',"',
    "\r\n",
    "\r",
    "abc",
    "é",
    "\ufeff",
    " ",
    "\0",
]


@settings(max_examples=300, deadline=None)
@given(body=st.lists(st.sampled_from(PIECES), max_size=60), block=st.integers(1, 9), field=st.integers(6, 12))
def test_shortening_fields_changes_no_count(tmp_path_factory, body: list[str], block: int, field: int):
    path = tmp_path_factory.getbasetemp() / "shortened.csv"
    path.write_text("a,b,c\n" + "".join(body), newline="")
    try:
        expected = len(pd.read_csv(path)) or None
    except (ValueError, OverflowError):
        return

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_fields, "_BLOCK_BYTES", block)
        patch.setattr(long_fields, "FIELD_MOST_BYTES", field)
        assert count_records(path) == expected


def peak_kib(*, reset: bool = True) -> int:
    """The most memory that this process has had, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize(
    ("begin", "repeated", "end", "records"),
    [
        (b'1,"0.125,0.1,0.2\r\n', b"1000,0.125,0.125,9.8\r\n", b"", None),
        (b'1,"0.125,0.1,0.2\r\n', b"1000,0.125,0.125,9.8\r\n", b'",1,2\r\n1,2,3,4\r\n', 2),
        (b'1,"', b'""', b'",1,2\n', 1),
        (b'1,"', b'a""', b'x",1,2\n1,2,3,4\n', 2),
        (b"1,2,3,4\n", b"\0", b"\n", 2),
        (b"1,2,3,", "é".encode(), b"\n1,2,3,4", 2),
    ],
    ids=["stray quote", "quote that ends late", "doubled quotes", "doubled quotes and text", "NUL", "text"],
)
def test_a_field_as_long_as_the_file_takes_no_more_memory(
    tmp_path: Path, begin: bytes, repeated: bytes, end: bytes, records: int | None
):
    path = tmp_path / RECORDING
    with path.open("wb") as file:
        file.write(b"ns_since_reboot,x,y,z\n" + begin)
        file.writelines(repeated * ((1 << 20) // len(repeated)) for _ in range(24))
        file.write(end)
    # Pandas itself takes memory when it is called first.
    count_records(write(tmp_path / "small", range(10)) / RECORDING)

    before = peak_kib()
    found = count_records(path)

    assert found == records
    assert peak_kib(reset=False) - before < 12 << 10


def test_reading_and_counting_can_be_stopped_at_each_block(tmp_path: Path):
    directory = write(tmp_path / "session", range(30_000))
    passed: list[int] = []

    def stop(size_bytes: int) -> None:
        passed.append(size_bytes)
        if len(passed) == 2:
            raise WorkerStoppingError("The worker was told to stop")

    for call in (
        lambda: count_records(directory / RECORDING, stop),
        lambda: read(child(directory), Reader.PLOT, tmp_path, stop),
    ):
        passed.clear()
        with pytest.raises(WorkerStoppingError):
            call()
    assert 0 < passed[0] < (directory / RECORDING).stat().st_size
