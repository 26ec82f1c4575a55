"""`python -m tests.bench.verify_sessions`: a verification of sessions against plain `pandas.read_csv` of both
files of each recording once, in one process and in turn, as a ratio; and the memory of each.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
from sqlalchemy import Engine, text

from producer.demo.recordings import ACCELEROMETER
from producer.runs import verification
from producer.runs.legacy_projects import enqueue
from producer.runs.verification import Wanted
from tests.bench.corpora import Corpus, File, Project, many_files
from tests.bench.system import System
from worker import tasks
from worker.jobs.migrate import migrate
from worker.jobs.tools import Tools
from worker.jobs.verify import verify_sessions
from worker.messages import JobRef, Status
from worker.runtime import log
from worker.settings import Settings


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/verify-sessions"))
    parser.add_argument("--size", type=float, default=0.2, help="1 is 1 GB of big recordings")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    log.configure(log_format="console", level="warning")
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    big, root = int(1_000_000_000 * options.size), folder / "corpora"
    try:
        with System.running(folder, root) as system:
            for corpus, splits in (
                (_recordings(root, "whole", 8, big // 8), 0),
                (_recordings(root, "split", 1, big), 20),
                (_recordings(root, "one", 1, big), 0),
                (many_files(root, options.size / 4), 0),
            ):
                _against_pandas(system, corpus, folder / f"data-{corpus.name}", splits, options.rounds)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _recordings(root: Path, name: str, count: int, size_bytes: int) -> Corpus:
    """One project of so many recordings."""
    files = tuple(
        File(session=f"s{number:02}", name=ACCELEROMETER, number=number, about_bytes=size_bytes)
        for number in range(count)
    )
    return Corpus(name, root / name, (Project(name="p00", files=files),))


def _against_pandas(system: System, corpus: Corpus, data_dir: Path, splits: int, rounds: int) -> None:
    data_dir.mkdir(parents=True)
    with system.prepared(corpus, data_dir) as (settings, engine):
        if splits:
            _split(engine, corpus, splits)
        tools = tasks._tools(os.getpid())
        jobs = enqueue(settings, engine, dry_run=False)
        for job in jobs.jobs:
            outcome = migrate(tools, JobRef(run_id=jobs.run_id, subject_id=job.subject_id), "bench")
            assert outcome is not None
            assert outcome.status is Status.MIGRATED, outcome
        files = [Path(path) for path in corpus.sizes if path.endswith(ACCELEROMETER)]
        with engine.connect() as conn:
            stored = conn.scalars(
                text(
                    "select parent_session_data_path from sessions"
                    " where session_id not in (select child_session_id from session_lineage)"
                )
            )
            files += [Path(directory, ACCELEROMETER) for directory in stored]
        ours, theirs, peaks, read = list[float](), list[float](), list[float](), list[int]()
        for number in range(rounds + 1):
            with _peak_mb() as plain_mb:
                plain_s = _timed(lambda: [len(pd.read_csv(path)) for path in files])
            sizes: list[int] = []
            counting = replace(tools, pace=sizes.append)
            with _peak_mb() as peak_mb:
                seconds = _verified_s(settings, engine, counting)
            if number:  # the first round loads libraries
                theirs.append(plain_s)
                ours.append(seconds)
                peaks.append(peak_mb[0])
                read.append(sum(sizes))
        engine.dispose()
        tools.engine.dispose()
        tasks._tools.cache_clear()
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    total = sum(path.stat().st_size for path in files)
    print(
        f"{corpus.name}: {len(files):,} files of {total / 1e6:,.0f} MB, {splits} splits; verify {statistics.median(ours):.2f} s, "
        f"pandas {statistics.median(theirs):.2f} s; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"read {statistics.median(read) / total:.2f} times; memory at most {max(peaks):.0f} MB more, pandas {plain_mb[0]:.0f} MB",
        flush=True,
    )


def _split(engine: Engine, corpus: Corpus, count: int) -> None:
    """Cut the project's only session into so many, as Label does; it stays behind, hidden."""
    (path,) = corpus.sizes
    with open(path, "rb") as file:
        records = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1
    with engine.begin() as conn:
        parent, project, name = conn.execute(
            text("select session_id, project_id, session_name from sessions order by session_id desc limit 1")
        ).one()
        conn.execute(
            text(
                "update sessions set status = 'Split', keep = false, is_visible = false where session_id = :parent"
            ),
            {"parent": parent},
        )
        for number in range(count):
            child = conn.execute(
                text("""
                    insert into sessions (project_id, session_name, start_ns, stop_ns, bouts,
                        parent_session_data_path, data_start_offset, data_end_offset)
                    values (:project, :name, 0, 0, '[]', :path, :start, :end) returning session_id"""),
                {
                    "project": project,
                    "name": f"{name}.{number + 1}",
                    "path": os.path.dirname(path),
                    "start": records * number // count,
                    "end": records * (number + 1) // count,
                },
            ).scalar_one()
            conn.execute(
                text(
                    "insert into session_lineage (child_session_id, parent_session_id) values (:child, :parent)"
                ),
                {"child": child, "parent": parent},
            )


def _verified_s(settings: Settings, engine: Engine, tools: Tools) -> float:
    """Every session by both ways, job after job in this process."""
    opened = verification.verify(settings, engine, wanted=Wanted(sessions=True))

    def work() -> None:
        for job in opened.jobs:
            outcome = verify_sessions(tools, JobRef(run_id=opened.run_id, subject_id=job.subject_id), "bench")
            assert outcome is not None
            assert outcome.status is Status.VERIFIED, outcome

    return _timed(work)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@contextmanager
def _peak_mb() -> Iterator[list[float]]:
    """How much more resident memory this process had inside the block than before it, at most, in 10^6
    bytes; when the block has ended.
    """
    peaks: list[float] = []
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident_mb("VmRSS")
    yield peaks
    peaks.append(_resident_mb("VmHWM") - before)


def _resident_mb(what: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024 / 1e6


if __name__ == "__main__":
    main()
