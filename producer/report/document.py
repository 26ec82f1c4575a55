"""A run's report as one JSON document. Pure: from outcomes to JSON values.

Knows no database, no Celery, no HTML and no files. Keys and types are the reference tool's (of Label's own
migration scripts), with more beside them; the JSON Schema is shipped as `report_schema.json`.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from producer.report import garbage, reclaim, space, verification
from producer.report.facts import ReportInconsistentError, RunFacts
from worker.messages import FileCounts, Outcome, Status, Subject, Verb, subject_words
from worker.wording import VERB_WORDS, VerbWords

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys do not count."""


def build(run: RunFacts, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Make the report of `run` as JSON values; the order of `outcomes` does not matter.

    Raises `ReportInconsistentError` if two outcomes are of one subject, a status does not belong to the run,
    a time has no zone, or totals do not add up.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.key)
    _check_outcomes(run, ordered)
    document = {
        "schema": SCHEMA_VERSION,
        "run_id": str(run.run_id),
        "verb": run.verb.value,
        "dry_run": run.dry_run,
        "state": run.state.value,
        "interim": run.interim,
        "start_time": _utc_text(run.started_at),
        "end_time": _utc_text(run.finished_at),
        **_project_counts(run, ordered),
        "bytes": _bytes_total(ordered) | (reclaim.bytes_on_disk(ordered) if run.verb is Verb.RECLAIM else {}),
        "files": _files_total(ordered),
        **_PARTS.get(run.verb, _nothing_more)(run, ordered),
        "errors": [_error(outcome) for outcome in ordered if outcome.status is Status.FAILED],
        "warnings": list(_warnings(ordered)),
        # Through JSON and sorted: PostgreSQL's jsonb promises no order of keys, a report does.
        "selection": json.loads(json.dumps(dict(run.selection), sort_keys=True)),
        "details": garbage.details(ordered)
        if run.verb is Verb.GC
        else [_detail(run, outcome) for outcome in ordered],
    }
    check_totals(document)
    return document


_PARTS: dict[Verb, Callable[[RunFacts, Sequence[Outcome]], dict[str, Any]]] = {
    Verb.MIGRATE: space.part,
    Verb.VERIFY: verification.part,
    Verb.GC: garbage.part,
}
"""Makes the keys that only the reports of one verb have, out of its outcomes in their order."""


_DETAILS: dict[Verb, Callable[[RunFacts, Outcome], dict[str, Any]]] = {
    Verb.VERIFY: verification.detail,
    Verb.RECLAIM: reclaim.detail,
}
"""Likewise of one outcome."""


def _nothing_more(_run: RunFacts, _of: object) -> dict[str, Any]:
    return {}


def check_totals(document: Mapping[str, Any]) -> None:
    """Raise `ReportInconsistentError` unless every total equals the sum over the projects (design, I5)."""
    if document["verb"] == Verb.GC:
        # Its details are what it found, not jobs.
        return
    details = document["details"]
    words = VERB_WORDS[Verb(document["verb"])]
    successes = words.successes(dry_run=document["dry_run"])
    counts = _counts(words, successes, [(detail["subject"], detail["status"]) for detail in details])
    expected = {
        **counts,
        "errors": sum(detail["status"] == Status.FAILED for detail in details),
        "bytes.read": document["bytes"]["stored"] + document["bytes"]["reused"],
        "bytes.saved": document["bytes"]["reused"],
        "files.total": sum(document["files"][key] for key in ("stored", "reused", "left")),
        **{f"bytes.{key}": sum(d[f"bytes_{key}"] for d in details) for key in ("stored", "reused")},
        **{
            f"files.{key}": sum(d["files"][key] for d in details)
            for key in ("total", "stored", "reused", "left")
        },
    }
    found = {
        **{key: document.get(key) for key in counts},
        "errors": len(document["errors"]),
        **{f"bytes.{key}": document["bytes"][key] for key in ("read", "saved", "stored", "reused")},
        **{f"files.{key}": value for key, value in document["files"].items()},
    }
    wrong = {key: (found.get(key), value) for key, value in expected.items() if found.get(key) != value}
    if wrong:
        raise ReportInconsistentError(
            f"run {document['run_id']}: totals do not add up (found, expected): {wrong}"
        )


def _check_outcomes(run: RunFacts, ordered: Sequence[Outcome]) -> None:
    """One outcome a subject, each with a status that this run can give and times that have a zone."""
    allowed = VERB_WORDS[run.verb].successes(dry_run=run.dry_run) | {
        Status.FAILED,
        Status.SKIPPED,
        Status.CANCELLED,
    }
    times_seen = Counter(outcome.key for outcome in ordered)
    for outcome in ordered:
        where = f"run {run.run_id}, {subject_words(*outcome.key)}"
        if times_seen[outcome.key] > 1:
            raise ReportInconsistentError(f"{where}: more than one outcome")
        if outcome.status not in allowed:
            raise ReportInconsistentError(f"{where}: status {outcome.status} cannot come from this run")
        if not math.isfinite(outcome.duration_s):
            raise ReportInconsistentError(
                f"{where}: duration {outcome.duration_s} is not a number of seconds"
            )


def _project_counts(run: RunFacts, ordered: Sequence[Outcome]) -> dict[str, int]:
    """Projects by status, which add up to `projects_processed`, and datasets likewise where a run has any;
    for a migration also the datasets it created.

    A dataset is counted even if its project failed afterwards: it is on disk (reference defect 37).
    """
    words = VERB_WORDS[run.verb]
    subjects = [(outcome.subject, outcome.status) for outcome in ordered]
    counts = _counts(words, words.successes(dry_run=run.dry_run), subjects)
    if run.verb is Verb.MIGRATE:
        counts["datasets_created"] = sum(outcome.dataset_created for outcome in ordered)
    return counts


def _counts(
    words: VerbWords, successes: frozenset[Status], subjects: Sequence[tuple[str, str]]
) -> dict[str, int]:
    """How many projects, and datasets if there are any, have ended how."""
    counts: dict[str, int] = {}
    for subject in (Subject.PROJECT, Subject.DATASET):
        statuses = [status for of, status in subjects if of == subject]
        if subject is Subject.PROJECT or statuses:
            counts |= {
                f"{subject}s_processed": len(statuses),
                words.key_of(subject): sum(status in successes for status in statuses),
                **{f"{subject}s_{end}": statuses.count(end) for end in _OTHER_ENDS},
            }
    return counts


_OTHER_ENDS = (Status.FAILED, Status.SKIPPED, Status.CANCELLED)


def _bytes_total(ordered: Iterable[Outcome]) -> dict[str, int]:
    """Bytes of all projects, failed ones included: what they stored is on disk."""
    stored = reused = remembered = 0
    for outcome in ordered:
        stored += outcome.bytes.stored
        reused += outcome.bytes.reused
        remembered += outcome.bytes.remembered
    return {
        "read": stored + reused,
        "stored": stored,
        "reused": reused,
        "saved": reused,
        "remembered": remembered,
    }


def _files_total(ordered: Iterable[Outcome]) -> dict[str, int]:
    """Files of all projects by disposition."""
    parts = [_files(outcome.files) for outcome in ordered]
    return {key: sum(part[key] for part in parts) for key in ("total", "stored", "reused", "left")}


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


def _warnings(ordered: Iterable[Outcome]) -> Iterator[dict[str, Any]]:
    """All warnings, by project and then in the order in which they came up."""
    for outcome in ordered:
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
        "links": asdict(outcome.links),
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
