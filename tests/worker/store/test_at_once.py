"""Many who store the same at once all succeed."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tests.support.trees import (
    RECORDING,
    condemned,
    open_store,
    read_tree,
    source_of,
    temporary_files,
    write_tree,
)
from tests.support.waiting import PATIENCE_S
from tests.worker.store.contents import files_below, put_blob, store_project
from worker.store.digest import new_buffer


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
