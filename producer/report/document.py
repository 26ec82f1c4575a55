"""A run's report: pure from outcomes to one JSON document, then onto disk without ever replacing a file.

Knows no database, no Celery and no HTML. Keys and types are the reference tool's (of Label's own migration scripts), with more
beside them; the JSON Schema is shipped as `report_schema.json`.
"""

import errno
import json
import math
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from worker.errors import MigratorError, UsageError
from worker.messages import FileCounts, Outcome, RunState, Status, Verb

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys do not count."""

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class ReportDirectoryError(UsageError):
    """The report cannot be written where it is wanted. Nothing else is lost: outcomes are in the ledger."""

    remedy: ClassVar[str] = (
        "Name a directory that you may write to and that has room: --report-dir DIR. "
        "A run that has ended keeps its outcomes: producer collect RUN --report-dir DIR writes the report again."
    )


class ReportInconsistentError(MigratorError):
    """Outcomes contradict each other or their run, or totals do not add up: a fault of this program, not of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbWords:
    """What a verb's report is called, which key counts its successes, and which statuses are a success."""

    stem: str
    done_key: str
    done: Status
    foretold: Status

    def success(self, *, dry_run: bool) -> Status:
        """Return the status of a project for which the run did, or in a dry run would do, what it is for."""
        return self.foretold if dry_run else self.done


VERB_WORDS = {
    Verb.MIGRATE: VerbWords(
        stem="migration_report",
        done_key="projects_migrated",
        done=Status.MIGRATED,
        foretold=Status.WOULD_MIGRATE,
    ),
    Verb.ROLLBACK: VerbWords(
        stem="rollback_report",
        done_key="projects_rolled_back",
        done=Status.ROLLED_BACK,
        foretold=Status.WOULD_ROLL_BACK,
    ),
    Verb.VERIFY: VerbWords(
        stem="verification_report",
        done_key="projects_verified",
        done=Status.VERIFIED,
        foretold=Status.VERIFIED,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a report says about its run, besides what the outcomes say.

    Times are aware; `finished_at` is the end of the last outcome (not the time of the call), so that the same outcomes
    give the same bytes. `selection` is what the ledger keeps: the options the run was opened with, and under `left_out`
    the projects they left out (project_id, project_name, reason). It must hold JSON values and no secret.
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


# From outcomes to a document ------------------------------------------------------------------------------------


def build(run: RunFacts, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Make the report of `run` as JSON values; the order of `outcomes` does not matter.

    Raises `ReportInconsistentError` if two outcomes are of one project, a status does not belong to the run, a time has
    no zone, or totals do not add up.
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
    """Raise `ReportInconsistentError` unless every total of a report equals the sum over its projects (design, I5)."""
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
    """Take the error, or for a failure without one its reason: an empty message helps nobody (reference defect 34)."""
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
    """Whether the project's dataset was new; None where no dataset came of it, and for verbs that make none."""
    if run.verb is not Verb.MIGRATE:
        return None
    if outcome.dataset_created:
        return "stored"
    return "reused" if outcome.status is run.success else None


def _restored_path(run: RunFacts, outcome: Outcome) -> str | None:
    """Name the path that the project has again (in a dry run: would have); None if it was not rolled back."""
    return outcome.original_path if outcome.status is run.success else None


def _utc_text(time: datetime) -> str:
    """ISO 8601 in UTC with offset and microseconds. Raises `ReportInconsistentError` for a time without a zone."""
    if time.tzinfo is None:
        # A bare time would be read as local time, and the report would depend on where it is made.
        raise ReportInconsistentError(f"time without a zone: {time}")
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def schema_document() -> dict[str, Any]:
    """Read the JSON Schema (draft 2020-12) that every report obeys."""
    text = resources.files("producer.report").joinpath("report_schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


# From a document to a file --------------------------------------------------------------------------------------


def encode(document: Mapping[str, Any]) -> bytes:
    """Turn the document into the bytes of its file: UTF-8, indented, one line feed at the end.

    A lone surrogate, which UTF-8 cannot hold, becomes the JSON escape of the same character.
    """
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def check_directory(directory: Path) -> None:
    """Make sure that a report can be written to `directory`, and create it if it is missing.

    Writes a file and removes it: permission bits alone do not tell of read-only or full disks. Raises
    `ReportDirectoryError` naming the directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_temporary(directory, b"Can a report be written here?\n").unlink()
    except OSError as error:
        raise _cannot_write(directory, error) from error


def write(
    document: Mapping[str, Any], directory: Path, verb: Verb, at: datetime, *, html: str | None = None
) -> Path:
    """Write the report, and beside it `html` under the same stem; returns the path of the JSON file.

    The name carries the UTC second of `at`, or the next one that is free: no file is ever replaced, whoever else is
    writing. An interim report's name begins with `interim_`, so that whoever looks for the final one does not find it. Both files appear whole and durable, the JSON last. Raises `ReportDirectoryError` naming the directory.
    """
    contents = {} if html is None else {".html": html.encode("utf-8", "backslashreplace")}
    contents[".json"] = encode(document)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as cleanup:
            temporaries: dict[str, Path] = {}
            for suffix, content in contents.items():
                temporaries[suffix] = _write_temporary(directory, content)
                cleanup.callback(temporaries[suffix].unlink)
            stem = next(stem for stem in _stems(directory, document, verb, at) if _publish(temporaries, stem))
        _fsync_directory(directory)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    return stem.with_suffix(".json")


def _stems(directory: Path, document: Mapping[str, Any], verb: Verb, at: datetime) -> Iterator[Path]:
    """Names for a report, second by second from `at` on: a suffix instead would break the name that people match."""
    second = at.astimezone(UTC)
    interim = "interim_" if document.get("interim") else ""
    while True:
        yield directory / f"{interim}{VERB_WORDS[verb].stem}_{second:%Y%m%d_%H%M%S}"
        second += timedelta(seconds=1)


def _publish(temporaries: Mapping[str, Path], stem: Path) -> bool:
    """Give all files their names at `stem`, or none of them and return False if a name is taken."""
    if any(os.path.lexists(stem.with_suffix(suffix)) for suffix in (".html", ".json")):
        return False
    named: list[Path] = []
    for suffix, temporary in temporaries.items():
        target = stem.with_suffix(suffix)
        try:
            _link(temporary, target)
        except OSError as error:
            # What has been named so far is this call's own; without its twin it would mislead.
            for path in named:
                path.unlink()
            if isinstance(error, FileExistsError):
                return False  # Another writer was faster since the look above.
            raise
        named.append(target)
    return True


def _link(temporary: Path, target: Path) -> None:
    """Make `temporary` appear as `target`; raises `FileExistsError` if anything is there, even a dangling link."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links: the exclusive creation decides the race, the rename then replaces only our own file.
        copy = _write_temporary(target.parent, temporary.read_bytes())
        try:
            target.touch(exist_ok=False)
            copy.replace(target)
        finally:
            copy.unlink(missing_ok=True)


def _write_temporary(directory: Path, content: bytes) -> Path:
    """Make a durable file of a name nobody else uses, with the mode that the umask gives."""
    path = directory / f".report-{uuid.uuid4().hex}.tmp"
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _fsync_directory(directory: Path) -> None:
    """Make names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(directory: Path, error: OSError) -> ReportDirectoryError:
    return ReportDirectoryError(f"cannot write a report to {directory}: {error.strerror or error}")
