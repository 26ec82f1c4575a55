"""What gc takes out of a store: entries in quarantine, each with a description from which all of it comes
back. Knows no database.

`quarantine/<id>/description.json` is durable before anything enters. Everything enters and leaves by a
rename, so a crash leaves each thing in one of two places, and the next job finds it there. Damaged things,
which lie beside the entries with a text that tells their reason, are not gc's.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.errors import StoredBytesMismatchError
from worker.runtime.throttle import Pace, unlimited
from worker.store.digest import bytes_have_digest
from worker.store.files import fresh_status, is_directory, new_file, place, writing
from worker.store.manifest import File, Manifest
from worker.store.removal import REMOVED, remove_tree, take_away
from worker.store.store import Store

_DESCRIPTION = "description.json"
_ROW = "row.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENTRY_ID = re.compile(r"[A-Za-z0-9-]{1,80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry in quarantine: a dataset, an orphaned tree, or loose blobs.

    `rows` are those of the database, for a dataset. `tree` is the path that the tree had. `is_whole`: gc had
    taken everything; otherwise it died, and what is still in the store is to follow or to stay.
    """

    entry_id: str
    kind: str
    name: str
    reason: str
    quarantined_at: datetime
    since: datetime | None = None
    dataset_id: int | None = None
    dataset_hash: str | None = None
    tree: str | None = None
    rows: Mapping[str, Any] | None = None
    is_whole: bool = False


@dataclass(slots=True)
class Size:
    """Files, each counted once, and the blocks that come free with them."""

    files: int = 0
    size_bytes: int = 0


class Room:
    """What the file system gets back when some things go, all together: of a file that has a name elsewhere,
    nothing. `gone`: names that have gone before, by inode, of files that are still there to be looked at.
    """

    def __init__(self, gone: Mapping[tuple[int, int], int] | None = None) -> None:
        self.size = Size()
        self.names: dict[tuple[int, int], int] = {}
        self._gone = gone or {}

    def add(self, path: str) -> None:
        """Count a file, or a directory with all that is in it. What is not there counts nothing."""
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISDIR(status.st_mode):
            self._add_file(status)
            return
        self.size.size_bytes += status.st_blocks * 512
        with suppress(FileNotFoundError), os.scandir(path) as entries:
            for entry in entries:
                self.add(entry.path)

    def _add_file(self, status: os.stat_result) -> None:
        inode = status.st_dev, status.st_ino
        names = 1
        if status.st_nlink > 1:
            names = self.names[inode] = self.names.get(inode, 0) + 1
        self.size.files += names == 1
        if names + self._gone.get(inode, 0) == status.st_nlink:
            self.size.size_bytes += status.st_blocks * 512


