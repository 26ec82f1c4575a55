"""Projects lie below the allowed roots and apart from the store, however their paths are written."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees import (
    open_store,
    roots_of,
    write_tree,
)
from worker.errors import (
    DirectoryMissingError,
    NotADirectoryPathError,
    PathRefusedError,
    ProjectError,
)
from worker.legacy.roots import Roots
from worker.legacy.scan import (
    scan,
)


def missing(folder: Path) -> str:
    return f"{folder}/nothing"


def below_a_file(folder: Path) -> str:
    return f"{folder}/study/notes.txt/study"


def dangling_link(folder: Path) -> str:
    (folder / "alias").symlink_to("nothing")
    return f"{folder}/alias"


def a_file(folder: Path) -> str:
    return f"{folder}/study/notes.txt"


def relative(_folder: Path) -> str:
    return "study"


def empty(_folder: Path) -> str:
    return ""


def outside(_folder: Path) -> str:
    return "/etc"


def outside_by_dots(folder: Path) -> str:
    return f"{folder}/../../../../../../../../etc"


def outside_by_a_link(folder: Path) -> str:
    (folder / "alias").symlink_to("/etc")
    return f"{folder}/alias"


def beside_a_root_of_the_same_beginning(folder: Path) -> str:
    beside = folder.with_name(folder.name + "-old")
    return str(write_tree(beside, {b"session/x": b"1"}))


def the_trees(folder: Path) -> str:
    return f"{folder}/raw_datasets"


def a_tree(folder: Path) -> str:
    return str(write_tree(folder / "raw_datasets/tree", {b"session/x": b"1"}))


def the_store(folder: Path) -> str:
    return f"{folder}/dataset_store"


def a_part_of_the_store(folder: Path) -> str:
    return f"{folder}/dataset_store/blobs"


def around_the_store(folder: Path) -> str:
    return str(folder)


def the_store_by_a_link(folder: Path) -> str:
    (folder / "alias").symlink_to("dataset_store")
    return f"{folder}/alias"


def the_store_with_other_slashes(folder: Path) -> str:
    return f"{folder}//raw_datasets/"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (missing, DirectoryMissingError, "Directory does not exist: {path}"),
        (below_a_file, DirectoryMissingError, "Directory does not exist: {path}"),
        (dangling_link, DirectoryMissingError, "Directory does not exist: {path}"),
        (a_file, NotADirectoryPathError, "Project path is not a directory: {path}"),
        (relative, PathRefusedError, "Project path is not absolute: {path}"),
        (empty, PathRefusedError, "Project path is not absolute: {path}"),
        (outside, PathRefusedError, "Project path is outside LEGACY_ROOTS ({folder}): {path}"),
        (outside_by_dots, PathRefusedError, "Project path is outside LEGACY_ROOTS ({folder}): {path}"),
        (outside_by_a_link, PathRefusedError, "Project path is outside LEGACY_ROOTS ({folder}): {path}"),
        (
            beside_a_root_of_the_same_beginning,
            PathRefusedError,
            "Project path is outside LEGACY_ROOTS ({folder}): {path}",
        ),
        (
            the_trees,
            PathRefusedError,
            "Project path {path} overlaps the store's directory {folder}/raw_datasets",
        ),
        (
            a_tree,
            PathRefusedError,
            "Project path {path} overlaps the store's directory {folder}/raw_datasets",
        ),
        (
            the_store,
            PathRefusedError,
            "Project path {path} overlaps the store's directory {folder}/dataset_store",
        ),
        (
            a_part_of_the_store,
            PathRefusedError,
            "Project path {path} overlaps the store's directory {folder}/dataset_store",
        ),
        (
            around_the_store,
            PathRefusedError,
            "Project path {path} overlaps the store's directory {folder}/raw_datasets",
        ),
        (
            the_store_by_a_link,
            PathRefusedError,
            "Project path {path} overlaps the store's directory {folder}/dataset_store",
        ),
        (
            the_store_with_other_slashes,
            PathRefusedError,
            "Project path {path} overlaps the store's directory {folder}/raw_datasets",
        ),
    ],
)
def test_a_project_path_that_cannot_be_migrated_is_named(
    tmp_path: Path, make: Callable[[Path], str], error: type[ProjectError], message: str
):
    folder = tmp_path / "data"
    open_store(folder)
    write_tree(folder / "study")
    path = make(folder)

    with pytest.raises(error, match=f"^{re.escape(message.format(path=path, folder=folder))}$") as raised:
        scan(path, roots_of(folder))

    assert type(raised.value) is error


def test_a_store_that_is_reached_by_a_link_is_recognised(tmp_path: Path):
    elsewhere = write_tree(tmp_path / "elsewhere", {b"tree/session/x": b"1"})
    (tmp_path / "raw_datasets").symlink_to(elsewhere)

    with pytest.raises(PathRefusedError, match=f"overlaps the store's directory {tmp_path}/raw_datasets"):
        scan(str(elsewhere / "tree"), roots_of(tmp_path))


def test_a_root_may_be_a_link_and_there_may_be_several(tmp_path: Path):
    one = write_tree(tmp_path / "one" / "study", {b"session/x": b"1"})
    other = write_tree(tmp_path / "other" / "study", {b"session/x": b"1"})
    (tmp_path / "alias").symlink_to("other")
    roots = Roots(allowed=(tmp_path / "one", tmp_path / "alias"), store=())

    for path in (one, other, tmp_path / "alias" / "study"):
        assert "session/x" in scan(str(path), roots).files.paths


def test_the_root_of_the_file_system_may_be_a_root(tmp_path: Path):
    project = write_tree(tmp_path / "study", {b"session/x": b"1"})

    assert "session" in scan(str(project), Roots(allowed=(Path("/"),), store=())).session_names
