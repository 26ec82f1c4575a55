"""What the rows were of a dataset that the store has and the database lacks: by its row file, or as far as
manifest and tree tell. Writes nothing.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from worker.conversion.dataset_row import files_by_session
from worker.db.datasets import Dataset
from worker.errors import RowFileError, StoredBytesMismatchError
from worker.jobs.drift import Drift, Kind
from worker.legacy.session_files import LABELS, LABELS_MOST_BYTES
from worker.runtime.throttle import Pace, unlimited
from worker.store.digest import digest_of, printable
from worker.store.files import is_directory
from worker.store.manifest import Manifest
from worker.store.row_file import DatasetRow, SessionRow
from worker.store.store import Store

_NAMED = 3
"""So many differences of one tree are named."""

_NOT_KNOWN = (
    "no row file tells its rows: its name is that of its directory, its times are those of its manifest, its "
    "description and its id are new"
)


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A dataset that is whole in the store, and its rows, which have no ids if no row file tells them. `path`
    is where its tree is; `notes`: what is not known.
    """

    row: DatasetRow
    manifest: Manifest
    path: str
    notes: tuple[str, ...] = ()

    def labels(self, session: str) -> str:
        """The text of a session's labels.json. Raises `StoredBytesMismatchError` for other bytes than the
        manifest has.
        """
        below = f"{session}/{LABELS}"
        path = f"{self.path}/{below}"
        try:
            content = Path(path).read_bytes()
            text = content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoredBytesMismatchError(f"{printable(path)} cannot be read: {error}") from error
        if digest_of(self.manifest.algorithm, content) != self._labels.get(below):
            raise StoredBytesMismatchError(
                f"{printable(path)} does not have the bytes that its manifest promises"
            )
        return text

    @cached_property
    def _labels(self) -> Mapping[str, str]:
        return {file.path: file.digest for file in self.manifest.files if file.path.endswith(f"/{LABELS}")}


def find(
    store: Store, digest: str, registered: Mapping[str, Dataset], pace: Pace = unlimited
) -> Lost | Drift:
    """The dataset of a manifest that has no row. `registered` are datasets by the name of their directory.
    The caller has its claim.
    """
    try:
        manifest = store.read_manifest(digest)
        kept = store.read_row(digest)
    except StoredBytesMismatchError as error:
        return _drift(Kind.MANIFEST_DIFFERS, digest, store.manifest_path(digest), str(error))
    except RowFileError as error:
        return _drift(Kind.ROW_FILE_UNREADABLE, digest, store.row_path(digest), str(error))
    tree = _find_tree(store, manifest, kept, registered, pace)
    if isinstance(tree, Drift):
        return tree
    path = f"{store.trees}/{tree}"
    if kept is None:
        return Lost(row=_derived(store, manifest, path), manifest=manifest, path=path, notes=(_NOT_KNOWN,))
    # DATA_DIR may be spelled otherwise by now, or be another directory.
    at = kept.file_path if os.path.realpath(kept.file_path) == os.path.realpath(path) else path
    return Lost(row=replace(kept, file_path=at), manifest=manifest, path=path)


def _find_tree(
    store: Store, manifest: Manifest, kept: DatasetRow | None, registered: Mapping[str, Dataset], pace: Pace
) -> str | Drift:
    """The name of its directory, which is whole and no other dataset's."""
    digest = manifest.digest
    names = _names(store, digest, kept)
    if not names:
        reason = "its tree is not in raw_datasets"
        return _drift(Kind.MANIFEST_WITHOUT_TREE, digest, store.manifest_path(digest), reason)
    free = [name for name in names if name not in registered]
    if not free:
        other = registered[names[0]]
        if kept is not None and kept.registered_hash == other.dataset_hash:
            reason = f"dataset {other.dataset_id} ({other.dataset_name}) is Label's by its row, and was adopted when its tree was made"
            return _drift(Kind.NOT_ADOPTED, digest, f"{store.trees}/{names[0]}", reason)
        reason = f"dataset {other.dataset_id} ({other.dataset_name}) has this tree, with the hash {other.dataset_hash}"
        return _drift(Kind.OTHER_HASH, digest, f"{store.trees}/{names[0]}", reason)
    differing = {name: list(store.differences(manifest, f"{store.trees}/{name}", pace)) for name in free}
    name = min(free, key=lambda one: len(differing[one]))
    if differing[name]:
        some = "; ".join(differing[name][:_NAMED])
        reason = f"{len(differing[name])} of its entries are not as its manifest has them: {some}"
        return _drift(Kind.TREE_DIFFERS, digest, f"{store.trees}/{name}", reason)
    return name


def _drift(kind: Kind, digest: str, path: str, reason: str) -> Drift:
    return Drift(kind=kind, dataset_hash=digest, path=printable(path), reason=reason)


def _names(store: Store, digest: str, kept: DatasetRow | None) -> list[str]:
    """The directories that may be its tree: the one of its row file, or else those whose names end with its
    digest or with the beginning of that.
    """
    if kept is not None and is_directory(f"{store.trees}/{kept.tree}"):
        return [kept.tree]
    endings = (f"-{digest}", f"-{digest[:12]}")
    found = (name for name in sorted(os.listdir(store.trees)) if name.endswith(endings))
    return [name for name in found if is_directory(f"{store.trees}/{name}")]


def _derived(store: Store, manifest: Manifest, path: str) -> DatasetRow:
    name = os.path.basename(path)
    counts = files_by_session(manifest)
    stored = datetime.fromtimestamp(os.stat(store.manifest_path(manifest.digest)).st_mtime, UTC).isoformat()
    labels = {file.path: file for file in manifest.files if file.path.endswith(f"/{LABELS}")}
    return DatasetRow(
        dataset_id=None,
        dataset_name=name.removesuffix(f"-{manifest.digest}").removesuffix(f"-{manifest.digest[:12]}"),
        dataset_hash=manifest.digest,
        file_path=path,
        upload_timestamp=stored,
        file_size_bytes=manifest.size_bytes,
        session_count=len(counts),
        description="Rebuilt from the store",
        metadata={
            "storage_name": name,
            "digest_algorithm": manifest.algorithm,
            "store": str(store.root),
            "rebuilt_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        created_at=stored,
        updated_at=stored,
        sessions=tuple(
            SessionRow(
                raw_session_id=None,
                session_name=session,
                session_path=session,
                file_count=count,
                labels=True
                if (file := labels.get(f"{session}/{LABELS}")) is not None
                and file.size_bytes <= LABELS_MOST_BYTES
                and _is_text(f"{path}/{file.path}")
                else None,
                created_at=stored,
            )
            for session, count in counts.items()
        ),
    )


def _is_text(path: str) -> bool:
    """Can a row hold it?"""
    try:
        return "\0" not in Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False


def with_ids(row: DatasetRow, dataset_id: int | None, session_ids: Sequence[int] | None) -> DatasetRow:
    """The same rows with other ids: of the dataset, of its sessions, where any are given."""
    sessions = row.sessions
    if session_ids is not None:
        sessions = tuple(
            replace(one, raw_session_id=number) for one, number in zip(sessions, session_ids, strict=True)
        )
    return replace(row, dataset_id=dataset_id or row.dataset_id, sessions=sessions)
