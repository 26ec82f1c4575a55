"""What the disk may say: each refusal is named, and nothing is left behind."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.folders import passable_folder
from tests.support.trees import (
    RECORDING,
    STUDY,
    as_ordinary_user,
    open_store,
    read_tree,
    temporary_files,
    write_tree,
)
from tests.worker.store.contents import CONTENTS, FILES, files_below, mode, put_blob, store_project
from worker.errors import (
    StoreBrokenError,
    StoreFullError,
    StoreUnusableError,
)


def test_a_store_that_may_not_be_written_is_named():
    with passable_folder() as folder:
        store = open_store(folder)
        write_tree(folder / "study")
        for path in (store.root / "staging", store.root / "blobs", store.trees):
            path.chmod(0o555)

        with pytest.raises(
            StoreUnusableError, match=f"Cannot write to the store: {store.root}/staging/.*denied"
        ):
            as_ordinary_user(lambda: store_project(store, folder / "study"))


def test_a_store_that_may_not_be_made_is_named():
    with passable_folder() as folder:
        folder.chmod(0o555)

        with pytest.raises(StoreUnusableError, match=f"Cannot write to the store: {folder}/raw_datasets"):
            as_ordinary_user(lambda: open_store(folder))


def test_blobs_that_may_not_be_read_are_named():
    with passable_folder() as folder:
        store = open_store(folder)
        put_blob(store, RECORDING)
        write_tree(folder / "study")
        (store.root / "staging").chmod(0o777)
        (store.root / "blobs").chmod(0o000)

        with pytest.raises(StoreUnusableError, match=f"{store.root}/blobs/.*: Permission denied"):
            as_ordinary_user(lambda: store_project(store, folder / "study"))


def test_the_application_can_enter_the_trees_whatever_the_workers_umask_is():
    with passable_folder() as folder:
        write_tree(folder / "study")

        def with_a_narrow_umask() -> set[int]:
            os.umask(0o077)
            _, tree, _ = store_project(open_store(folder), folder / "study")
            return {mode(path) for path in [*tree.parents[:1], tree, *tree.rglob("*")]}

        folder.chmod(0o777)
        assert as_ordinary_user(with_a_narrow_umask) == {0o755, 0o555, 0o444}


@pytest.mark.parametrize("name", ["raw_datasets", "dataset_store/blobs"])
def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path, name: str):
    write_tree(tmp_path, {name.encode(): b""})

    with pytest.raises(StoreUnusableError, match=f"{tmp_path}/{name}: File exists"):
        open_store(tmp_path)


def test_a_store_that_may_not_be_entered_is_named():
    with passable_folder() as folder:
        store = open_store(folder)
        store.root.chmod(0o000)

        with pytest.raises(StoreUnusableError, match=f"{store.root}"):
            as_ordinary_user(lambda: open_store(folder, create=False))


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, number: int) -> None:
    """Let a function of the operating system answer with an error, as some disk would."""

    def refusing(first: str | int, *_rest: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number), *([first] if isinstance(first, str) else []))

    monkeypatch.setattr(os, function, refusing)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_to_be_full_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")

    with monkeypatch.context() as disk:
        refuse(disk, "pwritev", number)
        with pytest.raises(StoreFullError, match="No space left in the store"):
            store_project(store, project)

    assert temporary_files(store) == []
    assert files_below(store.root / "blobs") == []


def test_storing_no_new_bytes_is_not_refused_where_the_reserve_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = open_store(tmp_path)
    full = os.statvfs_result((4096, 4096, 1 << 20, 0, 0, 100, 100, 100, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)

    store.check_room(0)

    with pytest.raises(
        StoreFullError, match="1 bytes are to be stored, 0 are free, 85899345 stay in reserve"
    ):
        store.check_room(1)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_broken_disk_is_named_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")

    with monkeypatch.context() as disk:
        refuse(disk, "pwritev", number)
        with pytest.raises(StoreBrokenError, match=f"{store.root}/staging/.*: {os.strerror(number)}"):
            store_project(store, project)


def test_when_a_blob_has_all_the_links_it_can_have_the_tree_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")
    store_project(store, project, "first")
    other = write_tree(tmp_path / "other", STUDY | {b"2025-07-02_10_00_00/log.csv": b"new"})
    link = os.link

    def full(source: str, target: str) -> None:
        if source.startswith(f"{store.root}/blobs/"):
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK), source)
        link(source, target)

    monkeypatch.setattr(os, "link", full)
    _, tree, stored = store_project(store, other, "second")

    assert stored.links.hard == 0
    assert stored.links.reflink + stored.links.copy == FILES + 1
    assert read_tree(tree) == read_tree(other)
    assert {mode(path) for path in files_below(tree)} == {0o444}
    blobs = {path.stat().st_ino for path in files_below(store.root / "blobs")}
    assert blobs.isdisjoint(path.stat().st_ino for path in files_below(tree))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_holds_a_whole_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    refuse(monkeypatch, "link", number)
    store = open_store(tmp_path)
    assert store.store_id is not None
    assert open_store(tmp_path) == store

    project = write_tree(tmp_path / "study")
    _, tree, stored = store_project(store, project)
    again = store_project(store, write_tree(tmp_path / "other", STUDY | {b"new/x": b"x"}), "again")[2]

    assert read_tree(tree) == read_tree(project)
    assert (stored.files.stored, again.files.stored) == (CONTENTS, 1)
    assert stored.links.hard == 0
    assert temporary_files(store) == []


def test_any_other_refusal_of_a_link_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")

    refuse(monkeypatch, "link", errno.EXDEV)
    with pytest.raises(StoreUnusableError, match="on different mounts"):
        store_project(store, project)
