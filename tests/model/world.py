"""What the steps of the protocol change, each a small number: rows, directories, bytes and locks."""

from enum import StrEnum
from typing import NamedTuple

Pair = tuple[int, int]

LEGACY, MIGRATED, DELETED = range(3)
"""What a project is."""

NOWHERE, OWN_DIRECTORY, STORED_TREE = range(3)
"""Where a session that somebody split reads from; `NOWHERE`: nobody split one."""

ABSENT, GOOD, BAD = range(3)
"""A blob, or the file of a tree that is a link of it."""

WHOLE, HALF, KEPT = 1, 2, 3
"""A directory that was moved away: as it was, partly removed, or with what was not in the manifest alone."""

NOT_RECLAIMED, MOVING, RECLAIMED, UNDOING, PURGING, PURGED = range(6)
"""The states of `migration_reclaims`; an undone one counts as none."""

ACTIVE = (MOVING, RECLAIMED, UNDOING)
"""The directory is, or may be, moved away as a whole."""

DESCRIPTION, TREE, MANIFEST, BLOB, ROWS = 1, 2, 4, 8, 16
"""What a quarantined dataset's entry has; `ROWS` are in its description."""

FALSE_DAMAGE, ROWS_LOST = 1, 2

NOT_RIPE = 1 << 30
"""In a mark: made, but nobody knows yet which jobs have begun before it."""


class World(NamedTuple):
    """Everything that a crash does not take, and the locks. Pairs are by project, directory or dataset."""

    mode: Pair = (LEGACY, LEGACY)
    split: Pair = (NOWHERE, NOWHERE)
    here: Pair = (1, 1)
    """Is the directory at its legacy path?"""
    away: Pair = (0, 0)
    edited: Pair = (0, 0)
    """1: a file at the legacy path was changed by hand, 2: one of the directory that was moved away."""
    record: Pair = (NOT_RECLAIMED, NOT_RECLAIMED)
    row: Pair = (0, 0)
    tree: Pair = (ABSENT, ABSENT)
    manifest: Pair = (0, 0)
    index: Pair = (0, 0)
    entry: Pair = (0, 0)
    blob: int = ABSENT
    mark: int = 0
    """0: the blob has none; else 2 and the bits of migrations that may not have seen it."""
    running: int = 0
    """Bits of the migrations that have a lease."""
    open_splits: Pair = (0, 0)
    """Bits of Label's transactions that have read a session's place and not yet written: by place - 1."""
    read_for_purge: int = 0
    wrong: int = 0
    """What was done that no later step can undo: `FALSE_DAMAGE`, `ROWS_LOST`."""
    claims: Pair = (0, 0)
    reclaiming: int = 0
    mending: int = 0
    project_locks: Pair = (0, 0)
    dataset_locks: Pair = (0, 0)
    mark_lock: int = 0


class Layout(NamedTuple):
    """Which dataset each project's content is, and which directory it has. The one blob is in each."""

    name: str
    dataset_of: Pair
    directory_of: Pair

    @property
    def datasets(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.dataset_of)))

    @property
    def directories(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.directory_of)))

    def projects_in(self, directory: int) -> tuple[int, ...]:
        return tuple(p for p in (0, 1) if self.directory_of[p] == directory)


OVERLAPPING = Layout("overlapping content", (0, 1), (0, 1))
EQUAL = Layout("equal content", (0, 0), (0, 1))
ONE_DIRECTORY = Layout("one directory for both", (0, 0), (0, 0))
LAYOUTS = (OVERLAPPING, EQUAL, ONE_DIRECTORY)


class Start(StrEnum):
    """Where histories begin."""

    LEGACY = "both projects are legacy, the store is empty"
    HALF = "project 0 is migrated, project 1 legacy"
    MIGRATED = "both projects are migrated"
    RECLAIMED = "both projects are migrated, the directory of project 0 is moved away"
    PURGED = "both projects are migrated, the directory of project 0 is removed"
    ROLLED_BACK = "project 0 was migrated and rolled back, project 1 is legacy"
    QUARANTINED = "the same, and a gc has moved the dataset to quarantine"
    QUARANTINED_APART = "the same, but its blob went to quarantine later and apart, and was removed since"


def beginning(start: Start, layout: Layout) -> World:
    """The world at the beginning of a history."""
    first, second = layout.dataset_of
    one = _stored(World(), first)
    both = _stored(one, second)._replace(mode=(MIGRATED, MIGRATED))
    without_blob = DESCRIPTION | ROWS | TREE | MANIFEST
    return {
        Start.LEGACY: World(),
        Start.HALF: one._replace(mode=(MIGRATED, LEGACY)),
        Start.MIGRATED: both,
        Start.RECLAIMED: both._replace(here=(0, 1), away=(WHOLE, 0), record=(RECLAIMED, NOT_RECLAIMED)),
        Start.PURGED: both._replace(here=(0, 1), record=(PURGED, NOT_RECLAIMED), read_for_purge=1),
        Start.ROLLED_BACK: one,
        Start.QUARANTINED: World(entry=(without_blob | BLOB, 0)),
        Start.QUARANTINED_APART: World(entry=(without_blob, 0)),
    }[start]


def _stored(w: World, dataset: int) -> World:
    return w._replace(
        row=put(w.row, dataset, 1),
        tree=put(w.tree, dataset, GOOD),
        manifest=put(w.manifest, dataset, 1),
        index=put(w.index, dataset, 1),
        blob=GOOD,
    )


def put(pair: Pair, which: int, value: int) -> Pair:
    """The pair with another value in one place."""
    return (pair[0], value) if which else (value, pair[1])


def is_whole(w: World, dataset: int) -> bool:
    """Has the dataset all its bytes, and are they right?"""
    return w.tree[dataset] == GOOD and w.blob == GOOD and bool(w.manifest[dataset])


def is_referenced(w: World, layout: Layout, dataset: int, *, in_progress: bool = True) -> bool:
    """Does any row refer to the dataset? `in_progress`: or may an open transaction of Label's do so."""
    return any(
        layout.dataset_of[p] == dataset
        and (w.mode[p] == MIGRATED or (w.mode[p] != DELETED and w.split[p] == STORED_TREE))
        for p in (0, 1)
    ) or (in_progress and w.open_splits[STORED_TREE - 1] != 0)


def release(w: World, number: int, bit: int) -> World:
    """The world when an actor's transactions and its lease have ended."""
    return w._replace(
        running=w.running & ~bit,
        open_splits=(w.open_splits[0] & ~bit, w.open_splits[1] & ~bit),
        claims=_without(w.claims, number),
        reclaiming=0 if w.reclaiming == number else w.reclaiming,
        mending=0 if w.mending == number else w.mending,
        project_locks=_without(w.project_locks, number),
        dataset_locks=_without(w.dataset_locks, number),
        mark_lock=0 if w.mark_lock == number else w.mark_lock,
    )


def _without(pair: Pair, number: int) -> Pair:
    if number not in pair:
        return pair
    return (0 if pair[0] == number else pair[0], 0 if pair[1] == number else pair[1])
