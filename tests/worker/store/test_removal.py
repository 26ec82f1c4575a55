"""Removing what attempts left: everything in it and nothing else, whatever others put in the way."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.folders import passable_folder
from tests.support.trees import as_ordinary_user, read_tree, write_tree
from worker.store import removal
from worker.store.removal import remove_tree, take_away


def test_a_link_in_a_directorys_place_is_removed_and_what_it_leads_to_stays(tmp_path: Path):
    precious = write_tree(tmp_path / "precious", {b"deep/x": b"1"})
    (tmp_path / "leftover").symlink_to(precious)

    remove_tree(str(tmp_path / "leftover"))

    assert os.listdir(tmp_path) == ["precious"]
    assert read_tree(precious) == {b"deep": None, b"deep/x": b"1"}


@pytest.mark.parametrize("at", ["leftover", "inner", "deepest"])
def test_a_link_that_is_swapped_in_between_the_look_and_the_opening_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
):
    precious = write_tree(tmp_path / "precious", {b"deep/x": b"1"})
    write_tree(tmp_path / "leftover", {b"inner/deepest/y": b"2"})
    real = removal._open

    def swap_first(parent: int, name: str) -> int:
        if name == at:
            os.rename(name, "moved away", src_dir_fd=parent, dst_dir_fd=parent)
            os.symlink(precious, name, dir_fd=parent)
        return real(parent, name)

    monkeypatch.setattr(removal, "_open", swap_first)

    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        remove_tree(str(tmp_path / "leftover"))

    assert read_tree(precious) == {b"deep": None, b"deep/x": b"1"}
    assert precious.stat().st_mode & 0o777 == 0o755


def test_an_ordinary_user_removes_what_is_read_only_or_closed():
    with passable_folder() as folder:
        folder.chmod(0o777)

        def make_and_remove() -> list[str]:
            tree = write_tree(folder / "tree", {b"a/b/c/d/x": b"1", b"a/empty": None, b"y": b"2"})
            for name, mode in (("a/b/c/d", 0o555), ("a/b/c", 0o000), ("a", 0o555)):
                (tree / name).chmod(mode)
            remove_tree(str(tree))
            return os.listdir(folder)

        assert as_ordinary_user(make_and_remove) == []


@pytest.mark.parametrize("at_once", [1, 1000])
def test_on_nfs_an_open_file_stays_with_its_directory_and_everything_else_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
):
    monkeypatch.setattr(removal, "_AT_ONCE", at_once)
    tree = write_tree(
        tmp_path / "tree", {b"a/b/.nfs0001": b"open", b"a/b/x": b"1", b"c/y": b"2", b".nfs2": b"3"}
    )
    real = os.unlink

    def unlink(name: str, **more: int | None) -> None:
        if name.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        real(name, **more)

    with monkeypatch.context() as patch:
        patch.setattr(removal.os, "unlink", unlink)
        remove_tree(str(tree))

    assert {os.path.basename(os.fsdecode(name)) for name, content in read_tree(tree).items() if content} == {
        ".nfs0001",
        ".nfs2",
    }
    remove_tree(str(tree))
    assert os.listdir(tmp_path) == []


def test_what_is_taken_away_cannot_be_published_by_its_maker(tmp_path: Path):
    write_tree(tmp_path / "attempt-1", {b"tree/x": b"1"})

    taken = take_away(str(tmp_path), "attempt-1")

    with pytest.raises(FileNotFoundError):
        os.rename(tmp_path / "attempt-1" / "tree", tmp_path / "published")
    assert read_tree(tmp_path / taken) == {b"tree": None, b"tree/x": b"1"}
