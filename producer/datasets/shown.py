"""One dataset in full: its content, the projects and sessions that have it, and what a gc finds of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from producer.datasets.listed import Listed, text_of
from producer.runs.garbage import GRACE_H
from worker.db import adoptions, catalog, exchange, garbage, verifications
from worker.db.adoptions import Adoption
from worker.db.catalog import Content, Sharer, StoredSession
from worker.db.garbage import Fate
from worker.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Everything that rows say of a dataset. `label_hash` is Label's own hash of it, None where Label has
    none, or it was not computed yet (`has_label_hash`).
    """

    listed: Listed
    has_label_hash: bool
    label_hash: str | None
    stored_by: int | None
    adoption: Adoption | None
    content: Content
    sharers: Sequence[Sharer]
    sessions: Sequence[StoredSession]
    fate: Fate
    at: datetime

    def to_json(self) -> dict[str, Any]:
        """As `producer datasets show --json` shows it."""
        return self.listed.to_json() | {
            "label_hash": self.label_hash,
            "label_hash_computed": self.has_label_hash,
            "stored_by_project": self.stored_by,
            "adoption": None if self.adoption is None else _adoption_json(self.adoption),
            "content": asdict(self.content),
            "project_list": [_sharer_json(one) for one in self.sharers],
            "session_list": [asdict(one) for one in self.sessions],
            "gc": fate_json(self.fate),
        }


def show(engine: Engine, dataset_id: int) -> Shown:
    """Ask for one dataset. Raises `UsageError` if there is none with this id."""
    with engine.connect() as conn:
        found = catalog.entries(conn, dataset_id)
        fate = garbage.fate_of(conn, dataset_id, GRACE_H)
        if not found or fate is None:
            raise UsageError(f"There is no dataset {dataset_id}. See all: producer datasets list")
        (entry,) = found
        is_ours = dataset_id not in verifications.registered_by_label(conn)
        adoption = adoptions.of_dataset(conn, dataset_id)
        # What Label registered is known by no other hash.
        computed, label_hash = (
            exchange.label_hash_of(conn, entry.dataset_hash) if is_ours else (True, entry.dataset_hash)
        )
        return Shown(
            listed=Listed(entry=entry, is_ours=is_ours, is_unreferenced=not fate.references),
            has_label_hash=computed,
            label_hash=label_hash,
            stored_by=catalog.stored_by(conn, entry.dataset_hash),
            adoption=adoption if adoption is not None and adoption.state in adoptions.HELD else None,
            content=catalog.content(conn, entry.dataset_hash),
            sharers=catalog.sharers(conn, dataset_id),
            sessions=catalog.sessions(conn, dataset_id),
            fate=fate,
            at=datetime.now(UTC),
        )


def _sharer_json(one: Sharer) -> Mapping[str, Any]:
    return asdict(one) | {"converted_at": text_of(one.converted_at)}


def _adoption_json(one: Adoption) -> Mapping[str, Any]:
    return {
        "adopted_at": text_of(one.adopted_at),
        "registered_hash": one.registered_hash,
        "label_hash": one.label_hash,
        "quarantine_folder": one.folder if one.is_set_aside else None,
    }


def fate_json(fate: Fate) -> dict[str, Any]:
    """What a gc would do to a dataset, for scripts."""
    return asdict(fate) | {"since": text_of(fate.since)}
