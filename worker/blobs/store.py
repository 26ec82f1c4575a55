"""The content-addressed store: blobs and manifests by digest, trees of hard links. Knows no database and no project.

Order is the safety here. Bytes are durable before a blob's name exists, every name is durable before `publish`
returns, and only then may a row refer to the dataset. Nothing is ever written under a final name: everything is made in
staging and enters by link or rename. A link joins a tree to the blobs, never to a legacy file: the application rewrites
those in place.
"""

import ctypes
import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.blobs.digest import (
    BIG_BYTES,
    Algorithm,
    Signature,
    Sink,
    abreast,
    bytes_have_digest,
    new_hasher,
    one_by_one,
    printable,
    read_chunks,
)
from worker.blobs.files import (
    Placement,
    Writer,
    give_name,
    has_one_more_name,
    is_directory,
    make_directory,
    place,
    sync_file,
    writing,
)
from worker.blobs.manifest import Manifest
from worker.errors import (
    SourceChangedError,
    StoredBytesMismatchError,
    StoreFullError,
    StoreUnusableError,
)
from worker.sizes import reserve_of
from worker.throttle import Pace, unlimited

FORMAT = 1
"""Raised when the layout below changes in a way that older versions would misread."""

_DRAFT = "store-"
"""How the names of drafts of store.json begin in staging; no task id does."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file whose bytes may be taken: where it is, what `stat` said of it, and the digest its bytes had."""

    path: str
    signature: Signature
    digest: str


