"""A run's report as one JSON document. Pure: from outcomes to JSON values.

Knows no database, no Celery, no HTML and no files. Keys and types are the reference tool's (of Label's own
migration scripts), with more beside them; the JSON Schema is shipped as `report_schema.json`.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Protocol

from producer.report import garbage, plan, reclaim, verification
from producer.report.facts import LongList, ReportInconsistentError, RunFacts
from worker.messages import FileCounts, LinkCounts, Outcome, Status, Subject, Verb, subject_words
from worker.wording import VERB_WORDS, VerbWords

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys do not count."""


def build(run: RunFacts, outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Make the report of `run` in memory; the order of `outcomes` does not matter. Raises as `compose`."""
    return compose(run, sorted(outcomes, key=lambda outcome: outcome.key), list)


def compose(run: RunFacts, ordered: Iterable[Outcome], new_list: Callable[[], LongList]) -> dict[str, Any]:
    """Make the report of `run` in one pass over its outcomes, which come in the order of their keys.

    Nothing is kept of an outcome but what it adds to totals, and its entries in the long lists, which
    `new_list` makes: they may be on disk. Raises `ReportInconsistentError` if two outcomes are of one
    subject, a status does not belong to the run, a time has no zone, or totals do not add up.
    """
    errors, warnings, details = new_list(), new_list(), new_list()
    totals, sums = _Totals(run), _Sums()
    part = _PARTS.get(run.verb, _NoPart)(run, new_list)
    for outcome in _checked(run, ordered):
        for detail in garbage.details(outcome) if run.verb is Verb.GC else [_detail(run, outcome)]:
            sums.add(detail)
            details.append(detail)
        if outcome.status is Status.FAILED:
            errors.append(_error(outcome))
        warnings.extend(_warnings(outcome))
        totals.add(outcome)
        part.add(outcome)
    document = {
        "schema": SCHEMA_VERSION,
        "run_id": str(run.run_id),
        "verb": run.verb.value,
        "dry_run": run.dry_run,
        "state": run.state.value,
        "interim": run.interim,
        "start_time": _utc_text(run.started_at),
        "end_time": _utc_text(run.finished_at or totals.finished_at or run.started_at),
        **totals.counts(),
        "statuses": totals.statuses,
        "sessions": totals.sessions,
        "bytes": totals.bytes(),
        "files": totals.files,
        **part.keys(),
        **({"waves": list(run.waves)} if run.waves else {}),
        "errors": errors,
        "warnings": warnings,
        # Through JSON and sorted: PostgreSQL's jsonb promises no order of keys, a report does.
        "selection": json.loads(json.dumps(dict(run.selection), sort_keys=True)),
        "details": details,
    }
    sums.check(document)
    return document


class _Part(Protocol):
    """Makes the keys that only the reports of one verb have, out of its outcomes in their order."""

    def __init__(self, run: RunFacts, new_list: Callable[[], LongList]) -> None: ...
    def add(self, outcome: Outcome) -> None: ...
    def keys(self) -> dict[str, Any]: ...


class _NoPart:
    """Of a verb without keys of its own."""

    def __init__(self, run: RunFacts, new_list: Callable[[], LongList]) -> None: ...
    def add(self, outcome: Outcome) -> None: ...
    def keys(self) -> dict[str, Any]:
        return {}


_PARTS: dict[Verb, type[_Part]] = {
    Verb.MIGRATE: plan.Migration,
    Verb.VERIFY: verification.Verification,
    Verb.GC: garbage.Garbage,
}

_DETAILS: dict[Verb, Callable[[RunFacts, Outcome], dict[str, Any]]] = {
    Verb.VERIFY: verification.detail,
    Verb.RECLAIM: reclaim.detail,
}
"""Makes the keys that only one verb's details have."""


def _nothing_more(_run: RunFacts, _of: object) -> dict[str, Any]:
    return {}


def check_totals(document: Mapping[str, Any]) -> None:
    """Raise `ReportInconsistentError` unless every total equals the sum over the projects (design, I5)."""
    sums = _Sums()
    for detail in document["details"]:
        sums.add(detail)
    sums.check(document)


class _Sums:
    """Sums over a report's details, to be compared with its totals."""

    def __init__(self) -> None:
        self._ends: Counter[tuple[str, str]] = Counter()
        files = ("total", "stored", "reused", "left")
        self._sizes = dict.fromkeys(
            ("bytes.stored", "bytes.reused", "sessions", *(f"files.{key}" for key in files)), 0
        )

    def add(self, detail: Mapping[str, Any]) -> None:
        if "subject" not in detail:
            # What a gc found is no job.
            return
        self._ends[detail["subject"], detail["status"]] += 1
        for key in ("stored", "reused"):
            self._sizes[f"bytes.{key}"] += detail[f"bytes_{key}"]
        for key, count in detail["files"].items():
            self._sizes[f"files.{key}"] += count
        self._sizes["sessions"] += detail["sessions_count"]

    def check(self, document: Mapping[str, Any]) -> None:
        if document["verb"] == Verb.GC:
            return
        words = VERB_WORDS[Verb(document["verb"])]
        counts = _counts(words, words.successes(dry_run=document["dry_run"]), self._ends)
        expected = {
            **counts,
            "statuses": _by_subject(self._ends),
            "errors": sum(n for (_, status), n in self._ends.items() if status == Status.FAILED),
            "bytes.read": document["bytes"]["stored"] + document["bytes"]["reused"],
            "bytes.saved": document["bytes"]["reused"],
            "files.total": sum(document["files"][key] for key in ("stored", "reused", "left")),
            **self._sizes,
        }
        found = {
            **{key: document.get(key) for key in counts},
            "statuses": document["statuses"],
            "sessions": document["sessions"],
            "errors": len(document["errors"]),
            **{f"bytes.{key}": document["bytes"][key] for key in ("read", "saved", "stored", "reused")},
            **{f"files.{key}": value for key, value in document["files"].items()},
        }
        wrong = {key: (found.get(key), value) for key, value in expected.items() if found.get(key) != value}
        if wrong:
            raise ReportInconsistentError(
                f"run {document['run_id']}: totals do not add up (found, expected): {wrong}"
            )


def _checked(run: RunFacts, ordered: Iterable[Outcome]) -> Iterator[Outcome]:
    """One outcome a subject, each with a status that this run can give and times that have a zone."""
    allowed = VERB_WORDS[run.verb].successes(dry_run=run.dry_run) | set(_OTHER_ENDS)
    before: tuple[str, int] = ("", 0)
    for outcome in ordered:
        key = outcome.key
        wrong = None
        if key <= before:
            wrong = "more than one outcome" if key == before else "not in the order of subjects and ids"
        elif outcome.status not in allowed:
            wrong = f"status {outcome.status} cannot come from this run"
        elif not math.isfinite(outcome.duration_s):
            wrong = f"duration {outcome.duration_s} is not a number of seconds"
        if wrong is not None:
            raise ReportInconsistentError(f"run {run.run_id}, {subject_words(*key)}: {wrong}")
        before = key
        yield outcome


class _Totals:
    """What all outcomes of a run add up to, failed ones included: what they stored is on disk."""

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._ends: Counter[tuple[str, str]] = Counter()
        self._created = self._stored = self._reused = self._remembered = 0
        self._on_disk = dict.fromkeys(reclaim.ON_DISK, 0)
        self.files = {"total": 0, "stored": 0, "reused": 0, "left": 0}
        self.sessions = 0
        self.finished_at: datetime | None = None

    def add(self, outcome: Outcome) -> None:
        self._ends[outcome.subject, outcome.status] += 1
        # A dataset is counted even if its project failed afterwards: it is on disk (reference defect 37).
        self._created += outcome.dataset_created
        self._stored += outcome.bytes.stored
        self._reused += outcome.bytes.reused
        self._remembered += outcome.bytes.remembered
        for key, size in reclaim.on_disk(outcome).items():
            self._on_disk[key] += size
        for key, count in _files(outcome.files).items():
            self.files[key] += count
        self.sessions += outcome.sessions_count
        if outcome.finished_at is not None:
            self.finished_at = max(outcome.finished_at, self.finished_at or outcome.finished_at)

    @property
    def statuses(self) -> dict[str, dict[str, int]]:
        """How many projects, and how many datasets, have ended with each status."""
        return _by_subject(self._ends)

    def counts(self) -> dict[str, int]:
        """Projects by status, which add up to `projects_processed`, and datasets likewise where a run has
        any; for a migration also the datasets it created.
        """
        words = VERB_WORDS[self._run.verb]
        counts = _counts(words, words.successes(dry_run=self._run.dry_run), self._ends)
        return counts | ({"datasets_created": self._created} if self._run.verb is Verb.MIGRATE else {})

    def bytes(self) -> dict[str, int]:
        """Bytes by disposition; for a reclaim also the room on disk."""
        return {
            "read": self._stored + self._reused,
            "stored": self._stored,
            "reused": self._reused,
            "saved": self._reused,
            "remembered": self._remembered,
            **(self._on_disk if self._run.verb is Verb.RECLAIM else {}),
        }


def _counts(
    words: VerbWords, successes: frozenset[Status], ends: Mapping[tuple[str, str], int]
) -> dict[str, int]:
    """How many projects, and datasets if there are any, have ended how."""
    counts: dict[str, int] = {}
    for subject in (Subject.PROJECT, Subject.DATASET):
        statuses = {status: count for (of, status), count in ends.items() if of == subject}
        if subject is Subject.PROJECT or statuses:
            counts |= {
                f"{subject}s_processed": sum(statuses.values()),
                words.key_of(subject): sum(statuses.get(status, 0) for status in successes),
                **{f"{subject}s_{end}": statuses.get(end, 0) for end in _OTHER_ENDS},
            }
    return counts


def _by_subject(ends: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Plain text for the JSON, in the order in which they came up."""
    found: dict[str, dict[str, int]] = {}
    for (subject, status), count in ends.items():
        found.setdefault(str(subject), {})[str(status)] = count
    return found


_OTHER_ENDS = (Status.FAILED, Status.SKIPPED, Status.CANCELLED)


def _files(files: FileCounts) -> dict[str, int]:
    """One project's files by disposition."""
    return {"total": files.total, "stored": files.stored, "reused": files.reused, "left": files.left}


def _error(outcome: Outcome) -> dict[str, Any]:
    """Describe a failure, always with the project's id and name (reference defect 35)."""
    return {
        **_subject(outcome),
        "error": _error_text(outcome),
        "error_class": outcome.error_class,
        "remedy": outcome.remedy,
    }


def _error_text(outcome: Outcome) -> str | None:
    """Take the error, or for a failure without one its reason: never an empty message (reference defect
    34).
    """
    return outcome.error or (outcome.reason if outcome.status is Status.FAILED else None)


def _warnings(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A project's warnings, in the order in which they came up."""
    for warning in outcome.warnings:
        yield {
            **_subject(outcome),
            "session": warning.session,
            "message": warning.message,
        }


def _detail(run: RunFacts, outcome: Outcome) -> dict[str, Any]:
    """One selected project, whatever became of it; the reference's keys first."""
    return {
        **_subject(outcome),
        "status": outcome.status.value,
        "reason": outcome.reason,
        "disposition": _disposition(run, outcome),
        "dataset_id": outcome.dataset_id,
        "dataset_created": outcome.dataset_created,
        "dataset_hash": outcome.dataset_hash,
        "dataset_path": outcome.dataset_path,
        "original_path": outcome.original_path,
        **({"restored_path": _restored_path(run, outcome)} if run.verb is Verb.ROLLBACK else {}),
        "sessions_count": outcome.sessions_count,
        "bytes_read": outcome.bytes.read,
        "bytes_stored": outcome.bytes.stored,
        "bytes_reused": outcome.bytes.reused,
        "bytes_remembered": outcome.bytes.remembered,
        **_DETAILS.get(run.verb, _nothing_more)(run, outcome),
        "files": _files(outcome.files),
        "links": {key: getattr(outcome.links, key) for key in _LINKS},
        "duration_s": outcome.duration_s,
        "attempts": outcome.attempts,
        "worker": outcome.worker,
        "started_at": _utc_text(outcome.started_at) if outcome.started_at else None,
        "finished_at": _utc_text(outcome.finished_at) if outcome.finished_at else None,
        "error_class": outcome.error_class,
        "error": _error_text(outcome),
        "remedy": outcome.remedy,
        "warnings": [
            {"session": warning.session, "message": warning.message} for warning in outcome.warnings
        ],
        "differences": list(outcome.differences),
    }


_LINKS = [field.name for field in fields(LinkCounts)]


def _subject(outcome: Outcome) -> dict[str, Any]:
    """What an entry is about; `project_id` and `project_name` are null where it is no project."""
    named = {
        "subject": outcome.subject.value,
        "project_id": outcome.project_id,
        "project_name": outcome.project_name,
    }
    if outcome.subject is Subject.DATASET:
        named |= {"dataset_id": outcome.dataset_id, "dataset_name": outcome.dataset_name}
    return named


def _disposition(run: RunFacts, outcome: Outcome) -> str | None:
    """Whether the project's dataset was new; None where there is no dataset, and for verbs that make none."""
    if run.verb is not Verb.MIGRATE:
        return None
    if outcome.dataset_created:
        return "stored"
    return "reused" if run.succeeded(outcome) else None


def _restored_path(run: RunFacts, outcome: Outcome) -> str | None:
    """Name the path that the project has again (in a dry run: would have); None if it was not rolled back."""
    return outcome.original_path if run.succeeded(outcome) else None


def _utc_text(time: datetime) -> str:
    """ISO 8601 in UTC with microseconds. Raises `ReportInconsistentError` for a time without a zone."""
    if time.tzinfo is None:
        # A bare time would be read as local time, and the report would depend on where it is made.
        raise ReportInconsistentError(f"time without a zone: {time}")
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def schema_document() -> dict[str, Any]:
    """Read the JSON Schema (draft 2020-12) that every report obeys."""
    text = resources.files("producer.report").joinpath("report_schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]
