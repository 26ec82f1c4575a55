"""Reading a source: its digest, and whatever happens to the file meanwhile is noticed and never blocks."""

import hashlib
import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.folders import passable_folder
from tests.support.trees import as_ordinary_user, signature_of
from tests.support.waiting import PATIENCE_S
from worker.errors import EntryUnreadableError, SourceChangedError
from worker.store.digest import (
    CHUNK_BYTES,
    Signature,
    digest_of,
    hash_file,
    new_buffer,
    printable,
    read_chunks,
)

THREE_CHUNKS = bytes(range(256)) * (CHUNK_BYTES // 256) * 2 + b"and a bit"


def write(folder: Path, content: bytes = THREE_CHUNKS) -> Path:
    path = folder / "accelerometer_data.csv"
    path.write_bytes(content)
    return path


def while_reading(path: Path, happening: Callable[[], object]) -> bytes:
    """Read a file, and let something happen to it after each of the first chunks."""
    taken = b""
    for number, chunk in enumerate(read_chunks(str(path), signature_of(path), new_buffer())):
        if number < 9:
            happening()
        taken += bytes(chunk)
    return taken


# Digests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(THREE_CHUNKS)])
def test_a_file_has_the_digest_of_its_bytes_whatever_its_size(tmp_path: Path, size: int):
    path = write(tmp_path, THREE_CHUNKS[:size])

    for algorithm, expected in (
        ("blake3", blake3.blake3(THREE_CHUNKS[:size]).hexdigest()),
        ("sha256", hashlib.sha256(THREE_CHUNKS[:size]).hexdigest()),
    ):
        assert hash_file(str(path), signature_of(path), algorithm, new_buffer()) == expected
        assert digest_of(algorithm, THREE_CHUNKS[:size]) == expected
        assert len(expected) == 64


def test_an_observer_is_shown_every_byte_in_order(tmp_path: Path):
    path = write(tmp_path)
    shown: list[bytes] = []

    hash_file(
        str(path),
        signature_of(path),
        "blake3",
        new_buffer(),
        observe=lambda chunk: shown.append(bytes(chunk)),
    )

    assert b"".join(shown) == THREE_CHUNKS
    assert max(map(len, shown)) <= CHUNK_BYTES


@given(name=st.binary(min_size=1, max_size=40))
@settings(deadline=None)
def test_any_name_can_be_shown_and_one_in_utf_8_is_shown_as_it_is(name: bytes):
    shown = printable(os.fsdecode(name)).encode("utf-8")

    assert shown == name or b"\\x" in shown


def test_bytes_that_are_not_utf_8_are_shown_as_what_they_are():
    assert printable(os.fsdecode(b"/study/caf\xe9")) == r"/study/caf\xe9"


# A source that changes --------------------------------------------------------------------------------------


def append(path: Path, more: bytes = b"more") -> None:
    with path.open("ab") as file:
        file.write(more)


def truncate(path: Path) -> None:
    os.truncate(path, CHUNK_BYTES + 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def rewrite(path: Path) -> None:
    path.write_bytes(b"x" * len(THREE_CHUNKS))
    os.utime(path, ns=(1, 1))  # an edit within one tick of the clock is one the clock cannot show


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def chmod(path: Path) -> None:
    path.chmod(0o600)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [append, truncate, empty, rewrite, touch, chmod])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, change: Callable[[Path], None]):
    path = write(tmp_path)

    with pytest.raises(SourceChangedError, match=f"File changed while it was read: {path}"):
        while_reading(path, lambda: change(path))


@pytest.mark.parametrize("change", [append, truncate, empty, rewrite, touch])
def test_a_file_that_changed_since_it_was_listed_is_not_read_at_all(
    tmp_path: Path, change: Callable[[Path], None]
):
    path = write(tmp_path)
    listed = signature_of(path)
    change(path)

    chunks = read_chunks(str(path), listed, new_buffer())
    with pytest.raises(SourceChangedError, match=str(path)):
        next(chunks)


def test_a_file_that_grows_as_fast_as_it_is_read_is_given_up_at_its_former_end(tmp_path: Path):
    path = write(tmp_path)
    grown: list[int] = []

    def grow() -> None:
        append(path, bytes(CHUNK_BYTES))
        grown.append(path.stat().st_size)

    with pytest.raises(SourceChangedError):
        while_reading(path, grow)

    assert len(grown) <= len(THREE_CHUNKS) // CHUNK_BYTES + 1


