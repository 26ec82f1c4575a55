"""`python -m tests.bench.blocks`: ways to read, hash and write, side by side, as tables in Markdown for
docs/performance.md.

Sources are in the page cache; new data counts as written when it is durable. What each row does is its
function below. Every row runs once a round, in an order of the round's own, after a moment of rest, into
fresh files.
"""

import argparse
import ctypes
import errno
import hashlib
import mmap
import os
import queue
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median

import blake3

from tests.bench.corpora import File, one_big, write
from tests.bench.measure import machine
from worker.legacy.row_counter import RowCounter

_FILES = 4
_SMALL_BYTES = 20_000
_KIB = 1 << 10
_MIB = 1 << 20
_USUAL = 256 * _KIB
_WINDOW = 8 * _MIB
_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE, _SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4
_RWF_DONTCACHE = 0x80
_LIBC = ctypes.CDLL(None, use_errno=True)

Step = Callable[[str, str], None]
"""Do something with one source file; the second argument is a path that is free for what it makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One row: `step` on every file, so many files at a time. `synced`: a sync of everything ends it.
    `unlinks`: it removes names, which makes new inodes dear for minutes on a file system without a journal;
    such rows run last.
    """

    name: str
    step: Step
    threads: int = 1
    synced: bool = False
    unlinks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one run of a block took."""

    wall_s: float
    cpu_s: float


# Reading and hashing ----------------------------------------------------------------------------------------


def read_only(source: str, _target: str) -> None:
    """Read with the usual buffer; the floor of everything below."""
    for _ in _chunks(source, _buffer(_USUAL)):
        pass


def hash_by(source: str, _target: str, *, size: int, offset: int = 0) -> None:
    """BLAKE3, one buffer of `size` bytes, page-aligned but for `offset`."""
    digest = blake3.blake3()
    for chunk in _chunks(source, _buffer(size + offset)[offset:]):
        digest.update(chunk)


def hash_and_count(source: str, _target: str) -> None:
    """BLAKE3, and the rows of the CSV by the worker's counter."""
    digest, counter = blake3.blake3(), RowCounter()
    for chunk in _chunks(source, _buffer(_USUAL)):
        digest.update(chunk)
        counter.feed(chunk)


def hash_and_newlines(source: str, _target: str) -> None:
    """BLAKE3, and newlines alone by bytearray.count: the least that counting can cost."""
    digest, buffer, lines = blake3.blake3(), bytearray(_USUAL), 0
    for chunk in _chunks(source, memoryview(buffer)):
        digest.update(chunk)
        lines += buffer.count(b"\n", 0, len(chunk))


def hash_mapped(source: str, _target: str, *, threads: int) -> None:
    """BLAKE3 over a memory map, by so many threads of its own."""
    blake3.blake3(max_threads=threads).update_mmap(source)


def hash_sha256(source: str, _target: str) -> None:
    """SHA-256 with the usual buffer."""
    digest = hashlib.sha256()
    for chunk in _chunks(source, _buffer(_USUAL)):
        digest.update(chunk)


def hash_naively(source: str, _target: str) -> None:
    """SHA-256 in steps of 4 KiB, as the reference tool."""
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while chunk := file.read(4096):
            digest.update(chunk)


# New content, big files -------------------------------------------------------------------------------------

Put = Callable[[int, memoryview, int], None]
"""Write a chunk at an offset of a descriptor."""


def put_plainly(target: int, chunk: memoryview, offset: int) -> None:
    """Write into the page cache."""
    os.pwrite(target, chunk, offset)


def put_early(target: int, chunk: memoryview, offset: int, *, drop: bool = False) -> None:
    """Write, and start the disk on every 8 MiB; with `drop`, wait for those before them and leave the
    cache.
    """
    os.pwrite(target, chunk, offset)
    end = offset + len(chunk)
    if end // _WINDOW == offset // _WINDOW:
        return
    begin = end // _WINDOW * _WINDOW - _WINDOW
    _sync_file_range(target, begin, _WINDOW, _SYNC_FILE_RANGE_WRITE)
    if drop and begin >= 2 * _WINDOW:
        old = begin - 2 * _WINDOW
        waiting = _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER
        _sync_file_range(target, old, _WINDOW, waiting)
        os.posix_fadvise(target, old, _WINDOW, os.POSIX_FADV_DONTNEED)


def put_uncached(target: int, chunk: memoryview, offset: int) -> None:
    """Write through the page cache without staying in it (Linux 6.14, RWF_DONTCACHE)."""
    os.pwritev(target, [chunk], offset, _RWF_DONTCACHE)


def copy_only(source: str, target: str) -> None:
    """Let the kernel copy, without a digest: the floor of what follows."""
    with _opened(source, target) as (reading, writing):
        while os.copy_file_range(reading, writing, 1 << 30):
            pass


