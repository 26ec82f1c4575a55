"""A tree is compared with its manifest entry by entry, and nothing in it is followed or changed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees import hashed, open_store, read_tree, store_at, write_tree
from worker.store.inspection import Fault, Found, What, inspect
from worker.store.manifest import Manifest

SESSION = "2025-07-01_10_00_00"
LABELS = f"{SESSION}/labels.json"


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Manifest, Path]:
    store = open_store(tmp_path)
    tree = hashed(write_tree(tmp_path / "project"), store)
    place = store.tree_path("study", tree.manifest.digest)
    store_at(store, tree, place)
    for folder, _, _ in os.walk(place):
        os.chmod(folder, 0o755)
    return tree.manifest, place


def faults(stored: tuple[Manifest, Path]) -> set[tuple[str, str]]:
    manifest, tree = stored
    return {(one.path, one.what.value) for one in inspect(manifest, str(tree)) if isinstance(one, Fault)}


def test_a_whole_tree_gives_every_file_and_no_fault(stored: tuple[Manifest, Path]):
    manifest, tree = stored

    found = list(inspect(manifest, str(tree)))

    assert {one.file for one in found if isinstance(one, Found)} == set(manifest.files)
    assert len(found) == len(manifest.files)
    assert all(
        os.stat(f"{tree}/{one.file.path}").st_ino == one.inode for one in found if isinstance(one, Found)
    )


def _into_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _into_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("where", "harm", "expected"),
    [
        (LABELS, Path.unlink, {(LABELS, What.MISSING)}),
        (LABELS, lambda path: os.truncate(path, 3), {(LABELS, What.WRONG_SIZE)}),
        (LABELS, _into_a_directory, {(LABELS, What.MISSING), (LABELS, What.UNEXPECTED_ENTRY)}),
        (f"{SESSION}/new", Path.touch, {(f"{SESSION}/new", What.UNEXPECTED_ENTRY)}),
        ("new", Path.mkdir, {("new", What.UNEXPECTED_ENTRY)}),
        (
            SESSION,
            lambda path: path.rename(path.with_name("other")),
            {(SESSION, What.MISSING), ("other", What.UNEXPECTED_ENTRY)},
        ),
        (
            SESSION,
            _into_a_link,
            {(SESSION, What.MISSING), (SESSION, What.UNEXPECTED_ENTRY), ("elsewhere", What.UNEXPECTED_ENTRY)},
        ),
        (
            "2025-07-01_14_00_00/nothing/in/here",
            Path.rmdir,
            {("2025-07-01_14_00_00/nothing/in/here", What.MISSING)},
        ),
    ],
    ids=[
        "gone",
        "cut",
        "a directory",
        "a file more",
        "a directory more",
        "moved",
        "a link",
        "an empty directory",
    ],
)
def test_each_kind_of_fault_is_named_by_its_path(
    stored: tuple[Manifest, Path],
    where: str,
    harm: Callable[[Path], object],
    expected: set[tuple[str, str]],
):
    harm(stored[1] / where)
    before = read_tree(stored[1])

    assert faults(stored) == expected
    assert read_tree(stored[1]) == before


def test_of_a_tree_that_is_gone_nothing_else_is_said(stored: tuple[Manifest, Path]):
    stored[1].rename(stored[1].with_name("elsewhere"))

    assert faults(stored) == {("", What.MISSING)}


def test_what_nfs_keeps_of_a_replaced_file_is_not_unexpected(stored: tuple[Manifest, Path]):
    (stored[1] / SESSION / ".nfs000000000123456700000001").touch()
    (stored[1] / SESSION / ".nfs").touch()

    assert faults(stored) == {(f"{SESSION}/.nfs", What.UNEXPECTED_ENTRY)}
