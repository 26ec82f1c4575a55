"""A tree in columns: what is asked of it is what lies on the disk, and it stays small however many files
there are.
"""

import os
import tracemalloc
from pathlib import Path

from tests.support.trees import STUDY, hashed, open_store, roots_of, signature_of, write_tree
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.scan import scan

FILES = 4_000
MOST_BYTES_A_FILE = 800


def test_each_file_is_found_by_its_path_its_number_and_its_content(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study")
    os.utime(project / "notes.txt", ns=(-1, -1_000_000_001))

    tree = hashed(project, store)

    assert (
        len(tree.sources) == len(tree.scan.files) == len([one for one in STUDY.values() if one is not None])
    )
    for number, path in enumerate(tree.sources):
        source = tree.sources[path]
        assert source == tree.sources.at(number)
        assert source.path == str(project / path)
        assert source.signature == signature_of(source.path)
        assert tree.distinct[source.digest].digest == source.digest
    assert tree.distinct.keys() == {source.digest for source in tree.sources.values()}
    assert tree.scan.files.size_bytes == sum(tree.scan.files.sizes()) == tree.manifest.size_bytes


def test_of_equal_files_the_first_found_is_the_source(tmp_path: Path):
    project = write_tree(tmp_path / "study", {b"a/1": b"same", b"a/2": b"same", b"b/3": b"same"})

    tree = hashed(project, open_store(tmp_path))

    (source,) = tree.distinct.values()
    assert source == next(iter(tree.sources.values()))


def test_a_file_behind_a_link_is_read_where_the_link_leads(tmp_path: Path):
    write_tree(tmp_path / "elsewhere", {b"deep/far.csv": b"far away"})
    project = write_tree(tmp_path / "study", {b"session/near.csv": b"near"})
    (project / "session/linked").symlink_to(tmp_path / "elsewhere")
    (project / "session/one.csv").symlink_to(tmp_path / "elsewhere/deep/far.csv")

    files = scan(str(project), roots_of(tmp_path)).files

    assert {file.path: file.source for file in files} == {
        "session/near.csv": f"{project}/session/near.csv",
        "session/one.csv": f"{tmp_path}/elsewhere/deep/far.csv",
        "session/linked/deep/far.csv": f"{tmp_path}/elsewhere/deep/far.csv",
    }
    assert files[-1] == files[len(files) - 1]
    assert files[1:] == [files[1], files[2]]


def test_a_tree_takes_little_memory_for_each_file(tmp_path: Path):
    """Each takes its path, its digest and one row of numbers, not some dozen objects."""
    store = open_store(tmp_path)
    small = write_tree(tmp_path / "small", {b"session/one": b"1"})
    large = write_tree(
        tmp_path / "large",
        {b"session/a name of some length %d" % number: b"%d" % number for number in range(FILES)},
    )
    hashed(small, store)  # what is made once a process is made now

    tracemalloc.start()
    try:
        tree: HashedTree = hashed(large, store)
        assert tree.manifest.digest
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < FILES * MOST_BYTES_A_FILE, f"{peak / FILES:.0f} bytes a file"
