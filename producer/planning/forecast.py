"""The arithmetic of a forecast: what a migration would store and free, how long it would take, within which
band. Pure: knows no database, no file and no report.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

BLOCK_BYTES = 4096
"""What a directory, a manifest or the rest of a file's last block takes on disk: the block of ext4, XFS and
Btrfs.
"""

_COPYING = (0.2, 1.5, 6.0)
"""How the seconds of a migration relate to those that its dry run took for as many jobs and bytes: at the
least, likely, at the most. For where no migration was measured yet: a dry run reads, a migration also writes
and syncs, or only shares blocks (docs/planning.md has how this was found).
"""
_MEASURED = (0.4, 1.0, 2.5)
"""The same from one migration to the next, of which each has its own files, neighbours and caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A figure that is not known exactly: it lies between `low` and `high`, and near `likely`. Never below
    0.
    """

    low: float
    likely: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.likely <= self.high:
            raise ValueError(f"no band: {self.low}, {self.likely}, {self.high}")

    @classmethod
    def exactly(cls, value: float) -> "Band":
        """A figure that is known."""
        return cls(low=value, likely=value, high=value)

    @property
    def is_exact(self) -> bool:
        """Is there only one value in it?"""
        return self.low == self.high

    def holds(self, value: float) -> bool:
        """Does a value lie in it?"""
        return self.low <= value <= self.high

    def plus(self, other: "Band") -> "Band":
        """The band of the sum."""
        return Band(low=self.low + other.low, likely=self.likely + other.likely, high=self.high + other.high)

    def rounded(self, digits: int | None = None) -> dict[str, Any]:
        """As JSON keeps it; whole without `digits`: bytes."""
        return {key: round(value, digits) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What a dry run found of one project. `first_bytes`: of content that no project before it in the run
    had, nor the store; `new_bytes` and `new_files`: those of it that the store has not got since.
    `allocated_bytes`: what its directory takes on disk.
    """

    project_id: int
    ready: bool
    dataset_hash: str | None = None
    path: str = ""
    read_bytes: int = 0
    first_bytes: int = 0
    new_bytes: int = 0
    new_files: int = 0
    sessions: int = 0
    allocated_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a migration of some rehearsed projects would store: bytes, files, and directories with their
    manifests.
    """

    bytes: Band
    files: Band
    directories: int


def beside(files: Band, directories: int) -> Band:
    """What so many files and directories take on disk beside the files' bytes: at the most a block each."""
    return Band(
        low=0,
        likely=(files.likely / 2 + directories) * BLOCK_BYTES,
        high=(files.high + 2 * directories) * BLOCK_BYTES,
    )


def stored_by(rehearsed: Iterable[Rehearsed], chosen: Collection[int] | None = None) -> Stored:
    """What the chosen ones of these projects of one dry run would store; None: all of them.

    Equal datasets are stored by whichever of their projects comes first, so what the dry run gave to one is
    stored if any of them is chosen. A single file that a chosen project shares with a different dataset,
    none of whose projects is chosen, may be new then, too: only the dry run's first project of each content
    is known. That is the band; over all projects there is none.
    """
    groups: dict[str, _Group] = {}
    for one in rehearsed:
        if one.ready and one.dataset_hash is not None:
            group = groups.setdefault(one.dataset_hash, _Group())
            group.add(one, is_chosen=chosen is None or one.project_id in chosen)
    inside = [group for group in groups.values() if group.is_chosen]
    outside = [group for group in groups.values() if not group.is_chosen]
    return Stored(
        bytes=_with_others(
            sum(group.new_bytes for group in inside),
            sum(group.new_bytes for group in outside),
            sum(group.read_bytes - group.first_bytes for group in inside),
        ),
        files=_with_others(
            sum(group.new_files for group in inside),
            sum(group.new_files for group in outside),
            math.inf,
        ),
        directories=sum(group.sessions + 2 for group in inside if group.new_bytes),
    )


def _with_others(own: int, of_others: int, reused: float) -> Band:
    most = own + max(0, min(of_others, reused))
    return Band(low=own, likely=(own + most) / 2, high=most)


@dataclass(slots=True)
class _Group:
    """The projects of one dataset."""

    is_chosen: bool = False
    first_bytes: int = 0
    new_bytes: int = 0
    new_files: int = 0
    read_bytes: int = 0
    sessions: int = 0

    def add(self, one: Rehearsed, *, is_chosen: bool) -> None:
        self.is_chosen |= is_chosen
        self.first_bytes += one.first_bytes
        self.new_bytes += one.new_bytes
        self.new_files += one.new_files
        self.read_bytes = max(self.read_bytes, one.read_bytes)
        self.sessions = max(self.sessions, one.sessions)


