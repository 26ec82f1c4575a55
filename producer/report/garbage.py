"""What only the report of a gc has: entries instead of jobs, and counts with bytes by what became of them."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from producer.report.facts import RunFacts
from worker.messages import GarbageEntry, Outcome


def part(_run: RunFacts, ordered: Sequence[Outcome]) -> dict[str, Any]:
    """Counts and allocated bytes: of what went to quarantine, of what was removed from there, of leftovers of
    jobs that are over, and rows of the ledger.
    """
    found = [entry for outcome in ordered for entry in outcome.garbage]
    pruned: dict[str, int] = {}
    for outcome in ordered:
        for table, rows in outcome.pruned.items():
            pruned[table] = pruned.get(table, 0) + rows
    return {
        **{action: _count(found, action) for action in ("quarantined", "removed", "staging", "restored")},
        "pruned": {"rows": sum(pruned.values()), "tables": dict(sorted(pruned.items()))},
    }


def details(ordered: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Each entry, in the order in which it was found."""
    return [_detail(entry) for outcome in ordered for entry in outcome.garbage]


def _count(found: Sequence[GarbageEntry], action: str) -> dict[str, int]:
    some = [entry for entry in found if entry.action == action]
    return {
        "count": len(some),
        "datasets": sum(entry.kind == "dataset" for entry in some),
        "files": sum(entry.files for entry in some),
        "bytes": sum(entry.size_bytes for entry in some),
    }


def _detail(entry: GarbageEntry) -> dict[str, Any]:
    return {
        "id": entry.entry_id,
        "status": entry.action,
        "kind": entry.kind,
        "dataset": entry.dataset_id,
        "name": entry.name,
        "reason": entry.reason,
        "since": entry.since.astimezone(UTC).isoformat(timespec="microseconds") if entry.since else None,
        "files": entry.files,
        "bytes": entry.size_bytes,
    }
