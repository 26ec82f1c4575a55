"""The store: what is in it under which name, in which mode, and what becomes of it when something is wrong."""

import errno
import json
import multiprocessing
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import (
    RECORDING,
    STUDY,
    as_ordinary_user,
    condemned,
    hashed,
    manifest_of,
    open_store,
    passable_folder,
    read_tree,
    source_of,
    store_at,
    temporary_files,
    write_tree,
)
from tests.support.waiting import PATIENCE_S
from worker.errors import (
    SourceChangedError,
    StoreBrokenError,
    StoredBytesMismatchError,
    StoreFullError,
    StoreUnusableError,
)
from worker.legacy.ingest import Stored, store_tree
from worker.store.digest import digest_of, new_buffer
from worker.store.manifest import Manifest
from worker.store.removal import remove_tree
from worker.store.store import Store, safe_name

FILES = sum(content is not None for content in STUDY.values())
CONTENTS = len({content for content in STUDY.values() if content is not None})


def store_project(store: Store, project: Path, attempt: str = "attempt") -> tuple[Manifest, Path, Stored]:
    """Store a project as a worker does; the tree's name is the project's."""
    tree = hashed(project, store)
    target = store.tree_path(project.name, tree.manifest.digest)
    return tree.manifest, target, store_at(store, tree, target, attempt)


def put_blob(store: Store, content: bytes) -> Path:
    """Store one content; where its bytes are now."""
    path = store.root.parent / "incoming"
    path.write_bytes(content)
    source = source_of(path)
    with store.staging("one") as staging:
        store.admit(store.stage_file(source, staging, new_buffer()), source.digest, len(content))
    path.unlink()
    return Path(store.blob_path(source.digest))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def directories_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_dir()]


# What is stored -------------------------------------------------------------------------------------------------


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


# Staging and publishing -----------------------------------------------------------------------------------------


def test_nothing_is_left_in_staging(tmp_path: Path):
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


def test_staging_that_somebody_removed_does_not_hide_why_the_work_failed(tmp_path: Path):
    store = open_store(tmp_path)

    with pytest.raises(ZeroDivisionError):
        fail_in_staging(store, os.rmdir)


def test_what_is_removed_may_be_deeper_than_pythons_stack_and_is_never_left_by_a_link(tmp_path: Path):
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


# Damage ---------------------------------------------------------------------------------------------------------


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


def test_one_who_lost_the_claim_without_knowing_leaves_the_tree_that_is_there(tmp_path: Path):
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
def test_a_manifest_that_is_not_what_its_name_says_is_never_believed(
    tmp_path: Path, damage: Callable[[Path], None], message: str
):
    store = open_store(tmp_path)
    manifest, _, _ = store_project(store, write_tree(tmp_path / "study"))
    path = store.root / "manifests" / f"{manifest.digest}.json"
    path.chmod(0o644)
    damage(path)

    with pytest.raises(StoredBytesMismatchError, match=f"{manifest.digest} {message}"):
        store.read_manifest(manifest.digest)


@pytest.mark.parametrize("name", ["bad", "n" * 240, "\udcff" * 250, "n" * 255])
def test_quarantine_keeps_several_things_of_one_name_however_long_it_is(tmp_path: Path, name: str):
    store = open_store(tmp_path)
    place = tmp_path / "tree" / name
    place.parent.mkdir()
    good = put_blob(store, b"good")
    for content in (b"one", b"two"):
        place.unlink(missing_ok=True)
        place.write_bytes(content)
        with store.staging("repair") as staging:
            store.replace_in_tree(str(good), str(place), staging, bad_copy_of=good.name)
        assert place.read_bytes() == b"good"

    kept = sorted(
        path.read_bytes()
        for path in (store.root / "quarantine").iterdir()
        if not path.name.endswith(".reason.txt")
    )
    assert kept == [b"one", b"two"]


def test_nothing_is_said_of_a_thing_that_was_gone_already(tmp_path: Path):
    store = open_store(tmp_path)
    good = put_blob(store, b"good")
    copy = tmp_path / "copy"
    copy.write_bytes(b"good")
    good.unlink()

    store.replace_blob(good.name, str(copy))

    assert good.read_bytes() == b"good"
    assert list((store.root / "quarantine").iterdir()) == []


# The store's description ----------------------------------------------------------------------------------------


