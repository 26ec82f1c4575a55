"""One project: what was done to it, what it shares, and what rollback, reclaim and gc would do to it now."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine

from producer.datasets.listed import text_of
from producer.datasets.shown import fate_json
from producer.runs.garbage import GRACE_H
from producer.runs.reclaims import OLDER_THAN_DAYS
from worker.db import catalog, garbage, history, projects
from worker.db.catalog import CatalogEntry, Sharer
from worker.db.history import PastJob, Sharing
from worker.db.projects import Project
from worker.errors import UsageError
from worker.jobs import predictions
from worker.jobs.predictions import GarbagePrediction, Prediction
from worker.messages import Outcome
from worker.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Had:
    """A dataset that the project refers to now: at a glance, whose job stored it, and who else has it."""

    entry: CatalogEntry
    stored_by: int | None
    sharers: Sequence[Sharer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that was done, or is being done; `outcome` is None for a job that has not ended."""

    job: PastJob
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A project's story up to `at`. `project` is None for one that was deleted since. `trips`: a gc would
    refuse, because so many datasets, of so many, would go.
    """

    project_id: int
    name: str
    project: Project | None
    datasets: Sequence[Had]
    sharing: Sharing
    events: Sequence[Event]
    rollback: Prediction
    reclaim: Prediction
    gc: Sequence[GarbagePrediction]
    trips: tuple[int, int] | None
    at: datetime

    def to_json(self) -> dict[str, Any]:
        """As `producer explain --json` shows it."""
        now = self.project
        return {
            "project_id": self.project_id,
            "project_name": self.name,
            "deleted": now is None,
            "project_type": None if now is None else "legacy" if now.is_legacy else "dataset_based",
            "path": None if now is None else now.path,
            "legacy_path": None if now is None else now.legacy_path,
            "datasets": [_had_json(one) for one in self.datasets],
            "sharing": asdict(self.sharing),
            "events": [_event_json(one) for one in self.events],
            "rollback": asdict(self.rollback),
            "reclaim": asdict(self.reclaim),
            "gc": {
                "refuses": None if self.trips is None else {"would_go": self.trips[0], "of": self.trips[1]},
                "datasets": [fate_json(one.fate) | {"only_this_project": one.only_this} for one in self.gc],
            },
        }


def explain(engine: Engine, settings: Settings, project_id: int) -> Explained:
    """Ask for a project's story. Raises `UsageError` for one that neither Label nor the ledger knows."""
    with engine.connect() as conn:
        project = projects.by_ids(conn, [project_id]).get(project_id)
        now_at = catalog.of_project(conn, project_id)
        ever = list(dict.fromkeys([*history.converted_datasets(conn, project_id), *now_at]))
        jobs = history.jobs(conn, project_id, ever)
        if project is None and not any(job.subject == "project" for job in jobs):
            raise UsageError(
                f"There is no project {project_id}, and no run ever had one. "
                "Its id stands in Label, and in every plan and report"
            )
        gc = list(predictions.of_gc(conn, project_id, ever, GRACE_H))
        return Explained(
            project_id=project_id,
            name=_name(project, jobs),
            project=project,
            datasets=[_had(conn, entry) for number in now_at for entry in catalog.entries(conn, number)],
            sharing=history.sharing(conn, project_id, now_at),
            events=[_event(job) for job in jobs],
            rollback=predictions.of_rollback(engine, settings, project_id),
            reclaim=predictions.of_reclaim(engine, settings, project_id, OLDER_THAN_DAYS),
            gc=gc,
            trips=_trips(conn) if any(_goes(one) for one in gc) else None,
            at=datetime.now(UTC),
        )


def _name(project: Project | None, jobs: Sequence[PastJob]) -> str:
    if project is not None:
        return project.project_name
    return next((job.subject_name or "" for job in reversed(jobs) if job.subject == "project"), "")


def _had(conn: Connection, entry: CatalogEntry) -> Had:
    return Had(
        entry=entry,
        stored_by=catalog.stored_by(conn, entry.dataset_hash),
        sharers=catalog.sharers(conn, entry.dataset_id),
    )


def _goes(one: GarbagePrediction) -> bool:
    return one.fate.is_ours and not one.fate.references and one.fate.is_due


def _trips(conn: Connection) -> tuple[int, int] | None:
    due = sum(one.is_due for one in garbage.unreferenced(conn, GRACE_H))
    total = garbage.count_datasets(conn)
    return (due, total) if garbage.would_trip(due, total, None) else None


def _event(job: PastJob) -> Event:
    return Event(job=job, outcome=None if job.outcome is None else Outcome.from_json(job.outcome))


def _had_json(one: Had) -> Mapping[str, Any]:
    return {
        "dataset_id": one.entry.dataset_id,
        "dataset_name": one.entry.dataset_name,
        "dataset_hash": one.entry.dataset_hash,
        "file_path": one.entry.file_path,
        "size_bytes": one.entry.size_bytes,
        "verified_at": text_of(one.entry.verified_at),
        "stored_by_project": one.stored_by,
        "projects": [sharer.project_id for sharer in one.sharers],
    }


def _event_json(one: Event) -> Mapping[str, Any]:
    return asdict(one.job) | {"at": text_of(one.job.at)}
