"""DATA_DIR and the store in it, as a worker's machine sees them: what works, what is left over, what is free.

Each check is one call that may hang with its mount; the caller sees to that. Knows no database, no Celery.
"""

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.doctor.protocol import Request
from worker.errors import MigratorError, StoreUnusableError
from worker.findings import Check, failed, passed, warned
from worker.store.digest import printable
from worker.store.files import NO_LINKS
from worker.store.removal import BUILDING, remove_tree
from worker.store.store import Store
from worker.store.syscalls import SYNCFS_TELLS_ERRORS, sync_file_system
from worker.units import human_bytes, reserve_of

OLD_S = 60.0
"""A younger entry of staging may be of a job that has just ended."""

_MARK = ".label-doctor"
_PROBE = "doctor-"
_MOST_NAMES = 1000
_FEW_INODES = 10_000


# The store --------------------------------------------------------------------------------------------------


def check_data_dir(request: Request) -> dict[str, Check]:
    """Do with a small file what is done for a dataset: create, write, flush, rename, link, move."""
    place = printable(request.data_dir)
    if not os.path.isdir(request.data_dir):
        remedy = "Mount DATA_DIR on every worker's machine, at the same path."
        return {"data directory": failed(f"{place} is not a directory", remedy)}
    try:
        with probe_folder(request) as folder:
            _write(f"{folder}/draft")
            os.rename(f"{folder}/draft", f"{folder}/file")
            return {
                "data directory": passed(f"{place} can be written"),
                "hard links": _link_check(folder),
                "one file system": _move_check(request, f"{folder}/file"),
            }
    except OSError as error:
        where = printable(error.filename or request.data_dir)
        remedy = "Let the worker's user write to DATA_DIR, dataset_store and raw_datasets."
        return {"data directory": failed(f"cannot write there: {where}: {error.strerror}", remedy)}


def _write(path: str) -> None:
    with open(path, "xb") as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())


def _link_check(folder: str) -> Check:
    try:
        os.link(f"{folder}/file", f"{folder}/link")
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return warned(
            "the file system has none: every dataset takes its space again",
            "Put DATA_DIR on a file system with hard links, such as ext4, XFS or NFS.",
        )
    return passed("work")


def _move_check(request: Request, file: str) -> Check:
    """Rename it into the trees, as a dataset is. Two mounts of one device refuse that, too."""
    trees = request.datasets_dir if os.path.isdir(request.datasets_dir) else request.data_dir
    target = f"{trees}/{_MARK}-{uuid.uuid4().hex}"
    try:
        os.rename(file, target)
    except OSError as error:
        return failed(
            f"{printable(trees)}: a file of the store cannot be moved there: {error.strerror}",
            "raw_datasets and dataset_store must be on one mount of one file system, both writable for the worker's user.",
        )
    os.unlink(target)
    return passed("raw_datasets and dataset_store are on one")


@contextmanager
def probe_folder(request: Request) -> Iterator[str]:
    """A directory where staging is or would be, removed at the end."""
    wanted = (f"{request.store_dir}/staging", request.store_dir, request.data_dir)
    parent = next(place for place in wanted if os.path.isdir(place))
    # Hidden where people look; in staging it is named like everything else there.
    folder = f"{parent}/{_PROBE if parent.endswith('/staging') else _MARK + '-'}{uuid.uuid4().hex}"
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        with suppress(OSError):
            remove_tree(folder)


def check_flush(request: Request) -> dict[str, Check]:
    """Flush the store's file system as a migration does: slow on a busy disk, an error on a failing one.

    No check at all where DATA_DIR is missing, which has a check of its own.
    """
    if not os.path.isdir(request.data_dir):
        return {}
    begin = time.monotonic()
    try:
        sync_file_system(_where_the_store_is(request))
    except OSError as error:
        remedy = "Look at the kernel's messages: the disk loses what is written."
        return {"flush to disk": failed(f"syncfs: {error.strerror}", remedy)}
    return {"flush to disk": flush_check(time.monotonic() - begin)}


