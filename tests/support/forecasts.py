"""Generated estates that are estimated, rehearsed and migrated by two workers, and how far off each
forecast was.
"""

import itertools
import random
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from producer.cli.follow import report_of
from producer.planning import expected
from producer.planning.conditions import conditions
from producer.planning.forecast import Forecast
from producer.runs.collect import collect
from producer.runs.legacy_projects import enqueue
from producer.runs.survey import survey_all
from tests.estate import Project, make_project, make_session
from tests.support.runs import another_worker
from tests.support.sites import Site
from worker.db import ledger, projects
from worker.jobs.migrate import migrate
from worker.messages import JobRef

FEW_HEADS = 16
"""So few that most estates have more files of one size: the rest is extrapolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One estate: its size, the forecasts, and the reports of its dry run and of its real runs (one, or a
    pilot and the rest).
    """

    seed: int
    files: int
    size_bytes: int
    all_heads: Forecast
    few_heads: Forecast
    rehearsed: dict[str, Any]
    real: tuple[dict[str, Any], ...]

    @property
    def stored(self) -> int:
        """What all real runs have stored."""
        return sum(report["plan"]["became"]["stored"] for report in self.real)


def play(site: Site, seed: int, *, most_projects: int = 12, most_rows: int = 60_000) -> Played:
    """Make the estate of this seed in an empty site and take its way: every second one begins with a
    pilot.
    """
    chance = random.Random(f"estate {seed}")
    made = estate(site, chance, most_projects, most_rows)
    all_heads, few_heads = (_estimated(site, most) for most in (expected.MOST_HEADS, FEW_HEADS))
    rehearsed = _run(site, dry_run=True)
    pilot = sorted(chance.sample(made, max(1, len(made) // 3))) if seed % 2 else []
    real = [_run(site, dry_run=False, project_ids=pilot)] if pilot else []
    real.append(_run(site, dry_run=False))
    return Played(
        seed=seed,
        files=rehearsed["files"]["total"],
        size_bytes=rehearsed["bytes"]["read"],
        all_heads=all_heads,
        few_heads=few_heads,
        rehearsed=rehearsed,
        real=tuple(real),
    )


def estate(site: Site, chance: random.Random, most_projects: int, most_rows: int) -> list[int]:
    """Projects as years of a lab leave them: copies of whole projects, recordings that several share,
    recordings of equal length that differ, sizes from a few hundred bytes to megabytes, and sometimes a
    directory that is gone. The ids of those that can be migrated.
    """
    numbers = itertools.count(1)
    days: list[tuple[int, int]] = []
    studies: list[list[tuple[int, int]]] = []
    made = []
    with site.engine.begin() as conn:
        for number in range(chance.randint(4, most_projects)):
            if studies and chance.random() < 0.35:
                study = chance.choice(studies)
            else:
                study = []
                for _ in range(chance.randint(1, 5)):
                    if days and chance.random() < 0.3:
                        day = chance.choice(days)
                    else:
                        # Devices that record for a fixed time leave files of one length.
                        rows = chance.choice([500, 3_000, 3_000, chance.randint(10, most_rows)])
                        day = next(numbers), rows
                    days.append(day)
                    study.append(day)
            studies.append(study)
            project = make_project(conn, site.legacy_root, f"Study {number}", directory=f"study_{number}")
            _fill(conn, project, study)
            made.append(project.project_id)
        if chance.random() < 0.3:
            make_project(conn, site.legacy_root, "Gone", path=str(site.legacy_root / "gone"))
    return made


def _fill(conn: Connection, project: Project, study: Sequence[tuple[int, int]]) -> None:
    assert project.directory is not None
    for position, (number, rows) in enumerate(study):
        session = f"day {position}"
        directory = project.directory / session
        directory.mkdir()
        for name, axis in (("accelerometer_data.csv", "accel"), ("gyroscope_data.csv", "gyro")):
            _write(directory / name, axis, number, rows)
        make_session(conn, project.project_id, session)


@cache
def _lines() -> list[str]:
    chance = random.Random("lines")
    return [f",{chance.random():.6f},{chance.random():.6f},{chance.random():.6f}\n" for _ in range(4_096)]


def _write(path: Path, axis: str, number: int, rows: int) -> None:
    """A recording; equal numbers are equal bytes, and equal rows equal lengths."""
    lines = _lines()
    text = "".join(
        f"{10**12 + number * 10**9 + row * 20_000_000}{lines[(row * 7 + number) % len(lines)]}"
        for row in range(rows)
    )
    path.write_text(f"ns_since_reboot,{axis}_x,{axis}_y,{axis}_z\n{text}")


def _estimated(site: Site, most_heads: int) -> Forecast:
    with site.engine.connect() as conn:
        chosen = projects.legacy_projects(conn)
    files = expected.SampledFiles()
    surveyed = survey_all(chosen, lambda one: one.path, lambda _: None, files.add)
    return expected.by_sample(
        site.settings,
        site.engine,
        surveyed,
        files,
        conditions(site.settings),
        lambda _: None,
        most_heads=most_heads,
    )


def _run(site: Site, *, dry_run: bool, project_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Open a run as an operator does, have two workers do its jobs in the order of sending, and make its
    report.
    """
    opened = enqueue(site.settings, site.engine, dry_run=dry_run, project_ids=project_ids)
    refs = iter(
        [JobRef(run_id=opened.run_id, subject_id=job.subject_id) for job in opened.jobs if not job.skipped]
    )
    lock = threading.Lock()

    def work(name: str) -> None:
        with another_worker(site, name) as tools:
            while True:
                with lock:
                    ref = next(refs, None)
                if ref is None:
                    return
                migrate(tools, ref, name)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, ("one", "two")))
    with site.engine.begin() as conn:
        ledger.finish_run_if_ended(conn, opened.run_id)
        run = ledger.find_run(conn, str(opened.run_id))
    return report_of(collect(site.settings, site.engine, run, timeout_s=60))


# How far off ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Off:
    """One forecast and what became of it. `inside`: of its band."""

    likely: float
    real: float
    inside: bool

    @property
    def percent(self) -> float:
        """Real less forecast, of the real."""
        return 100 * (self.real - self.likely) / self.real if self.real else 100.0 * bool(self.likely)


def by_kind(played: Iterable[Played]) -> dict[str, list[Off]]:
    """Every forecast of these estates by what it is of and rests on."""
    found: dict[str, list[Off]] = defaultdict(list)
    for one in played:
        rehearsed = one.rehearsed["plan"]["forecast"]["bytes"]["stored"]
        found["bytes, the dry run's own report"].append(_off(rehearsed, one.stored))
        for words, sampled in (("all heads", one.all_heads), (f"{FEW_HEADS} heads", one.few_heads)):
            found[f"bytes, an estimate by {words}"].append(_off(sampled.stored.rounded(), one.stored))
        for number, report in enumerate(one.real):
            plan = report["plan"]
            of = "a pilot of some projects" if number < len(one.real) - 1 else "all that is left"
            size, seconds = plan["forecast"]["bytes"]["stored"], plan["forecast"]["seconds"]
            found[f"bytes, kept by a real run of {of}"].append(_off(size, plan["became"]["stored"]))
            pace = "a migration's" if plan["forecast"]["seconds_from"] == "migrations" else "a dry run's"
            found[f"time, by {pace} pace"].append(_off(seconds, plan["became"]["seconds"]))
            peak = plan["forecast"]["bytes"]["peak"]
            found["room on disk at the most"].append(_off(peak, plan["became"]["disk"]))
    return found


def _off(band: Mapping[str, Any], real: float) -> Off:
    return Off(likely=band["likely"], real=real, inside=band["low"] <= real <= band["high"])


def table(kinds: Mapping[str, Sequence[Off]]) -> str:
    """The same in Markdown: the median and the worst error, and how often the band held what became of it."""
    lines = [
        "| forecast of | times | median error | worst | in its band |",
        "|---|--:|--:|--:|--:|",
    ]
    for words, found in kinds.items():
        errors = sorted(abs(one.percent) for one in found)
        inside = sum(one.inside for one in found)
        figures = f"{statistics.median(errors):.1f} % | {errors[-1]:.1f} % | {inside} of {len(found)}"
        lines.append(f"| {words} | {len(found)} | {figures} |")
    return "\n".join(lines)
