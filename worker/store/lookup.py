"""Where a content lies in the store, for people who ask: its blob and its places in trees. Writes nothing."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from worker.errors import EntryUnreadableError, StoredBytesMismatchError, StoreUnusableError
from worker.store.digest import (
    BIG_CHUNK_BYTES,
    Algorithm,
    new_buffer,
    new_hasher,
    printable,
    read_stored,
)
from worker.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of the store, as `stat` sees it."""

    path: str
    size_bytes: int
    names: int
    """How many names it has: its own, and one for each link in a tree."""


class Lookup:
    """The store of DATA_DIR as this machine sees it, if it is the one with the id that the database names."""

    def __init__(self, root: Path, trees: Path, store_id: str | None) -> None:
        try:
            store = Store.open(root, trees, "blake3", create=False)
        except (StoreUnusableError, OSError):
            store = None
        self._store = store if store is not None and store_id in {None, store.store_id} else None

    @property
    def is_visible(self) -> bool:
        """Is the store there?"""
        return self._store is not None and self._store.store_id is not None

    def blob(self, digest: str) -> StoredFile | None:
        """The blob of this digest, if it is there."""
        return None if self._store is None else _stored_file(self._store.blob_path(digest))

    def manifest(self, dataset_hash: str) -> StoredFile | None:
        """The manifest of this dataset, if it is there."""
        return None if self._store is None else _stored_file(self._store.manifest_path(dataset_hash))

    def blobs_beginning(self, prefix: str) -> list[str]:
        """The digests of blobs that begin so, of at least two characters."""
        if self._store is None:
            return []
        try:
            names = os.listdir(os.path.dirname(self._store.blob_path(prefix)))
        except OSError:
            return []
        return sorted(name for name in names if name.startswith(prefix))

    def paths_in(self, dataset_hash: str, digest: str) -> list[str] | None:
        """Where a dataset's tree has this content, below the tree; None where its manifest cannot be read."""
        if self._store is None:
            return None
        try:
            manifest = self._store.read_manifest(dataset_hash)
        except StoredBytesMismatchError:
            return None
        return [printable(file.path) for file in manifest.files if file.digest == digest]

    def digests_below(self, dataset_hash: str, name: str) -> dict[str, str]:
        """The digests of the files of this name right in the directories at the top of a dataset's tree, by
        directory; none where the manifest cannot be read.
        """
        if self._store is None:
            return {}
        try:
            manifest = self._store.read_manifest(dataset_hash)
        except StoredBytesMismatchError:
            return {}
        files = ((file.path.split("/"), file.digest) for file in manifest.files)
        return {steps[0]: digest for steps, digest in files if len(steps) == 2 and steps[1] == name}


def digest_of_file(path: str, algorithm: Algorithm) -> str:
    """The digest of any regular file, read now. Raises `EntryUnreadableError` naming it and the reason."""
    try:
        kind = os.stat(path).st_mode
    except OSError as error:
        raise EntryUnreadableError(f"Cannot read {printable(path)}: {error.strerror}") from error
    if not stat.S_ISREG(kind):
        what = "a directory" if stat.S_ISDIR(kind) else "no regular file"
        raise EntryUnreadableError(f"Cannot read {printable(path)}: it is {what}")
    hasher = new_hasher(algorithm)
    for chunk in read_stored(os.path.realpath(path), new_buffer(BIG_CHUNK_BYTES), clone_of=path):
        hasher.update(chunk)
    return hasher.hexdigest()


def _stored_file(path: str) -> StoredFile | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return StoredFile(path=path, size_bytes=status.st_size, names=status.st_nlink)
