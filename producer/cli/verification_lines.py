"""What a person reads of a verification of the store: what was read, what is damaged, what was repaired."""

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

from producer.cli.escaping import escape
from worker.db.verifications import Coverage
from worker.units import human_bytes


def verification_lines(report: Mapping[str, Any], most: int, where: str) -> Iterator[str]:
    """Coverage and damage of a report, which is `where`; nothing of one that did not verify the store."""
    coverage = report.get("coverage")
    if coverage is None:
        return
    yield coverage_line(coverage)
    damaged = report["damaged"]
    # What is still damaged comes first.
    for one in heapq.nsmallest(most, damaged, key=lambda one: one["repaired"]):
        yield _damage_line(one)
    if len(damaged) > most:
        yield f"… and {len(damaged) - most:,} more damaged things in {where}"


def coverage_line(coverage: Mapping[str, Any]) -> str:
    """How much of the store was read by a run, and the age of what was read least recently."""
    read, total = (human_bytes(coverage[key]) for key in ("bytes_verified", "bytes_total"))
    if not coverage["bytes_total"]:
        return "nothing is stored"
    return f"{coverage['files']:,} stored files read: {read} of {total}; {oldest_words(coverage['oldest_check'])}"


def store_line(found: Coverage) -> str:
    """How much is stored now, and how old the oldest check is."""
    oldest = found.oldest_check.isoformat() if found.oldest_check is not None else None
    return (
        f"store: {found.datasets:,} datasets, {human_bytes(found.size_bytes)}; "
        f"{oldest_words(oldest) if found.size_bytes else 'nothing is stored'}"
    )


def oldest_words(moment: str | None) -> str:
    """When the least recently read byte of the store was read."""
    if moment is None:
        return "some of the store was never read"
    return f"all of the store was read since {moment[:16].replace('T', ' ')} UTC"


def _damage_line(one: Mapping[str, Any]) -> str:
    what = f"{escape(one['path'])}: {one['what'].replace('_', ' ')}"
    if one["repaired"]:
        return f"[green]repaired[/] {what}, from {escape(one['from'] or 'another job')}"
    who = [f"{name} {', '.join(map(str, one[key]))}" for name, key in _WHO if one[key]]
    return f"[red]damaged[/] {what}; {escape('; '.join(who))}"


_WHO = (("datasets", "dataset_ids"), ("projects", "project_ids"), ("sessions", "sessions"))
