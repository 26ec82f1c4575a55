"""Which paths lead into a directory, over links, through it, and although they are gone."""

import os
import shutil
from pathlib import Path

import pytest

from worker.legacy.way_in import WayIn


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Lay out a directory with a link out of it, and links to it from outside."""
    top = tmp_path / "study"
    (top / "day").mkdir(parents=True)
    (tmp_path / "other" / "day").mkdir(parents=True)
    (top / "out").symlink_to(tmp_path / "other")
    (tmp_path / "short cut").symlink_to("study")
    (tmp_path / "chain").symlink_to("short cut/day")
    (tmp_path / "loop").symlink_to("loop")
    return top


@pytest.mark.parametrize(
    "path",
    [
        *("study", "study/day", "study/gone/day", "short cut", "short cut/day", "chain", "chain/gone"),
        *("study/out/day", "short cut/out/day", "other/../study/day/", "other//../short cut"),
        "study/../other",
    ],
)
def test_a_path_leads_into_a_directory(tmp_path: Path, top: Path, path: str):
    assert WayIn(str(top)).is_taken_by(f"{tmp_path}/{path}")


@pytest.mark.parametrize("path", ["", "other/day", "study 2", "gone", "loop/day", "other/../other/day"])
def test_a_path_leads_past_a_directory(tmp_path: Path, top: Path, path: str):
    assert not WayIn(str(top)).is_taken_by(f"{tmp_path}/{path}")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "study",
            "study/day",
            "study/gone/day/",
            "short cut",
            "short cut/day",
            "chain/gone",
            "other/../study",
        ),
        *("study/out/day", "study/out/../study", "gone/../other", "loop/day", ""),
    ],
)
def test_where_a_path_leads_is_what_the_system_says_and_is_said_again(tmp_path: Path, top: Path, path: str):
    asked = f"{tmp_path}/{path}"
    way_in = WayIn(str(top))
    place = os.path.realpath(asked)

    assert way_in.place(asked) == place
    shutil.rmtree(tmp_path / "study")
    assert way_in.place(asked) == place


def test_the_root_leads_to_itself(top: Path):
    assert WayIn(str(top)).place("/") == "/"
    assert not WayIn(str(top)).is_taken_by("/")


def test_names_below_a_path_count_and_an_answer_is_given_again(tmp_path: Path, top: Path):
    way_in = WayIn(str(top))
    (tmp_path / "other" / "file").symlink_to(top / "day")

    assert way_in.is_taken_by(f"{tmp_path}/other", "file")
    (tmp_path / "other" / "file").unlink()

    assert way_in.is_taken_by(f"{tmp_path}/other", "file")
    assert not WayIn(str(top)).is_taken_by(f"{tmp_path}/other", "file")
