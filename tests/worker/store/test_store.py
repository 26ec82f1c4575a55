"""The store: what is in it under which name, in which mode, and how it comes there."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.folders import passable_folder
from tests.support.trees import (
    STUDY,
    as_ordinary_user,
    hashed,
    manifest_of,
    open_store,
    read_tree,
    source_of,
    temporary_files,
    write_tree,
)
from tests.worker.store.contents import CONTENTS, FILES, directories_below, files_below, mode, store_project
from worker.errors import (
    SourceChangedError,
    StoreUnusableError,
)
from worker.legacy.ingest import store_tree
from worker.store.digest import digest_of, new_buffer
from worker.store.removal import remove_tree
from worker.store.store import Store, safe_name


# What is stored ---------------------------------------------------------------------------------------------
def test_the_tree_is_the_project_byte_for_byte_and_name_for_name(tmp_path: Path):
    project = write_tree(tmp_path / "study")

    _, tree, _ = store_project(open_store(tmp_path), project)

    assert read_tree(tree) == read_tree(project)


def test_blobs_and_files_are_read_only_and_directories_cannot_be_written(tmp_path: Path):
    project = write_tree(tmp_path / "study")
    for path in files_below(project):
        path.chmod(0o666)
    store = open_store(tmp_path)

    manifest, tree, _ = store_project(store, project)

    assert {mode(path) for path in files_below(store.root / "blobs")} == {0o444}
    assert {mode(path) for path in files_below(tree)} == {0o444}
    assert {mode(path) for path in [tree, *directories_below(tree)]} == {0o555}
    assert mode(store.root / "manifests" / f"{manifest.digest}.json") == 0o444


def test_each_content_is_kept_once_under_its_digest(tmp_path: Path):
    store = open_store(tmp_path)

    _, _, stored = store_project(store, write_tree(tmp_path / "study"))

    blobs = files_below(store.root / "blobs")
    assert len(blobs) == CONTENTS == stored.files.stored
    for blob in blobs:
        assert blob.name == digest_of("blake3", blob.read_bytes())
        assert blob.parent.name == blob.name[:2]


def test_the_tree_is_hard_links_to_blobs_and_shares_nothing_with_the_project(tmp_path: Path):
    project = write_tree(tmp_path / "study")
    before = {path: path.stat() for path in [project, *project.rglob("*")]}
    store = open_store(tmp_path)

    _, tree, stored = store_project(store, project)

    blobs = {path.stat().st_ino for path in files_below(store.root / "blobs")}
    assert {path.stat().st_ino for path in files_below(tree)} == blobs
    assert blobs.isdisjoint(status.st_ino for status in before.values())
    assert stored.links.hard == FILES
    for path, status in before.items():
        now = path.stat()
        assert (now.st_nlink, now.st_mode, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) == (
            status.st_nlink,
            status.st_mode,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )


def test_a_project_rewritten_in_place_later_does_not_change_the_tree(tmp_path: Path):
    project = write_tree(tmp_path / "study")
    _, tree, _ = store_project(open_store(tmp_path), project)
    before = read_tree(tree)

    for path in files_below(project):
        with path.open("r+b") as file:
            file.truncate()
            file.write(b"resampled")

    assert read_tree(tree) == before


def test_the_manifest_is_kept_and_read_back(tmp_path: Path):
    store = open_store(tmp_path)

    manifest, _, _ = store_project(store, write_tree(tmp_path / "study"))

    assert store.read_manifest(manifest.digest) == manifest == manifest_of(STUDY)


def test_a_second_project_with_common_files_adds_only_what_is_new(tmp_path: Path):
    store = open_store(tmp_path)
    store_project(store, write_tree(tmp_path / "one"))
    other = write_tree(tmp_path / "other", STUDY | {b"2025-07-02_10_00_00/log.csv": b"new"})

    _, tree, stored = store_project(store, other)

    assert (stored.files.stored, stored.bytes.stored) == (1, 3)
    assert read_tree(tree) == read_tree(other)


def test_a_dataset_that_is_there_is_not_touched_when_it_is_stored_again(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")
    _, tree, _ = store_project(store, project, "first")
    before = {path: path.stat() for path in [tree, *tree.rglob("*")]}

    _, _, stored = store_project(store, project, "second")

    assert {path: path.stat() for path in [tree, *tree.rglob("*")]} == before
    assert (stored.files.stored, stored.files.reused) == (0, FILES)
    assert stored.bytes.stored == 0


def test_a_store_may_use_sha_256(tmp_path: Path):
    store = open_store(tmp_path, "sha256")

    manifest, tree, _ = store_project(store, write_tree(tmp_path / "study"))

    assert manifest == manifest_of(STUDY, "sha256")
    assert read_tree(tree) == read_tree(tmp_path / "study")
    for blob in files_below(store.root / "blobs"):
        assert blob.name == digest_of("sha256", blob.read_bytes())


# Staging and publishing -------------------------------------------------------------------------------------
def test_storing_a_project_leaves_nothing_in_staging(tmp_path: Path):
    store = open_store(tmp_path)

    store_project(store, write_tree(tmp_path / "study"))

    assert temporary_files(store) == []


def fail_in_staging(store: Store, work: Callable[[str], object]) -> None:
    with store.staging("attempt") as staging:
        work(staging)
        raise ZeroDivisionError


def test_staging_is_removed_when_the_work_in_it_fails_and_read_only_trees_in_it_too(tmp_path: Path):
    store = open_store(tmp_path)
    manifest, _, _ = store_project(store, write_tree(tmp_path / "study"))

    with pytest.raises(ZeroDivisionError):
        fail_in_staging(store, lambda staging: store.build_tree(manifest, f"{staging}/tree"))

    assert temporary_files(store) == []
    assert len(files_below(store.root / "blobs")) == CONTENTS


def test_staging_that_was_removed_meanwhile_does_not_hide_why_the_work_failed(tmp_path: Path):
    store = open_store(tmp_path)

    with pytest.raises(ZeroDivisionError):
        fail_in_staging(store, os.rmdir)


def test_a_tree_deeper_than_pythons_stack_is_removed_and_no_link_is_followed(tmp_path: Path):
    kept = write_tree(tmp_path / "kept", {b"x": b"1"})
    tree = tmp_path / "tree"
    here = tree
    for _ in range(1100):
        here.mkdir()
        here = here / "d"
    (tree / "link").symlink_to(kept)
    (tree / "d" / "link").symlink_to(kept / "x")
    (tree / "d").chmod(0o000)

    remove_tree(str(tree))

    assert sorted(tmp_path.iterdir()) == [kept]
    assert read_tree(kept) == {b"x": b"1"}


def test_an_ordinary_user_can_remove_a_staged_tree_and_publish_one():
    with passable_folder() as folder:
        write_tree(folder / "study")
        for name in ("raw_datasets", "dataset_store"):
            (folder / name).mkdir()
            (folder / name).chmod(0o777)

        def store_and_fail() -> dict[bytes, bytes | None]:
            store = open_store(folder)
            manifest, tree, _ = store_project(store, folder / "study")
            with store.staging("attempt") as staging:
                store.build_tree(manifest, f"{staging}/tree")
            assert temporary_files(store) == []
            return read_tree(tree)

        assert as_ordinary_user(store_and_fail) == read_tree(folder / "study")


def test_two_attempts_of_one_name_are_refused(tmp_path: Path):
    store = open_store(tmp_path)

    with (
        store.staging("attempt"),
        pytest.raises(StoreUnusableError, match="File exists"),
        store.staging("attempt"),
    ):
        pass


def test_a_tree_appears_under_its_name_in_one_piece(tmp_path: Path):
    store = open_store(tmp_path)
    manifest, first, _ = store_project(store, write_tree(tmp_path / "study"))
    second = store.trees / "second"

    with store.staging("attempt") as staging:
        store.build_tree(manifest, f"{staging}/tree")
        built = os.stat(f"{staging}/tree").st_ino
        assert not second.exists()
        store.publish(manifest, f"{staging}/tree", second, staging)

    assert second.stat().st_ino == built
    assert read_tree(second) == read_tree(first)


def test_a_source_that_changed_after_it_was_hashed_is_not_stored(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")
    tree = hashed(project, store)
    changed = project / "notes.txt"
    changed.write_bytes(b"another text of another length")

    with ThreadPoolExecutor(2) as threads, pytest.raises(SourceChangedError, match=str(changed)):
        store_tree(store, tree, store.trees / "study", attempt="attempt", threads=threads)

    assert temporary_files(store) == []
    assert list(store.trees.iterdir()) == []


def test_a_source_with_other_bytes_behind_an_equal_signature_is_not_stored(tmp_path: Path):
    store = open_store(tmp_path)
    source = source_of(write_tree(tmp_path / "study") / "notes.txt")
    changed = type(source)(
        path=source.path, signature=source.signature, digest=digest_of("blake3", b"something else")
    )

    with store.staging("attempt") as staging, pytest.raises(SourceChangedError, match=re.escape(source.path)):
        store.stage_file(changed, staging, new_buffer())


# Names ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("study", "study"),
        ("A study, 2025-07", "A_study_2025-07"),
        ("a/b", "a_b"),
        ("/etc/passwd", "_etc_passwd"),
        ("x/../../evil", "x_.._.._evil"),
        ("..", "dataset"),
        (".", "dataset"),
        (".hidden", "hidden"),
        ("..twice", "twice"),
        ("", "dataset"),
        ("   ", "_"),
        ("größe", "gr_e"),
        ("研究", "_"),
        ("a\nb\0c", "a_b_c"),
        ("x" * 300, "x" * 80),
        ("." * 90 + "x", "x"),
        ("raw_datasets", "_raw_datasets"),
        ("raw_datasets/raw_datasets", "_raw_datasets_raw_datasets"),
        ("my raw_datasets", "my_raw_datasets"),
    ],
)
def test_a_safe_name_is_readable_and_harmless(name: str, safe: str):
    assert safe_name(name) == safe


@given(name=st.text(max_size=300))
@settings(deadline=None)
def test_any_text_makes_a_name_for_one_directory_right_below_the_trees(name: str):
    store = Store(Path("/data/dataset_store"), Path("/data/raw_datasets"), "blake3", None)

    path = store.tree_path(name, "0123456789abcdef" * 4)

    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}-0123456789ab", path.name)
    assert os.path.normpath(path) == f"/data/raw_datasets/{path.name}"
    assert "raw_datasets/raw_datasets" not in str(path)
