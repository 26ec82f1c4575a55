"""`python -m tests.bench.cloning`: what it costs to store a file by sharing its blocks, and to hash it, in
either order, beside copying and beside hashing alone, by size of file, on XFS and Btrfs; as tables in
Markdown.

Each figure is the median of the rounds, in microseconds a file, until all of it is durable. What is cold is
so for all: the kernel's caches are dropped before each.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from blake3 import blake3

from tests.bench.loop_disks import KINDS, loop_disk
from tests.bench.measure import drop_caches, machine
from worker.store.cloning import share_blocks
from worker.store.syscalls import sync_file_system

_KIB, _MIB = 1 << 10, 1 << 20
_SIZES = (4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, _MIB, 16 * _MIB, 256 * _MIB)
_MOST_FILES = 1_000
_BUFFER = memoryview(bytearray(256 * _KIB))

Way = Callable[[Path, Path], None]
"""Do something with a file; the second path is free for what it makes."""


# Ways -------------------------------------------------------------------------------------------------------


def hash_alone(source: Path, _target: Path) -> None:
    """What every migration has to do."""
    with source.open("rb", buffering=0) as file:
        _hash(file.fileno())


def copy_and_hash(source: Path, target: Path) -> None:
    """One pass, as where no blocks can be shared."""
    with source.open("rb", buffering=0) as file, target.open("xb", buffering=0) as copy:
        digest = blake3()
        while count := os.readv(file.fileno(), [_BUFFER]):
            digest.update(_BUFFER[:count])
            copy.write(_BUFFER[:count])
        digest.digest()


def clone_then_hash(source: Path, target: Path) -> None:
    """The bytes of the clone are those that are hashed, whatever happens to the source."""
    with source.open("rb", buffering=0) as file, target.open("x+b", buffering=0) as clone:
        share_blocks(file.fileno(), clone.fileno())
        _hash(clone.fileno())


def hash_then_clone(source: Path, target: Path) -> None:
    """What is hashed may not be what is cloned: it would have to be hashed again."""
    with source.open("rb", buffering=0) as file, target.open("x+b", buffering=0) as clone:
        _hash(file.fileno())
        share_blocks(file.fileno(), clone.fileno())


def _hash(file: int) -> None:
    digest = blake3()
    while count := os.readv(file, [_BUFFER]):
        digest.update(_BUFFER[:count])
    digest.digest()


WAYS: dict[str, Way] = {
    "hash alone": hash_alone,
    "copy and hash": copy_and_hash,
    "clone, then hash": clone_then_hash,
    "hash, then clone": hash_then_clone,
}


# Measuring --------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/cloning"))
    parser.add_argument(
        "--megabytes", type=int, default=256, help="of files of each size, at most; default 256"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for kind in KINDS:
            with loop_disk(kind, folder, 2_000 + 8 * options.megabytes) as place:
                if place is not None:
                    _measure(kind, place, options.megabytes * _MIB, options.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(kind: str, place: Path, most_bytes: int, rounds: int) -> None:
    facts = machine(place)
    print(f"\n{kind}, {facts['cores']} cores, load at the start {facts['load_at_start']}\n")
    print(f"| size | files | cache | {' | '.join(WAYS)} |")
    print(f"|--:|--:|---|{'--:|' * len(WAYS)}", flush=True)
    for size in (one for one in _SIZES if one <= most_bytes):
        sources = _sources(place / "sources", size, min(_MOST_FILES, most_bytes // size))
        for cache in ("cold", "warm"):
            found = _rounds(sources, place / "made", rounds, is_cold=cache == "cold")
            alone = found["hash alone"]
            cells = [
                f"{alone:,.0f} µs",
                *(_cell(found[name], alone) for name in WAYS if name != "hash alone"),
            ]
            print(f"| {_words(size)} | {len(sources):,} | {cache} | {' | '.join(cells)} |", flush=True)
        shutil.rmtree(place / "sources")


def _sources(folder: Path, size: int, count: int) -> list[Path]:
    """Files of random bytes, all of them different."""
    folder.mkdir()
    bytes_of_all = os.urandom(min(size, _MIB))
    paths = [folder / str(number) for number in range(count)]
    for number, path in enumerate(paths):
        with path.open("wb") as file:
            file.write(number.to_bytes(8, "little"))
            for start in range(0, size, len(bytes_of_all)):
                file.write(bytes_of_all[8 if start == 0 else 0 :])
    return paths


def _rounds(sources: Sequence[Path], made: Path, rounds: int, *, is_cold: bool) -> dict[str, float]:
    """Microseconds a file, of each way in turn, median of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            made.mkdir()
            if is_cold:
                drop_caches()
            else:
                for source in sources:
                    hash_alone(source, made)
                os.sync()
            times[name].append(_timed(way, sources, made) / len(sources) * 1e6)
            shutil.rmtree(made)
            os.sync()
    return {name: median(found) for name, found in times.items()}


def _timed(way: Way, sources: Sequence[Path], made: Path) -> float:
    begin = time.perf_counter()
    for source in sources:
        way(source, made / source.name)
    folder = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Of this file system alone: what others have to write is no part of it.
        sync_file_system(folder)
    finally:
        os.close(folder)
    return time.perf_counter() - begin


def _cell(found: float, alone: float) -> str:
    return f"{found:,.0f} µs ({found / alone:.2f})"


def _words(size: int) -> str:
    return f"{size // _MIB} MiB" if size >= _MIB else f"{size // _KIB} KiB"


if __name__ == "__main__":
    main()
