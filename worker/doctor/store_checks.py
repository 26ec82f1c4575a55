"""DATA_DIR and the store in it, as the doctor looks at them from a worker's machine: what works there.

Each look is one call that may hang with its mount; who calls sees to that. Knows no database, no process and no Celery.
"""

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import MigratorError, StoreUnusableError
from worker.findings import Check, failed, passed, warned
from worker.store.digest import Algorithm, printable
from worker.store.files import NO_LINKS
from worker.store.removal import BUILDING, remove_tree
from worker.store.store import Store
from worker.store.syscalls import SYNCFS_TELLS_ERRORS, sync_file_system
from worker.units import human_bytes, reserve_of

OLD_S = 60.0
"""What is in staging for no longer may be a job's that has just ended."""

_MARK = ".label-doctor"
_PROBE = "doctor-"
_MOST_NAMES = 1000
_FEW_INODES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to look at. `token` names one call of the doctor; `projects` are paths by project id."""

    token: str
    data_dir: str
    store_digest: Algorithm
    legacy_roots: tuple[str, ...]
    projects: Mapping[int, str]

    @property
    def datasets_dir(self) -> str:
        """Where trees are."""
        return f"{self.data_dir}/raw_datasets"

    @property
    def store_dir(self) -> str:
        """Where blobs are."""
        return f"{self.data_dir}/dataset_store"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "token": self.token,
            "data_dir": self.data_dir,
            "store_digest": self.store_digest,
            "legacy_roots": list(self.legacy_roots),
            "projects": list(self.projects.items()),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Request":
        """Back from JSON values."""
        return Request(
            token=document["token"],
            data_dir=document["data_dir"],
            store_digest=document["store_digest"],
            legacy_roots=tuple(document["legacy_roots"]),
            projects=dict(document["projects"]),
        )


# The store --------------------------------------------------------------------------------------------------------


def try_store(request: Request) -> list[Check]:
    """Do on a small file what is done for every dataset: make, write, flush, rename, link, link into the trees."""
    name, place = "data directory", printable(request.data_dir)
    if not os.path.isdir(request.data_dir):
        return [
            failed(
                name,
                f"{place} is not a directory",
                "Mount DATA_DIR on every worker's machine, at the same path.",
            )
        ]
    try:
        with _probe_folder(request) as folder:
            _write(f"{folder}/draft")
            os.rename(f"{folder}/draft", f"{folder}/file")
            links = _try_link(folder)
            one = _try_link_into_trees(request, f"{folder}/file")
    except OSError as error:
        where = printable(error.filename or request.data_dir)
        return [
            failed(
                name,
                f"cannot write there: {where}: {error.strerror}",
                "Let the worker's user write to DATA_DIR, dataset_store and raw_datasets.",
            )
        ]
    return [passed(name, f"{place} can be written"), links, one]


def _write(path: str) -> None:
    with open(path, "xb") as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())


def _try_link(folder: str) -> Check:
    name = "hard links"
    try:
        os.link(f"{folder}/file", f"{folder}/link")
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return warned(
            name,
            "the file system has none: every dataset takes its space again",
            "Put DATA_DIR on a file system with hard links, such as ext4, XFS or NFS.",
        )
    return passed(name, "work")


def _try_link_into_trees(request: Request, file: str) -> Check:
    """Rename it into the trees as a dataset is. Two mounts of one file system have one device and still refuse that."""
    name = "one file system"
    trees = request.datasets_dir if os.path.isdir(request.datasets_dir) else request.data_dir
    target = f"{trees}/{_MARK}-{uuid.uuid4().hex}"
    try:
        os.rename(file, target)
    except OSError as error:
        return failed(
            name,
            f"{printable(trees)}: a file of the store cannot be moved there: {error.strerror}",
            "raw_datasets and dataset_store must be on one mount of one file system, both writable for the worker's user.",
        )
    os.unlink(target)
    return passed(name, "raw_datasets and dataset_store are on one")


@contextmanager
def _probe_folder(request: Request) -> Iterator[str]:
    """A directory where staging is or would be, gone at the end."""
    wanted = (f"{request.store_dir}/staging", request.store_dir, request.data_dir)
    beside = next(place for place in wanted if os.path.isdir(place))
    # With a dot where people look; in staging it is among its like.
    folder = f"{beside}/{_PROBE if beside.endswith('/staging') else _MARK + '-'}{uuid.uuid4().hex}"
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        with suppress(OSError):
            remove_tree(folder)


def try_sync(request: Request) -> list[Check]:
    """Wait for the file system of the store as a migration does: seconds on a busy disk, and an error on a failing one."""
    name = "flush to disk"
    if not os.path.isdir(request.data_dir):
        return []
    begin = time.monotonic()
    try:
        sync_file_system(_where_the_store_is(request))
    except OSError as error:
        return [
            failed(
                name,
                f"syncfs: {error.strerror}",
                "Look at the kernel's messages: the disk loses what is written.",
            )
        ]
    words = f"syncfs took {time.monotonic() - begin:.2g} s"
    if not SYNCFS_TELLS_ERRORS:
        return [
            warned(
                name,
                f"{words}; this kernel ({os.uname().release}) reports no errors by it, so each file is flushed by itself",
                "Nothing is lost, but much is slower; run workers on Linux 5.8 or newer.",
            )
        ]
    return [passed(name, words)]


def open_store(request: Request) -> tuple[Check, str | None]:
    """Read store.json and its directories as every job does; the store's id."""
    name = "store"
    try:
        store = Store.open(
            Path(request.store_dir), Path(request.datasets_dir), request.store_digest, create=False
        )
    except MigratorError as error:
        # The error's own remedy is to call the doctor.
        remedy = (
            "Restore store.json, or name another DATA_DIR."
            if isinstance(error, StoreUnusableError)
            else error.remedy
        )
        return failed(name, str(error), remedy), None
    if store.store_id is None:
        return passed(name, "none yet; the first migration makes it"), None
    if store.algorithm != request.store_digest:
        return warned(
            name,
            f"it was made with {store.algorithm} and stays so; STORE_DIGEST says {request.store_digest}",
            f"Set STORE_DIGEST={store.algorithm}.",
        ), store.store_id
    return passed(name, f"{store.store_id[:8]}, {store.algorithm}"), store.store_id