def hash_then_copy(source: str, target: str) -> None:
    """Two readings: BLAKE3, then the kernel copies."""
    hash_by(source, target, size=_USUAL)
    copy_only(source, target)


def one_pass(
    source: str, target: str, *, put: Put, size: int = _USUAL, known_size: bool = False, count: bool = False
) -> None:
    """Read, hash and write chunk by chunk; `known_size` lays the file's blocks out first, `count` counts
    rows.
    """
    digest, counter, offset = blake3.blake3(), RowCounter(), 0
    with _opened(source, target) as (reading, writing):
        if known_size:
            os.posix_fallocate(writing, 0, max(1, os.fstat(reading).st_size))
        buffer = _buffer(size)
        while read := os.readv(reading, [buffer]):
            chunk = buffer[:read]
            digest.update(chunk)
            if count:
                counter.feed(chunk)
            put(writing, chunk, offset)
            offset += read


def hash_then_one_pass(source: str, target: str, *, put: Put) -> None:
    """Two readings and two digests, so that the second proves the first: hash, then hash while copying."""
    hash_by(source, target, size=_USUAL)
    one_pass(source, target, put=put)


def hash_beside_write(source: str, target: str) -> None:
    """One reading: a second thread writes early while this one hashes; four buffers between them."""
    empty: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
    for _ in range(4):
        empty.put(memoryview(mmap.mmap(-1, _USUAL)))

    def write_all(writing: int) -> None:
        offset = 0
        while (item := full.get()) is not None:
            buffer, length = item
            put_early(writing, buffer[:length], offset)
            offset += length
            empty.put(buffer)

    digest = blake3.blake3()
    with _opened(source, target) as (reading, writing):
        writer = threading.Thread(target=write_all, args=(writing,))
        writer.start()
        # The writer may give a buffer back while it is hashed here; only this thread would fill it again, and
        # only after that.
        while read := os.readv(reading, [buffer := empty.get()]):
            full.put((buffer, read))
            digest.update(buffer[:read])
        full.put(None)
        writer.join()


# New content, small files -----------------------------------------------------------------------------------


def small_hashed(source: str, _target: str) -> bytes:
    """Open, look at it, read it in one go, look again, hash."""
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fstat(reading)
        content = os.read(reading, _USUAL)
        os.fstat(reading)
    finally:
        os.close(reading)
    blake3.blake3(content).hexdigest()
    return content


def small_straight(source: str, target: str, *, flush: bool = False) -> None:
    """Write under the final name."""
    _make(target, small_hashed(source, target), flush=flush)


def small_renamed(source: str, target: str) -> None:
    """Write beside it, rename."""
    _make(f"{target}.new", small_hashed(source, target))
    os.rename(f"{target}.new", target)


def small_linked(source: str, target: str) -> None:
    """Write in a staging folder, link, remove the staged name."""
    staged = f"{os.path.dirname(target)}/staging-{os.path.basename(target)}"
    _make(staged, small_hashed(source, target))
    os.link(staged, target)
    os.unlink(staged)


def small_read_twice(source: str, target: str) -> None:
    """Hash first, read and hash again into staging, link, remove the staged name: what a store does that
    trusts nothing.
    """
    small_hashed(source, target)
    small_linked(source, target)


def small_nameless(source: str, target: str) -> None:
    """Write a file without a name (O_TMPFILE), then link it."""
    content = small_hashed(source, target)
    writing = os.open(os.path.dirname(target), os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o444)
    try:
        os.write(writing, content)
        # Only with a directory's descriptor does Python call linkat(2), which can follow the link.
        os.link(str(writing), target, src_dir_fd=_own_descriptors(), follow_symlinks=True)
    finally:
        os.close(writing)


def small_with_tree(source: str, target: str) -> None:
    """Write under the final name, and link that into a tree."""
    small_straight(source, target)
    os.link(target, f"{target}.in-tree")


@cache
def _own_descriptors() -> int:
    return os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _make(target: str, content: bytes, *, flush: bool = False) -> None:
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        os.write(writing, content)
        if flush:
            os.fsync(writing)
    finally:
        os.close(writing)


# What they share --------------------------------------------------------------------------------------------


_own = threading.local()


def _buffer(size: int) -> memoryview:
    """This thread's own page-aligned buffer of that size, made once: fresh memory is dear."""
    if not hasattr(_own, "buffers"):
        _own.buffers = {}
    buffers: dict[int, memoryview] = _own.buffers
    return buffers.setdefault(size, buffers.get(size) or memoryview(mmap.mmap(-1, size)))


def _chunks(source: str, buffer: memoryview) -> Iterator[memoryview]:
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while count := os.readv(reading, [buffer]):
            yield buffer[:count]
    finally:
        os.close(reading)


