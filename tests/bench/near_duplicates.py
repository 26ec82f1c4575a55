"""`python -m tests.bench.near_duplicates`: a search for near-duplicates against hashing the same files, in
turn and as ratios, page cache warm: recordings that begin apart, the same with planted pairs, one long pair.

On a busy machine the ratios of processor time count: all threads of this process, whatever it waited for.
"""

import argparse
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.support.alike import recorded, uploaded, write
from tests.support.planted import THREADS, plant, search
from worker.legacy.parallel import buffer_for
from worker.store.digest import new_hasher, read_stored

_AT_ONCE = 64


def main() -> None:
    """Make the recordings, measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/near-duplicates"))
    parser.add_argument("--recordings", type=int, default=2_000)
    parser.add_argument("--records", type=int, default=1_000_000, help="of the long pair")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        apart = plant(folder / "apart", options.recordings, each=0).paths
        # Those that begin at one moment, or never move, are alike at first.
        _measure("begin apart", [path for path in apart if path.name[-5] not in "01"], options.rounds)
        _measure("planted pairs", plant(folder / "pairs", options.recordings, each=10).paths, options.rounds)
        raw = recorded(1, options.records)
        long = [write(raw, folder / "raw.csv"), write(uploaded(raw)[0], folder / "once.csv")]
        _measure("one long pair", long, options.rounds)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"peak memory, with what made the files: {peak_mb:,.0f} MB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(name: str, paths: Sequence[Path], rounds: int) -> None:
    size = sum(path.stat().st_size for path in paths)
    found = search(paths)
    ratios = []
    for _ in range(rounds):
        hashed, searched = _timed(partial(_hash_all, paths)), _timed(partial(search, paths))
        ratios.append((searched[0] / hashed[0], searched[1] / hashed[1]))
    walls, processor = zip(*ratios, strict=True)
    print(
        f"{name}: {len(paths):,} recordings, {size / 1e6:,.0f} MB, {len(found.pairs)} pairs, "
        f"{found.comparisons} compared; {statistics.median(walls):.2f} times as long as hashing, "
        f"{statistics.median(processor):.2f} times the processor time ({min(processor):.2f} to {max(processor):.2f})",
        flush=True,
    )


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def _hash_all(paths: Sequence[Path]) -> None:
    def hash_some(some: Sequence[Path]) -> None:
        for path in some:
            hasher = new_hasher("blake3")
            for chunk in read_stored(str(path), buffer_for(path.stat().st_size)):
                hasher.update(chunk)

    with ThreadPoolExecutor(THREADS) as threads:
        parts = [paths[at : at + _AT_ONCE] for at in range(0, len(paths), _AT_ONCE)]
        list(threads.map(hash_some, parts))


if __name__ == "__main__":
    main()
