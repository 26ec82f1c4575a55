"""Trees, blobs and manifests that are not what their names say are replaced, and kept with the reason."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.trees import (
    RECORDING,
    condemned,
    hashed,
    manifest_of,
    open_store,
    read_tree,
    write_tree,
)
from tests.worker.store.contents import directories_below, put_blob, store_project
from worker.errors import (
    StoredBytesMismatchError,
)
from worker.legacy.ingest import store_tree


def remove_a_file(tree: Path) -> None:
    (tree / "notes.txt").unlink()


def remove_an_empty_directory(tree: Path) -> None:
    (tree / "2025-07-01_14_00_00/nothing/in/here").rmdir()


def cut_a_file(tree: Path) -> None:
    path = tree / "notes.txt"
    path.unlink()
    path.write_bytes(b"a file")


def put_a_link_in_a_files_place(tree: Path) -> None:
    path = tree / "notes.txt"
    path.rename(tree / "moved")
    path.symlink_to("moved")


def put_a_link_in_a_directorys_place(tree: Path) -> None:
    path = tree / "2025-07-01_14_00_00"
    path.rename(tree / "moved")
    path.symlink_to("moved")


def put_a_file_in_its_place(tree: Path) -> None:
    tree.rename(tree.with_name("moved"))
    tree.write_bytes(b"")


def put_a_link_to_nowhere_in_its_place(tree: Path) -> None:
    tree.rename(tree.with_name("moved"))
    tree.symlink_to("nowhere")


def open_directories(tree: Path) -> None:
    for path in [tree, *directories_below(tree)]:
        path.chmod(0o755)


@pytest.mark.parametrize(
    "damage",
    [
        remove_a_file,
        remove_an_empty_directory,
        cut_a_file,
        put_a_link_in_a_files_place,
        put_a_link_in_a_directorys_place,
        put_a_file_in_its_place,
        put_a_link_to_nowhere_in_its_place,
    ],
)
def test_a_damaged_tree_is_replaced_and_the_old_one_kept_with_the_reason(
    tmp_path: Path, damage: Callable[[Path], None]
):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")
    manifest, tree, _ = store_project(store, project, "first")
    open_directories(tree)
    damage(tree)
    assert not store.holds(manifest, str(tree))

    store_project(store, project, "second")

    assert store.holds(manifest, str(tree))
    assert read_tree(tree) == read_tree(project)
    assert list(condemned(store)) == [tree.name]
    assert condemned(store)[tree.name].splitlines() == [
        str(tree),
        "tree is incomplete; a new one takes its place",
    ]


def test_what_keeps_a_tree_from_being_whole_is_named(tmp_path: Path):
    store = open_store(tmp_path)
    manifest, tree, _ = store_project(store, write_tree(tmp_path / "study"))
    assert list(store.differences(manifest, str(tree))) == []
    open_directories(tree)
    for damage in (remove_an_empty_directory, cut_a_file):
        damage(tree)
    Path(os.fsdecode(os.fsencode(tree) + b"/2025-07-01_10_00_00/caf\xe9.txt")).unlink()

    assert set(store.differences(manifest, str(tree))) == {
        "directory is missing: 2025-07-01_14_00_00/nothing/in/here",
        "notes.txt: not a file of 26 bytes",
        r"2025-07-01_10_00_00/caf\xe9.txt: No such file or directory",
    }


def test_a_whole_tree_without_its_manifest_gets_it_back_and_stays(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")
    manifest, tree, _ = store_project(store, project, "first")
    (store.root / "manifests" / f"{manifest.digest}.json").unlink()
    inode = tree.stat().st_ino

    store_project(store, project, "second")

    assert store.read_manifest(manifest.digest) == manifest
    assert tree.stat().st_ino == inode
    assert condemned(store) == {}


def test_a_job_that_unknowingly_lost_its_claim_leaves_the_published_tree_alone(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")
    tree = hashed(project, store)
    target = store.tree_path("study", tree.manifest.digest)
    inodes: list[int] = []

    def meanwhile(_files: int, _bytes: int) -> None:
        if not inodes:
            inodes.append(0)
            store_project(store, project, "the other")
            inodes.append(target.stat().st_ino)

    with ThreadPoolExecutor(1) as threads:
        store_tree(store, tree, target, attempt="the one", threads=threads, advance=meanwhile)

    assert target.stat().st_ino == inodes[1]
    assert condemned(store) == {}


@pytest.mark.parametrize(
    ("module", "call"),
    [(os.path, "lexists"), (os, "rename")],
    ids=["before the place is looked at", "before the rename"],
)
def test_a_tree_that_comes_to_the_place_at_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: str
):
    store = open_store(tmp_path)
    manifest, first, _ = store_project(store, write_tree(tmp_path / "study"))
    place = store.trees / "second"
    with store.staging("the other") as other, store.staging("the one") as staging:
        store.build_tree(manifest, f"{other}/tree")
        store.build_tree(manifest, f"{staging}/tree")
        real = getattr(module, call)

        def meanwhile(path: str, *more: str) -> object:
            if place in {Path(path), *map(Path, more)}:
                monkeypatch.undo()
                store.publish(manifest, f"{other}/tree", place, other)
            return real(path, *more)

        came = os.stat(f"{other}/tree").st_ino
        monkeypatch.setattr(module, call, meanwhile)
        store.publish(manifest, f"{staging}/tree", place, staging)

    assert place.stat().st_ino == came
    assert read_tree(place) == read_tree(first)
    assert condemned(store) == {}


@pytest.mark.parametrize("bad", [b"", RECORDING[:-1], RECORDING + b"x"], ids=["empty", "short", "long"])
def test_a_blob_of_the_wrong_size_is_condemned_and_replaced(tmp_path: Path, bad: bytes):
    store = open_store(tmp_path)
    blob = put_blob(store, RECORDING)
    blob.unlink()
    blob.write_bytes(bad)

    put_blob(store, RECORDING)

    assert blob.read_bytes() == RECORDING
    assert list(condemned(store)) == [blob.name]
    assert f"does not have the {len(RECORDING)} bytes" in condemned(store)[blob.name]


def test_something_else_than_a_file_under_a_blobs_name_is_condemned_and_replaced(tmp_path: Path):
    store = open_store(tmp_path)
    blob = put_blob(store, RECORDING)
    blob.unlink()
    (blob / "directory").mkdir(parents=True)

    put_blob(store, RECORDING)

    assert blob.read_bytes() == RECORDING
    assert list(condemned(store)) == [blob.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b"{}"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(manifest_of({b"s/a": b""}).content), "does not have the bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "does not have the bytes"),
    ],
    ids=["gone", "of no format", "empty", "of another dataset", "reformatted"],
)
def test_a_manifest_that_differs_from_its_name_is_never_trusted(
    tmp_path: Path, damage: Callable[[Path], None], message: str
):
    store = open_store(tmp_path)
    manifest, _, _ = store_project(store, write_tree(tmp_path / "study"))
    path = store.root / "manifests" / f"{manifest.digest}.json"
    path.chmod(0o644)
    damage(path)

    with pytest.raises(StoredBytesMismatchError, match=f"{manifest.digest} {message}"):
        store.read_manifest(manifest.digest)
