"""The beginnings of long lists on a report's page: groups, shared datasets, what was left out. Pure.

What is left out is counted, and the table of all jobs leaves nothing out.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from producer.report.notation import in_words
from worker.messages import Subject

T = TypeVar("T")
Detail = Mapping[str, Any]
"""One entry of a report's `details`."""

MOST_NOTES = 100
_MOST_GROUPS = 20
_MOST_MEMBERS = 8
_MOST_FAILURES = 15
_MOST_SLOW = 10
_MOST_COPIES_DRAWN = 24


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


def causes(details: Iterable[Detail]) -> list[Group]:
    """Group failures by class and remedy, the most frequent first: one repair often helps many."""
    failed = [detail for detail in details if detail["status"] == "failed"]
    groups = _grouped(failed, lambda detail: (detail["error_class"] or "", detail["remedy"]))
    return [
        Group(title=in_words(name), text=remedy, count=len(members), projects=shown(members, _MOST_FAILURES))
        for (name, remedy), members in groups
    ]


def passed_over(details: Iterable[Detail]) -> list[Group]:
    """Group the jobs that neither did their work nor failed by status and reason."""
    others = [detail for detail in details if detail["status"] in {"skipped", "cancelled"}]
    groups = _grouped(others, lambda detail: (detail["status"], detail["reason"], detail["remedy"]))
    return [
        Group(
            title=f"{status.capitalize()}: {reason}",
            text=remedy,
            count=len(members),
            projects=shown(members, _MOST_FAILURES),
        )
        for (status, reason, remedy), members in groups
    ]


def shared(details: Iterable[Detail]) -> Shown[SharedDataset]:
    """Collect datasets that several projects share, or that the store had before; greatest saving first."""
    sound = [
        d
        for d in details
        if d["subject"] == Subject.PROJECT
        and d["dataset_hash"]
        and d["status"] not in {"failed", "skipped", "cancelled"}
    ]
    datasets = [
        _shared_dataset(members)
        for _, members in _grouped(sound, lambda detail: detail["dataset_hash"])
        if len(members) > 1 or members[0]["disposition"] == "reused"
    ]
    return shown(sorted(datasets, key=lambda d: (-d.bytes_reused, -d.count, d.dataset_hash)), _MOST_GROUPS)


def _shared_dataset(members: Sequence[Detail]) -> SharedDataset:
    return SharedDataset(
        dataset_hash=members[0]["dataset_hash"],
        dataset_path=members[0]["dataset_path"],
        stored_now=any(member["disposition"] == "stored" for member in members),
        copies_drawn=min(len(members), _MOST_COPIES_DRAWN),
        count=len(members),
        bytes_each=max(member["bytes_read"] for member in members),
        bytes_reused=sum(member["bytes_reused"] for member in members),
        projects=shown(members, _MOST_MEMBERS),
    )


def slowest(details: Iterable[Detail]) -> list[Detail]:
    """The jobs that took longest."""
    timed = (detail for detail in details if detail["duration_s"] > 0)
    return sorted(timed, key=lambda detail: (-detail["duration_s"], detail["subject"], id_of(detail)))[
        :_MOST_SLOW
    ]


def options(selection: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Put the options that the run was opened with into words; those that say nothing are left out."""
    given = {**selection, **mapping(selection.get("options"))}
    return [
        (name.replace("_", " "), _option_text(value))
        for name, value in sorted(given.items())
        if name not in {"options", "left_out", "coverage"} and value not in (None, [], {}, "", False)
    ]


def _option_text(value: object) -> str:
    if value is True:
        return "yes"
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def left_out(document: Mapping[str, Any]) -> Shown[Mapping[str, Any]]:
    """Take what got no job, each with its reason, unless it is among the details."""
    entries = document["selection"].get("left_out")
    among = {(detail["subject"], id_of(detail)) for detail in document["details"]}
    others = [mapping(entry) for entry in entries] if isinstance(entries, list) else []
    return shown(
        [entry for entry in others if (entry.get("subject", Subject.PROJECT), id_of(entry)) not in among]
    )


def id_of(entry: Mapping[str, Any]) -> int:
    """The id of what an entry is about; 0 of the store, or where there is none."""
    found = entry.get(f"{entry.get('subject', Subject.PROJECT)}_id")
    return found if isinstance(found, int) else 0


def mapping(value: object) -> Mapping[str, Any]:
    """A part of a document that may have another shape."""
    return value if isinstance(value, Mapping) else {}


def _grouped(details: Iterable[Detail], key: Callable[[Detail], Hashable]) -> list[tuple[Any, list[Detail]]]:
    """Group by `key`, the largest group first, then the one that came first."""
    groups: dict[Hashable, list[Detail]] = defaultdict(list)
    for detail in details:
        groups[key(detail)].append(detail)
    return sorted(groups.items(), key=lambda group: -len(group[1]))
