"""The figures of a report's page: the large ones, the lists below them, the columns of its table. Pure.

Only what a run can have is shown: a verification stores nothing, a gc has no sessions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from producer.report.notation import human_duration, moment, percent, rate
from producer.report.shown import Detail
from producer.report.verdict import subjects_of, success_of
from worker.messages import Subject, Verb
from worker.units import human_bytes
from worker.wording import STATUS_WORDS, VERB_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure and what it is of. `key` is where the JSON has it; one without is put together from others, or
    is no number.
    """

    label: str
    text: str
    value: int | None = None
    key: str | None = None
    exact: str = ""
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of numbers in the table of all jobs; None where a job cannot have one. `name` is its class in
    the style sheet.
    """

    name: str
    title: str
    unit: Literal["bytes", "count"]
    of: Callable[[Detail], int | None]


def gauges(document: Mapping[str, Any], elapsed_s: float) -> list[Figure]:
    """What is to be seen first."""
    speed = rate(bytes_read(document), elapsed_s) if bytes_read(document) else ""
    return [*_first_gauges(document), Figure(label="Duration", text=human_duration(elapsed_s), note=speed)]


def _first_gauges(document: Mapping[str, Any]) -> list[Figure]:
    verb, dry_run = Verb(document["verb"]), document["dry_run"]
    if verb is Verb.GC:
        return _acts_of_gc(document)
    found = [figure for subject in subjects_of(document) for figure in _ends(document, subject)]
    match verb:
        case Verb.MIGRATE:
            size = document["bytes"]
            note = f"{percent(size['saved'], size['read'])} of what was read" if size["read"] else ""
            label = f"Storage {'that would be ' if dry_run else ''}saved"
            return [*found, size_figure(document, "bytes.saved", label, note=note)]
        case Verb.RECLAIM:
            # What the run was for: an undo has neither.
            key = next((key for key in ("freed", "moved") if document["bytes"][key]), "legacy")
            return [*found, size_figure(document, f"bytes.{key}", _ROOM[key][dry_run])]
        case Verb.VERIFY if "coverage" in document:
            size = document["coverage"]
            share = f"{percent(size['bytes_verified'], size['bytes_total'])} of the store"
            return [
                *found,
                _damage(document["damaged"]),
                size_figure(document, "coverage.bytes_verified", "Read", note=share),
            ]
        case _:
            return [*found, _sessions(document)]


def _ends(document: Mapping[str, Any], subject: Subject) -> list[Figure]:
    words, dry_run = VERB_WORDS[Verb(document["verb"])], document["dry_run"]
    noun = f"{subject}s".capitalize()
    done = f"{noun} {'that ' if dry_run else ''}{STATUS_WORDS[success_of(document)]}"
    of = f"of {document[f'{subject}s_processed']:,}"
    failed = document[f"{subject}s_failed"]
    return [
        count_figure(document, words.key_of(subject), done, note=of, tone="done"),
        count_figure(
            document,
            f"{subject}s_failed",
            f"{noun} {'that would fail' if dry_run else 'failed'}",
            tone="failed" if failed else "",
        ),
    ]


def _damage(damaged: Sequence[Mapping[str, Any]]) -> Figure:
    left = sum(not one["repaired"] for one in damaged)
    note = f"{left:,} not repaired" if left else "all repaired" if damaged else ""
    return Figure(
        label="Damaged things",
        text=f"{len(damaged):,}",
        value=len(damaged),
        note=note,
        tone="failed" if left else "",
    )


_ACTS = {
    "quarantined": "Put into quarantine",
    "removed": "Removed for good",
    "staging": "Left behind by jobs, removed",
    "restored": "Brought back",
}


def _acts_of_gc(document: Mapping[str, Any]) -> list[Figure]:
    """What a gc did, its main act also where it had nothing to do."""
    would = "Would be " if document["dry_run"] else ""
    return [
        count_figure(
            document,
            f"{key}.count",
            f"{would}{label.lower()}" if would else label,
            note=human_bytes(document[key]["bytes"]),
            tone="done",
        )
        for key, label in _ACTS.items()
        if document[key]["count"] or (key == "quarantined" and not document["restored"]["count"])
    ]


def lists(document: Mapping[str, Any]) -> list[tuple[str, list[Figure]]]:
    """What can be looked up, by subject."""
    verb = Verb(document["verb"])
    if verb is Verb.GC:
        return _lists_of_gc(document)
    found = [(f"{one}s".capitalize(), _fates(document, one)) for one in subjects_of(document)]
    if verb is Verb.RECLAIM:
        room = [
            size_figure(document, f"bytes.{key}", words[document["dry_run"]]) for key, words in _ROOM.items()
        ]
        found.append(("On disk", room))
    if "coverage" in document:
        found.append(("Coverage", _coverage(document)))
    warnings = _number("Warnings", len(document["warnings"]))
    if not _has_content(document):
        found[0][1].extend([_sessions(document), warnings] if document["sessions"] else [warnings])
        return found
    created = "Datasets that would be created" if document["dry_run"] else "Datasets created"
    data = [
        size_figure(
            document, "bytes.read", f"In {'legacy' if verb is Verb.MIGRATE else 'their'} directories"
        ),
        size_figure(document, "bytes.remembered", "Not read again, because untouched"),
        size_figure(document, "bytes.stored", "New to the store"),
        size_figure(document, "bytes.reused", "Already in the store"),
        *([count_figure(document, "datasets_created", created)] if "datasets_created" in document else []),
        _sessions(document),
    ]
    files = [
        count_figure(document, "files.total", "Found"),
        count_figure(document, "files.stored", "New to the store"),
        count_figure(document, "files.reused", "Already in the store"),
        count_figure(
            document,
            "files.left",
            "Left in the legacy directory" if verb is Verb.MIGRATE else "Left as they were",
        ),
        warnings,
    ]
    return [*found, ("Data", data), ("Files", files)]


_ROOM = {
    "legacy": ("In these directories", "In these directories"),
    "moved": ("Moved away, not freed yet", "Would be moved away"),
    "freed": ("Given back", "Would be given back"),
    "kept": ("Kept for skipped projects", "Would be kept for skipped ones"),
}
"""Room on disk in a report of a reclaim, by its key: in a real run, and in a dry run."""


def _fates(document: Mapping[str, Any], subject: Subject) -> list[Figure]:
    words = VERB_WORDS[Verb(document["verb"])]
    dry = document["dry_run"]
    return [
        count_figure(document, f"{subject}s_processed", "Selected"),
        count_figure(document, words.key_of(subject), STATUS_WORDS[success_of(document)].capitalize()),
        count_figure(document, f"{subject}s_failed", "Would fail" if dry else "Failed"),
        count_figure(document, f"{subject}s_skipped", "Would be skipped" if dry else "Skipped"),
        count_figure(document, f"{subject}s_cancelled", "Cancelled"),
    ]


def _coverage(document: Mapping[str, Any]) -> list[Figure]:
    oldest = document["coverage"]["oldest_check"]
    return [
        size_figure(document, "coverage.bytes_total", "In the store"),
        size_figure(document, "coverage.bytes_verified", "Read by this run"),
        count_figure(document, "coverage.files", "Files read"),
        Figure(label="Oldest check", text=moment(oldest) if oldest else "some was never read"),
    ]


def _lists_of_gc(document: Mapping[str, Any]) -> list[tuple[str, list[Figure]]]:
    would = "would be " if document["dry_run"] else ""
    acts = {key: f"{would}{label.lower()}".capitalize() for key, label in _ACTS.items()}
    pruned = document["pruned"]
    tables = [
        _number(name.removeprefix("migration_").replace("_", " "), n)
        for name, n in pruned["tables"].items()
        if n
    ]
    return [
        ("Entries", [count_figure(document, f"{key}.count", label) for key, label in acts.items()]),
        ("On disk", [size_figure(document, f"{key}.bytes", label) for key, label in acts.items()]),
        (
            "Rows of the ledger",
            [count_figure(document, "pruned.rows", "No job needed them, removed"), *tables],
        ),
    ]


# The table of all jobs --------------------------------------------------------------------------------------


class Columns:
    """The numbers of each job that a run has: for a migration always the same, else what is not always 0."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._candidates: list[Column] = [
            *(_CONTENT if _has_content(document) else ()),
            *(_READ if "coverage" in document else ()),
            *(_DISK if document["verb"] == Verb.RECLAIM else ()),
            _SESSIONS,
        ]
        self._empty = [] if document["verb"] == Verb.MIGRATE else list(self._candidates)

    def add(self, detail: Detail) -> None:
        """Take the next job."""
        if self._empty:
            self._empty = [one for one in self._empty if not one.of(detail)]

    def shown(self) -> list[Column]:
        """Those that say something."""
        return [one for one in self._candidates if one not in self._empty]


