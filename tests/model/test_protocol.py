"""The protocol of migrate, roll back, verify, repair, reclaim, undo, purge, gc and its restore holds in every
interleaving, with crashes, beside what Label and people do; and each of its precautions is needed.
"""

import importlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from tests.model.explore import VERBS, Actor, Found, explore
from tests.model.steps import Weak
from tests.model.world import EQUAL, LAYOUTS, ONE_DIRECTORY, OVERLAPPING, Layout, Start
from worker.messages import Verb

ALPHABET = (
    *(Actor(verb) for verb in VERBS),
    *(Actor(verb, 1) for verb in ("migrate", "rollback")),
)

OF_VERB = {
    Verb.MIGRATE: {"migrate"},
    Verb.ROLLBACK: {"rollback"},
    Verb.VERIFY: {"verify", "repair"},
    Verb.RECLAIM: {"reclaim", "undo", "purge"},
    Verb.GC: {"gc", "restore"},
}

_MIGRATED = (
    (Start.HALF, Start.MIGRATED, Start.RECLAIMED, Start.PURGED),
    (Start.MIGRATED, Start.RECLAIMED, Start.PURGED),
)


def _has_work(cast: Sequence[Actor], start: Start) -> bool:
    """Has each of these something to do, at once or after another? Else a smaller cast has shown all."""
    verbs = {actor.verb for actor in cast}

    def may_act(actor: Actor) -> bool:
        is_migrated = start in _MIGRATED[actor.project]
        match actor.verb:
            case "migrate":
                return not is_migrated or Actor("rollback", actor.project) in cast
            case "rollback" | "reclaim":
                return is_migrated or Actor("migrate", actor.project) in cast
            case "undo" | "purge":
                return start is Start.RECLAIMED or "reclaim" in verbs
            case "restore":
                return start in (Start.QUARANTINED, Start.QUARANTINED_APART) or "gc" in verbs
            case "repair":
                return "flip" in verbs
        return True

    return all(map(may_act, cast))


def _histories(size: int) -> Iterator[tuple[tuple[Actor, ...], Start, Layout]]:
    for cast in itertools.combinations_with_replacement(ALPHABET, size):
        for start in Start:
            if _has_work(cast, start):
                yield from ((cast, start, layout) for layout in LAYOUTS)


def _hold(size: int) -> int:
    """How many states all casts of this size have between them; fails with the first schedule that breaks
    something.
    """
    states = 0
    for cast, start, layout in _histories(size):
        found = explore(cast, start, layout)
        assert found.wrong is None, f"{', '.join(map(str, cast))}\n{found}"
        states += found.states
    return states


def test_every_verb_of_the_messages_has_its_steps_here():
    # Adoptions have a model of their own (`test_adopting.py`).
    assert {*OF_VERB, Verb.ADOPT} == set(Verb)
    assert set().union(*OF_VERB.values()) | {"split", "delete", "edit", "flip"} == set(VERBS)


def test_the_functions_that_steps_stand_for_are_there():
    named = {
        step.stands_for
        for actor in ALPHABET
        for step in actor.play(None, OVERLAPPING).steps
        if step.stands_for.startswith("worker.")
    }

    assert len(named) > 30
    assert [name for name in sorted(named) if not _is_there(name)] == []


def _is_there(name: str) -> bool:
    """Is this a function or method of a module of ours?"""
    parts = name.split(".")
    for length in range(len(parts) - 1, 1, -1):
        with suppress(ModuleNotFoundError):
            found: object = importlib.import_module(".".join(parts[:length]))
            for part in parts[length:]:
                found = getattr(found, part, None)
            return callable(found)
    return False


@pytest.mark.parametrize("size", [1, 2])
def test_nothing_breaks_whatever_two_do_and_wherever_one_dies(size):
    states = _hold(size)

    print(f"{states} states of all casts of {size}")
    assert states > {1: 500, 2: 100_000}[size]


@pytest.mark.parametrize(
    ("cast", "start", "layout"),
    [
        ("migrate 0, migrate 1, gc", Start.ROLLED_BACK, OVERLAPPING),
        ("migrate 0, gc, restore 0", Start.QUARANTINED, OVERLAPPING),
        ("rollback 0, reclaim 0, purge 0", Start.RECLAIMED, ONE_DIRECTORY),
        ("rollback 0, migrate 0, purge 0", Start.RECLAIMED, EQUAL),
        ("rollback 0, gc, split 0", Start.HALF, EQUAL),
        ("reclaim 0, undo 0, edit 0", Start.RECLAIMED, OVERLAPPING),
        ("verify 0, gc, restore 0", Start.ROLLED_BACK, OVERLAPPING),
        ("repair 0, purge 0, flip 0", Start.RECLAIMED, EQUAL),
    ],
)
def test_nothing_breaks_where_three_meet(cast, start, layout):
    found = explore(_cast(cast), start, layout)

    assert found.wrong is None, str(found)
    assert found.states > 100


