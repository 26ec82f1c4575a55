"""Letting a legacy file share its blob's blocks, where the file system can (XFS, Btrfs): the kernel compares
the bytes itself (FIDEDUPERANGE, ioctl_fideduperange(2)). Changes no name, no byte and no time.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worker.errors import (
    ReclaimRefusedError,
    SharingUnsupportedError,
    SourceChangedError,
    StoredBytesMismatchError,
)
from worker.legacy.mount_table import current_mounts, mount_of
from worker.runtime.throttle import Pace, unlimited
from worker.store.digest import Signature, opened, printable

RANGE_BYTES = 16 << 20
"""Btrfs takes no more at once; and after each range the job listens."""

_BLOCK_BYTES = 4096
_FIDEDUPERANGE = 0xC0189436
_FS_IOC_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQHHI")
_ANSWER = struct.Struct("=qQQiI")
_MAP_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_EXTENTS_AT_ONCE = 256
_MAP_SYNC = 1
_LAST, _INLINE, _UNWRITTEN, _SHARED = 0x1, 0x200, 0x800, 0x2000
_DIFFERS = 1
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV}


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a file's blocks: where it is in the file, and on the disk; `FIEMAP_EXTENT_…` flags."""

    start: int
    place: int
    size_bytes: int
    flags: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + self.size_bytes


def share_file(
    blob: str, path: str, expected: Signature, pace: Pace = unlimited, *, rehearse: bool = False
) -> int:
    """Let the file at a resolved path, as it was when it was hashed, share the blocks of a blob with its
    bytes; how many bytes the file system has back for it: of a file that shares them already, none.
    `rehearse` only counts.

    Twice, or after dying anywhere: what is shared stays so. What lies in the file system's own records
    (Btrfs' inline extents), or in a tail that the kernel does not share, stays where it is.

    Raises `SharingUnsupportedError` naming the file system, `SourceChangedError` when the file changed,
    `StoredBytesMismatchError` when the blob has not the bytes of the unchanged file.
    """
    if not expected.size_bytes:
        return 0
    with _stored(blob) as source, opened(path, expected) as target:
        check_supported(source, target, path)
        theirs, own = extents(source), extents(target)
        if any(one.flags & (_INLINE | _UNWRITTEN) for one in (*theirs, *own)):
            return 0
        freed = 0
        for start in range(0, expected.size_bytes, RANGE_BYTES):
            end = min(start + RANGE_BYTES, expected.size_bytes)
            mine = _within(own, start, end)
            if mine and _places(mine) != _places(_within(theirs, start, end)):
                reached = end if rehearse else _dedupe(source, target, start, end, path, expected)
                gone = _within(own, start, reached)
                freed += sum(one.size_bytes for one in gone if not one.flags & _SHARED)
            pace(end - start)
        return freed


def check_supported(blob: int, target: int, path: str) -> None:
    """Raise `SharingUnsupportedError` unless an open file, whose path this is, can share blocks with an open
    blob. Changes nothing.
    """
    with _naming_the_file_system(path):
        # A file with itself: refused for that by a file system that can share, for another reason elsewhere.
        size_bytes = min(_BLOCK_BYTES, os.fstat(blob).st_size)
        for to, asked_bytes in ((blob, size_bytes), (target, 0)):
            _, status = _ask(blob, to, 0, asked_bytes)
            if -status in _UNSUPPORTED:
                raise OSError(-status, os.strerror(-status))
            if to == target and status < 0:
                raise ReclaimRefusedError(f"Cannot share {printable(path)}: {os.strerror(-status)}")


def extents(descriptor: int) -> list[Extent]:
    """Where an open file lies on its disk (FIEMAP), after what was written to it has reached it; empty where
    the file system does not say.
    """
    found: list[Extent] = []
    start = 0
    while True:
        some = _extents_from(descriptor, start)
        found += some
        if not some or some[-1].flags & _LAST:
            return found
        start = some[-1].end


