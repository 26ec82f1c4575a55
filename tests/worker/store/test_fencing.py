"""Who slept between a look and what follows from it: nothing good that came meanwhile is lost, and nothing
bad comes back.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.trees import RECORDING, condemned, hashed, open_store, read_tree, write_tree
from worker.errors import ClaimLostError, MigratorError
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import store_tree
from worker.store import files, quarantine
from worker.store import store as store_module
from worker.store.digest import digest_of
from worker.store.store import Store

BLOB = digest_of("blake3", RECORDING)


@pytest.fixture(params=["ext4", "without exchange", "without links and exchange"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system can: NFS cannot let two names change places, others cannot even link."""
    if request.param != "ext4":
        monkeypatch.setattr(files, "exchange", lambda _one, _other: False)
    if request.param == "without links and exchange":
        monkeypatch.setattr(files, "has_one_more_name", lambda _path, _name: False)
    return str(request.param)


def store_again(store: Store, tree: HashedTree, target: Path, attempt: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        store_tree(store, tree, target, attempt=attempt, threads=threads)


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("clears", [True, False], ids=["whose staging was removed", "whose staging is there"])
@pytest.mark.parametrize("how", ["rebuilds it", "repairs it in place"])
def test_a_sleeper_does_not_move_away_the_tree_that_its_successor_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, *, clears: bool
):
    """It slept after it had found the tree incomplete."""
    project = write_tree(tmp_path / "study")
    store, sleeper = open_store(tmp_path), open_store(tmp_path)
    tree = hashed(project, store)
    target = store.trees / "study-123"
    store_again(store, tree, target, "job-0")
    target.chmod(0o755)
    (target / "notes.txt").unlink()
    real, slept = Store.holds, []

    def holds(self: Store, *args: object) -> bool:
        found = real(self, *args)  # type: ignore[arg-type]
        if self is sleeper and not slept and os.path.exists(f"{store.root}/staging/job-1/tree"):
            slept.append(found)
            if clears:
                store.clear_staging("job", 1)
            if how == "rebuilds it":
                store_again(store, tree, target, "job-2")
            else:
                os.link(store.blob_path(tree.sources["notes.txt"].digest), target / "notes.txt")
        return found

    monkeypatch.setattr(Store, "holds", holds)
    with suppress(MigratorError):
        store_again(sleeper, tree, target, "job-1")

    assert slept == [False]
    assert read_tree(target) == read_tree(project)
    # Of what was moved away only what is bad stays there: nothing, or the tree without its file.
    assert all("notes.txt" not in os.listdir(path) for path in in_quarantine(store))


def in_quarantine(store: Store) -> Iterator[Path]:
    return (path for path in (store.root / "quarantine").iterdir() if not path.name.endswith(".txt"))


def test_a_job_that_lost_its_claim_replaces_nothing(tmp_path: Path):
    """The server knows it first: it is asked right before."""
    project = write_tree(tmp_path / "study")
    store = open_store(tmp_path)
    tree = hashed(project, store)
    target = store.trees / "study-123"
    (target / "s").mkdir(parents=True)

    def lost() -> None:
        raise ClaimLostError("The claim was lost")

    with ThreadPoolExecutor(2) as threads, pytest.raises(ClaimLostError):
        store_tree(store, tree, target, attempt="job-1", threads=threads, confirm=lost)

    assert read_tree(target) == {b"s": None}
    assert condemned(store) == {}


def put(store: Store, content: bytes, digest: str, attempt: str, work: Callable[[str], object]) -> None:
    with store.staging(attempt) as staging:
        copy = f"{staging}/{digest}"
        Path(copy).write_bytes(content)
        work(copy)


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("bad", [b"short", bytes(len(RECORDING))], ids=["of another size", "of other bytes"])
def test_a_sleeper_does_not_condemn_the_blob_that_another_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes
):
    """Nor is the name ever without a file where the file system can see to that."""
    store = open_store(tmp_path)
    blob = Path(store.blob_path(BLOB))
    blob.parent.mkdir()
    blob.write_bytes(bad)
    real, turns = quarantine.put_in_place, []

    def sleep_first(good: str, final: str, aside: str) -> None:
        if not turns:
            turns.append(1)
            put(store, RECORDING, BLOB, "job-2", lambda copy: store.replace_blob(BLOB, copy))
        real(good, final, aside)

    monkeypatch.setattr(quarantine, "put_in_place", sleep_first)
    if len(bad) == len(RECORDING):
        put(store, RECORDING, BLOB, "job-1", lambda copy: store.replace_blob(BLOB, copy))
    else:
        put(store, RECORDING, BLOB, "job-1", lambda copy: store.admit(copy, BLOB, len(RECORDING)))

    assert blob.read_bytes() == RECORDING
    assert [path.read_bytes() for path in in_quarantine(store)] == [bad]
    assert len(condemned(store)) == 1


def test_on_nfs_an_open_file_is_moved_away_before_its_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """To rename over it leaves a name `.nfs…` in a tree, which can never be removed from a read-only
    directory.
    """
    project = write_tree(tmp_path / "study")
    store = open_store(tmp_path)
    tree = hashed(project, store)
    target = store.trees / "study-123"
    store_again(store, tree, target, "job-0")
    path = target / "notes.txt"
    monkeypatch.setattr(store_module, "is_nfs", lambda _path: True)
    replaced: list[str] = []
    real = os.rename

    def rename(source: str, to: str, **more: int | None) -> None:
        if os.path.lexists(to):
            replaced.append(str(to))
        real(source, to, **more)

    monkeypatch.setattr(os, "rename", rename)
    with path.open("rb") as reader, store.staging("job-1") as staging:
        store.replace_in_tree(store.blob_path(tree.sources["notes.txt"].digest), str(path), staging)
        assert reader.read() == path.read_bytes()

    assert replaced == []
    assert read_tree(target) == read_tree(project)