@pytest.mark.long
def test_nothing_breaks_whatever_three_do_and_wherever_one_dies():
    states = _hold(3)

    print(f"{states} states of all casts of three")
    assert states > 1_000_000


BREAKS_BY = {
    Weak.LOOKS_BEFORE_THE_MARK_IS_DELETED: ("migrate 0, gc", Start.LEGACY),
    Weak.INDEX_AFTER_CONVERSION: ("migrate 0, gc", Start.LEGACY),
    Weak.CONVERTS_WITHOUT_THE_ROW: ("migrate 0, gc", Start.ROLLED_BACK),
    Weak.MARK_DATED_BEFORE_ITS_COMMIT: ("migrate 0, gc", Start.LEGACY),
    Weak.TAKES_FROM_RUNNING_JOBS: ("migrate 0, gc", Start.LEGACY),
    Weak.TAKES_WITHOUT_RECHECK: ("migrate 0, gc", Start.ROLLED_BACK),
    Weak.TAKES_WITHOUT_CLAIM: ("migrate 0, gc", Start.LEGACY),
    Weak.MOVES_BLOBS_AFTER_COMMIT: ("migrate 0, gc", Start.LEGACY),
    Weak.REMOVES_WITHOUT_CLAIM: ("gc, restore 0", Start.ROLLED_BACK),
    Weak.DESCRIBES_AFTER_DELETING: ("gc", Start.ROLLED_BACK),
    Weak.TAKES_WITHOUT_GRACE: ("rollback 0, gc, split 0", Start.HALF),
    Weak.RESTORES_INDEX_LAST: ("gc, restore 0", Start.QUARANTINED),
    Weak.RESTORES_UNDER_THE_MARK: ("gc, restore 0", Start.ROLLED_BACK),
    Weak.RESTORES_ROWS_FIRST: ("restore 0", Start.QUARANTINED),
    Weak.RESTORES_BLOBS_FROM_THE_ENTRY_ONLY: ("restore 0", Start.QUARANTINED_APART),
    Weak.RENAMES_BEFORE_THE_INTENT: ("reclaim 0", Start.HALF),
    Weak.RECLAIMS_WITHOUT_RECHECK: ("rollback 0, reclaim 0", Start.HALF),
    Weak.LEAVES_MOVING_ROWS: ("reclaim 0", Start.HALF),
    Weak.RECLAIMS_THE_YOUNG: ("migrate 0, reclaim 0, split 0", Start.LEGACY),
    Weak.REVERTS_WHILE_RECLAIMED: ("rollback 0, reclaim 0", Start.HALF),
    Weak.OVERLOOKS_A_PURGE: ("rollback 0, reclaim 0, purge 0", Start.HALF),
    Weak.REBUILDS_WITHOUT_CLAIM: ("rollback 0, reclaim 0", Start.HALF),
    Weak.UNDOES_WITHOUT_CLAIM: ("undo 0, undo 0, reclaim 0", Start.RECLAIMED),
    Weak.PURGES_WITHOUT_READING: ("purge 0, flip 0", Start.RECLAIMED),
    Weak.PURGES_WITHOUT_CLAIM: ("undo 0, purge 0", Start.RECLAIMED),
    Weak.PURGES_WHAT_CHANGED: ("reclaim 0, edit 0, purge 0", Start.HALF),
    Weak.PURGES_WITHOUT_INTENT: ("undo 0, purge 0", Start.RECLAIMED),
    Weak.VERIFIES_ONE_LOOK: ("verify 0, gc, restore 0", Start.ROLLED_BACK),
}


@pytest.mark.parametrize("weak", Weak, ids=lambda weak: weak.name.lower())
def test_each_precaution_is_needed(weak):
    cast, start = BREAKS_BY[weak]
    actors = _cast(cast)

    found = explore(actors, start, OVERLAPPING, weak=weak)

    print(f"{weak.value}:\n{found}")
    assert found.wrong, f"nothing breaks although {weak.value}"
    assert explore(actors, start, OVERLAPPING).wrong is None


def test_a_schedule_names_who_does_what_in_which_order():
    found = explore([Actor("reclaim")], Start.HALF, OVERLAPPING, weak=Weak.RENAMES_BEFORE_THE_INTENT)

    assert isinstance(found, Found)
    lines = str(found).splitlines()
    assert "1 reclaim 0" in lines[1]
    assert any("rename" in line for line in lines)
    assert lines[-1].startswith("=> ")


def _cast(names: str) -> list[Actor]:
    """From "migrate 0, gc": who takes part."""
    named = (name.partition(" ") for name in names.split(", "))
    return [Actor(verb, int(project or 0)) for verb, _, project in named]