def test_a_new_store_describes_itself(tmp_path: Path):
    store = open_store(tmp_path, "sha256")

    document = json.loads((store.root / "store.json").read_text())

    assert document == {"format": 1, "id": store.store_id, "digest": "sha256"}
    assert temporary_files(store) == []


def test_an_old_store_keeps_its_algorithm_and_its_id(tmp_path: Path):
    first = open_store(tmp_path, "sha256")

    again = open_store(tmp_path, "blake3")

    assert again == first
    assert again.algorithm == "sha256"


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ('{"format": 2, "id": "x", "digest": "blake3"}', "says format 2; this version reads format 1 only"),
        ('{"format": "1", "id": "x", "digest": "blake3"}', "says format '1'"),
        ('{"format": 1, "id": "x", "digest": "md5"}', "not a description"),
        ('{"format": 1, "id": "x"}', "not a description"),
        ('{"format": 1, "digest": "blake3"}', "not a description"),
        ("[]", "not a description"),
        ("null", "not a description"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_description_of_something_else_is_refused_by_name(tmp_path: Path, description: str, message: str):
    store = open_store(tmp_path)
    path = store.root / "store.json"
    path.write_bytes(description.encode("utf-8", "surrogateescape"))

    with pytest.raises(StoreUnusableError, match=f"{path} .*{message}"):
        open_store(tmp_path)


def test_looking_at_a_store_that_is_not_there_makes_nothing(tmp_path: Path):
    store = open_store(tmp_path, "sha256", create=False)

    assert (store.algorithm, store.store_id) == ("sha256", None)
    assert not store.has_blob("ab" * 32, 0)
    assert not store.holds(manifest_of(STUDY), str(store.trees / "study"))
    assert list(tmp_path.iterdir()) == []


def test_trees_on_another_file_system_are_refused(tmp_path: Path):
    other = Path("/dev/shm")  # noqa: S108 - nothing is written to it
    if other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system only")
    (tmp_path / "raw_datasets").symlink_to(other)

    with pytest.raises(StoreUnusableError, match="are on different file systems"):
        open_store(tmp_path)


def test_many_who_open_a_new_store_at_once_agree_on_it(tmp_path: Path):
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: open_store(tmp_path), range(8)))

    assert len({store.store_id for store in stores}) == 1
    assert temporary_files(stores[0]) == []


# Names ----------------------------------------------------------------------------------------------------------


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


# What the disk may say ------------------------------------------------------------------------------------------


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


def test_blobs_that_may_not_be_looked_at_are_named():
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


def test_who_brings_no_bytes_is_not_refused_where_the_reserve_is_used_up(
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


# At once --------------------------------------------------------------------------------------------------------


def store_common_contents(folder: Path, number: int, together: Barrier) -> None:
    store = open_store(folder)
    project = folder / f"study {number}"
    together.wait(PATIENCE_S)
    store_project(store, project, f"attempt {number}")


def test_processes_that_store_common_contents_at_once_all_succeed(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    common = {b"s/%d.csv" % number: b"%d" % (number % 40) * 50 for number in range(80)}
    count = 2
    for number in range(count):
        write_tree(tmp_path / f"study {number}", common | {b"s/own": b"only %d" % number})
    together = context.Barrier(count)
    processes = [
        context.Process(target=store_common_contents, args=(tmp_path, number, together))
        for number in range(count)
    ]

    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0] * count
    store = open_store(tmp_path)
    assert len(files_below(store.root / "blobs")) == 40 + count
    for number in range(count):
        (tree,) = store.trees.glob(f"study_{number}-*")
        assert read_tree(tree) == read_tree(tmp_path / f"study {number}")
    assert temporary_files(store) == []
    assert condemned(store) == {}


def test_threads_that_find_the_same_bad_blob_all_get_a_good_one(tmp_path: Path):
    store = open_store(tmp_path)
    blob = put_blob(store, RECORDING)
    blob.unlink()
    blob.write_bytes(b"bad")
    incoming = tmp_path / "recording"
    incoming.write_bytes(RECORDING)
    source = source_of(incoming)

    def put(number: int) -> None:
        with store.staging(f"attempt {number}") as staging:
            staged = store.stage_file(source, staging, new_buffer())
            store.admit(staged, source.digest, len(RECORDING))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(24)))

    assert blob.read_bytes() == RECORDING
    assert blob.name in condemned(store)
