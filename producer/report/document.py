"""A run's report as one JSON document. Pure: from outcomes to JSON values.

Knows no database, no Celery, no HTML and no files. Keys and types are the reference tool's (of Label's own
migration scripts), with more beside them; the JSON Schema is shipped as `report_schema.json`.
"""

import json
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from worker.errors import MigratorError
from worker.messages import FileCounts, Outcome, RunState, Status, Verb
from worker.wording import VERB_WORDS

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys do not count."""


class ReportInconsistentError(MigratorError):
    """Outcomes contradict each other or their run, or totals do not add up: a defect of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a report says about its run, besides what the outcomes say.

    Times are aware; `finished_at` is the end of the last outcome (not the time of the call), so
    that the same outcomes give the same bytes. `selection` is what the ledger keeps: the options
    the run was opened with, and under `left_out` the projects they left out (project_id,
    project_name, reason). It must hold JSON values and no secret.
    """

    run_id: uuid.UUID
    verb: Verb
    dry_run: bool
    state: RunState
    started_at: datetime
    finished_at: datetime
    selection: Mapping[str, Any]
    interim: str | None = None
    """Why the report was written before the run's end; None for a final one."""

    @property
    def success(self) -> Status:
        """The one status of this run's projects that is a success."""
        return VERB_WORDS[self.verb].success(dry_run=self.dry_run)


def build(run: RunFacts, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Make the report of `run` as JSON values; the order of `outcomes` does not matter.

    Raises `ReportInconsistentError` if two outcomes are of one project, a status does not belong to the run,
    a time has no zone, or totals do not add up.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.project_id)
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
        "bytes": _bytes_total(ordered),
        "files": _files_total(ordered),
        "errors": [_error(outcome) for outcome in ordered if outcome.status is Status.FAILED],
        "warnings": list(_warnings(ordered)),
        # Through JSON and sorted: PostgreSQL's jsonb promises no order of keys, a report does.
        "selection": json.loads(json.dumps(dict(run.selection), sort_keys=True)),
        "details": [_detail(run, outcome) for outcome in ordered],
    }
    check_totals(document)
    return document


def check_totals(document: Mapping[str, Any]) -> None:
    """Raise `ReportInconsistentError` unless every total equals the sum over the projects (design, I5)."""
    details = document["details"]
    statuses = Counter(detail["status"] for detail in details)
    words = VERB_WORDS[Verb(document["verb"])]
    succeeded = statuses[words.success(dry_run=document["dry_run"])]
    counts = [succeeded, *(statuses[status] for status in (Status.FAILED, Status.SKIPPED, Status.CANCELLED))]
    expected = {
        "projects_processed": len(details),
        words.done_key: succeeded,
        "projects_failed": len(document["errors"]),
        "details by status": sum(counts),
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
        "projects_processed": document["projects_processed"],
        words.done_key: document[words.done_key],
        "projects_failed": document["projects_failed"],
        "details by status": document["projects_processed"],
        **{f"bytes.{key}": value for key, value in document["bytes"].items()},
        **{f"files.{key}": value for key, value in document["files"].items()},
    }
    wrong = {key: (found[key], value) for key, value in expected.items() if found[key] != value}
    if wrong:
        raise ReportInconsistentError(
            f"run {document['run_id']}: totals do not add up (found, expected): {wrong}"
        )


def _check_outcomes(run: RunFacts, ordered: Sequence[Outcome]) -> None:
    """One outcome a project, each with a status that this run can give and times that have a zone."""
    allowed = {run.success, Status.FAILED, Status.SKIPPED, Status.CANCELLED}
    times_seen = Counter(outcome.project_id for outcome in ordered)
    for outcome in ordered:
        where = f"run {run.run_id}, project {outcome.project_id}"
        if times_seen[outcome.project_id] > 1:
            raise ReportInconsistentError(f"{where}: more than one outcome")
        if outcome.status not in allowed:
            raise ReportInconsistentError(f"{where}: status {outcome.status} cannot come from this run")
        if not math.isfinite(outcome.duration_s):
            raise ReportInconsistentError(
                f"{where}: duration {outcome.duration_s} is not a number of seconds"
            )


def _project_counts(run: RunFacts, ordered: Sequence[Outcome]) -> dict[str, int]:
    """Projects by status, which add up to `projects_processed`; for a migration also the datasets it created.

    A dataset is counted even if its project failed afterwards: it is on disk (reference defect 37).
    """
    statuses = Counter(outcome.status for outcome in ordered)
    counts = {
        "projects_processed": len(ordered),
        VERB_WORDS[run.verb].done_key: statuses[run.success],
        "projects_failed": statuses[Status.FAILED],
        "projects_skipped": statuses[Status.SKIPPED],
        "projects_cancelled": statuses[Status.CANCELLED],
    }
    if run.verb is Verb.MIGRATE:
        counts["datasets_created"] = sum(outcome.dataset_created for outcome in ordered)
    return counts


def _bytes_total(ordered: Iterable[Outcome]) -> dict[str, int]:
    """Bytes of all projects, failed ones included: what they stored is on disk."""
    stored = reused = 0
    for outcome in ordered:
        stored += outcome.bytes.stored
        reused += outcome.bytes.reused
    return {"read": stored + reused, "stored": stored, "reused": reused, "saved": reused}


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
        "project_id": outcome.project_id,
        "project_name": outcome.project_name,
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
                "project_id": outcome.project_id,
                "project_name": outcome.project_name,
                "session": warning.session,
                "message": warning.message,
            }


def _detail(run: RunFacts, outcome: Outcome) -> dict[str, Any]:
    """One selected project, whatever became of it; the reference's keys first."""
    return {
        "project_id": outcome.project_id,
        "project_name": outcome.project_name,
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


def _disposition(run: RunFacts, outcome: Outcome) -> str | None:
    """Whether the project's dataset was new; None where there is no dataset, and for verbs that make none."""
    if run.verb is not Verb.MIGRATE:
        return None
    if outcome.dataset_created:
        return "stored"
    return "reused" if outcome.status is run.success else None


def _restored_path(run: RunFacts, outcome: Outcome) -> str | None:
    """Name the path that the project has again (in a dry run: would have); None if it was not rolled back."""
    return outcome.original_path if outcome.status is run.success else None


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
