"""What was migrated is removed; what came later, changed or leads elsewhere stays and is named."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disks import mounted_twice
from tests.support.trees import (
    STUDY,
    as_ordinary_user,
    hashed,
    open_store,
    read_tree,
    roots_of,
    write_tree,
)
from worker.errors import NotADirectoryOfItsOwnError, PlaceNotWritableError, ReclaimRefusedError
from worker.legacy import tree_attributes
from worker.legacy.fingerprint import fingerprint
from worker.legacy.moved_links import Move
from worker.legacy.purge import Purged, purge_tree
from worker.legacy.roots import Roots
from worker.legacy.tree_attributes import TreeAttributes
from worker.messages import MOVED_AWAY
from worker.store.manifest import Manifest

DAY = "2025-07-01_10_00_00"


class Case:
    """A project, and all that a purge knows of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "study"
        self.away: Path | None = None
        self.roots: Roots = roots_of(folder)
        self._store = open_store(folder)
        self.manifest: Manifest
        self.attributes: TreeAttributes

    def migrate(self) -> "Case":
        """Note what a migration knows of it."""
        tree = hashed(self.path, self._store)
        self.manifest = tree.manifest
        self.attributes = tree_attributes.unpack(tree_attributes.pack(tree))
        return self

    def purge(self, *, rehearse: bool = False) -> Purged:
        move = Move(source=str(self.path), target=str(self.away or self.path))
        return purge_tree(move, self.manifest, self.attributes, self.roots, rehearse=rehearse)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    made = Case(tmp_path)
    write_tree(made.path)
    return made


def test_all_of_it_goes_and_every_block_is_counted(case: Case):
    case.path.chmod(0o750)
    os.link(case.path / DAY / "labels.json", case.path / DAY / "a second name")
    (case.path / DAY).chmod(0o500)
    case.migrate()
    allocated = fingerprint(str(case.path)).allocated_bytes
    before = read_tree(case.path)

    rehearsed = case.purge(rehearse=True)

    assert read_tree(case.path) == before
    purged = case.purge()
    assert not case.path.exists()
    assert (purged.freed_bytes, purged.kept, purged.kept_count) == (allocated, [], 0)
    assert purged.files == len(case.manifest.files)
    assert (rehearsed.freed_bytes, rehearsed.files) == (purged.freed_bytes, purged.files)
    assert case.purge() == Purged()


def test_a_file_with_a_name_elsewhere_frees_nothing(case: Case, tmp_path: Path):
    case.migrate()
    allocated = fingerprint(str(case.path)).allocated_bytes
    os.link(case.path / "notes.txt", tmp_path / "elsewhere")

    purged = case.purge()

    assert not case.path.exists()
    assert purged.freed_bytes == allocated - (tmp_path / "elsewhere").stat().st_blocks * 512
    assert (tmp_path / "elsewhere").read_bytes() == STUDY[b"notes.txt"]


def _same_size(path: Path) -> None:
    (path / "notes.txt").write_bytes(bytes(len(STUDY[b"notes.txt"] or b"")))


LATER: dict[str, tuple[Callable[[Path], object], str]] = {
    "a new file": (lambda path: (path / DAY / "new").write_text("x"), f"{DAY}/new (not there when"),
    "a new directory": (lambda path: (path / "new" / "deep").mkdir(parents=True), "new (not there when"),
    "a file rewritten": (_same_size, "notes.txt (changed since"),
    "a file grown": (
        lambda path: os.truncate(path / "notes.txt", 1000),
        "notes.txt (changed since",
    ),
    "a file touched": (lambda path: os.utime(path / "notes.txt", ns=(1, 1)), "notes.txt (changed since"),
    "a new link": (lambda path: (path / "link").symlink_to("notes.txt"), "link (not there when"),
    "a directory for a file": (
        lambda path: ((path / "notes.txt").unlink(), (path / "notes.txt").mkdir()),
        "notes.txt (changed since",
    ),
    "a pipe for a file": (
        lambda path: ((path / "notes.txt").unlink(), os.mkfifo(path / "notes.txt")),
        "notes.txt (changed since",
    ),
    "what others moved away": (lambda path: (path / MOVED_AWAY).mkdir(), f"{MOVED_AWAY} (not there when"),
}