def _extents_from(descriptor: int, start: int) -> list[Extent]:
    buffer = bytearray(_MAP_HEAD.size + _EXTENTS_AT_ONCE * _EXTENT.size)
    _MAP_HEAD.pack_into(buffer, 0, start, (1 << 64) - 1 - start, _MAP_SYNC, 0, _EXTENTS_AT_ONCE, 0)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
    except OSError:
        return []
    count = _MAP_HEAD.unpack_from(buffer)[3]
    rows = (_EXTENT.unpack_from(buffer, _MAP_HEAD.size + number * _EXTENT.size) for number in range(count))
    return [Extent(start=row[0], place=row[1], size_bytes=row[2], flags=row[5]) for row in rows]


def _within(among: list[Extent], start: int, end: int) -> list[Extent]:
    """The parts of extents that lie in a range of the file, whose last block may reach beyond it."""
    end = -(-end // _BLOCK_BYTES) * _BLOCK_BYTES
    cut = ((one, max(one.start, start), min(one.end, end)) for one in among)
    return [
        Extent(first, one.place + first - one.start, last - first, one.flags)
        for one, first, last in cut
        if first < last
    ]


def _places(parts: list[Extent]) -> list[tuple[int, int, int]]:
    """Where parts of a file lie on the disk; adjoining ones as one, because how many there are says
    nothing.
    """
    found: list[tuple[int, int, int]] = []
    for one in parts:
        if found and one.start == sum(found[-1][::2]) and one.place == found[-1][1] + found[-1][2]:
            start, place, size_bytes = found.pop()
            found.append((start, place, size_bytes + one.size_bytes))
        else:
            found.append((one.start, one.place, one.size_bytes))
    return found


@contextmanager
def _stored(blob: str) -> Iterator[int]:
    try:
        descriptor = os.open(blob, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StoredBytesMismatchError(
            f"Blob cannot be opened: {printable(blob)}: {error.strerror}"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _dedupe(source: int, target: int, start: int, end: int, path: str, expected: Signature) -> int:
    """Share a range, as often as the kernel answers with a part of it; how far it came."""
    while start < end:
        with _naming_the_file_system(path):
            done, status = _ask(source, target, start, end - start)
            if -status in _UNSUPPORTED:
                raise OSError(-status, os.strerror(-status))
        if status == -errno.EINVAL and (end - start) % _BLOCK_BYTES:
            # Older kernels share whole blocks only: the tail stays.
            end -= (end - start) % _BLOCK_BYTES
            continue
        if status == _DIFFERS:
            if expected.fits(os.fstat(target)):
                raise StoredBytesMismatchError(f"Its blob does not have the bytes of {printable(path)}")
            raise SourceChangedError(f"File changed while it was shared: {printable(path)}")
        if status < 0:
            raise ReclaimRefusedError(f"Cannot share {printable(path)}: {os.strerror(-status)}")
        if not done:
            break
        start += done
    return start


def _ask(source: int, target: int, start: int, size_bytes: int) -> tuple[int, int]:
    """One call: how many bytes are shared by it, and 0, FILE_DEDUPE_RANGE_DIFFERS or a negative error."""
    asked = bytearray(_HEAD.pack(start, size_bytes, 1, 0, 0) + _ANSWER.pack(target, start, 0, 0, 0))
    try:
        fcntl.ioctl(source, _FIDEDUPERANGE, asked)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0, -errno.EINVAL
    _, _, done, status, _ = _ANSWER.unpack_from(asked, _HEAD.size)
    return done, status


@contextmanager
def _naming_the_file_system(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        mount = mount_of(os.path.realpath(path), current_mounts())
        kind, point = (mount.kind, printable(mount.point)) if mount is not None else ("unknown", "?")
        raise SharingUnsupportedError(
            f"{printable(path)} cannot share blocks with the store: {kind} at {point}: {error.strerror}"
        ) from error
