"""How the cost of a project, or of a file, grows with their number, and throughput with that of the workers:
each step a run of its own, with fresh rows and workers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tests.bench.corpora import Corpus, large, one_project, tiny
from tests.bench.measure import Measured, Settle
from tests.bench.system import System

_MOST_GROWTH = 1.5
"""What one project, or file, may cost among many, if one among few costs 1: nothing is to grow faster than
their number.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run: `count` things of a kind ("projects", or "files" of a single project)."""

    kind: str
    count: int
    projects: int
    measured: Measured

    @property
    def workers_each_s(self) -> float:
        """Processor time of the workers for one of them."""
        return self.measured.cpu_s / self.count

    @property
    def servers_each_s(self) -> float:
        """Processor time of PostgreSQL and Valkey for one of them."""
        return (self.measured.servers_cpu_s or 0) / self.count

    @property
    def statements_a_project(self) -> float:
        """However many files it has."""
        return (self.measured.statements or 0) / self.projects


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """One run of a corpus by so many worker processes."""

    corpus: str
    workers: int
    measured: Measured


TEAMS = (1, 2, 4)
"""So many workers migrate the same corpus in turn."""


def shared_corpora(folder: Path, size: float) -> tuple[Corpus, ...]:
    """What teams migrate: few big files, and many small projects."""
    return large(folder, size), tiny(folder, size)


def throughput(teams: Sequence[Team], team: Team) -> float:
    """In multiples of that of one worker."""
    alone = next(one for one in teams if one.corpus == team.corpus and one.workers == 1)
    return alone.measured.seconds / team.measured.seconds


def corpora(folder: Path, size: float) -> Iterator[tuple[str, int, Callable[[], Corpus]]]:
    """Kind, number and corpus of each step; the longest ones at size 1 only."""
    for count in (100, 1_000, 10_000)[: 3 if size >= 1 else 2]:
        yield "projects", count, lambda n=count: tiny(folder, 1, name=f"growth-{n}-projects", projects=n)  # type: ignore[misc]
    for count in (2_000, 20_000, 200_000)[: 3 if size >= 1 else 2]:
        yield "files", count, lambda n=count: one_project(folder, n)  # type: ignore[misc]


def grow(system: System, kind: str, count: int, corpus: Corpus, data_dir: Path, settle: Settle) -> Step:
    """Take one step."""
    measured = system.migrate(corpus, data_dir, settle, counted=True)
    return Step(kind=kind, count=count, projects=len(corpus.projects), measured=measured)


def growth(steps: Sequence[Step], step: Step) -> float:
    """The processor time for one, in multiples of that in the first step of the kind."""
    first = next(one for one in steps if one.kind == step.kind)
    return (step.workers_each_s + step.servers_each_s) / (first.workers_each_s + first.servers_each_s)


def table(steps: Sequence[Step]) -> Table:
    """One row for each step."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("what", no_wrap=True)
    for name in (
        "how many",
        "seconds",
        "workers, each",
        "servers, each",
        "both / first step",
        "at most",
        "statements a project",
        "peak MB",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    for step in steps:
        if step.kind != "projects" and step is next(one for one in steps if one.kind == step.kind):
            shown.add_section()
        shown.add_row(*_row(steps, step))
    return shown


def teams_table(teams: Sequence[Team]) -> Table:
    """One row for each team."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("corpus", no_wrap=True)
    for name in ("workers", "seconds", "throughput", "cores", "servers' cores"):
        shown.add_column(name, justify="right", no_wrap=True)
    for team in teams:
        run = team.measured
        shown.add_row(
            team.corpus,
            f"{team.workers}",
            f"{run.seconds:.1f}",
            f"{throughput(teams, team):.2f}",
            f"{run.cpu_s / run.seconds:.2f}",
            f"{(run.servers_cpu_s or 0) / run.seconds:.2f}",
        )
    return shown


def as_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Every figure, and what the table says of them."""
    return [
        {
            "kind": step.kind,
            "count": step.count,
            "projects": step.projects,
            "workers_each_s": step.workers_each_s,
            "servers_each_s": step.servers_each_s,
            "statements_a_project": step.statements_a_project,
            "growth": growth(steps, step),
            "most_growth": _MOST_GROWTH,
            "run": asdict(step.measured),
        }
        for step in steps
    ]


def words(seconds: float) -> str:
    """A short time in the unit that suits it."""
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _row(steps: Sequence[Step], step: Step) -> list[str]:
    times = growth(steps, step)
    return [
        "projects of 3 files" if step.kind == "projects" else "files in one project",
        f"{step.count:,}",
        f"{step.measured.seconds:.1f}",
        words(step.workers_each_s),
        words(step.servers_each_s),
        f"{times:.2f}",
        f"{_MOST_GROWTH:.2f} {'met' if times <= _MOST_GROWTH else 'MISSED'}",
        f"{step.statements_a_project:.1f}",
        f"{step.measured.peak_mb:.0f}",
    ]
