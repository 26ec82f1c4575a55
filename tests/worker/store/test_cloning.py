"""Copies share their sources' blocks where the file system can, and hold what was hashed wherever they do."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import file_system
from tests.support.trees import open_store, signature_of, source_of
from worker.legacy.share import extents
from worker.store import cloning
from worker.store.cloning import CLONE_BYTES
from worker.store.digest import BIG_BYTES, digest_of, new_buffer
from worker.store.store import Store

_SHARED = 0x2000


@pytest.fixture(params=["xfs", "btrfs"], scope="module")
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a file system that can share blocks."""
    folder = tmp_path_factory.mktemp(request.param)
    place = folder / "disk"
    place.mkdir()
    with file_system(request.param, place, folder):
        yield place


@pytest.fixture
def store(disk: Path) -> Store:
    return open_store(disk)


def legacy_file(disk: Path, content: bytes) -> Path:
    path = disk / f"legacy {len(os.listdir(disk))}"
    path.write_bytes(content)
    os.sync()
    return path


def copied(store: Store, path: Path, **options: object) -> tuple[str, Path]:
    """Copy a file as it is hashed; its digest and the copy."""
    staged = store.root / "staging" / path.name
    staged.unlink(missing_ok=True)
    digest = store.copy_hashing(str(path), signature_of(path), str(staged), new_buffer(), **options)  # type: ignore[arg-type]
    return digest, staged


def shared_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return sum(one.size_bytes for one in extents(file.fileno()) if one.flags & _SHARED)


@pytest.mark.parametrize("size", [CLONE_BYTES, 5000, (1 << 20) + 1, BIG_BYTES + 77])
def test_a_copy_shares_its_source_s_blocks_and_is_what_was_hashed(disk: Path, store: Store, size: int):
    content = os.urandom(size)
    source = legacy_file(disk, content)

    digest, copy = copied(store, source)

    assert digest == digest_of("blake3", content)
    assert copy.read_bytes() == content
    assert shared_bytes(copy) >= size
    assert store.cloned == {digest}
    assert copy.stat().st_mode & 0o777 == 0o444


def test_a_small_file_is_copied(disk: Path, store: Store):
    digest, copy = copied(store, legacy_file(disk, b"x" * (CLONE_BYTES - 1)))

    assert copy.stat().st_size == CLONE_BYTES - 1
    assert (shared_bytes(copy), store.cloned) == (0, set())
    assert digest == digest_of("blake3", b"x" * (CLONE_BYTES - 1))


def test_who_writes_to_the_source_meanwhile_changes_nothing_of_the_copy(disk: Path, store: Store):
    content = os.urandom(3 << 20)
    source = legacy_file(disk, content)

    def overwrite(_chunk: memoryview) -> None:
        with source.open("r+b") as file:
            file.write(b"another content in place")

    digest, copy = copied(store, source, observe=overwrite)

    assert source.read_bytes() != content
    assert copy.read_bytes() == content
    assert digest == digest_of("blake3", content)


def test_holes_stay_holes(disk: Path, store: Store):
    source = legacy_file(disk, b"begins")
    os.truncate(source, 64 << 20)

    digest, copy = copied(store, source)

    assert copy.stat().st_blocks * 512 <= 1 << 20
    assert digest == source_of(source).digest


def test_new_content_takes_hardly_any_room(disk: Path, store: Store):
    source = legacy_file(disk, os.urandom(32 << 20))
    before = free_bytes(disk)

    digest, copy = copied(store, source)
    store.admit(str(copy), digest, 32 << 20)
    store.sync()

    assert before - free_bytes(disk) < (32 << 20) // 100
    assert set(store.came_by_cloning()) == {digest}


def free_bytes(disk: Path) -> int:
    os.sync()
    status = os.statvfs(disk)
    return status.f_bfree * status.f_bsize


def test_a_file_that_is_written_in_place_is_copied_and_others_are_shared(tmp_path: Path):
    """Btrfs shares no blocks of a file that has copying on write switched off."""
    content, place = os.urandom(1 << 20), tmp_path / "disk"
    place.mkdir()
    with file_system("btrfs", place, tmp_path):
        store = open_store(place)
        source = place / "in place"
        source.touch()
        subprocess.run(["chattr", "+C", str(source)], check=True)
        source.write_bytes(content)
        os.sync()

        digest, copy = copied(store, source)
        other, _ = copied(store, legacy_file(place, content + b"other"))

        assert digest == digest_of("blake3", content)
        assert (copy.read_bytes(), shared_bytes(copy)) == (content, 0)
        assert store.cloned == {other}


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    asked = refusing_to_share(monkeypatch, number)
    store = open_store(tmp_path)
    sources = [legacy_file(tmp_path, os.urandom(CLONE_BYTES + extra)) for extra in range(3)]

    found = [copied(store, source) for source in sources]

    assert [copy.read_bytes() for _, copy in found] == [source.read_bytes() for source in sources]
    assert (len(asked), store.cloned) == (1, set())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ETXTBSY, errno.EIO, errno.ENOSPC])
def test_a_file_that_refuses_is_copied_and_the_next_one_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    asked = refusing_to_share(monkeypatch, number)
    store = open_store(tmp_path)

    for extra in range(3):
        source = legacy_file(tmp_path, os.urandom(CLONE_BYTES + extra))
        assert copied(store, source)[1].read_bytes() == source.read_bytes()

    assert len(asked) == 3


def refusing_to_share(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let the kernel answer so, after part of the bytes have come."""
    asked: list[int] = []

    def ioctl(target: int, _request: int, source: int) -> None:
        asked.append(source)
        os.pwrite(target, b"part of it", 0)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cloning.fcntl, "ioctl", ioctl)
    return asked


def test_whether_a_file_would_be_shared_is_found_out_by_trying(disk: Path, store: Store, tmp_path: Path):
    here, elsewhere = legacy_file(disk, os.urandom(9000)), legacy_file(tmp_path, os.urandom(9000))
    before = os.listdir(store.root / "staging")

    assert store.would_clone(str(here), signature_of(here))
    assert not store.would_clone(str(elsewhere), signature_of(elsewhere))
    assert os.listdir(store.root / "staging") == before