# Time -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pace:
    """How long the jobs of one run took: sums over its jobs, from which a line is fitted. `work` is the
    bytes that a job read or copied, whichever are more. `busy_s`: how long at least one job ran. `workers`:
    how many took jobs.
    """

    dry_run: bool
    jobs: int = 0
    work: int = 0
    seconds: float = 0.0
    work_squared: float = 0.0
    work_seconds: float = 0.0
    busy_s: float = 0.0
    workers: int = 0

    def add(self, work: int, seconds: float) -> None:
        """Take the next job."""
        self.jobs += 1
        self.work += work
        self.seconds += seconds
        self.work_squared += float(work) * work
        self.work_seconds += work * seconds

    @property
    def is_known(self) -> bool:
        """Was anything measured?"""
        return self.jobs > 0 and self.seconds > 0 and self.busy_s > 0

    @property
    def at_once(self) -> float:
        """How many jobs ran at the same time, on average: with many small jobs less than one, as time lies
        between them.
        """
        return self.seconds / self.busy_s

    def costs(self) -> tuple[float, float]:
        """Seconds of a job by itself, and of each byte: the least squares, neither below 0."""
        spread = self.jobs * self.work_squared - float(self.work) ** 2
        if self.work == 0:
            return self.seconds / self.jobs, 0.0
        if spread <= 1e-9 * self.jobs * self.work_squared:
            # All jobs are of one size: what is the job's and what the bytes' cannot be told.
            return self.seconds / self.jobs / 2, self.seconds / self.work / 2
        per_byte = (self.jobs * self.work_seconds - self.work * self.seconds) / spread
        per_job = (self.seconds - per_byte * self.work) / self.jobs
        if per_byte < 0:
            return self.seconds / self.jobs, 0.0
        if per_job < 0:
            return 0.0, self.seconds / self.work
        return per_job, per_byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a run would have to do: jobs, the bytes of all of them, and of the largest."""

    jobs: int
    work: Band
    largest: int = 0


def seconds_of(
    load: Load,
    paces: Sequence[Pace],
    *,
    workers: int | None = None,
    limit_bytes_per_second: int | None = None,
) -> Band | None:
    """How long the run would take, by what was measured of others; None where nothing was.

    Paces of migrations count, and those of dry runs only where there is none. Any order in which workers
    take the next job as soon as they are free ends no later than the average load of a worker plus the
    longest job, and no sooner than either (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969).
    """
    measured = measuring(load, paces)
    if not measured or not load.jobs:
        return None
    bands = [_by(pace, load, workers) for pace in measured]
    likely = sorted(band.likely for band in bands)[len(bands) // 2]
    found = Band(
        low=min(likely, *(band.low for band in bands)),
        likely=likely,
        high=max(likely, *(band.high for band in bands)),
    )
    if limit_bytes_per_second is None:
        return found
    slowed = [
        max(seconds, work / limit_bytes_per_second)
        for seconds, work in (
            (found.low, load.work.low),
            (found.likely, load.work.likely),
            (found.high, load.work.high),
        )
    ]
    return Band(low=slowed[0], likely=slowed[1], high=slowed[2])


def measuring(load: Load, paces: Iterable[Pace]) -> list[Pace]:
    """The paces that say most about a load: of migrations that did at least a tenth of its jobs or bytes;
    else of dry runs, else of any migration.
    """
    known = [pace for pace in paces if pace.is_known]
    migrations = [pace for pace in known if not pace.dry_run]
    of_a_size = [
        pace for pace in migrations if 10 * pace.jobs >= load.jobs or 10 * pace.work >= load.work.high > 0
    ]
    return of_a_size or [pace for pace in known if pace.dry_run] or migrations


def _by(pace: Pace, load: Load, workers: int | None) -> Band:
    per_job, per_byte = pace.costs()
    at_once = pace.at_once
    if workers and pace.workers:
        at_once *= workers / pace.workers
    longest = per_job + per_byte * load.largest

    def average(work: float) -> float:
        return (per_job * load.jobs + per_byte * work) / at_once

    least, likely, most = _COPYING if pace.dry_run else _MEASURED
    expected = max(average(load.work.likely), longest)
    return Band(
        low=least * min(expected, max(average(load.work.low), longest)),
        likely=likely * expected,
        high=most * max(expected, average(load.work.high) + longest),
    )


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """For how long at least one of these spans (begin and end) lasted."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def freed_by(legacy_bytes: float, peak: Band, *, may_share: bool) -> Band:
    """What a reclaim and its purge would give back of these directories (allocated bytes); less what the
    store comes to share with them, where it may: no more than it would take otherwise (`peak`).
    """
    least = max(0.0, legacy_bytes - peak.high) if may_share else legacy_bytes
    return Band(low=least, likely=legacy_bytes, high=legacy_bytes)


def peak_of(stored: Band, files: Band, directories: int, *, may_share: bool) -> Band:
    """The room that the store takes more at the most at any moment. No file is there twice: it is copied
    beside its place and renamed into it. Where blocks may be shared it may take none.
    """
    peak = stored.plus(beside(files, directories))
    return Band(low=0, likely=peak.likely, high=peak.high) if may_share else peak


# The whole --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected of a migration before it is begun. `basis`: `dry_run` or `sample`. `ready`,
    `blocked`: the projects that a dry run found so; `unknown`: those that it did not look at. `made_at`:
    when what it rests on was found.
    """

    basis: Literal["dry_run", "sample"]
    run_id: str | None
    made_at: str
    ready: int
    blocked: int
    unknown: int
    read_bytes: int
    stored: Band
    freed: Band
    peak: Band
    seconds: Band | None
    seconds_from: str | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the run and its report keep it."""
        return {
            "basis": self.basis,
            "run_id": self.run_id,
            "made_at": self.made_at,
            "projects": {"ready": self.ready, "blocked": self.blocked, "unknown": self.unknown},
            "bytes": {
                "read": self.read_bytes,
                "stored": self.stored.rounded(),
                "freed": self.freed.rounded(),
                "peak": self.peak.rounded(),
            },
            "seconds": self.seconds.rounded(3) if self.seconds is not None else None,
            "seconds_from": self.seconds_from,
            "notes": list(self.notes),
        }


def band_of(value: Mapping[str, Any]) -> Band:
    """Back from JSON values."""
    return Band(low=value["low"], likely=value["likely"], high=value["high"])


def source_of(measured: Sequence[Pace]) -> str | None:
    """Where the time of a forecast comes from: `migrations`, `dry_run`, or nowhere."""
    if not measured:
        return None
    return "dry_run" if measured[0].dry_run else "migrations"
