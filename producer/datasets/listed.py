"""All datasets at a glance: which are asked for, in which order, and their JSON. Opens no file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine

from worker.db import catalog, garbage, projects, verifications
from worker.db.catalog import CatalogEntry
from worker.errors import UsageError


class Order(StrEnum):
    """By what datasets are sorted: numbers the largest first, times the earliest first."""

    ID = "id"
    NAME = "name"
    SIZE = "size"
    SESSIONS = "sessions"
    PROJECTS = "projects"
    STORED = "stored"
    VERIFIED = "verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which datasets are asked for: without any condition all of them."""

    unreferenced: bool = False
    not_verified_days: float | None = None
    project_ids: tuple[int, ...] = ()
    order: Order = Order.ID
    reverse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A dataset, whether this program stored it, and whether nothing refers to it."""

    entry: CatalogEntry
    is_ours: bool
    is_unreferenced: bool

    def to_json(self) -> dict[str, Any]:
        """As `producer datasets list --json` shows it."""
        entry = self.entry
        return {
            "dataset_id": entry.dataset_id,
            "dataset_name": entry.dataset_name,
            "dataset_hash": entry.dataset_hash,
            "file_path": entry.file_path,
            "size_bytes": entry.size_bytes,
            "sessions": entry.sessions,
            "projects": entry.projects,
            "stored_at": text_of(entry.stored_at),
            "verified_at": text_of(entry.verified_at),
            "legacy_directories": {
                "in_place": entry.in_place,
                "moved_away": entry.moved_away,
                "purged": entry.purged,
            },
            "stored_by_migrator": self.is_ours,
            "unreferenced": self.is_unreferenced,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The datasets that were asked for, and how many there are in all."""

    found: Sequence[Listed]
    total: int
    at: datetime


def find(engine: Engine, asked: Asked) -> Listing:
    """The datasets that are asked for, in their order. Raises `UsageError` for a project that is unknown."""
    with engine.connect() as conn:
        of_projects = _of_projects(conn, asked.project_ids)
        every = everything(conn)
    now = datetime.now(UTC)
    before = None if asked.not_verified_days is None else now - timedelta(days=asked.not_verified_days)
    found = [
        one
        for one in every
        if (one.is_unreferenced or not asked.unreferenced)
        and (before is None or one.entry.verified_at is None or one.entry.verified_at <= before)
        and (not asked.project_ids or one.entry.dataset_id in of_projects)
    ]
    found.sort(key=_KEYS[asked.order], reverse=asked.reverse)
    return Listing(found=found, total=len(every), at=now)


def everything(conn: Connection) -> list[Listed]:
    """All datasets by id."""
    by_label = verifications.registered_by_label(conn)
    unreferenced = garbage.without_references(conn)
    return [
        Listed(
            entry=entry,
            is_ours=entry.dataset_id not in by_label,
            is_unreferenced=entry.dataset_id in unreferenced,
        )
        for entry in catalog.entries(conn)
    ]


def _of_projects(conn: Connection, project_ids: Sequence[int]) -> set[int]:
    unknown = sorted(set(project_ids) - projects.by_ids(conn, project_ids).keys())
    if unknown:
        raise UsageError(
            f"There is no project {', '.join(map(str, unknown))}. See all: producer datasets list"
        )
    return set().union(*verifications.of_projects(conn, project_ids).values())


def text_of(moment: datetime | None) -> str | None:
    """A time in JSON."""
    return None if moment is None else moment.isoformat()


_FIRST = datetime.min.replace(tzinfo=UTC)
_KEYS: dict[Order, Callable[[Listed], tuple[Any, int]]] = {
    Order.ID: lambda one: (0, one.entry.dataset_id),
    Order.NAME: lambda one: (one.entry.dataset_name, one.entry.dataset_id),
    Order.SIZE: lambda one: (-(one.entry.size_bytes or 0), one.entry.dataset_id),
    Order.SESSIONS: lambda one: (-one.entry.sessions, one.entry.dataset_id),
    Order.PROJECTS: lambda one: (-one.entry.projects, one.entry.dataset_id),
    Order.STORED: lambda one: (one.entry.stored_at or _FIRST, one.entry.dataset_id),
    Order.VERIFIED: lambda one: (one.entry.verified_at or _FIRST, one.entry.dataset_id),
}
