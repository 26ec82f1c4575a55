"""What a step of a verb is, and what it may do next."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from tests.model.world import Layout, World, release

ENDED = -1


class Weak(StrEnum):
    """The protocol with one of its precautions left out."""

    LOOKS_BEFORE_THE_MARK_IS_DELETED = "a migration looks for blobs before it deletes their marks"
    INDEX_AFTER_CONVERSION = "the index is written after the conversion"
    CONVERTS_WITHOUT_THE_ROW = "a reuse does not ask for the dataset's row under its lock"
    MARK_DATED_BEFORE_ITS_COMMIT = "a mark is dated before it is committed"
    TAKES_FROM_RUNNING_JOBS = "gc does not ask for running jobs"
    TAKES_WITHOUT_RECHECK = "gc does not look for references again under the row's lock"
    TAKES_WITHOUT_CLAIM = "gc does not claim the dataset"
    MOVES_BLOBS_AFTER_COMMIT = "gc moves a blob after the transaction that holds its mark"
    REMOVES_WITHOUT_CLAIM = "gc removes old entries without the dataset's claim"
    DESCRIBES_AFTER_DELETING = "gc writes an entry's description after the rows are deleted"
    TAKES_WITHOUT_GRACE = "gc takes what Label's open transactions may still refer to"
    RESTORES_INDEX_LAST = "gc --restore writes the index last"
    RESTORES_UNDER_THE_MARK = "gc --restore leaves the marks"
    RESTORES_ROWS_FIRST = "gc --restore writes the rows first"
    RESTORES_BLOBS_FROM_THE_ENTRY_ONLY = "gc --restore knows blobs only from the entry"
    RENAMES_BEFORE_THE_INTENT = "reclaim renames before its row is committed"
    RECLAIMS_WITHOUT_RECHECK = "reclaim does not look again under the rows' locks"
    LEAVES_MOVING_ROWS = "a reclaim does not settle the row of an attempt that died"
    RECLAIMS_THE_YOUNG = "reclaim takes what was converted while Label's transactions were open"
    REVERTS_WHILE_RECLAIMED = "a rollback does not look for a reclaim in its last transaction"
    OVERLOOKS_A_PURGE = "a rollback's last transaction does not look for a purge that began since it looked"
    REBUILDS_WITHOUT_CLAIM = "a rollback looks for a directory that is gone without the claim"
    UNDOES_WITHOUT_CLAIM = "an undo does not claim"
    PURGES_WITHOUT_READING = "a purge does not read the dataset"
    PURGES_WITHOUT_CLAIM = "a purge does not claim"
    PURGES_WHAT_CHANGED = "a purge removes whatever is there"
    PURGES_WITHOUT_INTENT = "a purge removes before its row says so"
    VERIFIES_ONE_LOOK = "a verification names damage without a second look under the row's lock"


class Job(NamedTuple):
    """One actor of a history: a job of a run, a person, or a disk that goes bad."""

    number: int
    """Of the actor, from 1: whose a lock is."""
    layout: Layout
    project: int
    weak: Weak | None

    @property
    def bit(self) -> int:
        return 1 << self.number

    @property
    def dataset(self) -> int:
        return self.layout.dataset_of[self.project]

    @property
    def directory(self) -> int:
        return self.layout.directory_of[self.project]


class Next(NamedTuple):
    """What a step leads to: the world, where the actor goes on, and what it keeps in mind."""

    world: World
    to: str | int | None = None
    """A label, `ENDED`, or None: the step after this one."""
    seen: int = 0


Act = Callable[[World, Job, int], Iterable[Next]]


class Step(NamedTuple):
    """One step that no other actor comes between. `stands_for`: the function of the program that takes it."""

    label: str
    act: Act
    stands_for: str = ""


class Play(NamedTuple):
    """All steps of a verb, and whether a crash ends its attempt, after which another begins."""

    name: str
    steps: tuple[Step, ...]
    may_die: bool = True

    def at(self, label: str) -> int:
        return next(n for n, step in enumerate(self.steps) if step.label == label)


WAIT: tuple[Next, ...] = ()
"""The step cannot be taken now."""


def end(w: World, job: Job) -> list[Next]:
    """The job has ended: its locks and its lease go."""
    return [Next(release(w, job.number, job.bit), ENDED)]


def then(w: World, seen: int = 0) -> list[Next]:
    """On to the step below."""
    return [Next(w, None, seen)]


def go(w: World, to: str, seen: int = 0) -> list[Next]:
    """On to a step by its label."""
    return [Next(w, to, seen)]


def others(lock: int, job: Job) -> bool:
    """Does another actor hold this lock?"""
    return lock not in {0, job.number}
