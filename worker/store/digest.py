"""Digests of content, and reading a source file so that a change under our hands is noticed. Knows no
store.
"""

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import blake3

from worker.errors import EntryUnreadableError, ProjectError, SourceChangedError
from worker.runtime.throttle import Pace, unlimited
from worker.store.beneath import open_resolved
from worker.store.syscalls import is_remote, refresh_descriptor

Algorithm = Literal["blake3", "sha256"]

CHUNK_BYTES = 256 * 1024
"""Small enough to stay in the second-level cache between reading, hashing and writing."""

BIG_BYTES = 8 << 20
"""From this size on a file is worth more than one thread, and worth asking whether it was met before."""

BIG_CHUNK_BYTES = 1 << 20
"""The chunk of big files: handing a chunk to other threads costs as much as hashing a small one."""

HEAD_BYTES = 64 * 1024
"""How much of a big file is read to tell whether it was met before."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_VANISHED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}


Sink = Callable[[memoryview], object]
"""Something that is shown every chunk of a file, in order."""


class Hasher(Protocol):
    """What blake3 and hashlib have in common."""

    def update(self, data: memoryview, /) -> object:
        """Take more content."""

    def hexdigest(self) -> str:
        """64 lower-case hex characters."""


def new_hasher(algorithm: Algorithm) -> Hasher:
    """A fresh hasher of 256-bit digests."""
    return blake3.blake3() if algorithm == "blake3" else hashlib.sha256()


def digest_of(algorithm: Algorithm, content: bytes) -> str:
    """The digest of bytes in memory."""
    hasher = new_hasher(algorithm)
    hasher.update(memoryview(content))
    return hasher.hexdigest()


def bytes_have_digest(path: str, digest: str, algorithm: Algorithm) -> bool:
    """Is there a file whose bytes have this digest? Read in parts, as it may be large, and as it is right
    now.
    """
    hasher = new_hasher(algorithm)
    try:
        with open(path, "rb", buffering=0) as file:
            while part := file.read(BIG_CHUNK_BYTES):
                hasher.update(memoryview(part))
    except OSError:
        return False
    return hasher.hexdigest() == digest


def new_buffer(size_bytes: int = CHUNK_BYTES) -> memoryview:
    """A page-aligned buffer: reads into odd addresses cost three times as much."""
    return memoryview(mmap.mmap(-1, size_bytes))


def printable(path: str) -> str:
    r"""A path for messages and JSON: bytes that are not UTF-8 appear as `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What `stat` says of a file; while it stays equal, the content is taken to be the same. No `ctime_ns`:
    it may be any.
    """

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int | None

    @staticmethod
    def of(status: os.stat_result) -> "Signature":
        """From a stat result."""
        return Signature(
            device=status.st_dev,
            inode=status.st_ino,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )

    @staticmethod
    def of_stored(status: os.stat_result) -> "Signature":
        """Of a file in the store, whose time of change moves whenever a job links it into a tree."""
        return Signature(
            device=status.st_dev,
            inode=status.st_ino,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=None,
        )

    def fits(self, status: os.stat_result) -> bool:
        """Does a stat result say the same?"""
        return (
            self.inode == status.st_ino
            and self.device == status.st_dev
            and self.size_bytes == status.st_size
            and self.mtime_ns == status.st_mtime_ns
            and self.ctime_ns in {None, status.st_ctime_ns}
        )


def read_chunks(
    path: str,
    expected: Signature,
    buffer: memoryview,
    pace: Pace = unlimited,
    *,
    through_links: bool = False,
) -> Generator[memoryview, None, None]:
    """The file's content in chunks that are views of `buffer`, each valid until the next.

    `path` and `through_links` as of `opened`. Raises `SourceChangedError` when the file is not the one
    described by `expected`, before, during or after reading, and `EntryUnreadableError` when it cannot be
    read; both name the file.
    """
    with opened(path, expected, through_links=through_links) as descriptor:
        yield from chunks_of(descriptor, path, expected.size_bytes, buffer, pace)


def read_stored(
    path: str, buffer: memoryview, pace: Pace = unlimited, *, clone_of: str | None = None
) -> Generator[memoryview, None, None]:
    """The content of a stored file, as `read_chunks` gives it: whichever file has the name when it is opened.

    By what was opened, not by what its name says before: another worker may be putting a good file in its
    place. Errors name the file, or, of one that shares the blocks of another, that one (`clone_of`).
    """
    named = clone_of or path
    with reading(named):
        descriptor = os.open(path, _READ)
    try:
        with reading(named):
            expected = Signature.of_stored(os.fstat(descriptor))
        _check_unchanged(descriptor, expected, named)
        yield from chunks_of(descriptor, named, expected.size_bytes, buffer, pace)
        _check_unchanged(descriptor, expected, named)
    finally:
        os.close(descriptor)


def chunks_of(
    descriptor: int, path: str, size_bytes: int, buffer: memoryview, pace: Pace
) -> Iterator[memoryview]:
    """The content of an open file of this size, as `read_chunks` gives it; errors name the path."""
    remaining = size_bytes
    while True:
        with reading(path):
            count = os.readv(descriptor, [buffer])
        if count == 0:
            break
        remaining -= count
        pace(count)
        if remaining < 0:
            # Not read to its end first: something may be writing to it as fast as we read.
            break
        yield buffer[:count]
    if remaining:
        raise SourceChangedError(f"File changed while it was read: {printable(path)}")


@contextmanager
def opened(path: str, expected: Signature, *, through_links: bool = False) -> Iterator[int]:
    """A descriptor of the file described by `expected`; checked again at the end. Errors as `read_chunks`.

    The one door to the bytes of a source. Its path is a resolved one: no link is followed on the way, so that
    a directory that becomes a link after the scan cannot lead out of the allowed roots. `through_links` is
    for files of the store's own, whose directories the operator may reach by a link. The last component is
    never followed when it is a link, and a pipe that took the file's place cannot block.
    """
    with reading(path):
        descriptor = os.open(path, _READ) if through_links else open_resolved(path, _READ)
    try:
        _check_unchanged(descriptor, expected, path)
        yield descriptor
        if is_remote(descriptor, expected.device):
            # Opening asked the server; what was written on another machine since is known to it alone.
            refresh_descriptor(descriptor)
        _check_unchanged(descriptor, expected, path)
    finally:
        os.close(descriptor)


def hash_file(
    path: str,
    expected: Signature,
    algorithm: Algorithm,
    buffer: memoryview,
    observe: Sink | None = None,
    pace: Pace = unlimited,
    *,
    through_links: bool = False,
) -> str:
    """The digest of a file in one pass; `observe` is shown every chunk on the way. Errors as
    `read_chunks`.
    """
    hasher = new_hasher(algorithm)
    sinks: list[Sink] = [hasher.update] if observe is None else [hasher.update, observe]
    show = abreast if expected.size_bytes >= BIG_BYTES else one_by_one
    for chunk in read_chunks(path, expected, buffer, pace, through_links=through_links):
        show(chunk, sinks)
    return hasher.hexdigest()


def one_by_one(chunk: memoryview, sinks: Sequence[Sink]) -> None:
    """Show a chunk to each sink in turn: for files that are over before a thread has begun."""
    for sink in sinks:
        sink(chunk)


def abreast(chunk: memoryview, sinks: Sequence[Sink]) -> None:
    """Show a chunk to all sinks at once: the last in this thread, the others beside it; returns when all are
    done.

    A single big file then uses more than one core: hashing, counting and writing leave the interpreter's
    lock.
    """
    beside = [_side_threads(os.getpid()).submit(sink, chunk) for sink in sinks[:-1]]
    try:
        sinks[-1](chunk)
    finally:
        for future in beside:
            future.result()


@cache
def _side_threads(_pid: int) -> ThreadPoolExecutor:
    """Threads of this process for `abreast`; a fork inherits none, so each process makes its own."""
    return ThreadPoolExecutor(2, thread_name_prefix="abreast")


def both(one: Sink | None, other: Sink | None) -> Sink | None:
    """A sink that shows a chunk to both, of which each may be none."""
    if one is None or other is None:
        return one or other

    def show(chunk: memoryview) -> None:
        one(chunk)
        other(chunk)

    return show


class Head:
    """Watches a big file pass by for the digest of its beginning, as `head_of` takes it."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._hasher = new_hasher(algorithm)
        self._seen = 0

    def feed(self, chunk: memoryview) -> None:
        """Take the next part of the file."""
        if self._seen < HEAD_BYTES:
            self._hasher.update(chunk[: HEAD_BYTES - self._seen])
            self._seen += len(chunk)

    @property
    def digest(self) -> str | None:
        """None of a file that did not pass by."""
        return self._hasher.hexdigest() if self._seen else None


def head_of(
    path: str, expected: Signature, algorithm: Algorithm, buffer: memoryview, pace: Pace = unlimited
) -> str:
    """The digest of a file's first chunk: with its size a cheap hint at whether its content was met
    before.
    """
    chunks = read_chunks(path, expected, buffer[:HEAD_BYTES], pace)
    hasher = new_hasher(algorithm)
    hasher.update(next(chunks, buffer[:0]))
    chunks.close()
    return hasher.hexdigest()


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn operating-system errors on a source into errors that name it."""
    try:
        yield
    except OSError as error:
        raise not_read(path, error) from error


def not_read(path: str, error: OSError) -> ProjectError:
    """What an operating-system error on a source means, with the source named."""
    if error.errno in _VANISHED:
        return SourceChangedError(f"Entry vanished while it was read: {printable(path)}")
    return EntryUnreadableError(f"Cannot read {printable(path)}: {error.strerror}")


def _check_unchanged(descriptor: int, expected: Signature, path: str) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not expected.fits(status):
        raise SourceChangedError(f"File changed while it was read: {printable(path)}")