_CONTENT = (
    Column(name="read", title="Read", unit="bytes", of=lambda detail: detail["bytes_read"]),
    Column(name="stored", title="Stored", unit="bytes", of=lambda detail: detail["bytes_stored"]),
    Column(name="reused", title="Reused", unit="bytes", of=lambda detail: detail["bytes_reused"]),
    Column(name="files", title="Files", unit="count", of=lambda detail: detail["files"]["total"]),
)
_READ = (
    Column(name="read", title="Read", unit="bytes", of=lambda detail: detail.get("bytes_verified")),
    Column(name="files", title="Files", unit="count", of=lambda detail: detail.get("files_verified")),
)
_DISK = (
    Column(name="disk", title="On disk", unit="bytes", of=lambda detail: detail["disk"]["legacy"]),
    Column(name="moved", title="Moved", unit="bytes", of=lambda detail: detail["disk"]["moved"]),
    Column(name="freed", title="Freed", unit="bytes", of=lambda detail: detail["disk"]["freed"]),
    Column(name="kept", title="Kept", unit="bytes", of=lambda detail: detail["disk"]["kept"]),
)
_SESSIONS = Column(
    name="sessions",
    title="Sessions",
    unit="count",
    of=lambda detail: detail["sessions_count"] if detail["subject"] == Subject.PROJECT else None,
)


