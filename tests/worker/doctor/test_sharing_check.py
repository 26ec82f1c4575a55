"""Whether legacy files would share their blocks with the store is found out by trying with one of them."""

import os
from pathlib import Path

from tests.support.disks import file_system
from tests.support.trees import write_tree
from tests.worker.doctor.machines import look, request
from worker.findings import Verdict

LARGE = {b"session/recording.bin": b"x" * 9000, b"session/small": b"y"}


def found(data_dir: Path, legacy: Path) -> str | None:
    asked = request(data_dir, legacy_roots=(str(legacy),), projects={7: str(legacy / "project")})
    check = look(asked).checks.get("shared blocks")
    left = [path for path in data_dir.iterdir() if path.is_dir()]
    assert left == []
    assert check is None or check.verdict is Verdict.PASS
    return check and check.finding


def test_one_file_system_that_can_share_is_told_from_two(tmp_path: Path):
    place = tmp_path / "disk"
    place.mkdir()
    with file_system("xfs", place, tmp_path):
        for folder in (place / "data", place / "legacy", tmp_path / "elsewhere"):
            folder.mkdir()
        for legacy in (place / "legacy", tmp_path / "elsewhere"):
            write_tree(legacy / "project", LARGE)
        os.sync()

        assert found(place / "data", place / "legacy") == (
            f"files of {place}/legacy are stored without taking room again"
        )
        assert found(place / "data", tmp_path / "elsewhere") == f"files of {tmp_path}/elsewhere are copied"


def test_nothing_is_said_where_no_file_can_be_tried(tmp_path: Path):
    for folder in ("data", "legacy"):
        (tmp_path / folder).mkdir()
    write_tree(tmp_path / "legacy/project", {b"session/small": b"y"})

    assert found(tmp_path / "data", tmp_path / "legacy") is None
    assert found(tmp_path / "data", tmp_path / "absent") is None