def staging_names(request: Request) -> tuple[str, ...]:
    """What has been in the store's staging for a while, as far as it can be listed. Short jobs come and go meanwhile."""
    return _old_ones(f"{request.store_dir}/staging", "")


def restoring_names(request: Request) -> tuple[str, ...]:
    """What restores have left beside legacy directories, or are building there: in the roots, and beside the sampled projects."""
    beside = {
        *request.legacy_roots,
        *(os.path.dirname(path.rstrip("/")) for path in request.projects.values()),
    }
    return tuple(
        f"{printable(folder)}/{name}" for folder in sorted(beside) for name in _old_ones(folder, BUILDING)
    )


def _old_ones(folder: str, prefix: str) -> tuple[str, ...]:
    before = time.time() - OLD_S
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(prefix))
    except OSError:
        return ()
    old: list[str] = []
    for name in names[:_MOST_NAMES]:
        with suppress(OSError):
            if os.lstat(f"{folder}/{name}").st_mtime < before:
                old.append(printable(name))
    return tuple(old)


def room(request: Request) -> list[Check]:
    """Bytes and inodes that are free for the store."""
    try:
        status = os.statvfs(_where_the_store_is(request))
    except OSError as error:
        return [failed("free space", f"cannot be told: {error.strerror}", "Mount DATA_DIR on every worker.")]
    return [space_check(status), inodes_check(status)]


def space_check(status: os.statvfs_result) -> Check:
    """Is there more than the reserve that the store leaves to everybody else?"""
    name = "free space"
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    reserve = reserve_of(size)
    words = f"{human_bytes(free)} of {human_bytes(size)} are free, {human_bytes(reserve)} stay in reserve"
    if free <= reserve:
        return failed(name, words, "Make room on the store's file system: it takes nothing now.")
    if free < 2 * reserve:
        return warned(name, words, "Make room on the store's file system before it is full.")
    return passed(name, words)


def inodes_check(status: os.statvfs_result) -> Check:
    """Each new content takes an inode. Some file systems make them as they are needed and tell of none."""
    name = "inodes"
    if not status.f_files:
        return passed(name, "as many as there is space")
    words = f"{status.f_favail:,} of {status.f_files:,} are free"
    if not status.f_favail:
        return failed(name, words, "Remove files from the store's file system: it takes no new one.")
    if status.f_favail < _FEW_INODES:
        return warned(name, words, "Remove files from the store's file system before it takes no new one.")
    return passed(name, words)


def _where_the_store_is(request: Request) -> str:
    return request.store_dir if os.path.isdir(request.store_dir) else request.data_dir


# Marks ------------------------------------------------------------------------------------------------------------


def new_mark(request: Request) -> str:
    """Where a worker leaves its mark."""
    return f"{request.data_dir}/{_MARK}-{request.token}-{uuid.uuid4().hex}"


def leave_mark(mark: str) -> bool:
    """Make an empty file that every worker must see whose DATA_DIR is the same directory."""
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    return True


def marks_seen(request: Request, names: Iterable[str]) -> list[str]:
    """Those of the marks that can be seen here, whoever made them. Names that are no marks of this call are not looked for:
    they came through the broker.

    Each by its name: what a network file system lists may be half a minute old, and a name that was never asked for is not.
    """
    ours = re.compile(rf"{re.escape(_MARK)}-{request.token}-[0-9a-f]{{32}}")
    return [name for name in names if ours.fullmatch(name) and os.path.lexists(f"{request.data_dir}/{name}")]
