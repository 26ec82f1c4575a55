"""What readers get of recordings is compared by one way through each file, and as frames would be."""

import gc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import SessionUnreadableError
from worker.readings import Reading, Readings
from worker.runtime.throttle import Pace, unlimited
from worker.sessions_csv import Selection, read_selected

HEADER = b"ns_since_reboot,x,y,z\n"
LINES = [b"1,2,3,4\n", b"1,2.0,3,4\n", b"5,6,7,8\n", b"3,-0,7,\n", b"3,0,7,nan\n"]
ODD = [b"\n", b" \n", b"1,2,3,4,5\n", b'1,2,3,"4\n4"\n', b"1,x,3,4\n", b"1,True,3,4\n", b"9", b"\r", b'"']


def recording(path: Path, times: range, *, scale: float = 1.0) -> Path:
    """A recording of plain numbers, its rows in the order of `times`."""
    rows = np.array([(time, time * scale, 0.5, -1) for time in times])
    pd.DataFrame(rows, columns=["ns_since_reboot", "x", "y", "z"]).to_csv(path, index=False)
    return path


def both(one: Selection, other: Selection, pace: Pace = unlimited) -> tuple[Reading | str, Reading | str]:
    return Readings([one, other], pace).both(one, other)


def selections(path: Path) -> st.SearchStrategy[Selection]:
    offsets = st.tuples(st.integers(-1, 6), st.integers(-1, 6))
    return st.one_of(
        st.just(Selection(path=path)),
        st.just(Selection(path=path, without_last=True)),
        offsets.map(lambda pair: Selection(path=path, offsets=pair)),
        offsets.map(lambda pair: Selection(path=path, times=pair)),
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_two_selections_are_equal_where_their_frames_are(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder = tmp_path_factory.mktemp("any")
    lines = st.lists(st.sampled_from(LINES * 4 + ODD), max_size=8)
    first = data.draw(lines)
    contents = first, data.draw(st.one_of(st.just(first), st.permutations(first), lines))
    paths = folder / "one", folder / "other"
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(HEADER + b"".join(content))
    pairs = data.draw(
        st.lists(st.tuples(*(selections(path) for path in paths)), min_size=1, max_size=5), label="pairs"
    )

    readings = Readings(one for pair in pairs for one in pair)

    for pair in pairs:
        found, frames = readings.both(*pair), [frame_of(one) for one in pair]
        assert [isinstance(one, str) for one in found] == [isinstance(one, str) for one in frames]
        if isinstance(frames[0], pd.DataFrame) and isinstance(frames[1], pd.DataFrame):
            assert (found[0] == found[1]) == frames[0].equals(frames[1])
            assert [one.count for one in found if isinstance(one, Reading)] == [len(one) for one in frames]
        else:
            assert [one for one in found if isinstance(one, str)] == [
                one for one in frames if isinstance(one, str)
            ]


def frame_of(selection: Selection) -> pd.DataFrame | str:
    try:
        return read_selected(selection)
    except SessionUnreadableError as error:
        return str(error)


def test_a_file_of_which_many_parts_are_wanted_is_read_once(tmp_path: Path):
    path = recording(tmp_path / "one.csv", range(200_000))
    parts = [Selection(path=path, offsets=(start, start + 9_999)) for start in range(0, 200_000, 10_000)]
    wanted = [*parts, Selection(path=path), Selection(path=path, without_last=True)]
    sizes: list[int] = []

    readings = Readings(wanted, sizes.append)
    found = [readings.both(one, one)[0] for one in wanted]

    assert sum(sizes) == path.stat().st_size
    assert [one.count for one in found if isinstance(one, Reading)] == [9_999] * 20 + [200_000, 199_999]


def test_of_parts_of_a_beginning_no_more_is_read_than_that(tmp_path: Path):
    path = recording(tmp_path / "one.csv", range(400_000))
    wanted = [Selection(path=path, offsets=pair) for pair in ((0, 10), (10, 20))]
    sizes: list[int] = []

    readings = Readings(wanted, sizes.append)
    found = [readings.both(one, one)[0] for one in wanted]

    assert [one.count for one in found if isinstance(one, Reading)] == [10, 10]
    assert sum(sizes) < path.stat().st_size / 4


def test_what_lies_in_another_order_is_sorted_before_it_differs(tmp_path: Path):
    there = Selection(path=recording(tmp_path / "one.csv", range(100)))
    back = Selection(path=recording(tmp_path / "other.csv", range(99, -1, -1)))
    twice = Selection(path=recording(tmp_path / "twice.csv", range(99, -1, -1), scale=2))

    assert len(set(both(there, back))) == 1
    assert len(set(both(there, twice))) == 2


def test_a_file_that_cannot_be_read_is_opened_once_for_all_that_read_it_alike(tmp_path: Path):
    path = tmp_path / "bad.csv"
    path.write_bytes(HEADER + b"1,2,3,4\n" * 1000 + b"1,2,three,4\n")
    one, other = Selection(path=path), Selection(path=path, without_last=True)
    sizes: list[int] = []

    found = both(one, other, sizes.append)

    assert found[0] == found[1]
    assert f"{path} is not a recording" in str(found[0])
    assert sum(sizes) == path.stat().st_size


class FramesAlive(list[int]):
    """How many frames with more rows than a chunk were alive, at each block that was read: a pace."""

    def __call__(self, _size: int) -> None:
        self.append(sum(isinstance(one, pd.DataFrame) and len(one) > 70_000 for one in gc.get_objects()))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_no_whole_frame_is_alive_while_another_file_is_read(tmp_path: Path, scale: float):
    """Whether they are equal, or differ, and are sorted one after the other."""
    one = Selection(path=recording(tmp_path / "one.csv", range(80_000)))
    other = Selection(path=recording(tmp_path / "other.csv", range(80_000), scale=scale))
    alive = FramesAlive()

    found = both(one, other, alive)

    assert (found[0] == found[1]) == (scale == 1.0)
    assert set(alive) == {0}