@dataclass(frozen=True)
class Store:
    """One store: `root` holds blobs and manifests, `trees` (on the same file system) what the application reads."""

    root: Path
    trees: Path
    algorithm: Algorithm
    store_id: str | None
    _folder: "_OpenFolder | None" = field(default=None, compare=False, repr=False)
    admitted: set[str] = field(default_factory=set, compare=False, repr=False)
    """The digests whose bytes came in through this object since it was opened."""

    @staticmethod
    def open(root: Path, trees: Path, algorithm: Algorithm, *, create: bool) -> "Store":
        """The store at `root`. A new one (only with `create`) is made with `algorithm`; an old one keeps its own.

        Without `create` nothing is written, and a store that is not there yet is described as it would be made. Who writes
        opens the store first: only bytes that are written after that are certain to be on the disk when `sync` returns.
        Raises `StoreUnusableError` for another format, unreadable directories, or trees on another file system.
        """
        with writing(root):
            if create:
                _make_directories(root, trees)
                _describe_once(root, algorithm)
            description = _description(root)
            if root.exists() and trees.exists() and root.stat().st_dev != trees.stat().st_dev:
                raise StoreUnusableError(
                    f"{root} and {trees} are on different file systems; hard links need one"
                )
            folder = _OpenFolder(root) if root.exists() else None
        if description is None:
            return Store(root, trees, algorithm, None, folder)
        return Store(root, trees, *description, folder)

    def make_directories(self) -> None:
        """Make what is missing of the store's directories, as `open` does with `create`."""
        with writing(self.root):
            _make_directories(self.root, self.trees)

    # Blobs ----------------------------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> str:
        """Where the bytes with this digest are, or would be."""
        return f"{self.root}/blobs/{digest[:2]}/{digest}"

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Is there a blob of this digest with the size it must have?"""
        path = self.blob_path(digest)
        with writing(path):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes

    def stage_file(self, source: Source, staging: str, buffer: memoryview, pace: Pace = unlimited) -> str:
        """Copy a source into `staging` while hashing it again; the path of the copy, not yet durable.

        Raises `SourceChangedError` when the bytes are not those that were hashed before.
        """
        staged = f"{staging}/{source.digest}"
        if self.take_in(source.path, source.signature, staged, buffer, pace) != source.digest:
            raise SourceChangedError(f"File changed while it was read: {printable(source.path)}")
        return staged

    def take_in(
        self,
        path: str,
        signature: Signature,
        staged: str,
        buffer: memoryview,
        pace: Pace = unlimited,
        observe: Sink | None = None,
    ) -> str:
        """Copy a file to `staged` in the pass that hashes it; its digest. The copy is not durable yet."""
        hasher = new_hasher(self.algorithm)
        with writing(staged):
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            write = Writer(descriptor, staged, signature.size_bytes)
            show = abreast if signature.size_bytes >= BIG_BYTES else one_by_one
            sinks: list[Sink] = [hasher.update, write] if observe is None else [hasher.update, observe, write]
            for chunk in read_chunks(path, signature, buffer, pace):
                show(chunk, sinks)
            with writing(staged):
                os.fchmod(descriptor, 0o444)
        finally:
            os.close(descriptor)
        return hasher.hexdigest()

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
                    if self.has_blob(digest, size_bytes):
                        return False
                else:
                    self.admitted.add(digest)
                    return True
                # Another worker may be as far as this one and move the bad blob away first.
                with suppress(FileNotFoundError):
                    self.quarantine(
                        final, f"blob {digest} does not have the {size_bytes} bytes of its content"
                    )

    def replace_blob(self, digest: str, good: str) -> None:
        """Let durable bytes take the name of a bad blob, in one moment: others may be linking it. The bad one goes to
        quarantine; one that is gone already is no hindrance.
        """
        final = self.blob_path(digest)
        with writing(final):
            os.makedirs(os.path.dirname(final), exist_ok=True)
            if os.path.lexists(final):
                self.quarantine(final, "its bytes are not those of its digest", stays=True)
            os.rename(good, final)
        self.admitted.add(digest)

    def check_room(self, size_bytes: int) -> None:
        """Raise `StoreFullError` unless so many bytes fit and a reserve stays for everybody else on the file system.

        Who brings no bytes takes nothing from the reserve.
        """
        with writing(self.root):
            status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        reserve = reserve_of(status.f_blocks * status.f_frsize)
        if size_bytes > max(0, free - reserve):
            raise StoreFullError(
                f"No space left in the store: {self.root}: {size_bytes} bytes are to be stored, {free} are free, "
                f"{reserve} stay in reserve"
            )

    # Trees ----------------------------------------------------------------------------------------------------------

    def tree_path(self, name: str, dataset_digest: str, digits: int = 12) -> Path:
        """Where the tree of a dataset goes: a readable, harmless form of `name`, and identity in the digest."""
        return self.trees / f"{safe_name(name)}-{dataset_digest[:digits]}"

    def build_tree(self, manifest: Manifest, target: str) -> dict[Placement, int]:
        """Make the manifest's tree at `target` out of blobs; how many files were linked or, if need be, copied.

        Directories keep their write bit until `publish`: a directory without it cannot be moved by its owner.
        """
        placed: dict[Placement, int] = {"hard": 0, "reflink": 0, "copy": 0}
        with writing(target):
            os.mkdir(target, 0o755)
            for directory in manifest.directories:
                os.mkdir(f"{target}/{directory.path}", 0o755)
            for file in manifest.files:
                placed[place(self.blob_path(file.digest), f"{target}/{file.path}")] += 1
            for directory in reversed(manifest.directories):
                os.chmod(f"{target}/{directory.path}", 0o555)
        return placed

    def replace_in_tree(self, good: str, path: str, staging: str, *, is_bad_copy: bool = False) -> None:
        """Let a tree's file be these durable bytes; readers see the old file or the new one, whole.

        What was there is a link of a blob that goes to quarantine by itself, unless it is a bad copy, which goes there now.
        A directory that is gone is left to whoever needs its dataset next. Dying here: `path` is the one or the other, its
        directory may be open for writing until somebody does this again.
        """
        directory = os.path.dirname(path)
        draft = f"{staging}/{uuid.uuid4().hex}"
        with writing(path):
            if not is_directory(directory):
                return
            if place(good, draft) != "hard":
                # Rows may refer to this tree already.
                sync_file(draft)
            os.chmod(directory, 0o755)
            try:
                if is_bad_copy and os.path.lexists(path):
                    self.quarantine(path, "this copy's bytes are not those of its digest", stays=True)
                os.rename(draft, path)
            finally:
                os.chmod(directory, 0o555)

    def differences(self, manifest: Manifest, tree: str) -> Iterator[str]:
        """What keeps the tree from being the manifest's, by presence, kind and size; nothing when all is well."""
        for directory in manifest.directories:
            if not is_directory(f"{tree}/{directory.path}"):
                yield f"directory is missing: {printable(directory.path)}"
        for file in manifest.files:
            try:
                status = os.lstat(f"{tree}/{file.path}")
            except OSError as error:
                yield f"{printable(file.path)}: {error.strerror}"
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_size != file.size_bytes:
                yield f"{printable(file.path)}: not a file of {file.size_bytes} bytes"

    def holds(self, manifest: Manifest, tree: str) -> bool:
        """Is the dataset here in full, tree and manifest, so that a project may refer to it without a copy?"""
        return (
            bytes_have_digest(self.manifest_path(manifest.digest), manifest.digest, manifest.algorithm)
            and next(self.differences(manifest, tree), None) is None
        )

    def publish(self, manifest: Manifest, built: str, tree: Path, staging: str) -> None:
        """Make manifest and tree visible under their names, durably. A damaged tree of that name goes to quarantine.

        The caller holds the dataset's claim: nobody else publishes this name. Should it have lost the claim without
        knowing yet, another one has published the tree: a whole one stays where it is.
        """
        with writing(tree):
            self._write_manifest(manifest, staging)
            self._put_in_place(manifest, built, tree)
        self.seal(tree)

    def _put_in_place(self, manifest: Manifest, built: str, tree: Path) -> None:
        # Looked for before it is looked at: what comes to the place after this comes in one piece, and is not to be moved away.
        if os.path.lexists(tree):
            if self.holds(manifest, os.fspath(tree)):
                return
            self.quarantine(os.fspath(tree), "tree is incomplete; a new one takes its place")
        try:
            os.rename(built, tree)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or not self.holds(
                manifest, os.fspath(tree)
            ):
                raise

    def seal(self, tree: Path) -> None:
        """Close a published tree for writing and wait until it is on the disk. Whoever published it may have died before."""
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

    # Staging, quarantine, durability ----------------------------------------------------------------------------------

    @contextmanager
    def staging(self, name: str) -> Iterator[str]:
        """A directory of this attempt's own, removed at the end whatever happens."""
        path = f"{self.root}/staging/{name}"
        with writing(path):
            os.mkdir(path, 0o700)
        try:
            yield path
        finally:
            # What cannot be removed now is left to gc: an error here would hide the one that brought us here.
            with suppress(OSError):
                remove_tree(path)

    def clear_staging(self, job: str, last_attempt: int) -> None:
        """Remove the staging directories of a job's attempts up to this one: they are over. A later one may be at work, and
        whoever calls may have slept meanwhile. Likewise drafts of the store's description.
        """
        folder = f"{self.root}/staging"
        with writing(folder), suppress(FileNotFoundError):
            for name in os.listdir(folder):
                attempt = _attempt_of(job, name)
                if attempt is not None and attempt <= last_attempt:
                    # The attempt may be asleep, wake up right now and remove it, too.
                    with suppress(FileNotFoundError):
                        remove_tree(f"{folder}/{name}")
                elif name.startswith(_DRAFT) and self.store_id is not None:
                    # The store has its description: whoever is still drafting one finds that out.
                    with suppress(FileNotFoundError):
                        os.unlink(f"{folder}/{name}")

    def quarantine(self, path: str, reason: str, *, stays: bool = False) -> None:
        """Move a bad thing out of the way and say beside it why it is there. What `stays` keeps its old name as well, where
        that is possible, for somebody who is about to put a good thing in its place.
        """
        target = f"{self.root}/quarantine/{os.path.basename(path)}-{uuid.uuid4().hex[:8]}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if is_directory(path):
            os.chmod(path, 0o755)
        # The reason comes first: a crash in between must not leave a thing that nobody can explain.
        words = Path(f"{target}.reason.txt")
        words.write_text(f"{printable(path)}\n{reason}\n", encoding="utf-8")
        try:
            if not (stays and has_one_more_name(path, target)):
                os.rename(path, target)
        except OSError:
            words.unlink()
            raise

    def sync(self) -> None:
        """Wait until everything written to the store's file system is on the disk: one call for any number of files.

        Raises `StoreBrokenError` when something could not be written since the store was opened, be it ours or not.
        """
        with writing(self.root):
            sync_file_system(os.fspath(self.root) if self._folder is None else self._folder.descriptor)

    def _write_manifest(self, manifest: Manifest, staging: str) -> None:
        staged = f"{staging}/manifest.json"
        with open(staged, "xb") as file:
            file.writelines(manifest.parts())
            file.flush()
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        os.rename(staged, self.manifest_path(manifest.digest))


