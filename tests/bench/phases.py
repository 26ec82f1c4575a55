"""What an operator waits for, phase by phase: very many tiny projects, by the program's own commands, beside
tasks that do nothing.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tests.bench.corpora import Corpus
from tests.bench.measure import Measured, Settle, bytes_below, cpu_s
from tests.bench.system import System, await_end


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Seconds of `producer enqueue`, from its end to the last outcome, and of `producer collect`, which
    writes the report.

    `noops` is as many tasks that do nothing, sent and done in the same run of the bench.
    """

    projects: int
    enqueue_s: float
    run_s: float
    collect_s: float
    workers_cpu_s: float
    report_bytes: int
    noops: Measured

    @property
    def in_noops(self) -> float:
        """One project, from enqueue to the last outcome, in multiples of a task that does nothing."""
        return (self.enqueue_s + self.run_s) / self.noops.seconds


def measure(system: System, corpus: Corpus, data_dir: Path, settle: Settle) -> Phases:
    """Drive one run by commands, then send the tasks that do nothing."""
    reports = data_dir / "reports"
    with system.ready(corpus, data_dir) as (engine, pids, env):

        def producer(*arguments: str) -> tuple[dict[str, Any], float]:
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "producer", *arguments, "--json"],
                env=env,
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            return json.loads(done.stdout), time.perf_counter() - begin

        settle()
        before = cpu_s(pids)
        opened, enqueue_s = producer("enqueue")
        begin = time.perf_counter()
        await_end(engine, opened["run_id"])
        run_s = time.perf_counter() - begin
        used = cpu_s(pids) - before
        collected, collect_s = producer("collect", opened["run_id"], "--report-dir", str(reports))
    if collected["report"]["projects_migrated"] != len(corpus.projects):
        raise RuntimeError(f"only {collected['report']['projects_migrated']} projects were migrated")
    return Phases(
        projects=len(corpus.projects),
        enqueue_s=enqueue_s,
        run_s=run_s,
        collect_s=collect_s,
        workers_cpu_s=used,
        report_bytes=bytes_below(reports),
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
        ("producer enqueue", phases.enqueue_s),
        ("from there to the last outcome", phases.run_s),
        (f"producer collect, report of {phases.report_bytes / 1e6:.1f} MB", phases.collect_s),
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