class Garbage:
    """The quarantine entries of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = f"{store.root}/quarantine"

    # Entries ------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Every entry, by id. A directory without a readable description is none of ours and left alone."""
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._folder)):
                entry = self.find(name)
                if entry is not None:
                    yield entry

    def find(self, entry_id: str) -> Entry | None:
        """The entry of this id, if there is one. What is being removed has another name than its description
        says, and is none any more.
        """
        if not _ENTRY_ID.fullmatch(entry_id):
            return None
        try:
            document = json.loads(Path(f"{self._folder}/{entry_id}/{_DESCRIPTION}").read_text("utf-8"))
            times = {
                name: datetime.fromisoformat(document[name]) if document[name] else None
                for name in ("quarantined_at", "since")
            }
            entry = Entry(**document | times)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return entry if entry.entry_id == entry_id else None

    def describe(self, entry: Entry) -> None:
        """Write an entry's description, durably, in place of what it said before."""
        folder = f"{self._folder}/{entry.entry_id}"
        draft = f"{folder}/{_DESCRIPTION}.new"
        document = {name: getattr(entry, name) for name in Entry.__dataclass_fields__} | {
            "quarantined_at": entry.quarantined_at.astimezone(UTC).isoformat(),
            "since": entry.since.astimezone(UTC).isoformat() if entry.since else None,
        }
        with writing(folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(draft)
            with new_file(draft, durably=True) as descriptor:
                # Names that are not UTF-8 are kept as lone surrogates, which JSON escapes.
                os.write(descriptor, json.dumps(document, indent=2).encode("ascii") + b"\n")
            os.rename(draft, f"{folder}/{_DESCRIPTION}")
        self._store.sync()

    def finish(self, entry: Entry) -> None:
        """Note that all of it has been taken."""
        self.describe(replace(entry, is_whole=True))

    def remove(self, entry: Entry, pace: Pace = unlimited) -> None:
        """Remove an entry for good. It loses its id first: no restore finds a part of it."""
        pace(0)
        with writing(self._folder), suppress(FileNotFoundError):
            remove_tree(f"{self._folder}/{take_away(self._folder, entry.entry_id)}")

    def half_removed(self) -> list[str]:
        """Where all that is that a gc was removing when it died."""
        names = (name for name in _listed(self._folder) if name.startswith(REMOVED))
        return [f"{self._folder}/{name}" for name in names]

    def finish_removals(self) -> None:
        """Remove that for good."""
        with writing(self._folder):
            for path in self.half_removed():
                with suppress(FileNotFoundError):
                    remove_tree(path)

    def size_of(self, entry: Entry) -> Size:
        """What comes free when the entry is removed, but for what gc made itself."""
        room = Room()
        for path in self.things(entry):
            room.add(path)
        return room.size

    def things(self, entry: Entry) -> Iterator[str]:
        """Where everything is that an entry has: tree, manifest, blobs."""
        folder = f"{self._folder}/{entry.entry_id}"
        yield f"{folder}/tree"
        yield f"{folder}/manifest.json"
        yield f"{folder}/{_ROW}"
        with suppress(FileNotFoundError), os.scandir(f"{folder}/blobs") as blobs:
            yield from (blob.path for blob in blobs)

    def is_empty(self, entry: Entry) -> bool:
        """Has the entry nothing but its description?"""
        return not any(os.path.lexists(path) for path in self.things(entry))

    def things_to_come(self, entry: Entry) -> Iterator[str]:
        """Where tree, manifest and row file are that `take_tree` would take."""
        folder = f"{self._folder}/{entry.entry_id}"
        if entry.tree is not None and is_directory(entry.tree) and not os.path.lexists(f"{folder}/tree"):
            yield entry.tree
        if entry.dataset_hash is not None and not os.path.lexists(f"{folder}/manifest.json"):
            # Before the manifest, which tells an attempt that comes after a crash what is still to be taken.
            yield self._store.row_path(entry.dataset_hash)
            yield self._store.manifest_path(entry.dataset_hash)

    # Taking -------------------------------------------------------------------------------------------------

    def take_tree(self, entry: Entry) -> None:
        """Move the dataset's tree, manifest and row file into the entry. If it has them already, those in
        the store are of a later attempt to store the same content: the tree stays there, without a row an
        orphan.
        """
        folder = f"{self._folder}/{entry.entry_id}"
        with writing(folder):
            for path in self.things_to_come(entry):
                if path == entry.tree:
                    _move_directory(path, f"{folder}/tree")
                else:
                    _move(path, f"{folder}/{_ROW if path.endswith(_ROW) else 'manifest.json'}")

    def take_blobs(self, entry: Entry, digests: Sequence[str]) -> None:
        """Move these blobs into the entry, each by one rename; one that is gone is no hindrance."""
        folder = f"{self._folder}/{entry.entry_id}/blobs"
        with writing(folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            for digest in digests:
                _move(self._store.blob_path(digest), f"{folder}/{digest}")

    def put_blobs_back(self, entry: Entry, digests: Sequence[str]) -> None:
        """Undo `take_blobs`: its transaction was not committed. A name that is taken again keeps its file."""
        folder = f"{self._folder}/{entry.entry_id}/blobs"
        with writing(folder):
            for digest in digests:
                _link_back(f"{folder}/{digest}", self._store.blob_path(digest))

    def manifest_of(self, entry: Entry) -> Manifest:
        """The manifest of an entry's dataset, in the entry or still in the store; checked against its digest.

        Raises `StoredBytesMismatchError`.
        """
        paths = (
            f"{self._folder}/{entry.entry_id}/manifest.json",
            self._store.manifest_path(entry.dataset_hash or ""),
        )
        for path in paths:
            try:
                content = Path(path).read_bytes()
                manifest = Manifest.parse(content)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise StoredBytesMismatchError(f"Manifest {path} cannot be read: {error}") from error
            if manifest.digest == entry.dataset_hash and manifest.content == content:
                return manifest
            raise StoredBytesMismatchError(f"Manifest {path} does not have the bytes its digest promises")
        raise StoredBytesMismatchError(f"Manifest of quarantine entry {entry.entry_id} is gone")

    # Bringing back ------------------------------------------------------------------------------------------

    def restore_blobs(self, entry: Entry, manifest: Manifest, pace: Pace = unlimited) -> list[str]:
        """Give every blob that the manifest needs its name again; which cannot be had, by digest.

        A blob may have gone by another entry since: the tree, wherever it is now, has its bytes as well.
        """
        folder = f"{self._folder}/{entry.entry_id}"
        trees = [f"{folder}/tree", *([entry.tree] if entry.tree else [])]
        lacking: list[str] = []
        done: set[str] = set()
        with writing(folder):
            for file in manifest.files:
                pace(0)
                if file.digest in done:
                    continue
                done.add(file.digest)
                blob = self._store.blob_path(file.digest)
                if fresh_status(blob) is not None:
                    continue
                os.makedirs(os.path.dirname(blob), exist_ok=True)
                sources = [f"{folder}/blobs/{file.digest}", *(f"{tree}/{file.path}" for tree in trees)]
                source = next((path for path in sources if self._is_good(path, file)), None)
                if source is None:
                    lacking.append(file.digest)
                elif source == sources[0]:
                    _link_back(source, blob)
                else:
                    with suppress(FileExistsError):
                        place(source, blob, durably=True)
        return lacking

    def restore_tree(self, entry: Entry) -> None:
        """Move tree, manifest and row file back to where they were; what is there already stays."""
        folder = f"{self._folder}/{entry.entry_id}"
        with writing(folder):
            if entry.dataset_hash is not None:
                _link_back(f"{folder}/{_ROW}", self._store.row_path(entry.dataset_hash))
                _link_back(f"{folder}/manifest.json", self._store.manifest_path(entry.dataset_hash))
            if entry.tree is not None and is_directory(f"{folder}/tree") and not os.path.lexists(entry.tree):
                _move_directory(f"{folder}/tree", entry.tree)
            elif entry.tree is not None and is_directory(entry.tree):
                # Perhaps moved by an attempt that died before it had closed it.
                os.chmod(entry.tree, 0o555)
        self._store.sync()

    def restore_loose(self, entry: Entry, pace: Pace = unlimited) -> int:
        """Give every blob of an entry of loose ones its name again; how many."""
        folder = f"{self._folder}/{entry.entry_id}/blobs"
        count = 0
        with writing(folder), suppress(FileNotFoundError):
            for digest in sorted(os.listdir(folder)):
                pace(0)
                blob = self._store.blob_path(digest)
                os.makedirs(os.path.dirname(blob), exist_ok=True)
                _link_back(f"{folder}/{digest}", blob)
                count += 1
        self._store.sync()
        return count

    def _is_good(self, path: str, file: File) -> bool:
        """Does a path have the file's bytes? What was a blob's own name is taken to."""
        status = fresh_status(path)
        if status is None or status.st_size != file.size_bytes:
            return False
        return path.endswith(f"/blobs/{file.digest}") or bytes_have_digest(
            path, file.digest, self._store.algorithm
        )

    # Looking ------------------------------------------------------------------------------------------------

    def blobs(self) -> Iterator[list[str]]:
        """The digests of all blobs, folder by folder. What has another kind of name is not ours."""
        root = f"{self._store.root}/blobs"
        for prefix in sorted(_listed(root)):
            some = [name for name in sorted(_listed(f"{root}/{prefix}")) if _is_digest(name, prefix)]
            if some:
                yield some

    def manifests(self) -> list[str]:
        """The digests of all manifests."""
        names = _listed(f"{self._store.root}/manifests")
        found = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(name for name in found if _DIGEST.fullmatch(name))

    def trees(self) -> list[str]:
        """The names of all that lies among the trees."""
        return sorted(_listed(str(self._store.trees)))


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_digest(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and _DIGEST.fullmatch(name) is not None


def _move(path: str, target: str) -> None:
    """Rename, if it is there. What is at the target already is the same thing, by an attempt that died."""
    with suppress(FileNotFoundError):
        os.rename(path, target)


def _move_directory(path: str, target: str) -> None:
    """Only root moves a directory that it may not write to; a link is not followed."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(folder, 0o755)
        try:
            os.rename(path, target)
        finally:
            os.fchmod(folder, 0o555)
    finally:
        os.close(folder)


def _link_back(path: str, target: str) -> None:
    """Give a thing its name in the store again, unless something has it; then it stays where it is."""
    if os.path.lexists(target):
        return
    with suppress(FileNotFoundError):
        os.rename(path, target)
