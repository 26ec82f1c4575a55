"""A report's document as one HTML file that needs no network. Pure: knows neither outcomes nor files.

Python decides what is said and how much of it; the template decides where it stands. Names
and paths in a report were typed by people: the template escapes all of them, and a content
security policy lets nothing run but our own script.
"""

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any, Generic, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from producer.report import garbage
from producer.report.notation import clock, human_duration, in_words, moment, percent, plural, rate
from producer.report.timeline import timeline
from worker.messages import RunState, Status, Subject, Verb
from worker.units import human_bytes
from worker.wording import STATUS_WORDS, VERB_WORDS, status_words

T = TypeVar("T")
Detail = Mapping[str, Any]
"""One entry of a report's `details`."""

# How much of a list is shown. What is left out is counted, and the table of all projects leaves nothing out.
_MOST_GROUPS = 20
_MOST_MEMBERS = 8
_MOST_FAILURES = 15
_MOST_NOTES = 100
_MOST_SLOW = 10
_MOST_COPIES_DRAWN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown(Generic[T]):
    """The beginning of a list, and how many entries are left out."""

    items: tuple[T, ...]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The report in one sentence. `tone` is `good`, `bad` or `open` (nothing done, or not everything)."""

    tone: str
    headline: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a bar: percent from its left end, and what it stands for."""

    kind: str
    label: str
    value: int
    start: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Projects with something in common: they failed for one cause, or were skipped for one reason."""

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


def render(document: Mapping[str, Any]) -> str:
    """Show a report as one self-contained HTML page. The same document gives the same page."""
    entries: Sequence[Detail] = document["details"] if document["verb"] == Verb.GC else ()
    document = {**document, "details": []} if entries else document
    details: Sequence[Detail] = document["details"]
    words = VERB_WORDS[Verb(document["verb"])]
    return _template().render(
        report=document,
        act=words.noun.capitalize(),
        success=STATUS_WORDS[words.success(dry_run=document["dry_run"])],
        done_key=words.done_key,
        verdict=verdict(document),
        projects=_project_segments(document),
        elapsed_s=_elapsed_s(document),
        sessions=sum(detail["sessions_count"] for detail in details),
        storage=document["verb"] == Verb.MIGRATE and document["bytes"]["read"] > 0,
        causes=_causes(details),
        passed_over=_passed_over(details),
        shared=_shared(details),
        timeline=timeline(details),
        slowest=sorted(
            (detail for detail in details if detail["duration_s"] > 0),
            key=lambda detail: (-detail["duration_s"], detail["subject"], _id(detail)),
        )[:_MOST_SLOW],
        damaged=_shown(sorted(document.get("damaged", ()), key=lambda one: one["repaired"]), _MOST_NOTES),
        warnings=_shown(document["warnings"], _MOST_NOTES),
        differences=_shown([detail for detail in details if detail["differences"]], _MOST_NOTES),
        statuses=sorted({detail["status"] for detail in details}),
        options=_options(document["selection"]),
        left_out=_left_out(document),
        entries=_shown(entries, _MOST_NOTES),
        style=_asset("report.css"),
        script=_asset("report.js"),
        policy=_policy(),
    )


# What is said -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many jobs a report is about, and what became of them. `noun` is what they are about."""

    noun: str
    processed: int
    done: int
    failed: int
    skipped: int
    cancelled: int


def tally_of(document: Mapping[str, Any]) -> Tally:
    """Projects and datasets together."""
    words = VERB_WORDS[Verb(document["verb"])]
    has_datasets = document.get("datasets_processed", 0) > 0
    noun = (
        "job" if has_datasets and document["projects_processed"] else "dataset" if has_datasets else "project"
    )

    def count(end: str) -> int:
        return sum(document.get(f"{subject}s_{end}", 0) for subject in (Subject.PROJECT, Subject.DATASET))

    return Tally(
        noun=noun,
        processed=count("processed"),
        done=count(words.done),
        failed=count(Status.FAILED),
        skipped=count(Status.SKIPPED),
        cancelled=count(Status.CANCELLED),
    )


