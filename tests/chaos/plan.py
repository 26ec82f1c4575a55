"""What a schedule is going to do, as a value that follows from its seed alone. Does nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random

_MIB = 1 << 20


class Kind(StrEnum):
    """The faults, in the words of the table at the end."""

    NOTHING = "nothing (for comparison)"
    KILL_CHILD = "kill -9 of a worker's child"
    KILL_WORKER = "kill -9 of a worker with its children"
    TERM_WORKER = "SIGTERM to a worker, another one comes"
    SLEEP_WORKER = "a worker sleeps longer than its lease"
    SLEEP_CHILD = "a worker's child sleeps longer than its lease"
    KILL_PRODUCER = "kill -9 of the producer while it enqueues"
    KILL_COLLECTOR = "kill -9 of the collector"
    EMPTY_REDIS = "Redis emptied"
    RESTART_REDIS = "Redis killed, comes back without its data"
    FREEZE_REDIS = "Redis does not answer for a while"
    CRASH_POSTGRES = "PostgreSQL crashed, comes back"
    CUT_CONNECTIONS = "all connections to PostgreSQL cut"
    DUPLICATES = "every message several times more"
    PAUSE = "paused, then resumed"
    RIVAL = "another run over the same projects"
    EDIT = "people edit rows"
    RECLAIM = "legacy directories reclaimed"
    UNDO = "reclaimed directories moved back"
    PURGE = "reclaimed directories purged"
    GC = "garbage collected"
    REPAIR = "the store verified and repaired"
    FLIP = "a bit in the store flipped"
    REDIS_FAILOVER = "Redis fails over (Sentinel)"
    PROMOTION = "PostgreSQL's replica is promoted"
    LOSSY_PROMOTION = "PostgreSQL's replica is promoted, some commits late"


BLOWS = {
    "redis-failover": Kind.REDIS_FAILOVER,
    "postgres-promotion": Kind.PROMOTION,
    "postgres-lossy-promotion": Kind.LOSSY_PROMOTION,
}
"""Kinds that need pairs of servers: they come beside those of a seed, when they are asked for, and are drawn
from a stream of their own, so that a seed means what it always meant.
"""


STORE_KINDS = frozenset({Kind.RECLAIM, Kind.UNDO, Kind.PURGE, Kind.GC, Kind.REPAIR, Kind.FLIP})
"""What is about the store as the only copy. It waits until there is something for it to be done to, and is
not left out because the migration has ended meanwhile.
"""


_WEIGHTS: dict[Kind, int] = {
    Kind.NOTHING: 2,
    Kind.KILL_CHILD: 4,
    Kind.KILL_WORKER: 4,
    Kind.TERM_WORKER: 3,
    Kind.SLEEP_WORKER: 3,
    Kind.SLEEP_CHILD: 2,
    Kind.EMPTY_REDIS: 3,
    Kind.RESTART_REDIS: 2,
    Kind.FREEZE_REDIS: 1,
    Kind.CRASH_POSTGRES: 3,
    Kind.CUT_CONNECTIONS: 2,
    Kind.DUPLICATES: 3,
    Kind.PAUSE: 2,
    Kind.RIVAL: 1,
    Kind.EDIT: 4,
    Kind.RECLAIM: 5,
    Kind.UNDO: 2,
    Kind.PURGE: 3,
    Kind.GC: 4,
    Kind.REPAIR: 2,
    Kind.FLIP: 3,
}
"""How often each kind comes; the producer and the collector are killed on their own terms."""


_WHEN = {
    Kind.KILL_PRODUCER: (0.0, 0.0),
    Kind.RECLAIM: (0.3, 1.2),
    Kind.UNDO: (0.6, 1.8),
    Kind.PURGE: (0.6, 1.8),
    Kind.REPAIR: (0.3, 1.5),
    Kind.FLIP: (0.3, 1.2),
}
"""From when to when they come, in times that the run is meant to take: these need something to be done to."""


class Ending(StrEnum):
    """What becomes of the projects."""

    MIGRATED = "they stay migrated"
    ROLLED_BACK = "they are all rolled back"
    """What was purged is then rebuilt from the store."""
    CANCELLED = "the run is cancelled in the middle, and another one does the rest"


class Flaw(StrEnum):
    """What is wrong with a project from the beginning."""

    NO_DIRECTORY = "its directory is missing"
    NO_PATH = "it has no path"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """One session directory: a recording of so many rows, cut before some of them, and what lies beside
    it.
    """

    name: str
    rows: int
    seed: int
    cuts: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    labels: bool = False
    extra_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectPlan:
    """One project. Projects of equal `content` have equal directories, or one: that of the first of them, if
    it `shares` it.
    """

    content: int
    sessions: tuple[SessionPlan, ...]
    shares: bool = False
    flaw: Flaw | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, `at_s` seconds after the run was opened. `which` picks the victim, `lasts_s` says how long
    it is away.
    """

    kind: Kind
    at_s: float
    which: int
    lasts_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One schedule. `run_s` is how long the migration is meant to take when nothing goes wrong.

    `patient` keeps the half minute after which a message counts as lost; otherwise it is shortened as leases
    are.
    """

    seed: int
    projects: tuple[ProjectPlan, ...]
    workers: int
    concurrency: int
    lease_s: float
    run_s: float
    faults: tuple[Fault, ...]
    ending: Ending
    cancel_at_s: float
    rollback_faults: tuple[Fault, ...]
    patient: bool
    waves: str | None = None
    """How its migration is divided, if it goes in waves."""

    @property
    def kinds(self) -> Iterator[Kind]:
        """The kinds of all its faults."""
        yield from (fault.kind for fault in (*self.faults, *self.rollback_faults))

    @property
    def restores(self) -> bool:
        """Does its rollback rebuild directories? Only where one may have been purged."""
        return Kind.PURGE in self.kinds


def make_plan(
    seed: int,
    *,
    faultless: bool = False,
    only: Kind | None = None,
    ending: Ending | None = None,
    waves: bool = False,
    blow: Kind | None = None,
) -> Plan:
    """The plan of a seed. `faultless` takes the faults out of it, `only` makes all of them of one kind,
    `ending` changes it, `waves` lets its migration go in waves, and leaves all else as it was, `blow` adds
    one of `BLOWS` once or twice to each of its runs.
    """
    chance = Random(f"chaos {seed}")
    projects = tuple(_projects(chance))
    run_s = chance.uniform(1.5, 3.0)
    drawn = chance.choices(tuple(Ending), weights=(4, 3, 3))[0]
    ending = ending or drawn
    faults = _faults(chance, run_s, chance.randint(3, 8))
    rollback_faults = _faults(chance, 1.5, chance.randint(2, 4)) if ending is Ending.ROLLED_BACK else ()
    if only is not None:
        faults, rollback_faults = (_all_of(only, some) for some in (faults, rollback_faults))
    if blow is not None:
        extra = Random(f"{blow.name} {seed}")
        faults = _with_blows(blow, faults, run_s, extra)
        rollback_faults = _with_blows(blow, rollback_faults, 1.5, extra) if rollback_faults else ()
    return Plan(
        seed=seed,
        projects=projects,
        workers=chance.randint(2, 3),
        concurrency=chance.choice((1, 1, 2)),
        lease_s=chance.choice((2.0, 2.0, 3.0)),
        run_s=run_s,
        faults=() if faultless else faults,
        ending=ending,
        cancel_at_s=chance.uniform(0.2, 0.8) * run_s,
        rollback_faults=() if faultless else rollback_faults,
        patient=chance.random() < 0.1,
        waves=Random(f"waves {seed}").choice(("1,100%", "1,50%,100%", "30%,60%,100%")) if waves else None,
    )


def _projects(chance: Random) -> Iterator[ProjectPlan]:
    count = chance.randint(4, 10)
    contents = [tuple(_sessions(chance, number)) for number in range(max(2, count * 2 // 3))]
    if chance.random() < 0.2:
        contents = [(_with_big_file(first, chance), *rest) for first, *rest in contents]
    for number in range(count):
        # The first of each content comes first, so that each content is there.
        is_first = number < len(contents)
        content = number if is_first else chance.randrange(len(contents))
        shares = not is_first and chance.random() < 0.3
        yield ProjectPlan(content=content, sessions=contents[content], shares=shares)
    for flaw in Flaw:
        if chance.random() < 0.2:
            yield ProjectPlan(content=-1, sessions=(), flaw=flaw)


def _sessions(chance: Random, content: int) -> Iterator[SessionPlan]:
    for number in range(chance.randint(1, 4)):
        rows = chance.randint(300, 3500)
        cut = sorted(chance.sample(range(10, rows - 10), 2))
        kind = chance.choice(("whole", "whole", "cut", "gaps"))
        yield SessionPlan(
            name=f"2025-07-{content + 1:02}_{8 + number:02}_30_00",
            rows=rows,
            seed=chance.randrange(1_000_000),
            cuts=tuple(cut) if kind == "cut" else (),
            gaps=tuple(cut) if kind == "gaps" else (),
            labels=chance.random() < 0.5,
            extra_bytes=chance.choice((0, 0, chance.randint(1, 40_000))),
        )


def _with_big_file(session: SessionPlan, chance: Random) -> SessionPlan:
    """A file that is stored in the pass that hashes it."""
    return SessionPlan(
        name=session.name,
        rows=session.rows,
        seed=session.seed,
        cuts=session.cuts,
        gaps=session.gaps,
        labels=session.labels,
        extra_bytes=chance.randint(8 * _MIB, 11 * _MIB),
    )


def _faults(chance: Random, run_s: float, count: int) -> tuple[Fault, ...]:
    kinds = chance.choices(tuple(_WEIGHTS), weights=tuple(_WEIGHTS.values()), k=count)
    if chance.random() < 0.15:
        kinds[0] = Kind.KILL_PRODUCER
    if chance.random() < 0.2:
        kinds[-1] = Kind.KILL_COLLECTOR
    if {Kind.UNDO, Kind.PURGE} & set(kinds):
        # What is to be moved back or removed has to be moved away before.
        kinds.append(Kind.RECLAIM)
    # What is done to the store comes late: what kills its runs does so, too.
    any_time = (0.0, 1.8 if STORE_KINDS & set(kinds) else 1.0)
    faults = [
        Fault(
            kind=kind,
            at_s=round(chance.uniform(*_WHEN.get(kind, any_time)) * run_s, 3),
            which=chance.randrange(1_000_000),
            lasts_s=round(chance.uniform(0.1, 1.0), 3),
        )
        for kind in kinds
    ]
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _with_blows(blow: Kind, faults: tuple[Fault, ...], run_s: float, chance: Random) -> tuple[Fault, ...]:
    """A lossy promotion comes without what no program could make good: people's edits of its moments are lost
    with all else, and a purge that follows its reclaim by moments, not by weeks, may be lost together with
    it.
    """
    left_out = {Kind.EDIT, Kind.PURGE} if blow is Kind.LOSSY_PROMOTION else set()
    kept = [fault for fault in faults if fault.kind not in left_out]
    blows = [
        Fault(
            kind=blow,
            at_s=round(chance.uniform(0.1, 1.2) * run_s, 3),
            which=chance.randrange(1_000_000),
            lasts_s=round(chance.uniform(0.1, 1.0), 3),
        )
        for _ in range(chance.randint(1, 2))
    ]
    return tuple(sorted([*kept, *blows], key=lambda fault: fault.at_s))


def _all_of(kind: Kind, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    return tuple(
        Fault(
            kind=kind,
            at_s=0.0 if kind is Kind.KILL_PRODUCER else fault.at_s,
            which=fault.which,
            lasts_s=fault.lasts_s,
        )
        for fault in faults
    )
