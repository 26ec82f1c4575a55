"""`python -m tests.bench.rollback`: projects of 100 MB are migrated and rolled back by the program's own
commands with two workers; what the rollback takes, and where its time goes (`--profile`).

Every project has a recording of its own name and the same file of holes as all others, under a hard link: as
many bytes to read as real ones, and none on the disk.
"""

import argparse
import cProfile
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from producer.demo.recordings import ACCELEROMETER
from producer.runs import migrated_projects
from producer.runs.legacy_projects import enqueue
from tests.bench.corpora import Corpus, File, Project
from tests.bench.measure import cpu_s, read_bytes
from tests.bench.profiling import print_profiles
from tests.bench.system import System, await_end
from tests.support.process_tree import descendants
from worker import tasks
from worker.jobs.migrate import migrate
from worker.jobs.rollback import rollback
from worker.messages import JobRef, Status
from worker.runtime import log

_HOLES = "raw.bin"
_SETTLED_S = 3.0
"""A file counts as untouched if it was so for two seconds before it was read."""


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/rollback"))
    parser.add_argument(
        "--projects",
        type=lambda words: [int(word) for word in words.split(",")],
        default=[100, 1_000],
        help="how many; several numbers, with commas, are several runs. Default 100,1000",
    )
    parser.add_argument("--megabytes", type=int, default=100, help="of each project; default 100")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="do not measure: the first number of rollbacks in this process, their functions and statements",
    )
    options = parser.parse_args()
    log.configure(log_format="console", level="warning")
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with System.running(folder, folder / "corpora") as system:
            for count in options.projects:
                corpus = _alike(folder / "corpora", count, options.megabytes * 1_000_000)
                corpus.make()
                time.sleep(_SETTLED_S)
                data_dir = folder / f"data-{count}"
                data_dir.mkdir()
                if options.profile:
                    _profile(system, corpus, data_dir)
                    break
                print(_measured(system, corpus, data_dir), flush=True)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


# The projects -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Alike(Corpus):
    """Projects that share a file of holes, of so many bytes, beside what others have."""

    holes_bytes: int = 0

    def make(self) -> None:
        """Write the files, and link the one that all share."""
        super().make()
        holes = self.root / _HOLES
        if holes.exists():
            return
        with holes.open("wb") as file:
            file.truncate(self.holes_bytes)
        for project in self.projects:
            os.link(holes, self.root / project.name / project.sessions[0] / _HOLES)

    @cached_property
    def total_bytes(self) -> int:
        """The size of all files, as they are listed."""
        return sum(self.sizes.values()) + self.holes_bytes * len(self.projects)


def _alike(root: Path, count: int, size_bytes: int) -> _Alike:
    projects = tuple(
        Project(
            name=f"p{number:05}",
            files=(File(session="day", name=ACCELEROMETER, number=7, about_bytes=20_000),),
        )
        for number in range(count)
    )
    name = f"alike-{count}"
    return _Alike(name, root / name, projects, holes_bytes=size_bytes)


# By commands ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Seconds of `producer rollback`, from its end to the last outcome, and of `producer collect`; what the
    workers took of processor time meanwhile, and read.
    """

    projects: int
    bytes: int
    migrated_s: float
    opened_s: float
    run_s: float
    collected_s: float
    cpu_s: float
    bytes_read: int

    def __str__(self) -> str:
        each_ms = (self.opened_s + self.run_s) / self.projects * 1e3
        return (
            f"{self.projects:,} projects of {self.bytes / self.projects / 1e6:,.0f} MB (migrated in {self.migrated_s:.1f} s): "
            f"rollback {self.opened_s:.1f} s, then {self.run_s:.1f} s to the last outcome, {each_ms:.1f} ms a project; "
            f"processor time of the workers {self.cpu_s / self.projects * 1e3:.1f} ms a project; "
            f"read by them {self.bytes_read / 1e6:,.1f} MB; collect {self.collected_s:.1f} s"
        )


def _measured(system: System, corpus: Corpus, data_dir: Path) -> _Measured:
    with system.ready(corpus, data_dir) as (engine, pids, env):
        begin = time.perf_counter()
        opened, _ = _producer(env, "enqueue")
        await_end(engine, opened["run_id"])
        migrated_s = time.perf_counter() - begin
        # The warm-up's projects are not among these.
        _, _ = _producer(env, "collect", opened["run_id"], "--report-dir", str(data_dir / "reports"))
        cpu_before, read_before = cpu_s(pids), read_bytes(pids)
        with engine.connect() as conn:
            own = conn.exec_driver_sql(
                "select subject_id from migration_jobs where run_id = %s order by 1", (opened["run_id"],)
            ).scalars()
            named = [argument for number in own for argument in ("--project-id", str(number))]
        opened, opened_s = _producer(env, "rollback", "--yes", *named)
        begin = time.perf_counter()
        await_end(engine, opened["run_id"])
        run_s = time.perf_counter() - begin
        # After so many tasks a worker's process is replaced by a new one.
        now = descendants(pids)
        used, read = cpu_s(now) - cpu_before, read_bytes(now) - read_before
        collected, collected_s = _producer(
            env, "collect", opened["run_id"], "--report-dir", str(data_dir / "reports")
        )
    if collected["report"]["projects_rolled_back"] != len(corpus.projects):
        raise RuntimeError(f"only {collected['report']['projects_rolled_back']} projects were rolled back")
    return _Measured(
        projects=len(corpus.projects),
        bytes=corpus.total_bytes,
        migrated_s=migrated_s,
        opened_s=opened_s,
        run_s=run_s,
        collected_s=collected_s,
        cpu_s=used,
        bytes_read=read,
    )


def _producer(env: dict[str, str], *arguments: str) -> tuple[dict[str, Any], float]:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "producer", *arguments, "--json"], env=env, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout), time.perf_counter() - begin


# In this process --------------------------------------------------------------------------------------------


def _profile(system: System, corpus: Corpus, data_dir: Path) -> None:
    with system.prepared(corpus, data_dir) as (settings, engine):
        tools = tasks._tools(os.getpid())
        migrated = enqueue(settings, engine, dry_run=False)
        for job in migrated.jobs:
            migrate(tools, JobRef(run_id=migrated.run_id, subject_id=job.subject_id), "profile")
        opened = migrated_projects.rollback(
            settings, engine, dry_run=False, project_ids=(), restore_files=False
        )
        statements, profile = _statements(tools.engine), cProfile.Profile()
        begin = time.perf_counter()
        for job in opened.jobs:
            with profile:
                outcome = rollback(tools, JobRef(run_id=opened.run_id, subject_id=job.subject_id), "profile")
            assert outcome is not None
            assert outcome.status is Status.ROLLED_BACK, outcome
        seconds = time.perf_counter() - begin
        tools.engine.dispose()
        tasks._tools.cache_clear()
    count = len(opened.jobs)
    print(
        f"\n{count} rollbacks in {seconds:.2f} s in one process, profiled: {seconds / count * 1e3:.1f} ms each"
    )
    print_profiles([profile])
    print(f"{statements.total() / count:.1f} statements a project:")
    for statement, times in statements.most_common():
        print(f"  {times / count:6.2f}  {statement}")


def _statements(engine: Engine) -> Counter[str]:
    """How often each is asked from now on, by its beginning."""
    found: Counter[str] = Counter()

    @event.listens_for(engine, "before_cursor_execute")
    def _count(_conn: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        found[" ".join(statement.split())[:110]] += 1

    return found


if __name__ == "__main__":
    main()
