"""The content-addressed store: blobs and manifests by digest, trees of hard links. Knows no database and no
project.

Order is the safety here. Bytes are durable before a blob's name exists, every name is durable before
`publish` returns, and only then may a row refer to the dataset. Nothing is ever written under a final name:
everything is made in staging and enters by link or rename. A link joins a tree to the blobs, never to a
legacy file: the application rewrites those in place.
"""

import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import (
    RoomWaitedForError,
    RowFileError,
    SourceChangedError,
    StoredBytesMismatchError,
    StoreFullError,
    StoreUnusableError,
    TooLargeForStoreError,
)
from worker.runtime.throttle import Pace, unlimited
from worker.store.cloning import Cloner
from worker.store.copying import copy
from worker.store.description import DRAFT, describe_once, description_of, make_directories
from worker.store.digest import (
    Algorithm,
    Signature,
    Sink,
    bytes_have_digest,
    new_hasher,
    opened,
    printable,
)
from worker.store.files import (
    Placement,
    flushing,
    fresh_status,
    give_name,
    is_directory,
    new_file,
    place,
    writing,
)
from worker.store.manifest import Manifest
from worker.store.quarantine import Quarantine
from worker.store.removal import REMOVED, remove_tree, take_away
from worker.store.row_file import DatasetRow, parse
from worker.store.syscalls import (
    OpenFolder,
    is_nfs,
    refresh,
    sync_file_system,
)
from worker.units import reserve_of

TASK_CHARACTERS = 36
"""Task ids are UUIDs."""

_TRIES = 3
"""How often a name is looked at again that others change meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file whose bytes may be taken: where it is, what `stat` said of it, and the digest its bytes had."""

    path: str
    signature: Signature
    digest: str


