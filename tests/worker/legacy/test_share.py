"""Files share the blocks of equal ones, on file systems that can, and nothing else of them changes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import file_system
from worker.errors import SharingUnsupportedError, SourceChangedError, StoredBytesMismatchError
from worker.legacy import share
from worker.legacy.share import extents, share_file
from worker.store.digest import Signature

SIZES = (1, 100, 3000, 4096, 5000, (1 << 20) + 1, (33 << 20) + 123)
INLINE_BYTES = 2048
"""Up to this size Btrfs keeps a file in its own records."""


@pytest.fixture(params=["xfs", "btrfs"], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def disk(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a file system that can share blocks."""
    folder = tmp_path_factory.mktemp(kind)
    place = folder / "disk"
    place.mkdir()
    with file_system(kind, place, folder):
        yield place


def twins(disk: Path, content: bytes, *, mode: int = 0o644) -> tuple[Path, Path, Signature]:
    """A blob, a legacy file with its bytes, and what stat says of the file."""
    number = len(os.listdir(disk))
    blob, legacy = disk / f"{number} blob", disk / f"{number} legacy"
    for path in (blob, legacy):
        path.write_bytes(content)
    blob.chmod(0o444)
    legacy.chmod(mode)
    os.sync()
    return blob, legacy, Signature.of(legacy.stat())


def shared_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return sum(one.size_bytes for one in extents(file.fileno()) if one.flags & share._SHARED)


def free_bytes(disk: Path) -> int:
    os.sync()
    status = os.statvfs(disk)
    return status.f_bfree * status.f_bsize


@pytest.mark.parametrize("size", SIZES)
def test_a_file_shares_the_blocks_of_its_blob_and_keeps_its_times(disk: Path, kind: str, size: int):
    blob, legacy, before = twins(disk, os.urandom(size))
    room = free_bytes(disk)
    predicted = share_file(str(blob), str(legacy), before, rehearse=True)
    assert shared_bytes(legacy) == 0

    freed = share_file(str(blob), str(legacy), before)

    whole = 0 if kind == "btrfs" and size <= INLINE_BYTES else -(-size // 4096) * 4096
    assert (predicted, freed, shared_bytes(legacy)) == (whole, whole, whole)
    assert free_bytes(disk) - room >= whole
    assert Signature.of(legacy.stat()) == before
    assert legacy.read_bytes() == blob.read_bytes()
    assert share_file(str(blob), str(legacy), before) == 0


def test_a_file_that_may_not_be_written_is_shared_all_the_same(disk: Path):
    blob, legacy, before = twins(disk, os.urandom(8192), mode=0o400)

    assert share_file(str(blob), str(legacy), before) == 8192


def test_a_file_with_holes_frees_only_what_it_had(disk: Path):
    blob, legacy, _ = twins(disk, b"")
    blob.chmod(0o644)
    for path in (blob, legacy):
        with path.open("r+b") as file:
            file.truncate(1 << 20)
            file.seek(512 << 10)
            file.write(b"x" * 8192)
    os.sync()

    assert share_file(str(blob), str(legacy), Signature.of(legacy.stat())) == 8192


def test_short_answers_and_refused_tails_are_gone_on_with(disk: Path, monkeypatch: pytest.MonkeyPatch):
    """As older kernels do: a part of what was asked for, and no tail that is no whole block."""
    blob, legacy, before = twins(disk, os.urandom(100_000))
    really, asked = share._ask, []

    def older(source: int, target: int, start: int, size_bytes: int) -> tuple[int, int]:
        asked.append(size_bytes)
        if size_bytes % 4096:
            return 0, -22
        return really(source, target, start, min(size_bytes, 16_384))

    monkeypatch.setattr(share, "_ask", older)

    freed = share_file(str(blob), str(legacy), before)

    assert freed == 98_304 == shared_bytes(legacy)
    assert len(asked) > 6


def test_a_blob_with_other_bytes_is_bad_and_a_file_that_changed_has_changed(disk: Path):
    blob, legacy, before = twins(disk, b"x" * 8192)
    blob.chmod(0o644)
    blob.write_bytes(b"y" * 8192)

    with pytest.raises(StoredBytesMismatchError, match="does not have the bytes"):
        share_file(str(blob), str(legacy), before)
    legacy.write_bytes(b"z" * 8192)
    with pytest.raises(SourceChangedError, match="changed"):
        share_file(str(blob), str(legacy), before)

    assert shared_bytes(legacy) == 0


def test_where_blocks_cannot_be_shared_the_file_system_is_named(tmp_path: Path):
    place = tmp_path / "disk"
    place.mkdir()
    with file_system("ext4", place, tmp_path, megabytes=16):
        blob, legacy, before = twins(place, b"x" * 8192)

        with pytest.raises(SharingUnsupportedError, match=f"ext4 at {place}"):
            share_file(str(blob), str(legacy), before, rehearse=True)


def test_a_file_on_another_file_system_than_the_store_is_named(disk: Path, tmp_path: Path):
    blob, _, _ = twins(disk, b"x" * 8192)
    legacy = tmp_path / "legacy"
    legacy.write_bytes(b"x" * 8192)

    with pytest.raises(SharingUnsupportedError, match="legacy cannot share blocks with the store"):
        share_file(str(blob), str(legacy), Signature.of(legacy.stat()), rehearse=True)
