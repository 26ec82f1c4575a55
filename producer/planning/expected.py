"""The forecast of a run that is about to be opened: by the latest dry run of its projects, or by a sample
of heads.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import Row

from producer.planning.conditions import Conditions
from producer.planning.forecast import (
    Band,
    Forecast,
    Load,
    Pace,
    Rehearsed,
    freed_by,
    measuring,
    peak_of,
    seconds_of,
    source_of,
    stored_by,
)
from producer.planning.sample import MOST_HEADS, Estimate, estimate, head_of_file
from producer.report.space import once, packed
from producer.runs.survey import OnListing, Surveyed, in_threads
from worker.db import blob_index, dry_runs, overview, stores
from worker.settings import Settings
from worker.store.lookup import Lookup

_LATEST_RUNS = 5
"""So many migrations tell how fast the next one is: older ones ran on what may be another machine by now."""


def by_dry_run(
    engine: Engine,
    chosen: Sequence[Surveyed],
    conditions: Conditions,
    *,
    rehash: bool = False,
    limit_bytes_per_second: int | None = None,
) -> Forecast | None:
    """By what the best dry run found of these projects; None where none has looked at any of them."""
    with engine.connect() as conn:
        run = dry_runs.latest_about(conn, [project.project_id for project, _, _ in chosen])
        if run is None:
            return None
        rows = dry_runs.found(conn, run.run_id)
        has_lost_content = dry_runs.has_lost_content_since(conn, run.run_id)
        measured = paces(conn, run.run_id)
    rehearsed = [_rehearsed(row) for row in rows]
    ids = {project.project_id for project, _, _ in chosen}
    known = {one.project_id for one in rehearsed}
    ready = [one for one in rehearsed if one.ready and one.project_id in ids]
    unknown = [found for project, _, found in chosen if project.project_id not in known]
    stored = stored_by(rehearsed, ids)
    not_looked_at = _at_most(sum(found.size_bytes for found in unknown if found is not None))
    read_bytes = sum(one.read_bytes for one in ready)
    content = stored.bytes
    if has_lost_content:
        content = Band(low=content.low, likely=content.likely, high=max(content.high, read_bytes))
    total = content.plus(not_looked_at)
    work = Band.exactly(read_bytes).plus(not_looked_at) if rehash else total
    load = Load(
        jobs=len(ready) + len(unknown),
        work=work,
        largest=max((one.read_bytes if rehash else one.new_bytes for one in ready), default=0),
    )
    peak = peak_of(total, stored.files, stored.directories, may_share=conditions.may_share)
    notes = []
    if has_lost_content:
        notes.append("a gc ran since the dry run: what it found in the store may have to be stored again")
    unseen = sum(found is None for found in unknown)
    if unseen:
        notes.append(f"projects that it did not look at, and that are not to be seen from here: {unseen:,}")
    return Forecast(
        basis="dry_run",
        run_id=str(run.run_id),
        made_at=run.finished_at.astimezone(UTC).isoformat(timespec="microseconds"),
        ready=len(ready),
        blocked=sum(not one.ready and one.project_id in ids for one in rehearsed),
        unknown=len(unknown),
        read_bytes=read_bytes + sum(found.size_bytes for found in unknown if found is not None),
        stored=total,
        freed=freed_by(
            once({packed(one.path): one.allocated_bytes for one in ready}),
            peak,
            may_share=conditions.may_share,
        ).plus(not_looked_at),
        peak=peak,
        seconds=seconds_of(
            load, measured, workers=conditions.workers, limit_bytes_per_second=limit_bytes_per_second
        ),
        seconds_from=source_of(measuring(load, measured)),
        notes=tuple(notes),
    )


class SampledFiles:
    """The files below the chosen directories by size, as the survey tells of them."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, int]] = []

    def add(self, path: str, size_bytes: int) -> None:
        """Take the next file; several threads may."""
        self._seen.append((path, size_bytes))

    def by_size(self) -> dict[int, list[str]]:
        """Their paths by their size, in order."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        for path, size_bytes in sorted(self._seen):
            found[size_bytes].append(path)
        return found


def by_sample(
    settings: Settings,
    engine: Engine,
    chosen: Sequence[Surveyed],
    files: SampledFiles,
    conditions: Conditions,
    on_listing: OnListing,
    *,
    limit_bytes_per_second: int | None = None,
    most_heads: int = MOST_HEADS,
) -> Forecast:
    """By the heads of some files: an estimate. It checks no project, so none is said to be ready or
    blocked.
    """
    sizes = files.by_size()
    with engine.connect() as conn:
        named = stores.named(conn)
        digests = blob_index.of_sizes(conn, sizes)
        measured = paces(conn, None)
    lookup = Lookup(settings.store_dir, settings.datasets_dir, named.store_id if named else None)
    found = estimate(
        sizes,
        {
            size: [blob.path for digest in of if (blob := lookup.blob(digest)) is not None]
            for size, of in digests.items()
        }
        if lookup.is_visible
        else {},
        lambda paths: _heads(paths, settings, on_listing),
        most_heads,
    )
    seen = [one for _, _, one in chosen if one is not None]
    load = Load(
        jobs=len(seen),
        # Nothing is remembered of files that no dry run has read: a migration reads all of them.
        work=Band.exactly(found.read_bytes),
        largest=max((one.size_bytes for one in seen), default=0),
    )
    peak = peak_of(
        found.stored,
        Band(low=0, likely=found.files * _share(found), high=found.files),
        sum(one.sessions + 2 for one in seen),
        may_share=conditions.may_share,
    )
    return Forecast(
        basis="sample",
        run_id=None,
        made_at=conditions.at.isoformat(timespec="microseconds"),
        ready=0,
        blocked=0,
        unknown=len(chosen),
        read_bytes=found.read_bytes,
        stored=found.stored,
        freed=freed_by(found.read_bytes, peak, may_share=conditions.may_share),
        peak=peak,
        seconds=seconds_of(
            load, measured, workers=conditions.workers, limit_bytes_per_second=limit_bytes_per_second
        ),
        seconds_from=source_of(measuring(load, measured)),
        notes=tuple(_notes(found, chosen, has_store=bool(digests), is_visible=lookup.is_visible)),
    )


def _share(found: Estimate) -> float:
    return found.stored.likely / found.read_bytes if found.read_bytes else 0.0


def _notes(found: Estimate, chosen: Sequence[Surveyed], *, has_store: bool, is_visible: bool) -> list[str]:
    read = f"{found.heads_read:,} heads of {found.heads_wanted:,} files whose size is not theirs alone"
    notes = [f"an estimate: {read} were read, of {found.files:,} files in all; no project was checked"]
    if unseen := sum(one is None for _, _, one in chosen):
        notes.append(
            f"projects that are not to be seen from here, and not in it: {unseen:,} of {len(chosen):,}"
        )
    if found.unreadable:
        notes.append(f"files that could not be read from here, and count as new: {found.unreadable:,}")
    if has_store and not is_visible:
        notes.append("the store is not to be seen from here: nothing is counted as stored already")
    return notes


def _heads(paths: Sequence[str], settings: Settings, on_listing: OnListing) -> Mapping[str, str | None]:
    found: dict[str, str | None] = {}
    roots = [os.path.realpath(root) for root in (*settings.legacy_roots, settings.data_dir)]

    def look(number: int) -> None:
        real = os.path.realpath(paths[number])
        inside = any(os.path.commonpath([real, root]) == root for root in roots)
        # What a worker would refuse to read is not read here either.
        found[paths[number]] = head_of_file(real, settings.store_digest) if inside else None

    in_threads(paths, look, on_listing, "reading heads of files")
    return found


def paces(conn: Connection, dry_run_id: Any) -> list[Pace]:
    """How long jobs took: of the latest migrations, and of one dry run if it is named."""
    return [
        Pace(
            dry_run=row.dry_run,
            jobs=row.jobs,
            work=row.work,
            seconds=row.seconds,
            work_squared=row.work_squared,
            work_seconds=row.work_seconds,
            busy_s=overview.active_s(conn, row.run_id),
            workers=row.workers,
        )
        for row in dry_runs.paces(conn, dry_run_id, _LATEST_RUNS)
    ]


def _rehearsed(row: Row[Any]) -> Rehearsed:
    return Rehearsed(
        project_id=row.project_id,
        ready=row.ready,
        dataset_hash=row.dataset_hash,
        path=row.path or "",
        read_bytes=row.read_bytes,
        first_bytes=row.first_bytes,
        new_bytes=row.new_bytes,
        new_files=row.new_files,
        sessions=row.sessions,
        allocated_bytes=row.allocated_bytes,
    )


def _at_most(size_bytes: int) -> Band:
    """What is not known of so many bytes: all of them may be new, or none, as likely all as anything."""
    return Band(low=0, likely=size_bytes, high=size_bytes)
