"""Measured runs to medians, ratios, a table and JSON. Pure but for the printing; measures nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from tests.bench.measure import Measured

OURS = "migrator"

TARGETS: Mapping[tuple[str, str], float] = {
    ("large", "floor"): 1.2,
    ("large", "naive"): 1 / 5,
    ("large", "dvc"): 1 / 4,
    ("again", "b3sum"): 1.2,
    ("again", "blake3"): 1.2,
    ("one-big", "floor"): 1.2,
    ("many-files", "cp"): 1.3,
    ("tiny", "no-op"): 3.5,
}
"""The most of a peer's time that the migrator may take, by corpus and the first word of the peer's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All runs over one corpus: by contender, in the order of the rounds; the migrator comes first."""

    corpus: str
    projects: int
    files: int
    total_bytes: int
    unique_bytes: int
    runs: Mapping[str, list[Measured]] = field(default_factory=dict)

    def ratios(self, peer: str) -> list[float]:
        """The migrator's time over the peer's, round by round."""
        pairs = zip(self.runs[OURS], self.runs[peer], strict=False)
        return [ours.seconds / theirs.seconds for ours, theirs in pairs]

    def target(self, peer: str) -> float | None:
        """What the median of these ratios should not exceed."""
        return TARGETS.get((self.corpus, peer.replace(",", " ").replace(":", " ").split()[0]))

    def as_json(self) -> dict[str, Any]:
        """Every figure, and what the table says of them."""
        return {
            "corpus": self.corpus,
            "projects": self.projects,
            "files": self.files,
            "total_bytes": self.total_bytes,
            "unique_bytes": self.unique_bytes,
            "contenders": [
                {
                    "name": name,
                    "median_s": _seconds(runs),
                    "ratios": self.ratios(name) if name != OURS else None,
                    "median_ratio": median(self.ratios(name)) if name != OURS else None,
                    "target_ratio": self.target(name),
                    "runs": [asdict(run) for run in runs],
                }
                for name, runs in self.runs.items()
                if runs
            ],
        }


def table(contests: Sequence[Contest]) -> Table:
    """One row for each contender of each corpus."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("corpus", no_wrap=True)
    shown.add_column("what", no_wrap=True)
    for name in (
        "seconds (min-max)",
        "migrator / it (pairs)",
        "at most",
        "rate",
        "cores",
        "stored / unique",
        "peak MB",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    for contest in contests:
        shown.add_section()
        for name, runs in contest.runs.items():
            if runs:
                shown.add_row(*_row(contest, name, runs))
    return shown


def _row(contest: Contest, name: str, runs: Sequence[Measured]) -> list[str]:
    seconds = [run.seconds for run in runs]
    return [
        contest.corpus if name == OURS else "",
        name,
        _spread(seconds),
        *_compared(contest, name),
        _rate(contest, name, runs),
        f"{median(run.cpu_s / run.seconds for run in runs):.2f}",
        _stored(contest, runs),
        f"{max(run.peak_mb for run in runs if run.peak_mb is not None):.0f}" if runs[0].peak_mb else "",
    ]


def _compared(contest: Contest, name: str) -> list[str]:
    if name == OURS or not contest.ratios(name):
        return ["", ""]
    ratios = contest.ratios(name)
    target = contest.target(name)
    verdict = "" if target is None else f"{target:.2f} {'met' if median(ratios) <= target else 'MISSED'}"
    return [_spread(ratios), verdict]


def _spread(values: Sequence[float]) -> str:
    """The median, and what it lies between."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _rate(contest: Contest, name: str, runs: Sequence[Measured]) -> str:
    """Projects (or tasks) a second where they are many and small, files a second, else bytes a second."""
    match contest.corpus:
        case "tiny":
            unit = "tasks/s" if name.startswith("no-op") else "projects/s"
            return f"{contest.projects / _seconds(runs):.0f} {unit}"
        case "many-files":
            return f"{contest.files / _seconds(runs):.0f} files/s"
        case _:
            return f"{contest.total_bytes / _seconds(runs) / 1e6:.0f} MB/s"


def _stored(contest: Contest, runs: Sequence[Measured]) -> str:
    stored = [run.stored_bytes for run in runs if run.stored_bytes is not None]
    return f"{median(stored) / contest.unique_bytes:.3f}" if stored else ""


def _seconds(runs: Sequence[Measured]) -> float:
    return median(run.seconds for run in runs)
