"""Recordings that are the same but for their form: the call, and its answer as JSON. Changes nothing."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine

from producer.datasets.local_tools import local_tools
from worker.jobs.near_duplicates import (
    NearDuplicate,
    NearDuplicates,
    NotCompared,
    Place,
    Progress,
    StoredRecording,
    near_duplicates,
)
from worker.settings import Settings

__all__ = ["HowFar", "NearDuplicate", "NearDuplicates", "Place", "StoredRecording", "find", "to_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HowFar:
    """How far a search is, and how much it has read."""

    progress: Progress
    read_bytes: int


def find(
    settings: Settings,
    engine: Engine,
    dataset_ids: Sequence[int],
    *,
    bytes_per_second: int | None,
    listen: Callable[[HowFar], None],
) -> NearDuplicates:
    """Compare the recordings of all datasets, or those of some with all. Errors as of `near_duplicates`."""
    news = _News(listen)
    with local_tools(settings, engine, news.read, bytes_per_second) as tools:
        return near_duplicates(tools, dataset_ids, news.advance)


class _News:
    """Puts together what several threads read and how far the search is."""

    def __init__(self, listen: Callable[[HowFar], None]) -> None:
        self._listen = listen
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._progress = Progress(begun=0, recordings=0)

    def read(self, size_bytes: int) -> None:
        with self._lock:
            self._read_bytes += size_bytes
            # No group may end for a long time where one recording is large.
            self._listen(HowFar(progress=self._progress, read_bytes=self._read_bytes))

    def advance(self, progress: Progress) -> None:
        with self._lock:
            self._progress = progress
            self._listen(HowFar(progress=progress, read_bytes=self._read_bytes))


def to_json(found: NearDuplicates) -> dict[str, Any]:
    """As `producer datasets near-duplicates --json` shows it."""
    return {
        "datasets": found.datasets,
        "recordings": found.recordings,
        "size_bytes": found.size_bytes,
        "comparisons": found.comparisons,
        "pairs": [_pair_json(one, found.project_ids) for one in found.pairs],
        "saves_bytes": found.saves_bytes,
        "unproven": [_pair_json(one, found.project_ids) for one in found.unproven],
        "covered_datasets": [
            {"dataset_id": dataset_id, "by": list(others)} for dataset_id, others in found.covered.items()
        ],
        "not_compared": [_not_compared_json(one, found.project_ids) for one in found.not_compared],
        "not_stored": [
            {"dataset_id": one.dataset_id, "dataset_name": one.dataset_name} for one in found.not_stored
        ],
    }


def _pair_json(one: NearDuplicate, project_ids: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    match = one.match
    coarser = None
    if match.coarser is not None:
        coarser = "richer" if one.is_richer_coarser else "poorer"
    return {
        "kind": match.kind,
        "sensor": one.poorer.sensor.name.lower(),
        "poorer": _recording_json(one.poorer, project_ids),
        "richer": _recording_json(one.richer, project_ids),
        "saves_bytes": one.saves_bytes,
        "evidence": {
            "records": match.records,
            "records_more": match.more,
            "records_that_change": match.changes,
            "readings": match.precision,
            "coarser": coarser,
            "digits": match.digits,
            "merged_with_other_sensor": one.is_merged,
        },
    }


def _recording_json(one: StoredRecording, project_ids: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    return {
        "digest": one.digest,
        "size_bytes": one.size_bytes,
        "places": [asdict(place) for place in one.places],
        "project_ids": sorted({number for each in one.dataset_ids for number in project_ids.get(each, ())}),
    }


def _not_compared_json(one: NotCompared, project_ids: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    return {
        "dataset_ids": list(one.dataset_ids),
        "recording": None if one.recording is None else _recording_json(one.recording, project_ids),
        "reason": one.reason,
        "damaged": one.is_damaged,
    }
