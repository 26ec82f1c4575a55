"""Reports as a reader who trusts nobody adds them up: against the ledger's outcomes and the files on disk.
Changes nothing.
"""

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from tests.chaos.estate import Estate

_DONE = {
    "migrate": ("migrated", {"migrated"}),
    "rollback": ("rolled_back", {"rolled_back"}),
    "verify": ("verified", {"verified", "repaired"}),
    "reclaim": ("reclaimed", {"reclaimed", "undone", "purged"}),
}
"""Which statuses a verb's report counts under which name."""


def wrong_reports(conn: Connection, estate: Estate, run_id: uuid.UUID, written: Sequence[Path]) -> list[str]:
    """What is wrong with the reports that collections of a run have written."""
    if len(set(written)) < len(written):
        return [f"two collections of run {run_id} wrote one file"]
    if len({path.read_bytes() for path in written}) > 1:
        return [f"collections of run {run_id} differ: {written}"]
    report = json.loads(written[0].read_bytes())
    query = text("select subject_id, outcome from migration_jobs where run_id = :run_id")
    outcomes = {row.subject_id: row.outcome for row in conn.execute(query, {"run_id": run_id})}
    if report["verb"] == "gc":
        return [f"report of run {run_id}: {line}" for line in _wrong_entries(report, list(outcomes.values()))]
    return [f"report of run {run_id}: {line}" for line in _wrong(report, outcomes, estate)]


def _wrong(report: dict[str, Any], outcomes: dict[int, dict[str, Any]], estate: Estate) -> Iterator[str]:
    subject = "dataset" if report["verb"] == "verify" else "project"
    details = {
        detail["dataset_id" if subject == "dataset" else "project_id"]: detail for detail in report["details"]
    }
    if len(details) != len(report["details"]) or details.keys() != outcomes.keys():
        yield f"its {subject}s are {sorted(details)}, those of the run {sorted(outcomes)}"
        return
    statuses = Counter(outcome["status"] for outcome in outcomes.values())
    key, done = _DONE[report["verb"]]
    # A run over no dataset at all counts projects, of which there are none.
    counted = subject if outcomes else "project"
    expected = {
        f"{counted}s_processed": len(outcomes),
        f"{counted}s_{key}": sum(statuses[status] for status in done),
        f"{counted}s_failed": statuses["failed"],
        f"{counted}s_skipped": statuses["skipped"],
        f"{counted}s_cancelled": statuses["cancelled"],
        "errors": statuses["failed"],
    }
    found = {name: report[name] for name in expected} | {"errors": len(report["errors"])}
    if found != expected:
        yield f"it counts {found}, the ledger {expected}"
    for number, outcome in outcomes.items():
        for name in ("status", "reason", "dataset_hash", "dataset_path"):
            if details[number][name] != outcome.get(name):
                yield f"{subject} {number}: {name} is {details[number][name]!r}, not {outcome.get(name)!r}"
    yield from _wrong_sums(report, details, estate)


def _wrong_sums(report: dict[str, Any], details: dict[int, dict[str, Any]], estate: Estate) -> Iterator[str]:
    """Bytes and files: totals are sums, and the sums are what is on disk."""
    for name in ("read", "stored", "reused"):
        total = sum(detail[f"bytes_{name}"] for detail in details.values())
        if report["bytes"][name] != total:
            yield f"bytes.{name} is {report['bytes'][name]}, the sum {total}"
    for name in ("total", "stored", "reused", "left"):
        total = sum(detail["files"][name] for detail in details.values())
        if report["files"][name] != total:
            yield f"files.{name} is {report['files'][name]}, the sum {total}"
    if report["verb"] != "migrate":
        return
    for number, detail in details.items():
        files = [entry for entry in estate.trees.get(number, {}).values() if entry.kind == "file"]
        size = sum(entry.size_bytes for entry in files)
        if detail["status"] == "migrated" and (detail["bytes_read"], detail["files"]["total"]) != (
            size,
            len(files),
        ):
            yield (
                f"project {number}: {detail['bytes_read']} bytes in {detail['files']['total']} files, "
                f"on disk {size} in {len(files)}"
            )


def _wrong_entries(report: dict[str, Any], outcomes: list[dict[str, Any]]) -> Iterator[str]:
    """A gc's report lists what it found, and counts that."""
    found = [entry for outcome in outcomes for entry in outcome.get("garbage", ())]
    listed = Counter(detail["status"] for detail in report["details"])
    if listed != Counter(entry["action"] for entry in found):
        yield f"it lists {dict(listed)}, the ledger {found}"
    for action in ("quarantined", "removed", "staging"):
        if report[action]["count"] != listed[action]:
            yield f"it counts {report[action]} as {action}, and lists {listed[action]}"
    if len(report["errors"]) != sum(outcome["status"] == "failed" for outcome in outcomes):
        yield f"it has the errors {report['errors']}"