def flush_check(took_s: float) -> Check:
    """How long a flush took, and whether this kernel would have reported an error."""
    finding = f"syncfs took {took_s:.2g} s"
    if SYNCFS_TELLS_ERRORS:
        return passed(finding)
    return warned(
        f"{finding}; this kernel ({os.uname().release}) reports no errors by it, so each file is flushed by itself",
        "Nothing is lost, but much is slower; run workers on Linux 5.8 or newer.",
    )


def check_store(request: Request) -> tuple[Check, str | None]:
    """Open the store as every job does; with the store's id if there is one."""
    try:
        store = Store.open(
            Path(request.store_dir), Path(request.datasets_dir), request.store_digest, create=False
        )
    except StoreUnusableError as error:
        # The error's own remedy is to call the doctor.
        return failed(str(error), "Restore store.json, or name another DATA_DIR."), None
    except MigratorError as error:
        return failed(str(error), error.remedy), None
    if store.store_id is None:
        return passed("none yet; the first migration makes it"), None
    if store.algorithm != request.store_digest:
        return warned(
            f"it was made with {store.algorithm} and stays so; STORE_DIGEST says {request.store_digest}",
            f"Set STORE_DIGEST={store.algorithm}.",
        ), store.store_id
    return passed(f"{store.store_id[:8]}, {store.algorithm}"), store.store_id


def staging_names(request: Request) -> tuple[str, ...]:
    """What has been in the store's staging for a minute, as far as it can be listed."""
    return _old_ones(f"{request.store_dir}/staging", "")


def restoring_names(request: Request) -> tuple[str, ...]:
    """What restores have left, or are building, in legacy roots and beside the sampled projects."""
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


def check_space(request: Request) -> dict[str, Check]:
    """Bytes and inodes that are free for the store."""
    try:
        status = os.statvfs(_where_the_store_is(request))
    except OSError as error:
        finding = f"cannot be determined: {error.strerror}"
        return {"free space": failed(finding, "Mount DATA_DIR on every worker.")}
    return {"free space": space_check(status), "inodes": inodes_check(status)}


def space_check(status: os.statvfs_result) -> Check:
    """Is there more than the reserve that the store leaves to other programs?"""
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    reserve = reserve_of(size)
    finding = f"{human_bytes(free)} of {human_bytes(size)} are free, {human_bytes(reserve)} stay in reserve"
    if free <= reserve:
        return failed(finding, "Make room on the store's file system: it takes nothing now.")
    if free < 2 * reserve:
        return warned(finding, "Make room on the store's file system before it is full.")
    return passed(finding)


def inodes_check(status: os.statvfs_result) -> Check:
    """Each new content takes an inode. Some file systems make them as they are needed and report none."""
    if not status.f_files:
        return passed("as many as there is space")
    finding = f"{status.f_favail:,} of {status.f_files:,} are free"
    if not status.f_favail:
        return failed(finding, "Remove files from the store's file system: it takes no new one.")
    if status.f_favail < _FEW_INODES:
        return warned(finding, "Remove files from the store's file system before it takes no new one.")
    return passed(finding)


def _where_the_store_is(request: Request) -> str:
    return request.store_dir if os.path.isdir(request.store_dir) else request.data_dir


# Marks ------------------------------------------------------------------------------------------------------


def new_mark(request: Request) -> str:
    """The path at which a worker leaves its mark."""
    return f"{request.data_dir}/{_MARK}-{request.token}-{uuid.uuid4().hex}"


def leave_mark(mark: str) -> bool:
    """Make an empty file that every worker must see whose DATA_DIR is the same directory."""
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    return True


def marks_seen(request: Request, names: Iterable[str]) -> list[str]:
    """Those of the marks that can be seen here, of whichever worker. Names that are no marks of this call are
    not looked for: they came through the broker.

    Each by its name: a network file system's listing may be half a minute old, an unasked name is not.
    """
    ours = re.compile(rf"{re.escape(_MARK)}-{request.token}-[0-9a-f]{{32}}")
    return [name for name in names if ours.fullmatch(name) and os.path.lexists(f"{request.data_dir}/{name}")]