def _attempt_of(job: str, name: str) -> int | None:
    """Which attempt of a job a staging directory is named for (`<job>-<attempt>`, perhaps with what it is for); None: no one."""
    number = name.removeprefix(f"{job}-").partition("-")[0]
    return int(number) if name.startswith(f"{job}-") and number.isdecimal() else None


def safe_name(name: str) -> str:
    """A directory name made from any text: only [A-Za-z0-9._-], 80 characters at most, never starting with a dot.

    Nor with `raw_datasets`: Label takes `raw_datasets/raw_datasets` in a path for a mistake (label contract, 6.1).
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")
    return (f"_{safe}" if safe.startswith("raw_datasets") else safe)[:80] or "dataset"


class _OpenFolder:
    """A directory that stays open for as long as this lives.

    The kernel tells of bytes that it could not write back once to each descriptor that was open at that time (syncfs(2)).
    One that is opened later hears nothing if some other worker's sync was told before: it would take lost bytes for durable.
    """

    def __init__(self, path: str | Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        # Opening may have failed.
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def sync_file_system(directory: str | int) -> None:
    """Wait until everything written to the file system that holds a directory is on the disk (syncfs(2)).

    By a descriptor that was open before anything was written, an error in writing back is certain to be told.
    """
    folder = _OpenFolder(directory) if isinstance(directory, str) else None
    if _libc.syncfs(directory if folder is None else folder.descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _make_directories(root: Path, trees: Path) -> None:
    for directory in (trees, root / "blobs", root / "manifests", root / "staging", root / "quarantine"):
        make_directory(directory)


def _describe_once(root: Path, algorithm: Algorithm) -> None:
    """Write store.json if nobody has; of several workers that start at once, one wins."""
    if (root / "store.json").exists():
        return
    description = {"format": FORMAT, "id": str(uuid.uuid4()), "digest": algorithm}
    draft = root / f"staging/{_DRAFT}{uuid.uuid4().hex}.json"
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(json.dumps(description, indent=2) + "\n")
            file.flush()
            # A name without its bytes after a power failure would make the whole store unreadable.
            os.fsync(file.fileno())
        # Somebody was first, and may have removed this draft since.
        with suppress(FileExistsError, FileNotFoundError):
            give_name(os.fspath(draft), f"{root}/store.json")
    finally:
        draft.unlink(missing_ok=True)


def _description(root: Path) -> tuple[Algorithm, str] | None:
    """Digest algorithm and id of the store at `root`; None when there is no store yet."""
    path = root / "store.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreUnusableError(f"{path} cannot be read: {error}") from error
    match document:
        case {"format": format_, "id": str(store_id), "digest": "blake3" | "sha256" as algorithm} if (
            format_ == FORMAT
        ):
            return algorithm, store_id
        case {"format": format_} if format_ != FORMAT:
            raise StoreUnusableError(
                f"{path} says format {format_!r}; this version reads format {FORMAT} only"
            )
        case _:
            raise StoreUnusableError(
                f"{path} is not a description of a store with digests of blake3 or sha256"
            )


def remove_tree(path: str) -> None:
    """Remove what this attempt made; its finished directories are read-only and are opened first.

    Without recursion: `os.walk` and `shutil.rmtree` exhaust Python's stack on a deep tree.
    """
    directories = [path]
    for directory in directories:  # grows while it is read
        os.chmod(directory, 0o700)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                else:
                    os.unlink(entry.path)
    for directory in reversed(directories):
        os.rmdir(directory)