@pytest.mark.parametrize("thing", LATER)
def test_what_came_later_stays_and_is_named(case: Case, thing: str):
    case.migrate()
    make, named = LATER[thing]
    make(case.path)
    later = case.path / named.partition(" (")[0]
    before = later.lstat()

    rehearsed = case.purge(rehearse=True)
    purged = case.purge()

    assert (purged.kept, purged.kept_count) == (rehearsed.kept, 1)
    assert named in purged.kept[0]
    after = later.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    files = {path for path in case.path.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert files <= {later}
    assert purged.files >= len(case.manifest.files) - 1


@pytest.mark.parametrize("where", [DAY, "."])
def test_a_directory_that_was_exchanged_for_a_link_is_not_entered(case: Case, tmp_path: Path, where: str):
    case.migrate()
    aside = tmp_path / "aside"
    (case.path / where).resolve().rename(aside)
    precious = write_tree(tmp_path / "precious")
    os.utime(precious, ns=(1, 1))
    place = case.path if where == "." else case.path / where
    place.symlink_to(precious / DAY)
    before = read_tree(precious)

    if where == ".":
        with pytest.raises(ReclaimRefusedError, match="Cannot change"):
            case.purge()
    else:
        assert case.purge().kept == [f"{DAY} (changed since it was migrated)"]

    assert read_tree(precious) == before
    assert place.is_symlink()


def test_links_that_were_migrated_go_and_what_they_lead_to_stays(case: Case, tmp_path: Path):
    shared = write_tree(tmp_path / "shared")
    (case.path / "file").symlink_to(shared / "notes.txt")
    (case.path / "sibling").symlink_to("notes.txt")
    (case.path / "directory").symlink_to(shared / DAY)
    (case.path / "own directory").symlink_to(DAY)
    case.migrate()
    before = read_tree(shared)

    purged = case.purge()

    assert not case.path.exists()
    assert purged.kept == []
    assert read_tree(shared) == before


def test_links_of_a_moved_directory_are_followed_as_if_it_were_home(case: Case, tmp_path: Path):
    shared = write_tree(tmp_path / "shared")
    (case.path / "by its whole path").symlink_to(case.path / DAY)
    (case.path / "link to a link").symlink_to(case.path / "by its whole path" / "labels.json")
    (case.path / "beside it").symlink_to("../shared/notes.txt")
    case.migrate()
    case.away = tmp_path / MOVED_AWAY / "7-abc"
    case.away.parent.mkdir()
    case.path.rename(case.away)
    before = read_tree(shared)

    assert case.purge(rehearse=True).kept == []
    assert case.purge().kept == []

    assert not case.away.exists()
    assert read_tree(shared) == before


def test_a_link_that_leads_elsewhere_now_stays(case: Case, tmp_path: Path):
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("22")
    (case.path / "link").symlink_to(tmp_path / "one")
    case.migrate()
    (case.path / "link").unlink()
    (case.path / "link").symlink_to(tmp_path / "two")

    assert case.purge().kept == ["link (changed since it was migrated)"]

    assert (tmp_path / "two").exists()


def test_what_is_mounted_in_it_is_not_touched(case: Case):
    case.migrate()
    before = read_tree(case.path)
    with mounted_twice(case.path / DAY), pytest.raises(NotADirectoryOfItsOwnError, match="mount point"):
        case.purge()
    assert read_tree(case.path) == before


def test_an_ordinary_user_removes_read_only_directories_and_restores_modes():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)

        def purge() -> tuple[list[str], int]:
            case = Case(Path(folder))
            write_tree(case.path)
            (case.path / DAY).chmod(0o555)
            (case.path / "2025-07-01_12_00_00").chmod(0o500)
            case.migrate()
            (case.path / DAY).chmod(0o755)
            (case.path / DAY / "new").touch()
            (case.path / DAY).chmod(0o555)
            kept = case.purge().kept
            return kept, (case.path / DAY).stat().st_mode & 0o777

        assert as_ordinary_user(purge) == ([f"{DAY}/new (not there when it was migrated)"], 0o555)
        assert [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.name == "new"]


def test_a_rehearsal_counts_no_directory_that_would_stay(case: Case):
    case.migrate()
    (case.path / DAY / "came later").write_text("keep me")
    below = sum(path.lstat().st_blocks * 512 for path in case.path.rglob("*") if path.name != "came later")
    stays = (case.path / DAY).lstat().st_blocks * 512

    rehearsed, purged = case.purge(rehearse=True), case.purge()

    assert rehearsed == purged
    assert purged.freed_bytes == below - stays


def test_a_rehearsal_by_an_ordinary_user_leaves_modes_as_they_are():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)

        def purge() -> tuple[list[str], int, bool]:
            case = Case(Path(folder))
            write_tree(case.path)
            case.migrate()
            (case.path / DAY).chmod(0)
            kept = case.purge(rehearse=True).kept
            mode = (case.path / DAY).stat().st_mode & 0o777
            case.purge()
            return kept, mode, case.path.exists()

        unread = f"{DAY} (cannot be looked into before a purge changes its mode)"
        assert as_ordinary_user(purge) == ([unread], 0, False)


def test_a_rehearsal_fails_where_a_directory_is_anothers(case: Case):
    """Only root can make one for another user."""
    if os.geteuid():
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        shutil.copytree(case.path, Path(folder) / "study")
        anothers = Case(Path(folder)).migrate()
        for rehearse in (True, False):
            with pytest.raises(PlaceNotWritableError, match="Permission denied"):
                as_ordinary_user(lambda how=rehearse: anothers.purge(rehearse=how))
