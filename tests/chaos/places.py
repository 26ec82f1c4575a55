"""Where legacy directories are by the ledger, and which manifests the store has. Changes nothing."""

import json
from pathlib import Path

import blake3
from sqlalchemy import Connection, text

from tests.chaos.estate import Estate


def places(conn: Connection, estate: Estate) -> dict[int, Path]:
    """Where each project's legacy directory is, by the ledger: at its own place, or where a reclaim has moved
    it. One that was purged, and is not there again, has none.
    """
    rows = conn.execute(
        text("""
            select project_id, moved_to, state, c.rolled_back_at is not null as is_back
            from migration_reclaims r join project_conversions c using (conversion_id, project_id)
            order by reclaim_id""")
    ).all()
    found = dict(estate.directories)
    for row in rows:
        own, away = estate.directories[row.project_id], Path(row.moved_to)
        match row.state:
            case "reclaimed":
                found[row.project_id] = away
            case "undone":
                found[row.project_id] = own
            case "moving" | "undoing":
                found[row.project_id] = own if own.exists() else away
            case "purging" | "purged" if not row.is_back:
                found.pop(row.project_id, None)
    return found


def stored_manifests(conn: Connection, store: Path) -> dict[str, set[str]]:
    """The digests that each dataset needs, by its hash; of one whose manifest is bad nothing."""
    found = {}
    for dataset_hash in conn.scalars(text("select dataset_hash from raw_datasets")):
        try:
            content = (store / "manifests" / f"{dataset_hash}.json").read_bytes()
        except FileNotFoundError:
            continue
        if blake3.blake3(content).hexdigest() == dataset_hash:
            found[dataset_hash] = {entry[3] for entry in json.loads(content)["entries"] if entry[0] == "f"}
    return found
