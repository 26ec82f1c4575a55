"""Where a content is: by its digest, the beginning of one, or any file that has it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine

from producer.datasets.listed import text_of
from producer.report.notation import plural
from worker.db import blob_index, catalog, stores
from worker.db.catalog import Check, Reader
from worker.db.stores import Named
from worker.errors import ProjectError, UsageError
from worker.settings import Settings
from worker.store.lookup import Lookup, StoredFile, digest_of_file

_DIGEST = re.compile(r"[0-9a-f]{4,64}")
_FEW = 5
_LOOKED_INTO = 50
"""Of so many datasets the places in the tree are looked for: what thousands have is an empty file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A dataset that has the content. `paths` are below its tree, None where its manifest cannot be read, or
    was not, because very many datasets have the content.
    """

    dataset_id: int | None
    dataset_hash: str
    tree: str | None
    paths: Sequence[str] | None
    project_ids: Sequence[int]
    sessions: Sequence[Reader]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """A blob: its file as this machine sees it, when it was last read, and the datasets that have it."""

    file: StoredFile | None
    check: Check | None
    uses: Sequence[Use]


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """What has a digest: a blob, a dataset, or, if a file is a manifest, both. `asked_file` is the file that
    was asked for. `is_visible`: does this machine see the store?
    """

    digest: str
    asked_file: str | None
    is_visible: bool
    blob: StoredBlob | None
    dataset: Use | None
    manifest: StoredFile | None
    at: datetime

    def to_json(self) -> dict[str, Any]:
        """As `producer whereis --json` shows it."""
        return {
            "digest": self.digest,
            "file": self.asked_file,
            "store_visible": self.is_visible,
            "blob": None if self.blob is None else _blob_json(self.blob),
            "dataset": None if self.dataset is None else _use_json(self.dataset),
            "manifest": None if self.manifest is None else asdict(self.manifest),
        }


def find(engine: Engine, settings: Settings, asked: str) -> Whereabouts:
    """What has the digest that is meant. What is written in hexadecimal digits only is a digest, or its
    beginning; anything else a file. Raises `UsageError` for what is unreadable, not unique, or nowhere.
    """
    with engine.connect() as conn:
        named = stores.named(conn)
        lookup = Lookup(settings.store_dir, settings.datasets_dir, named.store_id if named else None)
        is_digest = _DIGEST.fullmatch(asked.lower()) is not None
        digest = (
            _complete(conn, lookup, asked.lower())
            if is_digest
            else _of_file(asked, _algorithm(named, settings))
        )
        found = Whereabouts(
            digest=digest,
            asked_file=None if is_digest else asked,
            is_visible=lookup.is_visible,
            blob=_blob(conn, lookup, digest),
            dataset=_dataset(conn, digest),
            manifest=lookup.manifest(digest),
            at=datetime.now(UTC),
        )
        if found.blob is None and found.dataset is None and found.manifest is None:
            raise UsageError(_nowhere(conn, found))
    return found


def _nowhere(conn: Connection, found: Whereabouts) -> str:
    former = catalog.stored_by(conn, found.digest)
    if former is not None:
        return (
            f"The dataset with the digest {found.digest} is gone; project {former} had stored it. "
            "If a gc took it, its report has the id for producer gc --restore ID"
        )
    unseen = (
        "" if found.is_visible else "; the store is not visible here, so that loose blobs were not looked for"
    )
    not_stored = f"{found.asked_file} is not stored: no" if found.asked_file else "No"
    return f"{not_stored} blob and no dataset has the digest {found.digest}{unseen}"


def _algorithm(named: Named | None, settings: Settings) -> Literal["blake3", "sha256"]:
    match named.digest if named is not None else None:
        case "blake3" | "sha256" as noted:
            return noted
    return settings.store_digest


def _of_file(path: str, algorithm: Literal["blake3", "sha256"]) -> str:
    try:
        digest: str = digest_of_file(path, algorithm)
    except ProjectError as error:
        hint = "; a digest has 64 digits, 0-9 and a-f, of which 4 are enough if no other begins so"
        raise UsageError(f"{error}{'' if os.path.lexists(path) else hint}") from error
    return digest


def _complete(conn: Connection, lookup: Lookup, prefix: str) -> str:
    if len(prefix) == 64:
        return prefix
    count, first = catalog.digests_beginning(conn, prefix, _FEW + 1)
    # A blob that no row knows is loose: it is only on the disk.
    found: list[str] = sorted({*first, *(lookup.blobs_beginning(prefix) if count <= _FEW else ())})
    if not found:
        raise UsageError(f"No digest begins with {prefix}; a file of this name: ./{prefix}")
    if len(found) > 1:
        number = max(count, len(found))
        rest = f" and {number - _FEW} more" if number > _FEW else ""
        raise UsageError(
            f"{number} {plural(number, 'digest')} begin with {prefix}: {', '.join(found[:_FEW])}{rest}; give more of it"
        )
    return found[0]


def _blob(conn: Connection, lookup: Lookup, digest: str) -> StoredBlob | None:
    users = blob_index.users(conn, [digest]).get(digest, [])
    file = lookup.blob(digest)
    if not users and file is None:
        return None
    paths = {user.dataset_hash: lookup.paths_in(user.dataset_hash, digest) for user in users[:_LOOKED_INTO]}
    ids = [user.dataset_id for user in users if user.dataset_id is not None]
    projects = catalog.projects_of(conn, ids)
    wanted = {
        (user.dataset_id, path.partition("/")[0])
        for user in users
        for path in paths.get(user.dataset_hash) or ()
        if user.dataset_id is not None and "/" in path
    }
    readers = catalog.readers(conn, sorted(wanted))
    uses = [
        Use(
            dataset_id=user.dataset_id,
            dataset_hash=user.dataset_hash,
            tree=user.file_path,
            paths=paths.get(user.dataset_hash),
            project_ids=projects.get(user.dataset_id or 0, []),
            sessions=[reader for reader in readers if reader.dataset_id == user.dataset_id],
        )
        for user in users
    ]
    return StoredBlob(file=file, check=catalog.last_check(conn, digest), uses=uses)


def _dataset(conn: Connection, digest: str) -> Use | None:
    number = catalog.dataset_of(conn, digest)
    if number is None:
        return None
    (entry,) = catalog.entries(conn, number)
    return Use(
        dataset_id=number,
        dataset_hash=digest,
        tree=entry.file_path,
        paths=None,
        project_ids=catalog.projects_of(conn, [number]).get(number, []),
        sessions=[],
    )


def _blob_json(blob: StoredBlob) -> Mapping[str, Any]:
    return {
        "file": None if blob.file is None else asdict(blob.file),
        "checked_at": None if blob.check is None else text_of(blob.check.checked_at),
        "datasets": [_use_json(use) for use in blob.uses],
    }


def _use_json(use: Use) -> dict[str, Any]:
    return asdict(use) | {"sessions": [asdict(reader) for reader in use.sessions]}