@contextmanager
def _opened(source: str, target: str) -> Iterator[tuple[int, int]]:
    """Descriptors of both; what was written is durable at the end of the block."""
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        yield reading, writing
        os.fsync(writing)
    finally:
        os.close(writing)
        os.close(reading)


def _sync_file_range(descriptor: int, offset: int, length: int, flags: int) -> None:
    if _LIBC.sync_file_range(descriptor, ctypes.c_long(offset), ctypes.c_long(length), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# The tables -------------------------------------------------------------------------------------------------

HASHING = (
    Block(name="read only, 256 KiB", step=read_only),
    *(
        Block(name=f"blake3, {size // _KIB} KiB", step=partial(hash_by, size=size))
        for size in (64 * _KIB, _USUAL, _MIB, 4 * _MIB)
    ),
    Block(name="blake3, 256 KiB, buffer at an odd address", step=partial(hash_by, size=_USUAL, offset=1)),
    Block(name="blake3 over mmap", step=partial(hash_mapped, threads=1)),
    Block(name="blake3 over mmap, threads of its own", step=partial(hash_mapped, threads=blake3.blake3.AUTO)),
    Block(name="blake3 + RowCounter", step=hash_and_count),
    Block(name="blake3 + newlines only", step=hash_and_newlines),
    Block(name="blake3, 2 files at a time", step=partial(hash_by, size=_USUAL), threads=2),
    Block(name="blake3 + RowCounter, 2 files at a time", step=hash_and_count, threads=2),
    Block(name="sha256", step=hash_sha256),
    Block(name="sha256, 2 files at a time", step=hash_sha256, threads=2),
    Block(name="naive: sha256, read(4096)", step=hash_naively),
)

_WAYS: tuple[tuple[str, Step], ...] = (
    ("copy_file_range, no digest", copy_only),
    ("hash, then copy_file_range", hash_then_copy),
    ("hash, then hash + write", partial(hash_then_one_pass, put=put_plainly)),
    ("hash, then hash + write early", partial(hash_then_one_pass, put=put_early)),
    ("one pass, write", partial(one_pass, put=put_plainly)),
    ("one pass, write, 1 MiB", partial(one_pass, put=put_plainly, size=_MIB)),
    ("one pass, fallocate, write", partial(one_pass, put=put_plainly, known_size=True)),
    ("one pass, write early", partial(one_pass, put=put_early)),
    ("one pass, fallocate, write early", partial(one_pass, put=put_early, known_size=True)),
    ("one pass, write early, drop", partial(one_pass, put=partial(put_early, drop=True))),
    ("one pass, DONTCACHE", partial(one_pass, put=put_uncached)),
    ("one pass, DONTCACHE, 1 MiB", partial(one_pass, put=put_uncached, size=_MIB)),
    ("one pass, fallocate, DONTCACHE", partial(one_pass, put=put_uncached, known_size=True)),
    (
        "one pass + RowCounter, fallocate, DONTCACHE",
        partial(one_pass, put=put_uncached, known_size=True, count=True),
    ),
    ("hash beside write early", hash_beside_write),
)
COPYING = tuple(
    Block(name=f"{name}{', 2 files at a time' if threads == 2 else ''}", step=step, threads=threads)
    for threads in (1, 2)
    for name, step in _WAYS
)

_SMALL_WAYS: tuple[tuple[str, Callable[[str, str], object], bool], ...] = (
    ("open, fstat, read, fstat, blake3", small_hashed, False),
    ("+ write under the final name", small_straight, True),
    ("+ write beside, rename", small_renamed, True),
    ("+ write in staging, link, unlink", small_linked, True),
    ("+ hash first, read again, staging, link, unlink", small_read_twice, True),
    ("+ O_TMPFILE, link", small_nameless, True),
    ("+ write under the final name, link into a tree", small_with_tree, True),
    ("+ write under the final name, fsync each", partial(small_straight, flush=True), False),
)
SMALL = tuple(
    Block(
        name=f"{name}{', 2 at a time' if threads == 2 else ''}",
        step=step,  # type: ignore[arg-type]
        threads=threads,
        synced=synced,
        unlinks="unlink" in name,
    )
    for threads in (1, 2)
    for name, step, synced in _SMALL_WAYS
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables that were asked for."""
    options = _options(arguments)
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        facts = machine(folder)
        print(
            f"{facts['cores']} cores of {facts['cpu']}, Linux {facts['kernel']}, {facts['file_system']}, "
            f"Python {facts['python']}, load {facts['load_at_start']} at the start; median of {options.runs}"
        )
        table = partial(_table, folder=folder, runs=options.runs)
        if "hash" in options.only:
            table("Read and hash", HASHING, _big(folder, options.size), per="GB", settle_s=0.1)
        if "copy" in options.only:
            title = "New content, until durable"
            table(title, COPYING, _big(folder, options.size), per="GB", settle_s=options.settle)
        if "small" in options.only:
            title = f"New files of {_SMALL_BYTES // 1000} KB, until durable"
            table(title, SMALL, _small(folder, options.files), per="file", settle_s=min(1, options.settle))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.blocks", description=__doc__)
    parser.add_argument("--size", type=float, default=0.5, help="GB of big files; default 0.5")
    parser.add_argument("--files", type=int, default=4000, help="how many small files; default 4000")
    parser.add_argument("--runs", type=int, default=3, help="rounds; default 3")
    parser.add_argument(
        "--settle", type=float, default=3.0, help="seconds of rest before each copy; default 3"
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=["hash", "copy", "small"])
    parser.add_argument("--folder", type=Path, default=Path("bench-results/blocks"))
    return parser.parse_args(arguments)


def _big(folder: Path, gigabytes: float) -> list[str]:
    """Equal shares of that many bytes, in the cache."""
    return _sources(folder / "big", [int(gigabytes * 1e9 / _FILES)] * _FILES)


def _small(folder: Path, count: int) -> list[str]:
    return _sources(folder / "small", [_SMALL_BYTES] * count)


def _sources(folder: Path, sizes: Sequence[int]) -> list[str]:
    template = one_big(folder, 1).projects[0].files[0]
    folder.mkdir(exist_ok=True)
    paths = []
    for number, size in enumerate(sizes):
        path = folder / f"{number:05}.csv"
        if not path.exists():
            write(path, File(session="", name=template.name, number=number, about_bytes=size))
        paths.append(str(path))
    for each in paths:
        read_only(each, "")
    return paths


def _table(
    title: str,
    blocks: Sequence[Block],
    sources: list[str],
    *,
    folder: Path,
    runs: int,
    settle_s: float,
    per: str,
) -> None:
    """Run the blocks in turn, round by round, and print the medians."""
    taken: dict[str, list[Taken]] = {block.name: [] for block in blocks}
    refused: dict[str, str] = {}
    for block, target in _in_order(blocks, folder, runs):
        target.mkdir(parents=True)
        os.sync()
        time.sleep(settle_s)
        try:
            taken[block.name].append(_run(block, sources, target))
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            refused[block.name] = error.strerror or "refused"
    size = sum(os.stat(source).st_size for source in sources)
    units = size / 1e9 if per == "GB" else len(sources) / 1e6
    print(f"\n{title}\n")
    print("| how | s/GB | GB/s | cpu s/GB |" if per == "GB" else "| how | µs/file | files/s | cpu µs/file |")
    print("|---|--:|--:|--:|")
    for name, each in taken.items():
        if not each:
            print(f"| {name} | {refused[name]} | | |")
            continue
        wall, cpu = (median(run.wall_s for run in each) / units, median(run.cpu_s for run in each) / units)
        rate = f"{1 / wall:.2f}" if per == "GB" else f"{1e6 / wall:.0f}"
        digits = 3 if per == "GB" else 1
        print(f"| {name} | {wall:.{digits}f} | {rate} | {cpu:.{digits}f} |")


def _in_order(blocks: Sequence[Block], folder: Path, runs: int) -> Iterator[tuple[Block, Path]]:
    """Every block once a round, and where to: the state that a row leaves memory and disk in may help or harm
    the next one, so that is not always the same one.
    """
    for unlinks in (False, True):
        group = [block for block in blocks if block.unlinks == unlinks]
        for number in range(runs):
            place = folder / f"round-{number}"
            for block in random.Random(number).sample(group, len(group)):
                yield block, place / block.name
            if blocks is COPYING:  # a few files of many bytes; small ones stay to the end
                shutil.rmtree(place, ignore_errors=True)


def _run(block: Block, sources: Sequence[str], target: Path) -> Taken:
    """One block over all sources, an equal share for each thread."""
    pairs = [(source, f"{target}/{os.path.basename(source)}") for source in sources]

    def share(number: int) -> None:
        for source, path in pairs[number :: block.threads]:
            block.step(source, path)

    threads = _threads(block.threads)
    begin, cpu = time.perf_counter(), time.process_time()
    list(threads.map(share, range(block.threads)))
    if block.synced:
        os.sync()
    return Taken(wall_s=time.perf_counter() - begin, cpu_s=time.process_time() - cpu)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads that are there before the clock starts, and keep their buffers."""
    threads = ThreadPoolExecutor(count)
    all_there = threading.Barrier(count)
    list(threads.map(lambda _: all_there.wait(), range(count)))
    return threads


if __name__ == "__main__":
    sys.exit(main())
