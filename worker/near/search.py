"""Near-duplicates among many recordings: those that begin alike are read side by side. Writes nothing.

Each recording costs a few kilobytes; only what begins in the same 20 ms with the same readings is read, and
a difference ends the reading. A recording that has all of another's readings stands for it from then on, so
that many copies of one recording are each read once more, not with each other.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.errors import ProjectError, SessionUnreadableError, StoredBytesMismatchError
from worker.near.agreement import Precision
from worker.near.beginning import Beginning, alike, begin, beginning_of, first_times
from worker.near.compare import Match, Read, compare
from worker.near.merged import merge
from worker.near.records import Records, Sensor, WithoutLast, in_order, joined, read
from worker.near.resampled import BIN_NS
from worker.runtime.throttle import Pace, Throttle

Key = int
"""The place of a recording in the list of all."""

Groups = dict[tuple[Sensor, int], list[Key]]
Times = NDArray[np.float64]

_AT_ONCE = 64
"""So many beginnings are one task for a thread."""

_FURTHER = 4_096
"""So many records of both sensors are read where one begins later than the first few of the other."""

_ENOUGH = 8
"""Of fewer merged records it cannot be said how they begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A file to compare. `beside` is the recording of the other sensor in the same session, if there is one;
    `tag` sorts recordings that are otherwise equally rich.
    """

    path: Path
    sensor: Sensor
    size_bytes: int
    tag: int
    beside: Key | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two recordings, by their places in the list, of which the richer has all readings of the other.
    `is_merged`: not in its own file alone, but merged with the other sensor's as by an upload.
    """

    richer: Key
    poorer: Key
    match: Match
    is_merged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A recording that was not compared, or not to its end, and why. `is_damaged`: its bytes are not those
    that were stored.
    """

    key: Key
    reason: str
    is_damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a search is: of how many recordings the beginning was read, and how many of the groups that
    begin alike were read side by side.
    """

    begun: int
    recordings: int
    groups_done: int = 0
    groups: int = 0


@dataclass(slots=True)
class Found:
    """What a search has found. `unproven` are pairs that are the same as far as both go, but of a sensor that
    says the same all the time; `comparisons` counts how often two that begin alike were compared.
    """

    pairs: list[Pair] = field(default_factory=list)
    unproven: list[Pair] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    comparisons: int = 0


class StoppedError(Exception):
    """Raised in the threads of a search that ends before its time."""


