"""`python -m tests.bench.slow_calls`: one project of very many files on a file system where each call by name
takes long, as on a network: how much several calls at a time help, how many calls a file takes, how much
memory, and how long the reading goes on without asking whether it is to pause.

Calls are made slow and counted by a small library before libc (`slow_calls.c`; needs gcc). Scanned and hashed
is as a dry run does it, without a database.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.corpora import one_project
from tests.bench.measure import machine, peak_mb
from worker.legacy.hash import hash_tree
from worker.legacy.roots import Roots
from worker.legacy.scan import scan
from worker.store.store import Store

_SOURCE = Path(__file__).with_suffix(".c")


def main() -> None:
    """Measure each number of threads, with and without slow calls, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/slow-calls"))
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--slow-us", type=int, default=500, help="how much longer a call takes")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2, 8, 16])
    parser.add_argument("--inner", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        print(json.dumps(_read(*options.inner)))
        return
    folder: Path = options.folder.resolve()
    corpus = one_project(folder / "corpora", options.files)
    corpus.make()
    project = corpus.root / corpus.projects[0].name
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (
        *("a call takes", "threads", "scan", "hash and second scan", "first / it"),
        *("stat, open, fstat a file", "longest without asking", "memory a file"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    with TemporaryDirectory() as temporary:
        library = Path(temporary, "slow.so")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"], check=True)
        for slow_us in (0, options.slow_us):
            first = 0.0
            for threads in options.threads:
                found = _measured(project, threads, slow_us, library, Path(temporary))
                whole = found["scan_s"] + found["hash_s"]
                first = first or whole
                table.add_row(*_row(found, slow_us, threads, first / whole))
    facts = machine(folder)
    Console(width=150, highlight=False).print(
        f"{options.files:,} files; {facts['cores']} cores, load {facts['load_at_start']} in the end", table
    )
    shutil.rmtree(folder)


def _row(found: Mapping[str, Any], slow_us: int, threads: int, ratio: float) -> list[str]:
    files = found["files"]
    calls = ", ".join(f"{found['calls'][kind] / files:.2f}" for kind in ("stat", "open", "fstat"))
    return [
        f"{slow_us} µs more" if slow_us else "as usual",
        f"{threads}",
        f"{found['scan_s']:.2f} s",
        f"{found['hash_s']:.2f} s",
        f"{ratio:.2f}",
        calls,
        f"{found['silence_s'] * 1e3:.0f} ms",
        f"{found['memory_bytes'] / files:,.0f} bytes",
    ]


def _measured(project: Path, threads: int, slow_us: int, library: Path, folder: Path) -> dict[str, Any]:
    counts = folder / "counts"
    env = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "SLOW_BELOW": str(project),
        "SLOW_US": f"{slow_us}",
        "SLOW_COUNTS": str(counts),
    }
    command = [sys.executable, "-m", __spec__.name, "--inner", str(project), f"{threads}", str(folder)]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    calls = dict(line.split() for line in counts.read_text().splitlines())
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"calls": {kind: int(count) for kind, count in calls.items()}}


def _read(project: str, threads: str, folder: str) -> dict[str, float]:
    """Scan and hash in this process."""
    roots = Roots(allowed=(Path(project).parent,), store=())
    store = Store(Path(folder, "dataset_store"), Path(folder, "raw_datasets"), "blake3", None)
    asked = [time.perf_counter()]
    silence = [0.0]

    def pace(_count: int) -> None:
        now = time.perf_counter()
        silence[0], asked[0] = max(silence[0], now - asked[0]), now

    before = peak_mb({os.getpid()})
    with ThreadPoolExecutor(int(threads)) as pool:
        begin = time.perf_counter()
        scanned = scan(project, roots, pace, threads=pool)
        between = time.perf_counter()
        tree = hash_tree(scanned, roots=roots, store=store, threads=pool, pace=pace)
        end = time.perf_counter()
    return {
        "files": len(tree.scan.files),
        "scan_s": between - begin,
        "hash_s": end - between,
        "silence_s": silence[0],
        "memory_bytes": (peak_mb({os.getpid()}) - before) * 1e6,
    }


if __name__ == "__main__":
    main()
