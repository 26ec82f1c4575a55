"""What only the report of a gc has: entries instead of jobs, and counts with bytes by what became of them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any

from producer.report.facts import RunFacts
from producer.report.notation import plural
from worker.messages import GarbageEntry, Outcome
from worker.units import human_bytes


class Garbage:
    """Counts and allocated bytes: of what went to quarantine, of what was removed from there, of leftovers of
    jobs that are over, and rows of the ledger.
    """

    def __init__(self, _run: RunFacts, _new_list: object) -> None:
        self._acts = {
            action: {"count": 0, "datasets": 0, "files": 0, "bytes": 0}
            for action in ("quarantined", "removed", "staging", "restored")
        }
        self._pruned: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        """Count each entry that the job found, and the rows that it removed."""
        for entry in outcome.garbage:
            if (act := self._acts.get(entry.action)) is not None:
                act["count"] += 1
                act["datasets"] += entry.kind == "dataset"
                act["files"] += entry.files
                act["bytes"] += entry.size_bytes
        self._pruned.update(outcome.pruned)

    def keys(self) -> dict[str, Any]:
        """A key for each act, and `pruned`."""
        pruned = {"rows": self._pruned.total(), "tables": dict(sorted(self._pruned.items()))}
        return {**self._acts, "pruned": pruned}


def details(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Each entry, in the order in which it was found."""
    return (_detail(entry) for entry in outcome.garbage)


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


def is_restorable(document: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Does `gc --restore` bring it back? This run put it into quarantine."""
    return bool(entry["status"] == "quarantined") and is_entry(document, entry)


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