@dataclass(frozen=True)
class Store:
    """One store: `root` holds blobs and manifests, `trees` (on the same file system) what the application
    reads.
    """

    root: Path
    trees: Path
    algorithm: Algorithm
    store_id: str | None
    _folder: OpenFolder | None = field(default=None, compare=False, repr=False)
    admitted: set[str] = field(default_factory=set, compare=False, repr=False)
    """The digests whose bytes came in through this object since it was opened."""
    cloned: set[str] = field(default_factory=set, compare=False, repr=False)
    """The digests of those copies that share the blocks of their sources."""
    _cloner: Cloner = field(default_factory=Cloner, compare=False, repr=False)

    @staticmethod
    def open(root: Path, trees: Path, algorithm: Algorithm, *, create: bool) -> "Store":
        """The store at `root`. A new one (only with `create`) is made with `algorithm`; an old one keeps its
        own.

        Without `create` nothing is written, and a store that is not there yet is described as it would be
        made. A writer opens the store first: only bytes that are written after that are certain to be on the
        disk when `sync` returns. Raises `StoreUnusableError` for another format, unreadable directories, or
        trees on another file system.
        """
        with writing(root):
            if create:
                make_directories(root, trees)
                describe_once(root, algorithm)
            description = description_of(root)
            if root.exists() and trees.exists() and root.stat().st_dev != trees.stat().st_dev:
                raise StoreUnusableError(
                    f"{root} and {trees} are on different file systems; hard links need one"
                )
            folder = OpenFolder(root) if root.exists() else None
        if description is None:
            return Store(root, trees, algorithm, None, folder)
        return Store(root, trees, *description, folder)

    def make_directories(self) -> None:
        """Make what is missing of the store's directories, as `open` does with `create`."""
        with writing(self.root):
            make_directories(self.root, self.trees)

    def came_by_cloning(self) -> Iterator[str]:
        """Those of the digests in `admitted` whose blobs share the blocks of legacy files. No set of its own:
        there may be a million.
        """
        return (digest for digest in self.cloned if digest in self.admitted)

    def came_by_copying(self) -> Iterator[str]:
        """The others."""
        return (digest for digest in self.admitted if digest not in self.cloned)

    @property
    def _quarantine(self) -> Quarantine:
        return Quarantine(f"{self.root}/quarantine")

    # Blobs --------------------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> str:
        """Where the bytes with this digest are, or would be."""
        return f"{self.root}/blobs/{digest[:2]}/{digest}"

    def has_blob(self, digest: str, size_bytes: int, *, asked_anew: bool = False) -> bool:
        """Is there a blob of this digest with the size it must have? With `asked_anew` no cache of a network
        file system says so.
        """
        path = self.blob_path(digest)
        with writing(path):
            try:
                status = fresh_status(path) if asked_anew else os.lstat(path)
            except FileNotFoundError:
                return False
        return status is not None and stat.S_ISREG(status.st_mode) and status.st_size == size_bytes

    def stage_file(self, source: Source, staging: str, buffer: memoryview, pace: Pace = unlimited) -> str:
        """Copy a source into `staging` while hashing it again; the path of the copy, not yet durable.

        Raises `SourceChangedError` when the bytes are not those that were hashed before.
        """
        staged = f"{staging}/{source.digest}"
        if self.copy_hashing(source.path, source.signature, staged, buffer, pace) != source.digest:
            raise SourceChangedError(f"File changed while it was read: {printable(source.path)}")
        return staged

    def copy_hashing(
        self,
        path: str,
        signature: Signature,
        staged: str,
        buffer: memoryview,
        pace: Pace = unlimited,
        observe: Sink | None = None,
    ) -> str:
        """Copy a file to `staged` in the pass that hashes it; its digest. The copy is not durable yet.

        Where the file system can, the copy shares the source's blocks, and the copy is what is hashed: what
        was hashed is what is stored, whatever is written to the source meanwhile.
        """
        hasher = new_hasher(self.algorithm)
        sinks: list[Sink] = [hasher.update] if observe is None else [hasher.update, observe]
        with writing(staged), new_file(staged) as descriptor:
            is_clone = copy(
                path, signature, (descriptor, staged), sinks, cloner=self._cloner, buffer=buffer, pace=pace
            )
            if is_clone:
                # A blob is not read soon, and the source's pages are others.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.fchmod(descriptor, 0o444)
        digest = hasher.hexdigest()
        if is_clone:
            self.cloned.add(digest)
        return digest

    def would_clone(self, path: str, signature: Signature) -> bool:
        """Would a copy of this source share its blocks? Asked of the file system by trying."""
        if not self._cloner.may_clone(signature):
            return False
        draft = f"{self.root}/staging/{uuid.uuid4().hex}"
        with writing(draft), new_file(draft) as descriptor:
            os.unlink(draft)
            with opened(path, signature) as source:
                return self._cloner.clone(source, descriptor)

    def admit(self, staged: str, digest: str, size_bytes: int) -> bool:
        """Give durable staged bytes their name among the blobs; False when another worker was first.

        A blob of the wrong size that stands in the way is condemned: its bytes cannot be those of its digest.
        """
        final = self.blob_path(digest)
        with writing(final):
            folder = os.path.dirname(final)
            if not os.path.isdir(folder):
                os.makedirs(folder, exist_ok=True)
            while True:
                try:
                    give_name(staged, final)
                except FileExistsError:
                    if self.has_blob(digest, size_bytes, asked_anew=True):
                        return False
                else:
                    break
                # Another worker may be as far as this one, and the bad blob may be gone by now.
                with suppress(FileNotFoundError):
                    self._quarantine.replace(
                        staged,
                        final,
                        f"blob {digest} does not have the {size_bytes} bytes of its content",
                        lambda aside: not _is_file_of(aside, size_bytes),
                    )
                    break
        self.admitted.add(digest)
        return True

    def replace_blob(self, digest: str, good: str, story: str = "") -> None:
        """Let durable bytes take the name of a bad blob, in one moment: others may be linking it. The bad one
        goes to quarantine, with what is told of it; one that is gone already is no hindrance.
        """
        final = self.blob_path(digest)
        with writing(final):
            os.makedirs(os.path.dirname(final), exist_ok=True)
            self._quarantine.replace_if_there(
                good,
                final,
                _told("its bytes are not those of its digest", story),
                self._has_other_bytes(digest),
            )
        self.admitted.add(digest)

    def _has_other_bytes(self, digest: str) -> Callable[[str], bool]:
        return lambda path: not bytes_have_digest(path, digest, self.algorithm)

    def check_room(self, size_bytes: int) -> None:
        """Raise unless so many bytes fit and a reserve stays for all other programs on the file system, as it
        is right now.

        `TooLargeForStoreError` for more than the whole file system could ever take, `StoreFullError` when
        nothing fits any more, `RoomWaitedForError` when less would. A job that brings no bytes takes nothing
        from the reserve.
        """
        with writing(self.root):
            status = os.statvfs(self.root)
        free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        reserve = reserve_of(total)
        if size_bytes <= max(0, free - reserve):
            return
        figures = f"{size_bytes} bytes are to be stored, {free} are free, {reserve} stay in reserve"
        if size_bytes > total - reserve:
            raise TooLargeForStoreError(
                f"Too large for the store: {self.root}: {figures}, {total} are all there are"
            )
        if free <= reserve:
            raise StoreFullError(f"No space left in the store: {self.root}: {figures}")
        raise RoomWaitedForError(f"Not enough room in the store: {self.root}: {figures}")

    # Trees --------------------------------------------------------------------------------------------------

    def tree_path(self, name: str, dataset_digest: str, digits: int = 12) -> Path:
        """Where the tree of a dataset goes: a readable, harmless form of `name`, and identity in the
        digest.
        """
        return self.trees / f"{safe_name(name)}-{dataset_digest[:digits]}"

    def build_tree(self, manifest: Manifest, target: str, pace: Pace = unlimited) -> dict[Placement, int]:
        """Make the manifest's tree at `target` out of blobs; how many files were linked or, if need be,
        copied.

        Directories keep their write bit until `publish`: a directory without it cannot be moved by its owner.
        """
        placed: dict[Placement, int] = {"hard": 0, "reflink": 0, "copy": 0}
        with writing(target):
            self.ask_anew(file.digest for file in manifest.files)
            os.mkdir(target, 0o755)
            for directory in manifest.directories:
                os.mkdir(f"{target}/{directory.path}", 0o755)
            for file in manifest.files:
                pace(0)
                placed[place(self.blob_path(file.digest), f"{target}/{file.path}")] += 1
            for directory in reversed(manifest.directories):
                os.chmod(f"{target}/{directory.path}", 0o555)
        return placed

    def ask_anew(self, digests: Iterable[str]) -> None:
        """Have a network file system look up these blobs anew: another machine may have replaced a bad one,
        which a name that is only remembered still leads to. Asked by folder, of which there are few.
        """
        refresh(*{os.path.dirname(self.blob_path(digest)) for digest in digests})

    def replace_in_tree(
        self, good: str, path: str, staging: str, *, bad_copy_of: str | None = None, story: str = ""
    ) -> None:
        """Let a tree's file be these durable bytes; readers see the old file or the new one, whole.

        What was there is a link of a blob that goes to quarantine by itself, unless it is a bad copy of a
        digest, which goes there now with its story. A directory that is gone is left to the next job that
        needs its dataset.
        A crash here: `path` is the one or the other, its directory may be open for writing until this is done
        again.
        """
        directory = os.path.dirname(path)
        draft = f"{staging}/{uuid.uuid4().hex}"
        with writing(path):
            if not is_directory(directory):
                return
            # Rows may refer to this tree already.
            place(good, draft, durably=True)
            os.chmod(directory, 0o755)
            try:
                if bad_copy_of is not None:
                    self._quarantine.replace_if_there(
                        draft,
                        path,
                        _told("this copy's bytes are not those of its digest", story),
                        self._has_other_bytes(bad_copy_of),
                    )
                elif is_nfs(directory):
                    self._put_over_on_nfs(draft, path)
                else:
                    os.rename(draft, path)
            finally:
                os.chmod(directory, 0o555)

    def remove_from_tree(self, path: str, story: str) -> None:
        """Move what does not belong into a tree to quarantine; nothing if it is gone already. A crash here:
        its directory may be open for writing until a job repairs that tree again.
        """
        folder = os.path.dirname(path)
        with writing(path):
            os.chmod(folder, 0o755)
            try:
                self._quarantine.take(path, _told("it is not in its dataset's manifest", story))
            finally:
                os.chmod(folder, 0o555)

    def close_directory(self, path: str) -> None:
        """Close a directory of a tree for writing."""
        with writing(path):
            os.chmod(path, 0o555)

    def make_directory_in_tree(self, path: str) -> None:
        """Make a directory that a tree should have, read-only; its own directory is there."""
        above = os.path.dirname(path)
        with writing(path):
            os.chmod(above, 0o755)
            try:
                with suppress(FileExistsError):
                    os.mkdir(path, 0o555)
            finally:
                os.chmod(above, 0o555)

    def replace_manifest(self, manifest: Manifest, staging: str, story: str) -> None:
        """Give a dataset its manifest again, durably. A damaged one goes to quarantine."""
        staged = f"{staging}/manifest.json"
        path = self.manifest_path(manifest.digest)
        with writing(path):
            _write(manifest, staged)
            self._quarantine.replace_if_there(
                staged,
                path,
                _told("it does not have the bytes that its name promises", story),
                lambda aside: not bytes_have_digest(aside, manifest.digest, manifest.algorithm),
            )
        self.sync()

    def _put_over_on_nfs(self, draft: str, path: str) -> None:
        """Moved away first: to replace a file that a program has open leaves a name `.nfs…` beside it, which
        could not go any more once the directory is read-only. For other machines a replaced name is absent
        for a moment in any case.
        """
        self._quarantine.move_here(path)
        os.rename(draft, path)

    def differences(self, manifest: Manifest, tree: str, pace: Pace = unlimited) -> Iterator[str]:
        """What keeps the tree from being the manifest's, by presence, kind and size; nothing when all is
        well.

        What is not as it should be is asked for anew before that is said.
        """
        for directory in manifest.directories:
            pace(0)
            path = f"{tree}/{directory.path}"
            if not is_directory(path):
                refresh(*_steps(tree, directory.path))
                if not is_directory(path):
                    yield f"directory is missing: {printable(directory.path)}"
        for file in manifest.files:
            pace(0)
            trouble = _trouble(f"{tree}/{file.path}", file.size_bytes)
            if trouble is not None:
                refresh(*_steps(tree, file.path))
                trouble = _trouble(f"{tree}/{file.path}", file.size_bytes)
            if trouble is not None:
                yield f"{printable(file.path)}: {trouble}"

    def holds(self, manifest: Manifest, tree: str, pace: Pace = unlimited) -> bool:
        """Is the dataset here in full, tree and manifest, so that a project may refer to it without a
        copy?
        """
        return self._has_manifest(manifest) and self._is_whole(manifest, tree, pace)

    def _has_manifest(self, manifest: Manifest) -> bool:
        path = self.manifest_path(manifest.digest)
        if bytes_have_digest(path, manifest.digest, manifest.algorithm):
            return True
        refresh(os.path.dirname(path), path)
        return bytes_have_digest(path, manifest.digest, manifest.algorithm)

    def _is_whole(self, manifest: Manifest, tree: str, pace: Pace = unlimited) -> bool:
        return next(self.differences(manifest, tree, pace), None) is None

    def publish(
        self,
        manifest: Manifest,
        built: str,
        tree: Path,
        staging: str,
        confirm: Callable[[], None] = lambda: None,
        row: DatasetRow | None = None,
    ) -> None:
        """Make manifest, row file and tree visible under their names, durably. A damaged tree of that name
        goes to quarantine.

        The caller holds the dataset's claim: no other job publishes this name. Should it have lost the claim
        without knowing yet, another one has published the tree: a whole one stays where it is. `confirm` is
        called before a tree is replaced, and raises if the claim is lost.
        """
        with writing(tree):
            self._write_manifest(manifest, staging)
            self.write_row(row, staging)
            self._put_in_place(manifest, built, tree, confirm)
        self.seal(tree)

    def _put_in_place(self, manifest: Manifest, built: str, tree: Path, confirm: Callable[[], None]) -> None:
        """Between a look at the place and what follows from it, this process may have slept, and others have
        come to the place: so a tree that is replaced is judged again when it is out of the way, and a name
        that is taken is looked at again.
        """
        place_of = os.fspath(tree)
        for tries_left in reversed(range(_TRIES)):
            # Looked for before it is looked at: what comes to the place after this comes in one piece, and is
            # not to be moved away.
            refresh(os.path.dirname(place_of), place_of)
            if os.path.lexists(tree):
                if self.holds(manifest, place_of):
                    return
                confirm()
                with suppress(FileNotFoundError):
                    self._quarantine.replace(
                        built,
                        place_of,
                        "tree is incomplete; a new one takes its place",
                        lambda aside: not self._is_whole(manifest, aside),
                    )
                    return
                if not os.path.lexists(built):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), built)
            try:
                os.rename(built, tree)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR} or not tries_left:
                    raise
            else:
                return

    def publish_again(self, tree: Path, row: DatasetRow | None, staging: str) -> None:
        """Have a tree that is there, and its row file, on the disk: an attempt that died may have left it."""
        self.write_row(row, staging)
        self.seal(tree)

    def seal(self, tree: Path) -> None:
        """Close a published tree for writing and wait until it is on the disk: its maker may have died before
        that.
        """
        with writing(tree):
            os.chmod(tree, 0o555)
        self.sync()

    def manifest_path(self, dataset_digest: str) -> str:
        """Where the manifest of a dataset is, or would be."""
        return f"{self.root}/manifests/{dataset_digest}.json"

    def read_manifest(self, dataset_digest: str) -> Manifest:
        """The stored manifest; its bytes must have the digest that names it."""
        try:
            content = Path(self.manifest_path(dataset_digest)).read_bytes()
            manifest = Manifest.parse(content)
        except (OSError, ValueError) as error:
            raise StoredBytesMismatchError(f"Manifest {dataset_digest} cannot be read: {error}") from error
        if manifest.digest != dataset_digest or manifest.content != content:
            raise StoredBytesMismatchError(
                f"Manifest {dataset_digest} does not have the bytes its digest promises"
            )
        return manifest

    # Row files ----------------------------------------------------------------------------------------------

    def row_path(self, dataset_digest: str) -> str:
        """Where the row file of a dataset is, or would be."""
        return f"{self.root}/manifests/{dataset_digest}.row.json"

    def write_row(self, row: DatasetRow | None, staging: str) -> None:
        """Write a dataset's row file, in place of one that is there; durable with the next `sync`. Nothing
        for a dataset that has its row already, or whose row has no ids yet.
        """
        if row is None or not row.is_numbered:
            return
        staged = f"{staging}/row.json"
        with writing(staged):
            _write_row(row, staged)
            os.rename(staged, self.row_path(row.dataset_hash))

    def replace_row(self, row: DatasetRow, staging: str, story: str) -> None:
        """Give a dataset its row file again, durably. A damaged one goes to quarantine."""
        path = self.row_path(row.dataset_hash)
        staged = f"{staging}/row.json"
        with writing(path):
            _write_row(row, staged)
            self._quarantine.replace_if_there(
                staged,
                path,
                _told("it does not say what was written", story),
                lambda aside: not _is_row_file(aside, row.dataset_hash),
            )
        self.sync()

    def read_row(self, dataset_digest: str) -> DatasetRow | None:
        """What a dataset's row file says; None if there is none. Raises `RowFileError`."""
        path = self.row_path(dataset_digest)
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RowFileError(f"Row file {path} cannot be read: {error.strerror}") from error
        return parse(content, dataset_digest, path)

    # Staging and durability ---------------------------------------------------------------------------------

    @contextmanager
    def staging(self, name: str) -> Iterator[str]:
        """A directory of this attempt's own, removed at the end whatever happens."""
        path = f"{self.root}/staging/{name}"
        with writing(path):
            os.mkdir(path, 0o700)
        try:
            yield path
        finally:
            # What cannot be removed now stays, and the doctor names it: an error here would hide the one that
            # brought us here.
            with suppress(OSError):
                remove_tree(path)

    def staged_by(self) -> dict[str, int]:
        """The jobs that have something in staging, by their task ids, and the last attempt of each that
        has.
        """
        found: dict[str, int] = {}
        with suppress(FileNotFoundError):
            for name in os.listdir(f"{self.root}/staging"):
                task, attempt = name[:TASK_CHARACTERS], attempt_of(name[:TASK_CHARACTERS], name)
                if attempt is not None:
                    found[task] = max(attempt, found.get(task, 0))
        return found

    def staged_at(self, job: str, last_attempt: int) -> list[str]:
        """Where everything is that a job's attempts up to this one have in staging."""
        folder = f"{self.root}/staging"
        found = ((name, attempt_of(job, name)) for name in os.listdir(folder))
        return [
            f"{folder}/{name}" for name, attempt in found if attempt is not None and attempt <= last_attempt
        ]

    def clear_staging(self, job: str, last_attempt: int) -> None:
        """Remove the staging directories of a job's attempts up to this one: they are over. A later one may
        be at work, and the caller may have slept meanwhile. What others did not finish to remove goes, too.
        """
        folder = f"{self.root}/staging"
        with writing(folder), suppress(FileNotFoundError):
            for name in os.listdir(folder):
                attempt = attempt_of(job, name)
                if attempt is not None and attempt <= last_attempt:
                    # The attempt may be asleep, wake up right now and remove it, too.
                    with suppress(FileNotFoundError):
                        remove_tree(f"{folder}/{take_away(folder, name)}")
        self.finish_removals()

    def half_removed(self) -> list[str]:
        """What in staging was being removed when its remover died, and drafts of the store's description."""
        folder = f"{self.root}/staging"
        with suppress(FileNotFoundError):
            # The store has its description: a worker that is still drafting one finds that out.
            prefixes = (REMOVED, DRAFT) if self.store_id is not None else (REMOVED,)
            return [f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(prefixes)]
        return []

    def finish_removals(self) -> None:
        """Remove that."""
        with writing(f"{self.root}/staging"):
            for path in self.half_removed():
                with suppress(FileNotFoundError):
                    remove_tree(path)

    def sync(self) -> None:
        """Wait until everything written to the store's file system is on the disk: one call for any number of
        files.

        Raises `StoreSyncError` when something could not be written since the store was opened, be it ours or
        not: the caller does not know whether what it wrote is on the disk, and writes it again (`try_again`).
        """
        with writing(self.root), flushing(self.root):
            sync_file_system(os.fspath(self.root) if self._folder is None else self._folder.descriptor)

    def try_again(self) -> None:
        """After a sync that failed: begin anew with a fresh descriptor. Raises `StoreBrokenError` when the
        next one fails as well.

        What was written and has no name yet may be lost, although a sync succeeds now: the kernel tells of it
        only once.
        """
        if self._folder is not None:
            with writing(self.root):
                self._folder.renew()
        self.sync()

    def keep_manifest(self, manifest: Manifest, staging: str) -> None:
        """Give a dataset its manifest, for a tree that gets its place otherwise than by `publish`. Its name
        is durable after the next `sync`.
        """
        with writing(self.root):
            self._write_manifest(manifest, staging)

    def _write_manifest(self, manifest: Manifest, staging: str) -> None:
        staged = f"{staging}/manifest.json"
        _write(manifest, staged)
        os.rename(staged, self.manifest_path(manifest.digest))


