"""What the rows of a dataset say that is stored or adopted: for its row file, and for the tables."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection

from worker.db import datasets
from worker.db.datasets import Dataset, Numbers, RawSession
from worker.db.leases import Lease
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.session_files import LABELS
from worker.store.manifest import Manifest
from worker.store.row_file import DatasetRow, SessionRow

ReadLabels = Callable[[str], str]
"""The text of the labels.json of a session, by its name."""


def new_row(
    lease: Lease, tree: HashedTree, path: Path, store_root: Path, numbers: Numbers | None
) -> DatasetRow:
    """The rows of a content that is new and whose tree goes to `path`."""
    at = numbers.at.astimezone(UTC).isoformat() if numbers is not None else None
    counts = files_by_session(tree.manifest)
    ids = numbers.session_ids if numbers is not None else [None] * len(counts)
    return DatasetRow(
        dataset_id=numbers.dataset_id if numbers is not None else None,
        dataset_name=lease.subject_name or path.name,
        dataset_hash=tree.manifest.digest,
        file_path=str(path),
        upload_timestamp=at,
        file_size_bytes=tree.manifest.size_bytes,
        session_count=len(counts),
        description=f"Migrated from legacy project: {lease.subject_name}",
        metadata={
            "upload_timestamp": lease.started_at.strftime("%Y%m%d_%H%M%S"),
            "original_source": lease.path,
            "storage_name": path.name,
            "digest_algorithm": tree.manifest.algorithm,
            "store": str(store_root),
        },
        created_at=at,
        updated_at=at,
        sessions=tuple(
            SessionRow(
                raw_session_id=number,
                session_name=name,
                session_path=name,
                file_count=count,
                labels=_labels(tree, name),
                created_at=at,
            )
            for number, (name, count) in zip(ids, counts.items(), strict=True)
        ),
    )


def adopted_row(
    tree: HashedTree, before: Mapping[str, Any], numbers: Numbers | None, label_hash: str | None
) -> DatasetRow:
    """The rows of a dataset that Label registered itself and that becomes ours with this content: as they
    were `before`, but for what is ours. Sessions that have no row yet get one of the `numbers`.
    """
    was = before["dataset"]
    known = {one["session_name"]: one for one in before["sessions"]}
    counts = files_by_session(tree.manifest)
    ids = iter(numbers.session_ids if numbers is not None else ())
    at = numbers.at.astimezone(UTC).isoformat() if numbers is not None else None
    prefix = f"{was['file_path'].rstrip('/')}/"
    return DatasetRow(
        **{name: was[name] for name in _KEPT},
        dataset_hash=tree.manifest.digest,
        file_size_bytes=tree.manifest.size_bytes,
        session_count=len(counts),
        sessions=tuple(
            SessionRow(
                raw_session_id=known[name]["raw_session_id"],
                session_name=name,
                session_path=known[name]["session_path"].removeprefix(prefix),
                file_count=count,
                labels=known[name]["original_labels_json"],
                created_at=known[name]["created_at"],
            )
            if name in known
            else SessionRow(
                raw_session_id=next(ids, None),
                session_name=name,
                session_path=name,
                file_count=count,
                labels=_labels(tree, name),
                created_at=at,
            )
            for name, count in counts.items()
        ),
        label_hash=label_hash,
        has_label_hash=True,
        registered_hash=was["dataset_hash"],
    )


_KEPT = (
    *("dataset_id", "dataset_name", "file_path", "upload_timestamp", "description", "metadata"),
    *("created_at", "updated_at"),
)
"""What Label wrote of a dataset, and stays."""


def add(conn: Connection, row: DatasetRow, read_labels: ReadLabels) -> Dataset:
    """Write these rows; labels are read as they are written. Raises as `datasets.add`."""
    numbered = None
    if row.is_numbered:
        numbered = {
            "dataset_id": row.dataset_id,
            "upload_timestamp": row.upload_timestamp,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
        }
    return datasets.add(
        conn,
        name=row.dataset_name,
        dataset_hash=row.dataset_hash,
        file_path=row.file_path,
        size_bytes=row.file_size_bytes,
        description=row.description,
        metadata=row.metadata,
        session_count=row.session_count,
        sessions=raw_sessions(row, read_labels),
        numbered=numbered,
    )


def read(conn: Connection, dataset_id: int) -> DatasetRow | None:
    """The rows of a dataset as they are now; None if there is none with this id."""
    row = datasets.whole(conn, dataset_id)
    if row is None:
        return None
    file_path = row["file_path"].rstrip("/")
    return DatasetRow(
        dataset_id=row["dataset_id"],
        dataset_name=row["dataset_name"],
        dataset_hash=row["dataset_hash"],
        file_path=file_path,
        upload_timestamp=_in_utc(row["upload_timestamp"]),
        file_size_bytes=row["file_size_bytes"],
        session_count=row["session_count"],
        description=row["description"],
        metadata=row["metadata"],
        created_at=_in_utc(row["created_at"]),
        updated_at=_in_utc(row["updated_at"]),
        sessions=tuple(
            SessionRow(
                raw_session_id=one["raw_session_id"],
                session_name=one["session_name"],
                session_path=one["session_path"].removeprefix(f"{file_path}/"),
                file_count=one["file_count"],
                labels=True if one["has_labels"] else None,
                created_at=_in_utc(one["created_at"]),
            )
            for one in row["sessions"]
        ),
        label_hash=row["label_hash"],
        has_label_hash=row["has_label_hash"],
        registered_hash=row["registered_hash"],
    )


def _in_utc(text: str | None) -> str | None:
    """A time of a row as row files have it, whatever the zone of the session is that asked."""
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo is None else time.astimezone(UTC)).isoformat()


def labels_in(tree: Path, session: str) -> str:
    """labels.json as it was read, from the stored tree."""
    # Through bytes: text mode would turn carriage returns into newlines.
    return (tree / session / LABELS).read_bytes().decode("utf-8")


def raw_sessions(row: DatasetRow, read_labels: ReadLabels) -> Iterator[RawSession]:
    """The rows of its sessions; labels are read as they are taken."""
    for one in row.sessions:
        yield RawSession(
            session_name=one.session_name,
            session_path=one.path_in(row.file_path),
            labels=read_labels(one.session_name) if one.labels is True else one.labels,
            file_count=one.file_count,
            raw_session_id=one.raw_session_id,
            created_at=one.created_at,
        )


def _labels(tree: HashedTree, session: str) -> Literal[True] | None:
    """The session's labels.json, if a row can hold it."""
    return True if session in tree.labelled else None


def files_by_session(manifest: Manifest) -> dict[str, int]:
    """How many files each session has."""
    counts = dict.fromkeys(manifest.session_names, 0)
    for file in manifest.files:
        session, slash, _ = file.path.partition("/")
        if slash:
            counts[session] += 1
    return counts
