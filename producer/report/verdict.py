"""A report in one sentence and one bar: what became of its jobs. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from producer.report import garbage
from producer.report.notation import plural
from worker.messages import RunState, Status, Subject, Verb
from worker.wording import STATUS_WORDS, VERB_WORDS, counted_as, status_words


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
class Tally:
    """How many jobs a report is about, and what became of them. `noun` is what they are about; `repaired`
    are some of `done`.
    """

    noun: str
    processed: int
    done: int
    repaired: int
    failed: int
    skipped: int
    cancelled: int


def success_of(document: Mapping[str, Any]) -> Status:
    """The status of a job that did, or in a dry run would do, what this run was for."""
    words, dry_run = VERB_WORDS[Verb(document["verb"])], document["dry_run"]
    options = document["selection"].get("options")
    asked = (name for name in _ACTS if isinstance(options, Mapping) and options.get(name))
    done, predicted = _ACTS.get(next(asked, ""), (words.done, words.predicted))
    return predicted if dry_run else done


_ACTS = {
    "undo": (Status.UNDONE, Status.WOULD_UNDO),
    "purge": (Status.PURGED, Status.WOULD_PURGE),
    "share": (Status.SHARED, Status.WOULD_SHARE),
}
"""What a run does instead of its verb's own act, by the option that asks for it."""


def subjects_of(document: Mapping[str, Any]) -> Sequence[Subject]:
    """What the jobs are about; projects where there are none."""
    found = [s for s in (Subject.DATASET, Subject.PROJECT) if document.get(f"{s}s_processed", 0)]
    return found or [Subject.PROJECT]


def tally_of(document: Mapping[str, Any]) -> Tally:
    """Projects and datasets together."""
    words = VERB_WORDS[Verb(document["verb"])]

    def count(end: str) -> int:
        return sum(document.get(f"{subject}s_{end}", 0) for subject in (Subject.PROJECT, Subject.DATASET))

    return Tally(
        noun=counted_as(subjects_of(document), 1),
        processed=count("processed"),
        done=count(words.done),
        repaired=sum(of.get(Status.REPAIRED, 0) for of in document["statuses"].values()),
        failed=count(Status.FAILED),
        skipped=count(Status.SKIPPED),
        cancelled=count(Status.CANCELLED),
    )


def verdict(document: Mapping[str, Any]) -> Verdict:
    """Say in one sentence what became of the run, its failures before anything else that went otherwise."""
    if document["verb"] == Verb.GC:
        return _verdict_of_gc(document)
    if document.get("interim"):
        return Verdict(tone="open", headline=_interim_headline(document))
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
    tally = tally_of(document)
    so_far = f"{tally.done:,} {plural(tally.done, tally.noun)} {STATUS_WORDS[success_of(document)]}"
    return f"Interim report, because {document['interim']}: {so_far} and {tally.failed:,} failed so far."


def _verdict_of_gc(document: Mapping[str, Any]) -> Verdict:
    if document["errors"]:
        return Verdict(tone="bad", headline=f"The gc failed: {document['errors'][0]['error']}")
    if document.get("interim"):
        return Verdict(tone="open", headline=f"Interim report, because {document['interim']}.")
    if document["state"] != RunState.FINISHED:
        return Verdict(tone="open", headline=f"The gc is {document['state']}: nothing is known of its work.")
    return Verdict(tone="good", headline=garbage.words(document, with_sizes=False))


def _headline(document: Mapping[str, Any]) -> str:
    """What became of the jobs: `1 of 3 projects was migrated; 1 failed, 1 was skipped`."""
    tally = tally_of(document)
    total, done = tally.processed, tally.done
    mended = (
        f" ({tally.repaired:,} {plural(tally.repaired, 'was', 'were')} repaired)" if tally.repaired else ""
    )
    if done == total:
        subject = f"The {tally.noun}" if total == 1 else _all_of(document)
        return f"{subject} {_acted(document, total)}{mended}."
    skipped = "would be" if document["dry_run"] else plural(tally.skipped, "was", "were")
    others = {
        status_words(Status.FAILED, dry_run=document["dry_run"]): tally.failed,
        f"{skipped} skipped": tally.skipped,
        f"{plural(tally.cancelled, 'was', 'were')} cancelled": tally.cancelled,
    }
    counted = ", ".join(f"{count:,} {what}" for what, count in others.items() if count)
    return f"{done:,} of {total:,} {plural(total, tally.noun)} {_acted(document, done)}{mended}; {counted}."


def _all_of(document: Mapping[str, Any]) -> str:
    """`All 9 datasets and 12 projects`."""
    counts = [(document[f"{subject}s_processed"], subject) for subject in subjects_of(document)]
    words = " and ".join(f"{count:,} {plural(count, subject)}" for count, subject in counts)
    return f"All {words}" if min(counts)[0] > 1 else words


def _acted(document: Mapping[str, Any], count: int) -> str:
    """The sentence's verb: `was migrated`, `would be purged`."""
    success = success_of(document)
    if success is Status.SHARED:
        return f"{plural(count, 'shares', 'share')} blocks with the store now"
    if success is Status.WOULD_SHARE:
        return "would share blocks with the store"
    word = STATUS_WORDS[success]
    return word if document["dry_run"] else f"{plural(count, 'was', 'were')} {word}"


def segments(document: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Arrange all projects and datasets by what became of them as one bar."""
    predicted = document["dry_run"]
    tally = tally_of(document)
    parts = (
        (tally.done - tally.repaired, "done", STATUS_WORDS[success_of(document)]),
        (tally.repaired, "again", STATUS_WORDS[Status.REPAIRED]),
        (tally.failed, "failed", status_words(Status.FAILED, dry_run=predicted)),
        (tally.skipped, "other", status_words(Status.SKIPPED, dry_run=predicted)),
        (tally.cancelled, "other", STATUS_WORDS[Status.CANCELLED]),
    )
    arranged: list[Segment] = []
    start = 0.0
    for value, kind, label in parts:
        if value:
            width = 100 * value / tally.processed
            arranged.append(Segment(kind=kind, label=label, value=value, start=start, width=width))
            start += width
    return tuple(arranged)
