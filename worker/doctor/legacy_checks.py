"""The legacy roots and the projects in them, as a worker's machine sees them. Reads no file's content.

Each check is one call that may hang with its mount; the caller sees to that. Knows no database, no Celery.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from worker.doctor.protocol import Request
from worker.errors import MigratorError
from worker.findings import Check, Verdict, failed, passed, warned, worst
from worker.legacy.roots import Roots, check_place
from worker.store.digest import printable

MOUNT_IT = "Mount the directory on every worker's machine at the same path, readable for the worker's user."


def root_check(root: str, *, may_be_empty: bool = False) -> Check:
    """Is it there and readable? An empty one may lack its mount; a new DATA_DIR is empty as well."""
    try:
        with os.scandir(root) as entries:
            is_empty = next(entries, None) is None
    except OSError as error:
        return failed(_reason(error), MOUNT_IT)
    if is_empty and not may_be_empty:
        return warned("is empty; is it mounted?", MOUNT_IT)
    return passed("can be read")


def roots_check(roots: Mapping[str, Check]) -> Check:
    """All of LEGACY_ROOTS in one line."""
    verdict = worst(roots.values())
    if verdict is Verdict.PASS:
        return passed(f"{', '.join(map(printable, roots))} can be read")
    troubles = (
        f"{printable(root)} {check.finding}"
        for root, check in roots.items()
        if check.verdict is not Verdict.PASS
    )
    return Check(verdict=verdict, finding="; ".join(troubles), remedy=MOUNT_IT)


def protection_check(request: Request) -> Check:
    """Nothing is ever written to a legacy directory; a mount of its own can make sure of it."""
    try:
        data_device = os.stat(request.data_dir).st_dev
        writable = [
            root
            for root in request.legacy_roots
            if os.stat(root).st_dev != data_device
            and not os.statvfs(root).f_flag & os.ST_RDONLY
            and os.access(root, os.W_OK)
        ]
    except OSError:
        writable = []
    if writable:
        return warned(
            f"{', '.join(map(printable, writable))} is a mount that could be written",
            "Mount it read-only on the workers: nothing needs more.",
        )
    return passed("no separate mount of them is writable")


def why_unreadable(path: str, roots: Roots) -> str | None:
    """What keeps a worker from reading a project's directory; None when nothing does."""
    try:
        check_place(path, os.path.realpath(path), roots)
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return "is not a directory"
        with os.scandir(path) as entries:
            next(entries, None)
    except MigratorError as error:
        return str(error)
    except OSError as error:
        return _reason(error)
    return None


def roots_of(request: Request) -> Roots:
    """Where projects may lie, as every job sees it."""
    return Roots(
        allowed=tuple(Path(root) for root in request.legacy_roots),
        store=(Path(request.datasets_dir), Path(request.store_dir)),
    )


def _reason(error: OSError) -> str:
    return "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