def test_a_file_replaced_while_it_is_read_has_changed(tmp_path: Path):
    path = write(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(THREE_CHUNKS)

    with pytest.raises(SourceChangedError, match=str(path)):
        while_reading(path, lambda: other.exists() and other.replace(path))


def remove(path: Path) -> None:
    path.unlink()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    moved = path.rename(path.with_name("moved"))
    path.symlink_to(moved)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(THREE_CHUNKS)
    other.replace(path)


@pytest.mark.parametrize(
    "change", [remove, replace_by_pipe, replace_by_link, replace_by_directory, replace_by_file]
)
@pytest.mark.timeout(PATIENCE_S)
def test_a_special_file_in_a_files_place_is_refused_without_waiting_for_it(
    tmp_path: Path, change: Callable[[Path], None]
):
    path = write(tmp_path)
    listed = signature_of(path)
    change(path)

    with pytest.raises(SourceChangedError, match=str(path)):
        hash_file(str(path), listed, "blake3", new_buffer())


def test_a_socket_in_a_files_place_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path)
    listed = signature_of(path)
    path.unlink()
    monkeypatch.chdir(tmp_path)  # a socket's address holds 107 bytes only
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)

        with pytest.raises(EntryUnreadableError, match=str(path)):
            hash_file(str(path), listed, "blake3", new_buffer())


def test_a_stored_file_may_get_another_name_while_it_is_read_but_no_other_byte(tmp_path: Path):
    path = write(tmp_path)
    stored = Signature.of_stored(path.stat())
    names = (tmp_path / str(number) for number in itertools.count())

    digest = hash_file(str(path), stored, "blake3", new_buffer(), lambda _chunk: os.link(path, next(names)))

    assert digest == digest_of("blake3", THREE_CHUNKS)
    with pytest.raises(SourceChangedError, match=str(path)):
        hash_file(str(path), stored, "blake3", new_buffer(), lambda _chunk: os.utime(path))


def test_a_directory_on_the_way_that_went_is_a_change(tmp_path: Path):
    session = tmp_path / "session"
    session.mkdir()
    path = write(session)
    listed = signature_of(path)
    path.unlink()
    session.rmdir()

    with pytest.raises(SourceChangedError, match=f"Entry vanished while it was read: {path}"):
        hash_file(str(path), listed, "blake3", new_buffer())


def test_a_file_without_read_permission_is_named():
    with passable_folder() as folder:
        path = write(folder)
        path.chmod(0o000)
        listed = signature_of(path)

        with pytest.raises(EntryUnreadableError, match=f"Cannot read {path}: Permission denied"):
            as_ordinary_user(lambda: hash_file(str(path), listed, "blake3", new_buffer()))


def test_a_file_behind_a_link_is_read_as_the_stores_own_only(tmp_path: Path):
    (tmp_path / "real").mkdir()
    path = write(tmp_path / "real", b"1")
    (tmp_path / "link").symlink_to("real")
    behind = tmp_path / "link" / path.name

    with pytest.raises(SourceChangedError, match=f"Entry vanished while it was read: {behind}"):
        hash_file(str(behind), signature_of(path), "blake3", new_buffer())

    found = hash_file(str(behind), signature_of(path), "blake3", new_buffer(), through_links=True)
    assert found == digest_of("blake3", b"1")


def test_reading_closes_the_file_whatever_happens(tmp_path: Path):
    path = write(tmp_path)
    before = os.listdir("/proc/self/fd")

    while_reading(path, lambda: None)
    with pytest.raises(SourceChangedError):
        while_reading(path, lambda: append(path))
    chunks = read_chunks(str(path), signature_of(path), new_buffer())
    next(chunks)
    chunks.close()

    assert os.listdir("/proc/self/fd") == before


def test_a_network_file_systems_server_is_asked_whether_a_file_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The client's own answer may be seconds old."""
    from worker.store import digest

    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    listed, old = signature_of(path), path.stat()
    asked: list[int] = []
    monkeypatch.setattr(digest, "is_remote", lambda _descriptor, _device: True)
    monkeypatch.setattr(digest, "refresh_descriptor", asked.append)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda descriptor: real(descriptor) if asked else old)

    with pytest.raises(SourceChangedError):
        hash_file(str(path), listed, "blake3", new_buffer(), lambda _chunk: path.write_bytes(b"y" * 100))

    assert len(asked) == 1


def test_the_disk_of_the_tests_is_known_and_a_device_is_asked_for_once(tmp_path: Path):
    from worker.store import syscalls

    device = tmp_path.stat().st_dev
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        first = syscalls.is_remote(descriptor, device)
    finally:
        os.close(descriptor)

    assert syscalls.is_remote(-1, device) is first
    assert syscalls.is_remote(-1, -1) is True
    syscalls._remote.pop(-1)