def _has_content(document: Mapping[str, Any]) -> bool:
    """Did the run bring content to the store, or find it there?"""
    return bool(document["verb"] == Verb.MIGRATE or document["bytes"]["read"])


def bytes_read(document: Mapping[str, Any]) -> int:
    """How much the run has read, where that is counted."""
    size = document["bytes"]
    read: int = size["read"] - size["remembered"] or document.get("coverage", {}).get("bytes_verified", 0)
    return read


def read_by(detail: Detail) -> int:
    """How much one job has read, where that is counted."""
    read: int = detail["bytes_read"] - detail["bytes_remembered"] or detail.get("bytes_verified", 0)
    return read


# One figure -------------------------------------------------------------------------------------------------


def _sessions(document: Mapping[str, Any]) -> Figure:
    return _number("Sessions", document["sessions"])


def _number(label: str, value: int) -> Figure:
    return Figure(label=label, text=f"{value:,}", value=value)


def count_figure(
    document: Mapping[str, Any], key: str, label: str, *, note: str = "", tone: str = ""
) -> Figure:
    """A count of the document."""
    value = _value(document, key)
    return Figure(label=label, text=f"{value:,}", value=value, key=key, note=note, tone=tone)


def size_figure(document: Mapping[str, Any], key: str, label: str, *, note: str = "") -> Figure:
    """Bytes of the document."""
    value = _value(document, key)
    text, exact = human_bytes(value), f"{value:,} bytes"
    return Figure(label=label, text=text, value=value, key=key, exact=exact, note=note)


def _value(document: Mapping[str, Any], key: str) -> int:
    first, _, second = key.partition(".")
    value: int = document[first][second] if second else document[first]
    return value
