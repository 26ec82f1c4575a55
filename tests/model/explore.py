"""Every interleaving of a few actors, breadth first: the shortest schedule that breaks something, or how many
states there are.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.model import collecting, freeing, people, storing
from tests.model.invariants import broken, unfinished
from tests.model.steps import ENDED, Job, Play, Weak
from tests.model.world import Layout, Start, World, beginning, release

DIES = "dies"


class Actor(NamedTuple):
    """Who takes part in a history: a verb, and the project with which it has to do (a gc: none)."""

    verb: str
    project: int = 0

    def __str__(self) -> str:
        return self.verb if self.verb == "gc" else f"{self.verb} {self.project}"

    def play(self, weak: Weak | None, layout: Layout) -> Play:
        """The steps it takes."""
        if self.verb == "gc":
            return collecting.gc(weak, layout.datasets)
        return _WEAKENED[self.verb](weak) if self.verb in _WEAKENED else _FIXED[self.verb]


_WEAKENED = {
    "migrate": storing.migrate,
    "rollback": storing.rollback,
    "verify": storing.verify,
    "reclaim": freeing.reclaim,
    "undo": freeing.undo,
    "purge": freeing.purge,
    "restore": collecting.restore,
}
_FIXED = {
    "repair": storing.REPAIR,
    "split": people.SPLIT,
    "delete": people.DELETE,
    "edit": people.EDIT,
    "flip": people.FLIP,
}

VERBS = (*_WEAKENED, "gc", *_FIXED)
"""The alphabet of histories."""

State = tuple[World, tuple[tuple[int, int], ...], int]
"""The world, where each actor stands and what it has in mind, and how many may still die."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an exploration came to: all states, or a schedule after which something does not hold."""

    states: int
    wrong: str | None = None
    schedule: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*self.schedule, f"=> {self.wrong}"])


def explore(
    actors: Sequence[Actor],
    start: Start,
    layout: Layout,
    *,
    weak: Weak | None = None,
    deaths: int = 1,
    most: int = 10**7,
) -> Found:
    """All interleavings of these actors, each with up to `deaths` crashes at any place."""
    return _Exploration(actors, start, layout, weak).run(deaths, most)


class _Exploration:
    def __init__(self, actors: Sequence[Actor], start: Start, layout: Layout, weak: Weak | None) -> None:
        self._actors = actors
        self._start = start
        self._layout = layout
        self._plays = [actor.play(weak, layout) for actor in actors]
        self._jobs = [Job(number, layout, actor.project, weak) for number, actor in enumerate(actors, 1)]
        self._labels = [{step.label: at for at, step in enumerate(play.steps)} for play in self._plays]

    def run(self, deaths: int, most: int) -> Found:
        first: State = (beginning(self._start, self._layout), ((0, 0),) * len(self._actors), deaths)
        came_from: dict[State, tuple[State, str] | None] = {first: None}
        waiting = deque([first])
        while waiting and len(came_from) < most:
            state = waiting.popleft()
            stuck = True
            for said, after in self._successors(state):
                stuck = False
                if after not in came_from:
                    came_from[after] = (state, said)
                    if wrong := broken(after[0], self._layout):
                        return self._found(came_from, after, wrong)
                    waiting.append(after)
            if stuck and (wrong := self._wrong_at_the_end(state)):
                return self._found(came_from, state, wrong)
        return Found(states=len(came_from))

    def _successors(self, state: State) -> Iterator[tuple[str, State]]:
        world, places, deaths = state
        for number, (at, seen) in enumerate(places):
            if at == ENDED:
                continue
            play, job = self._plays[number], self._jobs[number]
            step = play.steps[at]
            for following in step.act(world, job, seen):
                to = following.to
                there = at + 1 if to is None else to if isinstance(to, int) else self._labels[number][to]
                yield (
                    f"{number}:{at}",
                    (following.world, _moved(places, number, there, following.seen), deaths),
                )
            if at and deaths and play.may_die:
                died = release(world, job.number, job.bit)
                yield f"{number}:{DIES}", (died, _moved(places, number, 0, 0), deaths - 1)

    def _wrong_at_the_end(self, state: State) -> str | None:
        world, places, _ = state
        blocked = [str(actor) for actor, (at, _) in zip(self._actors, places, strict=True) if at != ENDED]
        if blocked:
            return f"all wait for each other: {', '.join(blocked)}"
        return unfinished(world, self._layout)

    def _found(self, came_from: dict[State, tuple[State, str] | None], last: State, wrong: str) -> Found:
        said: list[str] = []
        state = last
        while (before := came_from[state]) is not None:
            state = before[0]
            said.append(self._in_words(before[1]))
        return Found(
            states=len(came_from),
            wrong=wrong,
            schedule=(f"{self._layout.name}; {self._start.value}", *reversed(said)),
        )

    def _in_words(self, said: str) -> str:
        number, at = said.split(":")
        who = f"{int(number) + 1} {self._actors[int(number)]}"
        if at == DIES:
            return f"  {who:<12} dies; its transactions end, and it begins again"
        step = self._plays[int(number)].steps[int(at)]
        return f"  {who:<12} {step.label:<18} {step.stands_for}"


def _moved(
    places: tuple[tuple[int, int], ...], number: int, at: int, seen: int
) -> tuple[tuple[int, int], ...]:
    return (*places[:number], (at, seen), *places[number + 1 :])
