"""The beginnings of long lists on a report's page: rows, groups, shared datasets, what was left out. Pure.

What is left out is counted. Each list is made in one pass over the details, which may lie on disk, and keeps
no more of them than it shows.
"""

import heapq
import json
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from producer.report.notation import in_words
from worker.messages import Subject

T = TypeVar("T")
Detail = Mapping[str, Any]
"""One entry of a report's `details`."""

MOST_ROWS = 2_000
"""Rows of the table of all jobs: more would make a page that no browser searches at once."""
MOST_NOTES = 100
_MOST_GROUPS = 20
_MOST_DISTINCT = 1_000
"""So many groups are told apart; texts that differ from job to job make no more of them."""
_MOST_MEMBERS = 8
_MOST_FAILURES = 15
_MOST_SLOW = 10
_MOST_COPIES_DRAWN = 24
_MOST_OF_AN_OPTION = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown(Generic[T]):
    """The beginning of a list, and how many entries are left out."""

    items: tuple[T, ...]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Jobs with something in common: they failed for one cause, or were skipped for one reason."""

    title: str
    text: str | None
    count: int
    projects: Shown[Detail]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDataset:
    """A dataset of several projects. `bytes_each` is its size, `bytes_reused` what sharing it saved."""

    dataset_hash: str
    dataset_path: str | None
    stored_now: bool
    copies_drawn: int
    count: int
    bytes_each: int
    bytes_reused: int
    projects: Shown[Detail]


def shown(items: Sequence[T], most: int = MOST_NOTES) -> Shown[T]:
    """The first of these."""
    return Shown(items=tuple(items[:most]), more=max(0, len(items) - most))


class Beginning(Generic[T]):
    """The first entries of a list that comes one by one; the others are counted."""

    def __init__(self, most: int = MOST_NOTES) -> None:
        self._most = most
        self._items: list[T] = []
        self._count = 0

    def add(self, item: T) -> None:
        """Take the next entry."""
        self._count += 1
        if len(self._items) < self._most:
            self._items.append(item)

    def shown(self) -> Shown[T]:
        """What there is to show."""
        return Shown(items=tuple(self._items), more=self._count - len(self._items))


class Rows:
    """Which jobs have a row in the table: all of them, or if they are too many first those that failed, then
    those with warnings or differences, then the others.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first: tuple[array[int], ...] = (array("Q"), array("Q"), array("Q"))

    def add(self, index: int, detail: Detail) -> None:
        """Take the next job."""
        self._count += 1
        kind = 0 if detail["status"] == "failed" else 1 if detail["warnings"] or detail["differences"] else 2
        if len(self._first[kind]) < MOST_ROWS:
            self._first[kind].append(index)

    def shown(self, details: Sequence[Detail], most: int) -> Shown[Detail]:
        """So many rows, `MOST_ROWS` at the most; in the order of the details if these are all."""
        chosen = [index for kind in self._first for index in kind][:most]
        if self._count <= most:
            chosen.sort()
        return Shown(items=tuple(details[index] for index in chosen), more=self._count - len(chosen))


class _Groups:
    """Jobs by what they have in common, the first few of each."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, Beginning[Detail]] = {}
        self._counts: dict[Hashable, int] = {}

    def add(self, key: Hashable, detail: Detail) -> None:
        if key not in self._groups and len(self._groups) >= _MOST_DISTINCT:
            key = None
        self._groups.setdefault(key, Beginning(_MOST_FAILURES)).add(detail)
        self._counts[key] = self._counts.get(key, 0) + 1

    def largest(self) -> Iterable[tuple[Any, int, Shown[Detail]]]:
        """Key, number and beginning of each, the largest group first, then the one that came first; the key
        is None for all that are not told apart.
        """
        for key, count in sorted(self._counts.items(), key=lambda group: -group[1]):
            yield key, count, self._groups[key].shown()


class Causes:
    """Failures by class and remedy, the most frequent first: one repair often helps many."""

    def __init__(self) -> None:
        self._groups = _Groups()

    def add(self, detail: Detail) -> None:
        """Take the next job, if it failed."""
        if detail["status"] == "failed":
            self._groups.add((detail["error_class"] or "", detail["remedy"]), detail)

    def shown(self) -> Shown[Group]:
        """The largest groups."""
        found = []
        for key, count, projects in self._groups.largest():
            title, remedy = (in_words(key[0]), key[1]) if key is not None else ("Other causes", None)
            found.append(Group(title=title, text=remedy, count=count, projects=projects))
        return shown(found, _MOST_GROUPS)


class PassedOver:
    """The jobs that neither did their work nor failed, by status and reason."""

    def __init__(self) -> None:
        self._groups = _Groups()

    def add(self, detail: Detail) -> None:
        """Take the next job, if it was skipped or cancelled."""
        if detail["status"] in {"skipped", "cancelled"}:
            self._groups.add((detail["status"], detail["reason"], detail["remedy"]), detail)

    def shown(self) -> Shown[Group]:
        """The largest groups."""
        found = []
        for key, count, projects in self._groups.largest():
            status, reason, remedy = (
                key if key is not None else ("skipped or cancelled", "other reasons", None)
            )
            title = f"{status.capitalize()}: {reason}"
            found.append(Group(title=title, text=remedy, count=count, projects=projects))
        return shown(found, _MOST_GROUPS)


class SharedDatasets:
    """Datasets that several projects share, or that the store had before; greatest saving first."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._count, self._bytes_each, self._bytes_reused = array("Q"), array("Q"), array("Q")
        self._stored_now, self._was_there = bytearray(), bytearray()
        self._members: tuple[array[int], array[int]] = (array("Q"), array("Q"))
        """Of each project that has one: its place in the details, and the number of its dataset."""

    def add(self, index: int, detail: Detail) -> None:
        """Take the next job, if it is of a project and went well."""
        digest = detail["dataset_hash"]
        if (
            detail["subject"] != Subject.PROJECT
            or not digest
            or detail["status"] in {"failed", "skipped", "cancelled"}
        ):
            return
        number = self._numbers.setdefault(_packed(digest), len(self._numbers))
        if number == len(self._count):
            for sizes in (self._count, self._bytes_each, self._bytes_reused):
                sizes.append(0)
            self._stored_now.append(0)
            self._was_there.append(detail["disposition"] == "reused")
        self._count[number] += 1
        self._bytes_each[number] = max(self._bytes_each[number], detail["bytes_read"])
        self._bytes_reused[number] += detail["bytes_reused"]
        self._stored_now[number] |= detail["disposition"] == "stored"
        self._members[0].append(index)
        self._members[1].append(number)

    def shown(self, details: Sequence[Detail]) -> Shown[SharedDataset]:
        """The first ones, with some of their projects."""
        shared = sum(count > 1 or was for count, was in zip(self._count, self._was_there, strict=True))
        first = heapq.nsmallest(
            _MOST_GROUPS,
            (
                (-self._bytes_reused[number], -self._count[number], digest, number)
                for digest, number in self._numbers.items()
                if self._count[number] > 1 or self._was_there[number]
            ),
        )
        members: dict[int, Beginning[int]] = {number: Beginning(_MOST_MEMBERS) for *_, number in first}
        for index, number in zip(*self._members, strict=True):
            if number in members:
                members[number].add(index)
        items = [self._dataset(number, members[number].shown(), details) for *_, number in first]
        return Shown(items=tuple(items), more=shared - len(items))

    def _dataset(self, number: int, members: Shown[int], details: Sequence[Detail]) -> SharedDataset:
        projects = tuple(details[index] for index in members.items)
        return SharedDataset(
            dataset_hash=projects[0]["dataset_hash"],
            dataset_path=projects[0]["dataset_path"],
            stored_now=bool(self._stored_now[number]),
            copies_drawn=min(self._count[number], _MOST_COPIES_DRAWN),
            count=self._count[number],
            bytes_each=self._bytes_each[number],
            bytes_reused=self._bytes_reused[number],
            projects=Shown(items=projects, more=members.more),
        )