def verdict(document: Mapping[str, Any]) -> Verdict:
    """Say in one sentence what became of the run, its failures before anything else that went otherwise."""
    if document.get("interim"):
        return Verdict(tone="open", headline=_interim_headline(document))
    if document["verb"] == Verb.GC:
        return _verdict_of_gc(document)
    tally = tally_of(document)
    if tally.processed == 0:
        return Verdict(tone="open", headline=f"Nothing to do: no {tally.noun} was selected.")
    headline = _headline(document)
    finished = document["state"] == RunState.FINISHED
    if not finished:
        state = (
            "Cancelled" if document["state"] == RunState.CANCELLED else f"Not finished ({document['state']})"
        )
        headline = f"{state}: {headline[0].lower()}{headline[1:]}"
    if tally.failed:
        return Verdict(tone="bad", headline=headline)
    return Verdict(tone="good" if finished and not tally.cancelled else "open", headline=headline)


def _interim_headline(document: Mapping[str, Any]) -> str:
    words = VERB_WORDS[Verb(document["verb"])]
    tally = tally_of(document)
    so_far = f"{tally.done:,} {plural(tally.done, tally.noun)} {words.done_word} and {tally.failed:,} failed so far"
    return f"Interim report, because {document['interim']}: {so_far}."


def _verdict_of_gc(document: Mapping[str, Any]) -> Verdict:
    if document["errors"]:
        return Verdict(tone="bad", headline=f"The gc failed: {document['errors'][0]['error']}")
    return Verdict(tone="good", headline=garbage.words(document))


def _headline(document: Mapping[str, Any]) -> str:
    """What became of the projects: `1 of 3 projects was migrated; 1 failed, 1 was skipped`."""
    words = VERB_WORDS[Verb(document["verb"])]
    tally = tally_of(document)
    total, done = tally.processed, tally.done

    def acted(count: int, word: str) -> str:
        return f"would be {word}" if document["dry_run"] else f"{plural(count, 'was', 'were')} {word}"

    if done == total:
        subject = f"The {tally.noun}" if total == 1 else f"All {total:,} {tally.noun}s"
        return f"{subject} {acted(total, words.done_word)}."
    others = {
        status_words(Status.FAILED, dry_run=document["dry_run"]): tally.failed,
        acted(tally.skipped, "skipped"): tally.skipped,
        f"{plural(tally.cancelled, 'was', 'were')} cancelled": tally.cancelled,
    }
    counted = ", ".join(f"{count:,} {what}" for what, count in others.items() if count)
    return f"{done:,} of {total:,} {plural(total, tally.noun)} {acted(done, words.done_word)}; {counted}."


