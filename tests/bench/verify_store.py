"""`python -m tests.bench.verify_store`: a verification of the store against two b3sum processes over the same
blobs, in turn and as a ratio, from memory and, for root, from the disk; then what the repair of one blob
costs in a store of many datasets.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from producer.runs import verification
from producer.runs.legacy_projects import enqueue
from producer.runs.verification import Wanted
from tests.bench.corpora import Corpus, large, many_files, tiny
from tests.bench.measure import DROP_CACHES, drop_caches, peak_mb
from tests.bench.system import System, await_end
from tests.support.damages import flip
from tests.support.ledger_rows import recorded_outcomes
from worker.messages import Status
from worker.settings import Settings


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/verify-store"))
    parser.add_argument("--size", type=float, default=0.6, help="of the corpora; 1 is 3.4 GB of big files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--datasets", type=int, default=10_000, help="in the store of which one is repaired")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with System.running(folder, folder / "corpora") as system:
            for corpus in (
                large(folder / "corpora", options.size),
                many_files(folder / "corpora", options.size / 4),
            ):
                _against_b3sum(system, corpus, folder / f"data-{corpus.name}", options.rounds)
            if options.datasets:
                many = tiny(folder / "corpora", 1, name="datasets", projects=options.datasets)
                _repair_of_one(system, many, folder / "data-datasets")
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _against_b3sum(system: System, corpus: Corpus, data_dir: Path, rounds: int) -> None:
    with system.ready(corpus, data_dir) as (engine, pids, _), system.settings(data_dir) as settings:
        await_end(engine, enqueue(settings, engine, dry_run=False).run_id)
        blobs = {str(path): path.stat().st_size for path in data_dir.glob("dataset_store/blobs/*/*")}
        total = sum(blobs.values())
        _verified_s(settings, engine, total)
        for cache, settle in _CACHES.items():
            if settle is not None and not os.access(DROP_CACHES, os.W_OK):
                print(f"{corpus.name}, {cache}: not measured, {DROP_CACHES} cannot be written")
                continue
            ratios, ours, theirs = list[float](), list[float](), list[float]()
            for _ in range(rounds):
                for times, contender in (
                    (theirs, partial(_b3sum_s, blobs)),
                    (ours, partial(_verified_s, settings, engine, total)),
                ):
                    if settle is not None:
                        settle()
                    times.append(contender())
                ratios.append(ours[-1] / theirs[-1])
            print(
                f"{corpus.name}, {cache}: {len(blobs):,} blobs, {total / 1e6:,.0f} MB; verify {statistics.median(ours):.2f} s "
                f"({total / 1e6 / statistics.median(ours):,.0f} MB/s), b3sum x 2 {statistics.median(theirs):.2f} s "
                f"({total / 1e6 / statistics.median(theirs):,.0f} MB/s); ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}); biggest worker {peak_mb(pids):.0f} MB",
                flush=True,
            )


_CACHES: dict[str, Callable[[], None] | None] = {
    "from memory": None,
    "from the disk": drop_caches,
}


def _verified_s(settings: Settings, engine: Engine, total: int) -> float:
    """From the opening of the run to its last outcome; everything must have been read and found right."""
    begin = time.perf_counter()
    run_id = verification.verify(settings, engine, wanted=Wanted(store=True)).run_id
    await_end(engine, run_id)
    seconds = time.perf_counter() - begin
    with engine.connect() as conn:
        outcomes = recorded_outcomes(conn, run_id).values()
    assert {outcome.status for outcome in outcomes} == {Status.VERIFIED}
    # The warm-up's projects are stored there, too.
    assert sum(outcome.verified.bytes_verified for outcome in outcomes) == total
    return seconds


def _b3sum_s(blobs: dict[str, int]) -> float:
    """Two processes, each with about half of the bytes."""
    shares: list[tuple[int, list[str]]] = [(0, []), (0, [])]
    for name in sorted(blobs, key=lambda name: -blobs[name]):
        shares.sort(key=lambda share: share[0])
        shares[0] = (shares[0][0] + blobs[name], [*shares[0][1], name])
    begin = time.perf_counter()
    processes = []
    for _, names in shares:
        process = subprocess.Popen(
            ["xargs", "-0", "-n", "2000", "b3sum"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        processes.append((process, "\0".join(names).encode()))
    threads = [threading.Thread(target=process.communicate, args=(names,)) for process, names in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(process.returncode == 0 for process, _ in processes)
    return time.perf_counter() - begin


def _repair_of_one(system: System, corpus: Corpus, data_dir: Path) -> None:
    """One flipped bit in one of many datasets; the workers' calls that open something are counted by strace,
    where that is installed: from the job's beginning to its end, most of them of manifest, tree and blobs of
    this dataset.
    """
    with system.ready(corpus, data_dir) as (engine, pids, _), system.settings(data_dir) as settings:
        await_end(engine, enqueue(settings, engine, dry_run=False).run_id)
        with engine.connect() as conn:
            stored = conn.exec_driver_sql("select dataset_id, file_path from raw_datasets").all()
        for traced in (False, True):
            dataset_id, tree = stored[len(stored) // 2 + traced]
            flip(next(Path(tree).glob("*/accelerometer_data.csv")))
            with _counting_opens(pids if traced else ()) as opened:
                begin = time.perf_counter()
                wanted = Wanted(store=True, repair=True, dataset_ids=(dataset_id,))
                run_id = verification.verify(settings, engine, wanted=wanted).run_id
                opened_s = time.perf_counter() - begin
                await_end(engine, run_id)
                seconds = time.perf_counter() - begin
            with engine.connect() as conn:
                (outcome,) = recorded_outcomes(conn, run_id).values()
            assert outcome.status is Status.REPAIRED, outcome
            assert len(outcome.damaged) == 1
            how = f"{opened[0]:,} calls of open" if opened else "not traced"
            print(
                f"repair of one blob among {len(stored):,} datasets: job {outcome.duration_s:.3f} s, with the "
                f"opening of its run ({opened_s:.2f} s) {seconds:.2f} s; {how}",
                flush=True,
            )


@contextmanager
def _counting_opens(pids: Collection[int]) -> Iterator[list[int]]:
    """How often these processes open something inside the block, when it has ended."""
    counted: list[int] = []
    if not pids or shutil.which("strace") is None:
        yield counted
        return
    command = ["strace", "-f", "-c", "-e", "trace=open,openat,openat2", *(f"-p{pid}" for pid in pids)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        time.sleep(1.0)
        yield counted
        tracer.send_signal(signal.SIGINT)
        _, table = tracer.communicate()
    rows = [line.split() for line in table.splitlines()]
    counted.append(sum(int(row[3]) for row in rows if row and row[-1] in {"open", "openat", "openat2"}))


if __name__ == "__main__":
    main()
