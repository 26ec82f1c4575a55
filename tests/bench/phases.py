"""What an operator waits for, phase by phase: very many tiny projects, by the program's own commands, beside
tasks that do nothing.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich import box
from rich.table import Table

from tests.bench.corpora import Corpus
from tests.bench.measure import Measured, Settle, bytes_below, cpu_s, peak_mb
from tests.bench.system import System, await_end

_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Seconds of `producer enqueue`, from its end to the last outcome, and of `producer collect`, which
    writes the report; of the commands also the most memory.

    `noops` is as many tasks that do nothing, sent and done in the same run of the bench.
    """

    projects: int
    enqueue_s: float
    run_s: float
    collect_s: float
    workers_cpu_s: float
    report_bytes: int
    enqueue_mb: float
    collect_mb: float
    noops: Measured

    @property
    def in_noops(self) -> float:
        """One project, from enqueue to the last outcome, in multiples of a task that does nothing."""
        return (self.enqueue_s + self.run_s) / self.noops.seconds


def measure(system: System, corpus: Corpus, data_dir: Path, settle: Settle) -> Phases:
    """Drive one run by commands, then send the tasks that do nothing."""
    reports = data_dir / "reports"
    with system.ready(corpus, data_dir) as (engine, pids, env):

        def producer(*arguments: str) -> tuple[dict[str, Any], float, float]:
            command = [sys.executable, "-m", "producer", *arguments, "--json"]
            begin, peak = time.perf_counter(), 0.0
            with TemporaryFile() as printed:
                with subprocess.Popen(command, env=env, stdout=printed, stderr=subprocess.DEVNULL) as process:
                    # What wait(2) says would be at least what this process had when it began the other.
                    while process.poll() is None:
                        peak = max(peak, peak_mb({process.pid}))
                        time.sleep(_LOOK_EVERY_S)
                seconds = time.perf_counter() - begin
                if process.returncode:
                    raise RuntimeError(f"producer {arguments[0]} ended with {process.returncode}")
                printed.seek(0)
                return json.load(printed), seconds, peak

        settle()
        before = cpu_s(pids)
        opened, enqueue_s, enqueue_mb = producer("enqueue")
        begin = time.perf_counter()
        await_end(engine, opened["run_id"])
        run_s = time.perf_counter() - begin
        used = cpu_s(pids) - before
        collected, collect_s, collect_mb = producer("collect", opened["run_id"], "--report-dir", str(reports))
    if collected["report"]["projects_migrated"] != len(corpus.projects):
        raise RuntimeError(f"only {collected['report']['projects_migrated']} projects were migrated")
    return Phases(
        projects=len(corpus.projects),
        enqueue_s=enqueue_s,
        run_s=run_s,
        collect_s=collect_s,
        workers_cpu_s=used,
        report_bytes=bytes_below(reports),
        enqueue_mb=enqueue_mb,
        collect_mb=collect_mb,
        noops=system.noops(len(corpus.projects), data_dir, settle),
    )


def table(phases: Phases) -> Table:
    """One row for each phase."""
    shown = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"{phases.projects:,} tiny projects", title_justify="left"
    )
    shown.add_column("phase", no_wrap=True)
    for name in ("seconds", "ms a project"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, seconds in (
        (f"producer enqueue, {phases.enqueue_mb:.0f} MB of memory", phases.enqueue_s),
        ("from there to the last outcome", phases.run_s),
        (
            f"producer collect, {phases.collect_mb:.0f} MB of memory, report of {phases.report_bytes / 1e6:.1f} MB",
            phases.collect_s,
        ),
        ("processor time of the workers", phases.workers_cpu_s),
        ("as many tasks that do nothing", phases.noops.seconds),
    ):
        shown.add_row(name, f"{seconds:.2f}", f"{seconds / phases.projects * 1e3:.2f}")
    shown.caption = f"A project costs {phases.in_noops:.1f} tasks that do nothing."
    shown.caption_justify = "left"
    return shown


def as_json(phases: Phases) -> dict[str, Any]:
    """The same as a document."""
    return asdict(phases) | {"in_noops": phases.in_noops}
