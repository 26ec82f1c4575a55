"""A store says what it is, and one that is something else is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.trees import (
    STUDY,
    manifest_of,
    open_store,
    temporary_files,
)
from worker.errors import (
    StoreUnusableError,
)


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


def test_opening_an_absent_store_without_creating_it_makes_nothing(tmp_path: Path):
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


def test_many_processes_that_open_a_new_store_at_once_agree_on_it(tmp_path: Path):
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: open_store(tmp_path), range(8)))

    assert len({store.store_id for store in stores}) == 1
    assert temporary_files(stores[0]) == []