class _UnreadError(Exception):
    """Raised where a recording cannot be read, or is damaged."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class Search:
    """One search. All that its threads share are values that are written once, and lists."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        *,
        wanted: frozenset[Key] | None,
        check: Callable[[Recording, Pace], None],
        pace: Pace,
        limit: Throttle,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Compare `recordings`, or only the `wanted` ones of them with all. `check` raises
        `StoredBytesMismatchError` for one whose bytes are not those that were stored; it is called for those
        of which something is reported. `pace` is called with what is read, before the limit is kept.
        """
        self._recordings = recordings
        self._wanted = wanted
        self._check = check
        self._tell_bytes = pace
        self._limit = limit
        self._on_progress = on_progress
        self._found = Found()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._first_bins: dict[Key, int] = {}
        self._first_times: dict[Key, Times] = {}
        """Of sessions that have both sensors."""
        self._begins: dict[Key, Beginning] = {}
        self._refused: set[Key] = set()
        self._checked: set[Key] = set()

    def run(self, threads: ThreadPoolExecutor) -> Found:
        """Search by these threads. What ends it, such as Ctrl-C at any moment, ends what they do."""
        try:
            self._first_of_all(threads)
            groups = self._grouped()
            for tasks in (
                [
                    partial(self._compare_group, group)
                    for group in groups.values()
                    if self._is_worth_it(group)
                ],
                self._of_merged(groups),
            ):
                self._each(threads, tasks, self._side_by_side)
        finally:
            self._stopping.set()
        found = self._found
        found.pairs.sort(key=lambda one: (one.richer, one.poorer))
        found.unproven.sort(key=lambda one: (one.richer, one.poorer))
        found.refusals.sort(key=lambda one: one.key)
        return found

    def _first_of_all(self, threads: ThreadPoolExecutor) -> None:
        keys = range(len(self._recordings))
        self._each(
            threads,
            [partial(self._first_of_some, keys[at : at + _AT_ONCE]) for at in keys[::_AT_ONCE]],
            lambda done, _: Progress(begun=min(done * _AT_ONCE, len(keys)), recordings=len(keys)),
        )

    def _side_by_side(self, done: int, of: int) -> Progress:
        count = len(self._recordings)
        return Progress(begun=count, recordings=count, groups_done=done, groups=of)

    def _each(
        self,
        threads: ThreadPoolExecutor,
        tasks: Iterable[Callable[[], None]],
        progress: Callable[[int, int], Progress],
    ) -> None:
        """Do all tasks, and tell after each how far that is."""
        waited_for = [threads.submit(task) for task in tasks]
        self._on_progress(progress(0, len(waited_for)))
        for count, task in enumerate(as_completed(waited_for), start=1):
            task.result()
            self._on_progress(progress(count, len(waited_for)))

    # Beginnings ---------------------------------------------------------------------------------------------

    def _first_of_some(self, keys: Iterable[Key]) -> None:
        for key in keys:
            one = self._recordings[key]
            try:
                times = first_times(one.path, one.sensor, self._pace)
            except ProjectError as error:
                self._refuse(Refusal(key=key, reason=str(error), is_damaged=False))
                continue
            self._first_bins[key] = int(times[0] // BIN_NS)
            if one.beside is not None:
                self._first_times[key] = times

    def _grouped(self) -> Groups:
        """Recordings of a sensor by the interval in which they begin."""
        groups: Groups = defaultdict(list)
        for key, first_bin in sorted(self._first_bins.items()):
            groups[self._recordings[key].sensor, first_bin].append(key)
        return groups

    def _begin(self, key: Key) -> Beginning | None:
        """How a recording begins; None if it cannot be read."""
        if key not in self._begins and key not in self._refused:
            path, sensor = self._place(key)
            try:
                self._begins[key] = begin(path, sensor, self._pace)
            except ProjectError as error:
                self._refuse(Refusal(key=key, reason=str(error), is_damaged=False))
        return self._begins.get(key)

    def _is_worth_it(self, keys: Sequence[Key]) -> bool:
        return len(keys) > 1 and self._is_asked_for(*keys)

    def _richness(self, key: Key) -> tuple[float, bool, int, Key]:
        begins = self._begins[key]
        return -(begins.last_ns // BIN_NS), begins.on_grid, self._recordings[key].tag, key

    def _alike(self, keys: Sequence[Key], begins: Beginning) -> list[Key]:
        if not keys:
            return []
        many = np.stack([self._begins[key].means for key in keys])
        return [keys[place] for place in np.flatnonzero(alike(many, begins.means)).tolist()]

    # Side by side -------------------------------------------------------------------------------------------

    def _compare_group(self, keys: Sequence[Key]) -> None:
        """Compare all with those that no other stands for. A recording that has readings in other digits is
        stood for by none: what was made of it is not what would be made of the other.
        """
        standing: list[Key] = []
        for key in sorted(filter(self._begin, keys), key=self._richness):
            is_stood_for = False
            for other in self._alike(standing, self._begins[key]):
                if not self._is_asked_for(key, other) or not self._refused.isdisjoint({key, other}):
                    continue
                pair = self._pair(other, key)
                if pair is None or pair.match.precision is not Precision.EQUAL:
                    continue
                if pair.poorer == other:
                    standing.remove(other)
                else:
                    is_stood_for = True
            if not is_stood_for:
                standing.append(key)

    def _is_asked_for(self, *keys: Key) -> bool:
        return self._wanted is None or not self._wanted.isdisjoint(keys)

    def _pair(self, one: Key, other: Key) -> Pair | None:
        begins = self._begins[one], self._begins[other]
        try:
            match = self._compared(partial(self._read, one), partial(self._read, other), begins)
            if match is None:
                return None
            self._check_all(one, other)
        except _UnreadError as error:
            self._refuse(error.refusal)
            return None
        richer, poorer = (one, other) if match.richer == "first" else (other, one)
        return self._note(Pair(richer=richer, poorer=poorer, match=match))

    def _compared(self, one: Read, other: Read, begins: tuple[Beginning, Beginning]) -> Match | None:
        with self._lock:
            self._found.comparisons += 1
        return compare(one, other, begins)

    def _note(self, pair: Pair) -> Pair:
        (self._found.pairs if pair.match.is_proof else self._found.unproven).append(pair)
        return pair

    # Merged -------------------------------------------------------------------------------------------------

    def _of_merged(self, groups: Groups) -> Iterator[Callable[[], None]]:
        """What was made of sessions that have both sensors begins as they do when they are merged."""
        poorer = {pair.poorer for pair in self._found.pairs}
        for key, times in sorted(self._first_times.items()):
            beside = self._recordings[key].beside
            if (
                beside is None
                or beside not in self._first_times
                or self._is_uploaded(times, self._first_times[beside])
            ):
                continue
            try:
                begins_at = self._merged_from(key)
                others = [
                    other
                    for other in groups.get((self._recordings[key].sensor, begins_at), ())
                    if other not in {key, *poorer} and self._is_asked_for(key, other) and self._begin(other)
                ]
                if others:
                    merged = beginning_of(self._merged_further(key), 0.0)
                    yield partial(self._compare_merged, key, merged, self._alike(others, merged))
            except _UnreadError as error:
                self._refuse(error.refusal)

    def _is_uploaded(self, times: Times, others: Times) -> bool:
        """Are these two files those of a merge already? Another one drops nothing but the last record."""
        count = min(len(times), len(others))
        return bool((times[:count] == others[:count]).all() and (times % BIN_NS == 0).all())

    def _merged_from(self, key: Key) -> int:
        """In which interval it begins after a merge; -1 if it has no record then, as far as was read."""
        heads = {
            self._recordings[one].sensor: Records(times, np.zeros((len(times), 3)))
            for one in self._both(key)
            for times in (self._first_times[one],)
        }
        merged = _merged_head(heads, self._recordings[key].sensor) or self._merged_further(key)
        return int(merged.times[0] // BIN_NS) if len(merged) else -1

    def _merged_further(self, key: Key) -> Records:
        """Its first records after a merge, of more than a few."""
        heads = {
            self._recordings[one].sensor: joined(
                self._guarded(one, read(*self._place(one), self._pace, most=_FURTHER))
            )
            for one in self._both(key)
        }
        return _merged_head(heads, self._recordings[key].sensor)

    def _compare_merged(self, key: Key, merged: Beginning, others: Iterable[Key]) -> None:
        for other in others:
            try:
                found = self._compared(
                    partial(self._read_merged, key),
                    partial(self._read, other),
                    (merged, self._begins[other]),
                )
                if found is not None and found.richer == "first":
                    self._check_all(*self._both(key), other)
                    self._note(Pair(richer=key, poorer=other, match=found, is_merged=True))
            except _UnreadError as error:
                self._refuse(error.refusal)

    def _both(self, key: Key) -> tuple[Key, Key]:
        beside = self._recordings[key].beside
        assert beside is not None  # noqa: S101 - for the type checker: only such are merged
        return key, beside

    # Reading ------------------------------------------------------------------------------------------------

    def _read(self, key: Key) -> Iterator[Records]:
        path, sensor = self._place(key)
        return self._guarded(key, in_order(read(path, sensor, self._pace), path))

    def _read_merged(self, key: Key) -> Iterator[Records]:
        """Both without their last records, as the files have them, and then sorted."""
        both = {}
        for one in self._both(key):
            path, sensor = self._place(one)
            both[sensor] = self._guarded(
                one, in_order(iter(WithoutLast(read(path, sensor, self._pace))), path)
            )
        return merge(both[Sensor.ACCELEROMETER], both[Sensor.GYROSCOPE], self._recordings[key].sensor)

    def _place(self, key: Key) -> tuple[Path, Sensor]:
        return self._recordings[key].path, self._recordings[key].sensor

    def _guarded(self, key: Key, parts: Iterator[Records]) -> Iterator[Records]:
        try:
            yield from parts
        except SessionUnreadableError as error:
            raise _UnreadError(Refusal(key=key, reason=str(error), is_damaged=False)) from error

    def _check_all(self, *keys: Key) -> None:
        for key in keys:
            if key in self._checked:
                continue
            try:
                self._check(self._recordings[key], self._pace)
            except (StoredBytesMismatchError, ProjectError) as error:
                is_damaged = isinstance(error, StoredBytesMismatchError)
                raise _UnreadError(Refusal(key=key, reason=str(error), is_damaged=is_damaged)) from error
            self._checked.add(key)

    def _refuse(self, refusal: Refusal) -> None:
        """Leave a recording out from now on; what was found of it by reading stays true."""
        with self._lock:
            if refusal.key not in self._refused:
                self._refused.add(refusal.key)
                self._found.refusals.append(refusal)

    def _pace(self, size_bytes: int) -> None:
        self._listen()
        self._tell_bytes(size_bytes)
        self._limit.wait(size_bytes, self._listen)

    def _listen(self) -> None:
        if self._stopping.is_set():
            raise StoppedError


def _merged_head(heads: Mapping[Sensor, Records], wanted: Sensor) -> Records:
    accelerometer, gyroscope = heads[Sensor.ACCELEROMETER], heads[Sensor.GYROSCOPE]
    # Of later records the nearest one may not be among those that were read.
    known = accelerometer[: int(np.searchsorted(accelerometer.times, gyroscope.times[-1]))]
    return joined(merge(iter((known,)), iter((gyroscope,)), wanted))
