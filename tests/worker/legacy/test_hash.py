"""Every byte of a tree is read once, as it is: every change meanwhile is noticed, and the work can be
stopped.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.folders import passable_folder
from tests.support.trees import (
    BIG_FIRST,
    STUDY,
    after_files,
    as_ordinary_user,
    hashed,
    manifest_of,
    open_store,
    write_tree,
)
from tests.support.waiting import PATIENCE_S, eventually
from worker.errors import (
    EntryRefusedError,
    EntryUnreadableError,
    LeaseLostError,
    SourceChangedError,
)
from worker.sessions_csv import RECORDING

CARRIAGE_RETURNS = b"t,x\r\n1,2\r\n3,4\r\n"

# What a hashed tree says ------------------------------------------------------------------------------------


def test_a_hashed_tree_has_the_manifest_of_its_content(tmp_path: Path):
    tree = hashed(write_tree(tmp_path / "study"), open_store(tmp_path))

    assert tree.manifest == manifest_of(STUDY)
    assert {os.fsencode(path) for path in tree.sources} == {name for name in STUDY if STUDY[name] is not None}


def test_links_are_hashed_as_what_they_point_to(tmp_path: Path):
    plain = write_tree(tmp_path / "plain", {b"session/x": b"1", b"other/y": b"2"})
    linked = write_tree(tmp_path / "linked", {b"session": None})
    (linked / "session" / "x").symlink_to("../../plain/session/x")
    (linked / "other").symlink_to(plain / "other")
    store = open_store(tmp_path)

    assert hashed(linked, store).manifest == hashed(plain, store).manifest


def test_progress_counts_every_file_and_every_byte_once(tmp_path: Path):
    done: list[tuple[int, int]] = []

    tree = hashed(
        write_tree(tmp_path / "study"),
        open_store(tmp_path),
        lambda files, size_bytes: done.append((files, size_bytes)),
    )

    assert sum(files for files, _ in done) == len(tree.sources)
    assert sum(size_bytes for _, size_bytes in done) == tree.scan.size_bytes


# A tree that changes ----------------------------------------------------------------------------------------


def append(project: Path) -> str:
    with (project / "session/3 small").open("ab") as file:
        file.write(b"more")
    return "session/3 small"


def append_to_what_was_read(project: Path) -> str:
    with (project / "session/1 big").open("ab") as file:
        file.write(b"more")
    return "session/1 big"


def truncate(project: Path) -> str:
    os.truncate(project / "session/3 small", 10)
    return "session/3 small"


def truncate_what_was_read(project: Path) -> str:
    os.truncate(project / "session/1 big", 10)
    return "session/1 big"


def replace(project: Path) -> str:
    (project / "new").write_bytes(b"9" * 100)
    (project / "new").replace(project / "session/3 small")
    return "session/3 small"


def replace_what_was_read(project: Path) -> str:
    (project / "new").write_bytes(b"9" * 300)
    (project / "new").replace(project / "session/1 big")
    return "session/1 big"


def rewrite_what_was_read_with_its_old_time(project: Path) -> str:
    path = project / "session/1 big"
    status = path.stat()
    path.write_bytes(b"9" * 300)
    # Until the kernel's clock has moved on: an edit within one tick of it cannot be seen by anybody.
    eventually(lambda: _touched(path, status), "the file's time of change moves on")
    return "session/1 big"


def _touched(path: Path, before: os.stat_result) -> bool:
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path.stat().st_ctime_ns != before.st_ctime_ns


def add_a_file(project: Path) -> str:
    (project / "session/0 new").write_bytes(b"1")
    return "session/0 new"


def add_a_directory(project: Path) -> str:
    (project / "another").mkdir()
    return "another"


def remove_a_file(project: Path) -> str:
    (project / "session/3 small").unlink()
    return "session/3 small"


def remove_what_was_read(project: Path) -> str:
    (project / "session/1 big").unlink()
    return "session/1 big"


def turn_what_was_read_into_a_directory(project: Path) -> str:
    (project / "session/1 big").unlink()
    (project / "session/1 big").mkdir()
    return "session/1 big"


def rename_the_session(project: Path) -> str:
    (project / "session").rename(project / "renamed")
    return ""


def remove_the_last_directory(project: Path) -> str:
    for path in (project / "session").iterdir():
        path.unlink()
    (project / "session").rmdir()
    return ""


@pytest.mark.parametrize("files_read", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        append,
        append_to_what_was_read,
        truncate,
        truncate_what_was_read,
        replace,
        replace_what_was_read,
        rewrite_what_was_read_with_its_old_time,
        add_a_file,
        add_a_directory,
        remove_a_file,
        remove_what_was_read,
        turn_what_was_read_into_a_directory,
        rename_the_session,
        remove_the_last_directory,
    ],
)
def test_a_change_while_others_are_read_is_noticed_and_named(
    tmp_path: Path, change: Callable[[Path], str], files_read: int
):
    project = write_tree(tmp_path / "study", BIG_FIRST)
    named: list[str] = []

    with pytest.raises(SourceChangedError) as raised:
        hashed(
            project,
            open_store(tmp_path),
            after_files(files_read, lambda: named.append(change(project))),
            threads=1,
        )

    assert f"{project}/{named[0]}" in str(raised.value)


def test_a_change_after_the_last_file_was_read_is_noticed(tmp_path: Path):
    project = write_tree(tmp_path / "study", BIG_FIRST)

    with pytest.raises(SourceChangedError, match="session/0 new"):
        hashed(project, open_store(tmp_path), after_files(3, lambda: add_a_file(project)), threads=1)


def test_a_recording_that_vanishes_before_a_parser_counts_it_is_a_change(tmp_path: Path):
    project = write_tree(tmp_path / "study", {b"session/accelerometer_data.csv": CARRIAGE_RETURNS})
    path = project / "session" / RECORDING

    with pytest.raises(SourceChangedError, match=str(path)):
        hashed(project, open_store(tmp_path), after_files(1, path.unlink))


@pytest.mark.timeout(PATIENCE_S, method="signal")
def test_a_pipe_in_the_place_of_a_recording_that_a_parser_must_count_does_not_block(tmp_path: Path):
    project = write_tree(tmp_path / "study", {b"session/accelerometer_data.csv": CARRIAGE_RETURNS})
    path = project / "session" / RECORDING

    def replace_by_pipe() -> None:
        path.unlink()
        os.mkfifo(path)

    with pytest.raises((SourceChangedError, EntryRefusedError), match=str(path)):
        hashed(project, open_store(tmp_path), after_files(1, replace_by_pipe))


def test_a_file_that_cannot_be_read_fails_the_tree_and_is_named():
    with passable_folder() as folder:
        project = write_tree(folder / "study", BIG_FIRST)
        secret = project / "session/2 middle"
        store = open_store(folder)
        secret.chmod(0o000)

        with pytest.raises(EntryUnreadableError, match=f"^Cannot read {secret}: Permission denied$"):
            as_ordinary_user(lambda: hashed(project, store).manifest)


# Stopping ---------------------------------------------------------------------------------------------------


def test_hashing_stops_at_a_file_when_the_lease_is_lost(tmp_path: Path):
    entries = {b"session/%03d" % number: b"x" for number in range(200)}
    read: list[int] = []

    def lose(files: int, _bytes: int) -> None:
        read.append(files)
        if len(read) == 3:
            raise LeaseLostError("another worker has the job")

    with pytest.raises(LeaseLostError, match="another worker has the job"):
        hashed(write_tree(tmp_path / "study", entries), open_store(tmp_path), lose, threads=1)

    assert len(read) < 200