def _packed(digest: str) -> bytes:
    """A digest in half the memory that its text takes."""
    try:
        return bytes.fromhex(digest)
    except ValueError:
        return digest.encode("utf-8", "surrogatepass")


class Slowest:
    """The jobs that took longest."""

    def __init__(self) -> None:
        self._jobs: list[tuple[float, str, int, Detail]] = []

    def add(self, detail: Detail) -> None:
        """Take the next job, if it took any time."""
        if detail["duration_s"] > 0:
            self._jobs.append((-detail["duration_s"], detail["subject"], id_of(detail), detail))
        if len(self._jobs) > 20 * _MOST_SLOW:
            self._cut()

    def shown(self) -> list[Detail]:
        """The slowest first."""
        self._cut()
        return [detail for *_, detail in self._jobs]

    def _cut(self) -> None:
        self._jobs = sorted(self._jobs, key=lambda job: job[:3])[:_MOST_SLOW]


def options(selection: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Put the options that the run was opened with into words; those that say nothing are left out."""
    given = {**selection, **mapping(selection.get("options"))}
    return [
        (name.replace("_", " "), _option_text(value))
        for name, value in sorted(given.items())
        if name not in {"options", "left_out", "coverage", "conditions", "forecast"}
        and value not in (None, [], {}, "", False)
    ]


def _option_text(value: object) -> str:
    if value is True:
        return "yes"
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        more = len(value) - _MOST_OF_AN_OPTION
        words = ", ".join(str(item) for item in value[:_MOST_OF_AN_OPTION])
        return f"{words} and {more:,} more" if more > 0 else words
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class LeftOut:
    """What got no job, each with its reason, unless it is among the details."""

    def __init__(self, selection: Mapping[str, Any]) -> None:
        entries = selection.get("left_out")
        self._entries = [mapping(entry) for entry in entries] if isinstance(entries, list) else []
        self._keys = {_key(entry) for entry in self._entries}
        self._has_job: set[tuple[Any, int]] = set()

    def add(self, detail: Detail) -> None:
        """Take the next job."""
        if self._keys and (key := _key(detail)) in self._keys:
            self._has_job.add(key)

    def shown(self) -> Shown[Mapping[str, Any]]:
        """The first ones."""
        return shown([entry for entry in self._entries if _key(entry) not in self._has_job])


def _key(entry: Mapping[str, Any]) -> tuple[Any, int]:
    return entry.get("subject", Subject.PROJECT), id_of(entry)


def id_of(entry: Mapping[str, Any]) -> int:
    """The id of what an entry is about; 0 of the store, or where there is none."""
    found = entry.get(f"{entry.get('subject', Subject.PROJECT)}_id")
    return found if isinstance(found, int) else 0


def anchor(entry: Mapping[str, Any]) -> str:
    """By which name a job's row is linked to: `p42`."""
    subject = entry["subject"]
    return subject[0] if subject == Subject.STORE else f"{subject[0]}{entry[f'{subject}_id']}"


def mapping(value: object) -> Mapping[str, Any]:
    """A part of a document that may have another shape."""
    return value if isinstance(value, Mapping) else {}
