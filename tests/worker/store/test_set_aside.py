"""Two directories change places, and are brought to where they are to be after a death at any rename."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.folders import passable_folder
from tests.support.trees import as_ordinary_user
from worker.errors import AdoptionRefusedError
from worker.store import set_aside
from worker.store.set_aside import SetAside


class Death(BaseException):
    """What comes instead of a call."""


@pytest.fixture
def pair(tmp_path: Path) -> SetAside:
    """A directory in its place, and a tree of ours that was built in staging and taken in."""
    place, built, folder = (tmp_path / name for name in ("trees/walk", "staging/tree", "quarantine/one"))
    for path in (place, built):
        path.mkdir(parents=True)
        (path / "file").touch()
    built.chmod(0o755)
    two = SetAside(
        path=str(place), folder=str(folder), original=place.stat().st_ino, ours=built.stat().st_ino
    )
    two.take_in(str(built), "why")
    return two


def places(pair: SetAside) -> tuple[bool, bool]:
    """Is each of the two in one place, and the original in its own?"""
    inodes = {set_aside.inode_of(path) for path in (pair.path, pair.inside)}
    assert inodes == {pair.original, pair.ours}
    assert sorted(os.listdir(pair.folder)) == ["reason.txt", "tree"]
    return set_aside.inode_of(pair.path) == pair.original, pair.is_set_aside()


def test_the_two_change_places_and_back(pair: SetAside):
    original = Path(pair.path).stat()

    pair.set_aside()
    assert places(pair) == (False, True)
    assert Path(pair.path).stat().st_mode & 0o777 == 0o555
    pair.set_aside()
    pair.put_back()

    assert places(pair) == (True, False)
    assert Path(pair.path).stat().st_mode == original.st_mode
    pair.remove()
    pair.remove()
    assert not Path(pair.folder).exists()
    assert set_aside.inode_of(pair.path) == pair.original


@pytest.mark.parametrize("first", [SetAside.set_aside, SetAside.put_back])
@pytest.mark.parametrize("then", [SetAside.set_aside, SetAside.put_back])
@pytest.mark.parametrize("at", range(4))
def test_without_an_exchange_a_death_at_any_rename_is_mended(
    pair: SetAside,
    monkeypatch: pytest.MonkeyPatch,
    first: Callable[[SetAside], None],
    then: Callable[[SetAside], None],
    at: int,
):
    """As on NFS, which has none: three renames by a third place, in either direction."""
    monkeypatch.setattr(set_aside, "exchange", lambda _one, _other: False)
    if first is SetAside.put_back:
        pair.set_aside()
    renames = [0]
    rename = os.rename

    def deadly(source: str, target: str) -> None:
        if renames[0] == at:
            raise Death
        renames[0] += 1
        rename(source, target)

    with monkeypatch.context() as dying:
        dying.setattr(set_aside.os, "rename", deadly)
        try:
            first(pair)
        except Death:
            assert at < 3
        else:
            assert at == 3

    assert {pair.original, pair.ours} == {
        set_aside.inode_of(path) for path in (pair.path, pair.inside, f"{pair.folder}/third")
    } - {None}
    then(pair)
    assert places(pair) == ((False, True) if then is SetAside.set_aside else (True, False))


def test_a_third_thing_in_the_place_is_left_alone(pair: SetAside):
    pair.set_aside()
    os.rename(pair.path, f"{pair.path}-moved")
    Path(pair.path).mkdir()

    with pytest.raises(AdoptionRefusedError, match="Something else is at"):
        pair.put_back()

    assert pair.is_set_aside()


def test_a_place_that_became_empty_gets_its_directory_back(pair: SetAside):
    pair.set_aside()
    os.rename(pair.path, f"{pair.path}-moved")

    pair.put_back()

    assert set_aside.inode_of(pair.path) == pair.original


def test_a_directory_that_is_gone_is_said(pair: SetAside):
    pair.set_aside()
    os.rename(pair.inside, f"{pair.folder}/../moved")

    with pytest.raises(AdoptionRefusedError, match="is what was there before"):
        pair.put_back()


def test_an_ordinary_owner_moves_a_read_only_directory_which_stays_so():
    def story() -> tuple[bool, int]:
        place, built = folder / "walk", folder / "built"
        place.mkdir()
        built.mkdir()
        place.chmod(0o555)
        pair = SetAside(
            path=str(place),
            folder=str(folder / "one"),
            original=place.stat().st_ino,
            ours=built.stat().st_ino,
        )
        pair.take_in(str(built), "why")
        pair.set_aside()
        return pair.is_set_aside(), os.stat(pair.inside).st_mode & 0o777

    with passable_folder() as folder:
        folder.chmod(0o777)

        assert as_ordinary_user(story) == (True, 0o555)