def _project_segments(document: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Arrange all projects and datasets by what became of them as one bar."""
    words, predicted = VERB_WORDS[Verb(document["verb"])], document["dry_run"]
    tally = tally_of(document)
    parts = (
        (tally.done, "done", STATUS_WORDS[words.success(dry_run=predicted)]),
        (tally.failed, "failed", status_words(Status.FAILED, dry_run=predicted)),
        (tally.skipped, "other", status_words(Status.SKIPPED, dry_run=predicted)),
        (tally.cancelled, "other", STATUS_WORDS[Status.CANCELLED]),
    )
    segments: list[Segment] = []
    start = 0.0
    for value, kind, label in parts:
        if value:
            width = 100 * value / tally.processed
            segments.append(Segment(kind=kind, label=label, value=value, start=start, width=width))
            start += width
    return tuple(segments)


def _causes(details: Iterable[Detail]) -> list[Group]:
    """Group failures by class and remedy, the most frequent first: one repair often helps many projects."""
    failed = [detail for detail in details if detail["status"] == "failed"]
    groups = _grouped(failed, lambda detail: (detail["error_class"] or "", detail["remedy"]))
    return [
        Group(title=in_words(name), text=remedy, count=len(members), projects=_shown(members, _MOST_FAILURES))
        for (name, remedy), members in groups
    ]


def _passed_over(details: Iterable[Detail]) -> list[Group]:
    """Group the projects that were neither converted nor failed by status and reason."""
    others = [detail for detail in details if detail["status"] in {"skipped", "cancelled"}]
    groups = _grouped(others, lambda detail: (detail["status"], detail["reason"], detail["remedy"]))
    return [
        Group(
            title=f"{status.capitalize()}: {reason}",
            text=remedy,
            count=len(members),
            projects=_shown(members, _MOST_FAILURES),
        )
        for (status, reason, remedy), members in groups
    ]


def _shared(details: Iterable[Detail]) -> Shown[SharedDataset]:
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
    return _shown(sorted(datasets, key=lambda d: (-d.bytes_reused, -d.count, d.dataset_hash)), _MOST_GROUPS)


def _shared_dataset(members: Sequence[Detail]) -> SharedDataset:
    return SharedDataset(
        dataset_hash=members[0]["dataset_hash"],
        dataset_path=members[0]["dataset_path"],
        stored_now=any(member["disposition"] == "stored" for member in members),
        copies_drawn=min(len(members), _MOST_COPIES_DRAWN),
        count=len(members),
        bytes_each=max(member["bytes_read"] for member in members),
        bytes_reused=sum(member["bytes_reused"] for member in members),
        projects=_shown(members, _MOST_MEMBERS),
    )


def _options(selection: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Put the options that the run was opened with into words; those that say nothing are left out."""
    options = {**selection, **_mapping(selection.get("options"))}
    return [
        (name.replace("_", " "), _option_text(value))
        for name, value in sorted(options.items())
        if name not in {"options", "left_out", "coverage"} and value not in (None, [], {}, "", False)
    ]


def _option_text(value: object) -> str:
    if value is True:
        return "yes"
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _left_out(document: Mapping[str, Any]) -> Shown[Mapping[str, Any]]:
    """Take the projects that got no job, each with its reason, unless they are among the details."""
    entries = document["selection"].get("left_out")
    shown = {(detail["subject"], _id(detail)) for detail in document["details"]}
    others = [_mapping(entry) for entry in entries] if isinstance(entries, list) else []
    return _shown(
        [entry for entry in others if (entry.get("subject", Subject.PROJECT), _id(entry)) not in shown],
        _MOST_NOTES,
    )


def _id(entry: Mapping[str, Any]) -> int:
    """The id of what an entry is about; 0 of the store, or where there is none."""
    found = entry.get(f"{entry.get('subject', Subject.PROJECT)}_id")
    return found if isinstance(found, int) else 0


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _shown(items: Sequence[T], most: int) -> Shown[T]:
    return Shown(items=tuple(items[:most]), more=max(0, len(items) - most))


def _grouped(details: Iterable[Detail], key: Callable[[Detail], Hashable]) -> list[tuple[Any, list[Detail]]]:
    """Group by `key`, the largest group first, then the one that came first."""
    groups: dict[Hashable, list[Detail]] = defaultdict(list)
    for detail in details:
        groups[key(detail)].append(detail)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _elapsed_s(document: Mapping[str, Any]) -> float:
    start, end = (datetime.fromisoformat(document[key]) for key in ("start_time", "end_time"))
    return max(0.0, (end - start).total_seconds())


# The page ---------------------------------------------------------------------------------------------------


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("producer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=human_bytes,
        number=lambda value: f"{value:,}",
        duration=human_duration,
        clock=clock,
        moment=moment,
        plural=plural,
        status_words=lambda status: STATUS_WORDS[Status(status)],
    )
    environment.globals.update(percent=percent, rate=rate)
    return environment.get_template("report.html.j2")


@cache
def _asset(name: str) -> Markup:
    """Read our own style sheet or script, which is the only text that goes into the page unescaped."""
    return Markup(resources.files("producer.report").joinpath("templates", name).read_text(encoding="utf-8"))  # noqa: S704


@cache
def _policy() -> str:
    """Allow the page its own style and script by their digests: no request, no injected script."""
    style, script = (
        base64.b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode()
        for name in ("report.css", "report.js")
    )
    return f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; base-uri 'none'; form-action 'none'"
