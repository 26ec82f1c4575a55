"""All datasets and projects as one JSON document: who shares what, what was verified when, room on disk.

Made of rows alone: opens no file, and says nothing of what jobs have left behind.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from producer.datasets import listed
from producer.datasets.listed import Listed, text_of
from producer.report.space import once, packed
from producer.runs.garbage import GRACE_H
from worker.db import blob_index, catalog, garbage, reclaims
from worker.db.catalog import Amounts, Holder

AGES_DAYS = (1, 7, 30, 90)
"""How old verifications are told apart by."""
SHARES = ((0, 0), (1, 1), (2, 2), (3, 5), (6, 10), (11, 50), (51, None))
"""By how many projects datasets are told apart, from and to."""


def report(engine: Engine) -> dict[str, Any]:
    """Make the document: rows of one moment, a fixed number of statements however many there are."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        datasets = listed.everything(conn)
        projects = catalog.holders(conn)
        due = [one.dataset_id for one in garbage.unreferenced(conn, GRACE_H) if one.is_due]
        referred = [one.entry.dataset_id for one in datasets if one.entry.projects]
        amounts = catalog.amounts(conn, referred, due)
        away = reclaims.bytes_by_state(conn)
        ours = [one.entry.dataset_hash for one in datasets if one.is_ours]
        not_indexed = blob_index.not_indexed(conn, ours)
    at = datetime.now(UTC)
    return {
        "at": text_of(at),
        **_counts(datasets, projects),
        "datasets_not_indexed": len(not_indexed),
        "content": _content(projects, amounts),
        "space": _space(projects, amounts, away),
        "gc": _gc(datasets, due, amounts),
        "oldest_check": text_of(_oldest_check(datasets)),
        "verified": _by_age(datasets, at),
        "sharing": _by_sharers(datasets),
        "dataset_list": _dataset_list(datasets, projects),
        "project_list": [asdict(one) for one in projects],
    }


def _counts(datasets: Sequence[Listed], projects: Sequence[Holder]) -> dict[str, int]:
    return {
        "datasets": len(datasets),
        "datasets_shared": sum(one.entry.projects > 1 for one in datasets),
        "datasets_by_label": sum(not one.is_ours for one in datasets),
        "projects": len(projects),
        "projects_with_datasets": sum(bool(one.dataset_ids) for one in projects),
        "projects_legacy": sum(one.is_legacy for one in projects),
    }


def _content(projects: Sequence[Holder], amounts: Amounts) -> dict[str, int]:
    """What each project has, added up, and what of that is stored: the rest is what sharing saves."""
    had = sum(one.size_bytes for one in projects)
    return {"had": had, "stored": amounts.referred_bytes, "saved": had - amounts.referred_bytes}


def _space(projects: Sequence[Holder], amounts: Amounts, away: Mapping[str, int]) -> dict[str, int]:
    """Room: of the store, and of legacy directories, which a reclaim and its purge would give back."""
    in_place = [one for one in projects if one.legacy == "in_place"]
    sizes: dict[bytes, int] = {}
    for one in in_place:
        path = packed(one.path or "")
        sizes[path] = max(one.allocated_bytes or 0, sizes.get(path, 0))
    legacy, shared = once(sizes), sum(one.shared_bytes for one in in_place)
    return {
        "store": amounts.stored_bytes,
        "legacy": legacy,
        "shared": min(legacy, shared),
        "moved_away": away["reclaimed"],
        "freed": away["purged"],
        "reclaimable": max(0, legacy - shared),
        "directories": len(in_place),
        "directories_not_measured": sum(one.allocated_bytes is None for one in in_place),
    }


def _gc(datasets: Sequence[Listed], due: Collection[int], amounts: Amounts) -> dict[str, Any]:
    """What a gc would take of the datasets, if it does not refuse because they are too many."""
    return {
        "unreferenced": sum(one.is_unreferenced for one in datasets),
        "due": len(due),
        "bytes": amounts.only_these_bytes,
        "refuses": garbage.would_trip(len(due), len(datasets), None),
    }


def _oldest_check(datasets: Iterable[Listed]) -> datetime | None:
    checks = [one.entry.verified_at for one in datasets if one.is_ours]
    known = [at for at in checks if at is not None]
    return min(known) if known and len(known) == len(checks) else None


def _by_age(datasets: Sequence[Listed], at: datetime) -> list[dict[str, Any]]:
    """Our datasets by how long ago all of each was verified: `to_days` None is without end, `from_days` None
    never.
    """
    groups: dict[tuple[int | None, int | None], list[Listed]] = {
        group: [] for group in (*zip((0, *AGES_DAYS), (*AGES_DAYS, None), strict=True), (None, None))
    }
    for one in datasets:
        if one.is_ours:
            groups[_age(one.entry.verified_at, at)].append(one)
    return [
        {"from_days": begin, "to_days": end, "datasets": len(found), "bytes": _size(found)}
        for (begin, end), found in groups.items()
    ]


def _age(verified_at: datetime | None, at: datetime) -> tuple[int | None, int | None]:
    if verified_at is None:
        return None, None
    begin = max((days for days in AGES_DAYS if at - verified_at >= timedelta(days=days)), default=0)
    return begin, next((days for days in AGES_DAYS if days > begin), None)


def _by_sharers(datasets: Sequence[Listed]) -> list[dict[str, Any]]:
    """Datasets by how many projects refer to them; `to` None is without end."""
    found = []
    for begin, end in SHARES:
        group = [
            one
            for one in datasets
            if begin <= one.entry.projects and (end is None or one.entry.projects <= end)
        ]
        found.append(
            {
                "from": begin,
                "to": end,
                "datasets": len(group),
                "bytes": _size(group),
                "saved": sum(_saved(one) for one in group),
            }
        )
    return found


def _dataset_list(datasets: Sequence[Listed], projects: Sequence[Holder]) -> list[dict[str, Any]]:
    having: dict[int, list[int]] = {}
    for project in projects:
        for number in project.dataset_ids:
            having.setdefault(number, []).append(project.project_id)
    return [
        one.to_json() | {"saved_bytes": _saved(one), "project_ids": having.get(one.entry.dataset_id, [])}
        for one in datasets
    ]


def _saved(one: Listed) -> int:
    """What its projects would have on disk more if each had a copy of its own."""
    return (one.entry.size_bytes or 0) * max(0, one.entry.projects - 1)


def _size(datasets: Iterable[Listed]) -> int:
    return sum(one.entry.size_bytes or 0 for one in datasets)
