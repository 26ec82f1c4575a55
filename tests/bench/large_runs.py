"""`python -m tests.bench.large_runs`: what `producer collect` takes for the report of a finished run of very
many jobs: seconds, memory, and the sizes of its two files. Rows and results are made up; there are no files.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import redis
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from tests.bench.measure import peak_mb
from tests.bench.system import System
from tests.support.big_runs import dataset_outcomes, ended_run, project_outcomes
from tests.support.reports import BEGIN
from worker.db.engine import connect
from worker.messages import Verb

_LOOK_EVERY_S = 0.02
KINDS = ("migration", "dry run", "verification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collecting:
    """One `producer collect`. `cpu_s`: its processor time. `peak_mb`: the most resident memory it had."""

    kind: str
    jobs: int
    seconds: float
    cpu_s: float
    peak_mb: float
    json_mb: float
    html_mb: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.large_runs", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/large-runs"))
    parser.add_argument("--projects", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--keep", action="store_true", help="leave the reports")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = Console(width=120 if not sys.stdout.isatty() else None, highlight=False)
    found: list[Collecting] = []
    try:
        with (
            System.running(folder, folder / "corpora") as system,
            system.settings(folder / "data") as settings,
        ):
            engine = connect(settings.sqlalchemy_url, application_name="bench")
            with redis.Redis.from_url(settings.redis_url.get_secret_value()) as results:
                for kind in options.kinds:
                    for count in options.projects:
                        run_id = _write(engine, results, kind, count)
                        found.append(_collect(run_id, kind, count, folder / "reports"))
                        console.print(json.dumps(asdict(found[-1])))
                        results.flushdb()
            engine.dispose()
    finally:
        for made in ("state", "logs", "data", *(() if options.keep else ("reports",))):
            shutil.rmtree(folder / made, ignore_errors=True)
    console.print(table(found))


def _write(engine: Engine, results: "redis.Redis", kind: str, count: int) -> uuid.UUID:
    if kind == "verification":
        coverage = {
            "bytes_total": 6_000_000 * count,
            "bytes_elsewhere": 0,
            "oldest_check": BEGIN.isoformat(),
            "oldest_check_elsewhere": None,
        }
        selection: dict[str, object] = {"options": {"store": True}, "coverage": coverage}
        return ended_run(
            engine, dataset_outcomes(count), verb=Verb.VERIFY, selection=selection, results=results
        )
    dry_run = kind == "dry run"
    return ended_run(engine, project_outcomes(count, dry_run=dry_run), dry_run=dry_run, results=results)


def _collect(run_id: uuid.UUID, kind: str, jobs: int, reports: Path) -> Collecting:
    begin, spent = time.perf_counter(), os.times()
    with subprocess.Popen(
        [sys.executable, "-m", "producer", "collect", str(run_id), "--report-dir", str(reports)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as producer:
        peak = 0.0
        # The kernel's figure of an ended child counts what its parent had when it forked.
        while producer.poll() is None:
            peak = max(peak, peak_mb({producer.pid}))
            time.sleep(_LOOK_EVERY_S)
        seconds, used = time.perf_counter() - begin, os.times()
    if producer.returncode not in {0, 3, 4}:
        raise RuntimeError(f"producer collect ended with {producer.returncode}")
    report = max(reports.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return Collecting(
        kind=kind,
        jobs=jobs,
        seconds=seconds,
        cpu_s=sum(used[2:4]) - sum(spent[2:4]),
        peak_mb=peak,
        json_mb=report.stat().st_size / 1e6,
        html_mb=report.with_suffix(".html").stat().st_size / 1e6,
    )


def table(found: Sequence[Collecting]) -> Table:
    """One row for each report; `ratio`: processor time for a job, relative to the first run of its kind."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (
        "run of",
        "jobs",
        "seconds",
        "processor",
        "ms a job",
        "ratio",
        "peak MB",
        "JSON MB",
        "HTML MB",
    ):
        shown.add_column(name, justify="left" if name == "run of" else "right", no_wrap=True)
    for one in found:
        first = next(other for other in found if other.kind == one.kind)
        ratio = (one.cpu_s / one.jobs) / (first.cpu_s / first.jobs)
        shown.add_row(
            one.kind,
            f"{one.jobs:,}",
            f"{one.seconds:.1f}",
            f"{one.cpu_s:.1f}",
            f"{one.cpu_s / one.jobs * 1e3:.2f}",
            f"{ratio:.2f}",
            f"{one.peak_mb:.0f}",
            f"{one.json_mb:.1f}",
            f"{one.html_mb:.1f}",
        )
    return shown


if __name__ == "__main__":
    main()
