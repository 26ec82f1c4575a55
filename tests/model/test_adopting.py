"""The protocol of an adoption, its undo and the gc that settles and frees holds in every interleaving, with a
crash anywhere and a program that writes to the directory at any time; and each of its precautions is needed.

A model of its own: it shares no state with the other verbs but claims on contents, of which
`tests/races/test_adopting.py` tells.
"""

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

import pytest

ORIGINAL, OURS, NOTHING = "original", "ours", "nothing"
ENDED = -1


class Weak(StrEnum):
    """A precaution that is left out."""

    EXCHANGES_BEFORE_THE_INTENT = "the directories change places before a row says so"
    DOES_NOT_CONFIRM = "nobody looks again once the directory is set aside"
    WRITES_ROWS_UNCHECKED = "the rows are written whatever became of the adoption"
    SETTLES_WITHOUT_CLAIM = "a gc settles while the job lives, which does not look again"
    UNDOES_WITHOUT_INTENT = "an undo changes places before a row says so"
    REMOVES_WHAT_CHANGED = "a gc removes what was written to since it was set aside"


class World(NamedTuple):
    """What a crash does not take, and the claim. `written`: how often a program wrote to the original, in its
    place and since it was set aside; `read`: how much of that ours has.
    """

    place: str = ORIGINAL
    aside: str = NOTHING
    state: str = "none"
    row: str = ORIGINAL
    written: tuple[int, int] = (0, 0)
    read: int = 0
    claim: int = 0


Step = tuple[World, int, int]


def _exchange(w: World, to: str) -> World:
    other = OURS if to == ORIGINAL else ORIGINAL
    return w if w.place == to else w._replace(place=to, aside=other)


def _claimed(w: World, me: int, at: int, mind: int) -> Iterator[Step]:
    if w.claim in {0, me}:
        yield w._replace(claim=me), at + 1, mind


def _settled(w: World) -> World:
    """`settle_row`."""
    match w.state:
        case "adopting":
            return _exchange(w, ORIGINAL)._replace(state="none", aside=NOTHING)
        case "undoing" if w.place == ORIGINAL:
            return w._replace(row=ORIGINAL, state="none", aside=NOTHING)
        case "undoing":
            return w._replace(state="adopted")
        case "clearing":
            return w._replace(state="none", aside=NOTHING)
        case "removing":
            return w._replace(state="removed", aside=NOTHING)
    return w


def _adopt(  # noqa: C901 - a case for each step
    w: World, me: int, at: int, mind: int, weak: Weak | None
) -> Iterator[Step]:
    """`mind`: what was written when the fingerprint was taken, and whether what came next was as it was."""
    early = weak is Weak.EXCHANGES_BEFORE_THE_INTENT
    match at:
        case 0:
            yield from _claimed(w, me, at, mind)
        case 1:
            yield _settled(w), 2, sum(w.written)
        case 2 if w.state != "none":
            yield w._replace(claim=0), ENDED, 0
        case 2:
            yield w._replace(read=mind, state="none" if early else "adopting"), 3, mind
        case 3 if w.state == "adopting" or early:
            yield _exchange(w._replace(aside=OURS) if w.place == ORIGINAL else w, OURS), 4, mind
        case 3:
            yield w._replace(claim=0), ENDED, 0
        case 4 if sum(w.written) != mind and weak is not Weak.DOES_NOT_CONFIRM:
            yield (_settled(w) if w.state == "adopting" else _exchange(w, ORIGINAL)), 6, mind
        case 4:
            yield w, 5, mind
        case 5 if w.state == "adopting" or early or weak in _UNCHECKED:
            yield w._replace(row=OURS, state="adopted"), 6, mind
        case 5 | 6:
            yield w._replace(claim=0 if w.claim == me else w.claim), ENDED, 0


_UNCHECKED = {Weak.WRITES_ROWS_UNCHECKED, Weak.SETTLES_WITHOUT_CLAIM}


def _undo(w: World, me: int, at: int, mind: int, weak: Weak | None) -> Iterator[Step]:
    """The exchange comes last in the transaction of its rows, and before the commit."""
    match at:
        case 0:
            yield from _claimed(w, me, at, mind)
        case 1:
            yield _settled(w), 2, 0
        case 2 if w.state != "adopted":
            yield w._replace(claim=0), ENDED, 0
        case 2:
            yield w if weak is Weak.UNDOES_WITHOUT_INTENT else w._replace(state="undoing"), 3, 0
        case 3:
            yield _exchange(w, ORIGINAL), 4, 0
        case 4:
            yield w._replace(row=ORIGINAL, state="clearing"), 5, 0
        case 5:
            yield _settled(w)._replace(claim=0), ENDED, 0


