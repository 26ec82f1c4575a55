"""What only the report of a gc has: entries instead of jobs, and counts with bytes by what became of them."""

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from producer.report.facts import RunFacts
from producer.report.notation import plural
from worker.messages import GarbageEntry, Outcome
from worker.units import human_bytes


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


def words(document: Mapping[str, Any], *, with_sizes: bool = True) -> str:
    """What a gc did, or in a dry run would do: `1 entry put into quarantine (20.3 MB)`."""
    dry_run = document["dry_run"]
    said = [
        f"{document[key]['count']} {plural(document[key]['count'], 'entry', 'entries')} {became(key, dry_run=dry_run)}"
        f"{_in_brackets(document[key]['bytes']) if with_sizes else ''}"
        for key in _ACTS
        if document[key]["count"]
    ]
    return ("; ".join(said) or "Nothing to collect") + "."


def _in_brackets(size_bytes: int) -> str:
    return f" ({human_bytes(size_bytes)})"


_ACTS = {
    "quarantined": "put into quarantine",
    "removed": "removed for good",
    "staging": "removed that jobs had left behind",
    "restored": "brought back from quarantine",
}


def became(status: str, *, dry_run: bool) -> str:
    """What became of an entry, in words."""
    return f"would be {_ACTS[status]}" if dry_run else _ACTS[status]


def is_entry(document: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Is its id one in quarantine, now or before? That of what a dry run would put there is not."""
    return bool(entry["id"]) and not (document["dry_run"] and entry["status"] == "quarantined")


def restorable(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What `gc --restore` brings back: put into quarantine by this run."""
    return [one for one in document["details"] if one["status"] == "quarantined" and is_entry(document, one)]


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
