"""A directory is moved away and back as a whole, by one rename that replaces nothing and follows no link."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disks import file_system, mounted_twice, read_only
from tests.support.trees import as_ordinary_user, read_tree, roots_of, write_tree
from worker.errors import (
    DirectoryChangedError,
    DirectoryGoneError,
    LegacyPlaceTakenError,
    MountReadOnlyError,
    MovedAwayMissingError,
    NotADirectoryOfItsOwnError,
    PlaceNotWritableError,
    ReclaimRefusedError,
)
from worker.legacy import moved_away
from worker.legacy.fingerprint import fingerprint
from worker.legacy.moved_away import Move, identity_of, move_away, move_back, plan_move
from worker.legacy.roots import Roots
from worker.messages import MOVED_AWAY

NAME = "42-1234abcd"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "lab" / "study")


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return roots_of(tmp_path)


def go(project: Path, roots: Roots) -> Move:
    move = plan_move(str(project), NAME, roots)
    move_away(move, identity_of(move.source), roots)
    return move


def test_a_directory_goes_to_its_root_and_comes_back_as_it_was(project: Path, roots: Roots, tmp_path: Path):
    before, entries = fingerprint(str(project)), read_tree(project)

    move = go(project, roots)

    away = tmp_path / MOVED_AWAY / NAME
    assert move == Move(source=str(project), target=str(away))
    assert not project.exists()
    assert read_tree(away) == entries
    before.check_same(fingerprint(str(away)), str(away))
    assert away.parent.stat().st_mode & 0o777 == 0o700
    move_back(move, roots)
    assert read_tree(project) == entries
    assert fingerprint(str(project)) == before
    assert os.listdir(away.parent) == []


def test_a_path_through_a_link_moves_what_it_leads_to(project: Path, roots: Roots, tmp_path: Path):
    (tmp_path / "link").symlink_to("lab/study")

    move = go(tmp_path / "link", roots)

    assert move.source == str(project)
    assert (tmp_path / "link").is_symlink()
    move_back(move, roots)
    assert (tmp_path / "link" / "notes.txt").exists()


def test_what_lies_on_another_mount_than_its_root_goes_beside_its_place(tmp_path: Path, roots: Roots):
    lab = tmp_path / "lab"
    lab.mkdir()
    with file_system("ext4", lab, tmp_path, megabytes=16):
        project = write_tree(lab / "studies" / "study")

        move = go(project, roots)

        assert move.target == str(lab / "studies" / MOVED_AWAY / NAME)
        move_back(move, roots)


def test_one_file_system_that_is_mounted_twice_counts_as_two(project: Path, roots: Roots, tmp_path: Path):
    with mounted_twice(tmp_path / "lab"):
        assert go(project, roots).target == str(tmp_path / "lab" / MOVED_AWAY / NAME)


@pytest.mark.parametrize("what", ["is", "holds"])
def test_a_mount_point_is_refused_with_the_reason(project: Path, roots: Roots, what: str):
    with (
        mounted_twice(project if what == "is" else project / "2025-07-01_10_00_00"),
        pytest.raises(NotADirectoryOfItsOwnError, match=f"study {what} (a|the) mount point"),
    ):
        plan_move(str(project), NAME, roots)


@pytest.mark.parametrize(("inner", "what"), [("", "is"), ("2025-07-01_10_00_00", "holds")])
def test_a_legacy_root_stays_where_it_is(project: Path, tmp_path: Path, inner: str, what: str):
    roots = Roots(allowed=(tmp_path, project / inner), store=())

    with pytest.raises(NotADirectoryOfItsOwnError, match=f"study {what} the legacy root"):
        plan_move(str(project), NAME, roots)


def test_a_read_only_mount_is_named(project: Path, roots: Roots, tmp_path: Path):
    move = plan_move(str(project), NAME, roots)
    with read_only(tmp_path / "lab"):
        with pytest.raises(MountReadOnlyError, match=f"read-only mount: {tmp_path}/lab"):
            plan_move(str(project), NAME, roots)
        with pytest.raises(ReclaimRefusedError):
            move_away(move, identity_of(move.source), roots)
    assert project.exists()


def test_a_directory_that_takes_no_change_is_named():
    with tempfile.TemporaryDirectory() as folder:
        project = write_tree(Path(folder) / "lab" / "study")
        Path(folder).chmod(0o755)
        roots = roots_of(Path(folder))

        def plan() -> Move:
            return plan_move(str(project), NAME, roots)

        with pytest.raises(PlaceNotWritableError, match="lab cannot be written"):
            as_ordinary_user(plan)


def test_nothing_is_replaced_there_or_back(project: Path, roots: Roots, tmp_path: Path):
    move = plan_move(str(project), NAME, roots)
    (tmp_path / MOVED_AWAY / NAME).mkdir(parents=True)
    with pytest.raises(LegacyPlaceTakenError, match="something is there"):
        move_away(move, identity_of(move.source), roots)
    with pytest.raises(LegacyPlaceTakenError, match="something is there"):
        plan_move(str(project), NAME, roots)
    (tmp_path / MOVED_AWAY / NAME).rmdir()
    move_away(move, identity_of(move.source), roots)
    project.mkdir()

    with pytest.raises(LegacyPlaceTakenError, match="something is at"):
        move_back(move, roots)

    assert os.listdir(project) == []
    assert (tmp_path / MOVED_AWAY / NAME / "notes.txt").exists()


def test_nothing_is_replaced_without_an_exclusive_rename_either(
    project: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch
):
    """NFS refuses the flag."""

    def refuse(_source: str, target: str, _folder: int, _to: int) -> bool:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)

    monkeypatch.setattr(moved_away, "rename_without_replacing", refuse)
    move = go(project, roots)
    project.mkdir()

    with pytest.raises(LegacyPlaceTakenError):
        move_back(move, roots)

    project.rmdir()
    move_back(move, roots)
    assert (project / "notes.txt").exists()


def _other_directory(project: Path, _precious: Path) -> None:
    project.rename(project.with_name("elsewhere"))
    project.mkdir()


def _link(project: Path, precious: Path) -> None:
    project.rename(project.with_name("elsewhere"))
    project.symlink_to(precious)


@pytest.mark.parametrize("exchange", [_other_directory, _link])
@pytest.mark.parametrize("when", ["before", "in the last moment"])
def test_a_directory_that_was_exchanged_is_not_moved(
    project: Path,
    roots: Roots,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    exchange: Callable[[Path, Path], None],
):
    precious = write_tree(tmp_path / "precious")
    move = plan_move(str(project), NAME, roots)
    expected = identity_of(move.source)
    if when == "before":
        exchange(project, precious)
    else:
        really = moved_away.rename_without_replacing
        names: list[str] = []

        def exchanged_first(name: str, new_name: str, folder: int, to_folder: int) -> bool:
            if not names:
                exchange(project, precious)
            names.append(name)
            return really(name, new_name, folder, to_folder)

        monkeypatch.setattr(moved_away, "rename_without_replacing", exchanged_first)

    with pytest.raises(DirectoryChangedError, match="Another directory"):
        move_away(move, expected, roots)

    assert sorted(os.listdir(tmp_path / "lab")) == ["elsewhere", "study"]
    assert os.path.lexists(project)
    assert (precious / "notes.txt").exists()


def test_what_is_gone_is_named(project: Path, roots: Roots, tmp_path: Path):
    with pytest.raises(DirectoryGoneError, match=r"Legacy path no longer exists: .*/none"):
        plan_move(str(tmp_path / "none"), NAME, roots)
    move = go(project, roots)
    project.parent.rmdir()
    with pytest.raises(LegacyPlaceTakenError, match="there is no directory"):
        move_back(move, roots)
    project.parent.mkdir()
    move_back(move, roots)

    with pytest.raises(MovedAwayMissingError, match=NAME):
        move_back(move, roots)


def test_a_link_in_place_of_what_was_moved_away_is_not_followed(project: Path, roots: Roots, tmp_path: Path):
    (tmp_path / "trap").mkdir()
    (tmp_path / MOVED_AWAY).symlink_to("trap")

    with pytest.raises(PlaceNotWritableError, match="not a directory"):
        plan_move(str(project), NAME, roots)


def test_a_fingerprint_tells_each_change_and_counts_blocks_once(project: Path):
    session = project / "2025-07-01_10_00_00"
    os.link(session / "labels.json", session / "a second name")
    before = fingerprint(str(project))
    (project / MOVED_AWAY).mkdir()
    before.check_same(fingerprint(str(project)), str(project))
    paths = {path for path in project.rglob("*") if MOVED_AWAY not in path.parts}
    blocks = {path.lstat().st_ino: path.lstat().st_blocks * 512 for path in (*paths, project)}
    assert before.allocated_bytes == sum(blocks.values())
    assert before.files == sum(not path.is_dir() for path in paths)

    for change in (
        lambda: (session / "labels.json").write_bytes(b"[]"),
        (session / "new").touch,
        lambda: (session / "labels.json").chmod(0o600),
        (session / "new").unlink,
    ):
        change()
        with pytest.raises(DirectoryChangedError, match=r"changed meanwhile in .*2025-07-01_10_00_00"):
            before.check_same(fingerprint(str(project)), str(project))
        before = fingerprint(str(project))