def _gc(w: World, me: int, at: int, mind: int, weak: Weak | None) -> Iterator[Step]:
    match at:
        case 0 if weak in {Weak.SETTLES_WITHOUT_CLAIM, Weak.WRITES_ROWS_UNCHECKED}:
            yield w, 1, 0
        case 0:
            yield from _claimed(w, me, at, mind)
        case 1:
            yield _settled(w), 2, 0
        case 2:
            is_touched = w.written[1] > 0 and weak is not Weak.REMOVES_WHAT_CHANGED
            goes = w.state == "adopted" and w.aside == ORIGINAL and not is_touched
            yield w._replace(state="removing") if goes else w, 3, 0
        case 3:
            after = _settled(w)
            yield after._replace(claim=0 if w.claim == me else w.claim), ENDED, 0


def _write(w: World, _me: int, _at: int, _mind: int, _weak: Weak | None) -> Iterator[Step]:
    """A program that has a file of the original open: it may be set aside by now. What it writes while a gc
    removes that, a grace time later, goes with it; nothing can keep it from that.
    """
    in_place, since = w.written
    if w.place == ORIGINAL:
        yield w._replace(written=(in_place + 1, since)), ENDED, 0
    elif w.aside == ORIGINAL and w.state != "removing":
        yield w._replace(written=(in_place, since + 1)), ENDED, 0
    else:
        yield w, ENDED, 0


PLAYS = {"adopt": _adopt, "undo": _undo, "gc": _gc, "write": _write}


def _broken(w: World) -> str | None:
    if w.place == NOTHING:
        return "nothing is in the place"
    if w.row == OURS and w.read < w.written[0] and w.place == OURS:
        return "what was written in the place is not what is read there"
    if ORIGINAL not in {w.place, w.aside} and w.written[1]:
        return "what was written is lost"
    return None


def _unfinished(w: World) -> str | None:
    """Once all have ended, and a gc has come by."""
    w = _settled(w)
    ends = {
        "none": (ORIGINAL, ORIGINAL, NOTHING),
        "adopted": (OURS, OURS, ORIGINAL),
        "removed": (OURS, OURS, NOTHING),
    }
    if (w.row, w.place, w.aside) != ends[w.state]:
        return f"{w.state}, but the row says {w.row}, {w.place} is in the place and {w.aside} is set aside"
    return _broken(w)


def explore(cast: tuple[str, ...], weak: Weak | None = None) -> tuple[int, str | None]:
    """How many states there are, and what does not hold in one of them."""
    first = (World(), ((0, 0),) * len(cast), 1)
    seen, waiting = {first}, deque([first])
    while waiting:
        w, places, deaths = waiting.popleft()
        following = []
        for number, (at, mind) in enumerate(places):
            if at == ENDED:
                continue
            for after, to, now in PLAYS[cast[number]](w, number + 1, at, mind, weak):
                following.append((after, (*places[:number], (to, now), *places[number + 1 :]), deaths))
            if at and deaths:
                died = w._replace(claim=0 if w.claim == number + 1 else w.claim)
                # it is delivered again, or not asked for any more.
                for again in (0, ENDED):
                    dead = (*places[:number], (again, 0), *places[number + 1 :])
                    following.append((died, dead, 0))
        wrong = _broken(w) or (None if following else _unfinished(w))
        if wrong:
            return len(seen), wrong
        for state in following:
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return len(seen), None


@pytest.mark.parametrize(
    "cast",
    [
        ("adopt", "write", "gc"),
        ("adopt", "adopt", "write", "gc"),
        ("adopt", "undo", "write", "gc"),
        ("adopt", "undo", "adopt", "gc", "write"),
    ],
    ids=" ".join,
)
def test_nothing_breaks_whatever_meets_an_adoption_and_wherever_one_dies(cast: tuple[str, ...]):
    states, wrong = explore(cast)

    assert wrong is None
    assert states > 100


BREAKS_BY = {
    Weak.EXCHANGES_BEFORE_THE_INTENT: ("adopt", "gc"),
    Weak.DOES_NOT_CONFIRM: ("adopt", "write"),
    Weak.WRITES_ROWS_UNCHECKED: ("adopt", "gc"),
    Weak.SETTLES_WITHOUT_CLAIM: ("adopt", "gc"),
    Weak.UNDOES_WITHOUT_INTENT: ("adopt", "undo", "gc"),
    Weak.REMOVES_WHAT_CHANGED: ("adopt", "write", "gc"),
}


@pytest.mark.parametrize("weak", Weak, ids=lambda weak: weak.name.lower())
def test_each_precaution_of_an_adoption_is_needed(weak: Weak):
    _, wrong = explore(BREAKS_BY[weak], weak)

    assert wrong, f"nothing breaks although {weak.value}"
    assert explore(BREAKS_BY[weak])[1] is None