def _write(manifest: Manifest, staged: str) -> None:
    with new_file(staged, durably=True) as descriptor:
        with open(descriptor, "wb", closefd=False) as file:
            file.writelines(manifest.parts())
        os.fchmod(descriptor, 0o444)


def _write_row(row: DatasetRow, staged: str) -> None:
    with new_file(staged) as descriptor:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(row.content)
        os.fchmod(descriptor, 0o444)


def _is_row_file(path: str, dataset_digest: str) -> bool:
    try:
        parse(Path(path).read_bytes(), dataset_digest, path)
    except (OSError, RowFileError):
        return False
    return True


def _told(reason: str, story: str) -> str:
    return f"{reason}\n{story}" if story else reason


def _is_file_of(path: str, size_bytes: int) -> bool:
    return _trouble(path, size_bytes) is None


def _trouble(path: str, size_bytes: int) -> str | None:
    """What keeps a path from being a file of this size."""
    try:
        status = os.lstat(path)
    except OSError as error:
        return error.strerror
    if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
        return f"not a file of {size_bytes} bytes"
    return None


def _steps(tree: str, path: str) -> list[str]:
    """The directories on the way to an entry of a tree, from the one above the tree on, and the entry."""
    steps = [os.path.dirname(tree), tree]
    for name in path.split("/"):
        steps.append(f"{steps[-1]}/{name}")
    return steps


def attempt_of(job: str, name: str) -> int | None:
    """Which attempt of a job a directory is named for (`<job>-<attempt>`, perhaps with when that began, or
    what it is for); None: no one.
    """
    number = name.removeprefix(f"{job}-").partition("-")[0]
    return int(number) if name.startswith(f"{job}-") and number.isdecimal() else None


def safe_name(name: str) -> str:
    """A directory name made from any text: only [A-Za-z0-9._-], 80 characters at most, never starting with a
    dot.

    Nor with `raw_datasets`: Label takes `raw_datasets/raw_datasets` in a path for a mistake (label contract,
    6.1).
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")
    return (f"_{safe}" if safe.startswith("raw_datasets") else safe)[:80] or "dataset"
