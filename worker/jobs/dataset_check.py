"""What is wrong with a stored dataset: its tree against its manifest, and the bytes of blobs and copies that
are due, each read once a run whoever shares it. Repairs nothing.
"""

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

from worker.db import checks, verifications
from worker.db.engine import autocommit
from worker.db.verifications import Due
from worker.jobs.attempt import Attempt
from worker.jobs.judging import Identity, judge
from worker.jobs.repair import Tree
from worker.legacy.parallel import for_each
from worker.store.inspection import Fault, Found, What, inspect
from worker.store.manifest import Manifest

_PORTION = 10_000
"""So many files of a dataset are asked for and read together."""

_NOTE_FILES, _NOTE_BYTES, _NOTE_S = 1_000, 512 << 20, 5.0
"""After so many files, bytes or seconds it is noted what was read: so much a worker that dies leaves to be
read again.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A stored thing that is not as it should be. `below` is its path in the tree, None for a blob or a
    manifest; `digest` what its bytes should have, None for what should not be there and for directories.
    """

    path: str
    what: What
    digest: str | None = None
    size_bytes: int = 0
    below: str | None = None
    inode: int | None = None

    @property
    def is_blob(self) -> bool:
        """Not a part of the tree."""
        return self.below is None and self.digest is not None


@dataclass(kw_only=True)
class Findings:
    """What was found so far: files and bytes that were read, `bytes_total` with those that are not due, and
    what is `bad`. `own` are the blobs that no other job of the run reads, `left_to` the datasets whose jobs
    read the others.
    """

    files: int = 0
    bytes_read: int = 0
    bytes_total: int = 0
    bad: list[Bad] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    left_to: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file that may have to be read: a blob, or a copy in the tree."""

    key: str
    """What its checks are kept under."""
    path: str
    digest: str
    size_bytes: int
    identity: Identity | None
    below: str | None = None
    is_suspect: bool = False
    """Gone, or of another size: whatever is due."""


class DatasetCheck:
    """Checks one dataset for a job; what is found is gathered in `findings`."""

    def __init__(self, attempt: Attempt, dataset_id: int, due: Due, *, alone: bool = False) -> None:
        """With `alone` nothing that is due is left to another job of the run: the answer is needed now."""
        self.findings = Findings()
        self._alone = alone
        self._attempt = attempt
        self._dataset_id = dataset_id
        self._due = due
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def check_tree(self, manifest: Manifest, tree: Tree) -> None:
        """Every entry of the tree, and the bytes of every blob and copy that is due."""
        found = inspect(manifest, os.fspath(tree.path), self._attempt.pace)
        while portion := list(islice(found, _PORTION)):
            files = [one.file for one in portion if one.file is not None]
            blobs = self._blobs((file.digest, file.size_bytes) for file in files)
            here = [one for one in portion if isinstance(one, Found)]
            inodes = {digest: self._inode(digest, blobs) for digest in {file.digest for file in files}}
            faults = [one for one in portion if isinstance(one, Fault)]
            self.findings.bad += [
                _bad(tree, one)
                for one in faults
                # A link of a blob that has the wrong size is the blob's matter.
                if one.file is None or one.inode is None or one.inode != inodes[one.file.digest]
            ]
            copies = [_copy(tree, one) for one in here if one.inode != inodes[one.file.digest]]
            self._read([*blobs.values(), *copies])
        if any(one.what is What.MISSING and one.digest is None for one in self.findings.bad):
            # Of a directory that is missing, what should be in it.
            self.check_blobs({file.digest: file.size_bytes for file in manifest.files})

    def check_blobs(self, sizes: Mapping[str, int]) -> None:
        """The bytes of blobs by digest, of a dataset whose manifest is damaged."""
        rest = iter(sorted(sizes.items()))
        while portion := list(islice(rest, _PORTION)):
            self._read(list(self._blobs(portion).values()))

    def check_again(self, bad: Sequence[Bad], manifest: Manifest | None, tree: Tree) -> list[Bad]:
        """What of this is still bad, after a repair; and what came to light by it, such as files that a
        directory should have that was missing.
        """
        still = [
            one
            for one in bad
            if one.digest is not None
            and judge(self._attempt, one.path, one.digest, one.size_bytes).what is not None
        ]
        if manifest is None:
            return still
        faults = (one for one in inspect(manifest, os.fspath(tree.path), self._attempt.pace))
        known = {one.path for one in still}
        found = [_bad(tree, one) for one in faults if isinstance(one, Fault)]
        return still + [one for one in found if one.path not in known]

    def note_right(self, files: Iterable[Bad]) -> None:
        """These were just seen to be right: they are not due any more."""
        with _Notes(self._attempt) as notes:
            for one in files:
                if one.digest is not None and (status := _status(one.path)) is not None:
                    is_copy = one.below is not None and status.st_ino != self._inode(one.digest, {})
                    key = f"{one.digest}:{status.st_ino}" if is_copy else one.digest
                    notes.add(key, (status.st_ino, status.st_mtime_ns), one.size_bytes)

    def _blobs(self, sizes: Iterable[tuple[str, int]]) -> dict[str, _File]:
        """Those of these blobs that were not looked at yet."""
        found: dict[str, _File] = {}
        for digest, size_bytes in sizes:
            if digest not in self._seen:
                self._attempt.pace(0)
                self._seen.add(digest)
                found[digest] = self._blob(digest, size_bytes)
        return found

    def _blob(self, digest: str, size_bytes: int) -> _File:
        path = self._attempt.store.blob_path(digest)
        status = _status(path)
        return _File(
            key=digest,
            path=path,
            digest=digest,
            size_bytes=size_bytes,
            identity=(status.st_ino, status.st_mtime_ns) if status is not None else None,
            is_suspect=status is None or status.st_size != size_bytes,
        )

    def _inode(self, digest: str, blobs: Mapping[str, _File]) -> int | None:
        blob = blobs.get(digest) or self._blob(digest, 0)
        return blob.identity[0] if blob.identity is not None else None

    def _read(self, files: Sequence[_File]) -> None:
        """Read those of these files that are due and that no other job of the run reads."""
        by_key = {file.key: file for file in files}
        with autocommit(self._attempt.engine) as conn:
            known = verifications.not_due(conn, by_key, self._due, since=self._attempt.lease.run_created_at)
        due = {
            key: file for key, file in by_key.items() if file.is_suspect or known.get(key) != file.identity
        }
        mine, others = frozenset(due), dict[str, int]()
        if not self._alone:
            with self._attempt.engine.begin() as conn:
                mine, others = verifications.read_by(
                    conn, self._attempt.run_id, self._dataset_id, due.keys(), by_key.keys()
                )
        self.findings.left_to |= set(others.values())
        own = [file for key, file in by_key.items() if key not in others]
        self.findings.bytes_total += sum(file.size_bytes for file in own)
        self.findings.own |= {file.digest for file in own if file.below is None}
        chosen = sorted((due[key] for key in mine), key=lambda file: -file.size_bytes)
        with _Notes(self._attempt) as notes:

            def one(file: _File) -> None:
                self._judge(file, notes)

            for_each(self._attempt.tools.threads, one, chosen, sum(file.size_bytes for file in chosen))

    def _judge(self, file: _File, notes: "_Notes") -> None:
        judged = judge(self._attempt, file.path, file.digest, file.size_bytes)
        with self._lock:
            self.findings.files += 1
            self.findings.bytes_read += file.size_bytes
            if judged.what is not None:
                self.findings.bad.append(
                    Bad(
                        path=file.path,
                        what=judged.what,
                        digest=file.digest,
                        size_bytes=file.size_bytes,
                        below=file.below,
                        inode=judged.identity[0] if judged.identity is not None else None,
                    )
                )
        if judged.what is None and judged.identity is not None:
            copy = f"{file.digest}:{judged.identity[0]}"
            key = file.digest if file.below is None else copy
            notes.add(key, judged.identity, file.size_bytes)
        self._attempt.heartbeat.advance(1, file.size_bytes)


class _Notes:
    """Notes now and then which files were just seen to be right; at the end, and at an error, the rest."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._lock = threading.Lock()
        self._waiting: dict[str, Identity] = {}
        self._size_bytes = 0
        self._noted_at = time.monotonic()

    def add(self, key: str, identity: Identity, size_bytes: int) -> None:
        """The file whose checks have this key was right when it was this one. From any thread."""
        with self._lock:
            self._waiting[key] = identity
            self._size_bytes += size_bytes
            late = time.monotonic() - self._noted_at > _NOTE_S
            if late or len(self._waiting) >= _NOTE_FILES or self._size_bytes >= _NOTE_BYTES:
                self._write()

    def _write(self) -> None:
        with autocommit(self._attempt.engine) as conn:
            checks.record(conn, self._waiting)
        self._waiting, self._size_bytes, self._noted_at = {}, 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        # A process that has to end at once (SystemExit) does not wait for the database.
        if kind is None or issubclass(kind, Exception):
            with self._lock:
                self._write()


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _copy(tree: Tree, one: Found) -> _File:
    return _File(
        key=f"{one.file.digest}:{one.inode}",
        path=f"{tree.path}/{one.file.path}",
        digest=one.file.digest,
        size_bytes=one.file.size_bytes,
        identity=(one.inode, one.mtime_ns),
        below=one.file.path,
    )


def _bad(tree: Tree, fault: Fault) -> Bad:
    file = fault.file
    return Bad(
        path=f"{tree.path}/{fault.path}" if fault.path else os.fspath(tree.path),
        what=fault.what,
        digest=file.digest if file is not None else None,
        size_bytes=file.size_bytes if file is not None else 0,
        below=fault.path,
        inode=fault.inode,
    )
