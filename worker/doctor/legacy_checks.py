"""The legacy roots and the projects in them, as the doctor looks at them from a worker's machine. Reads no file's content.

Each look is one call that may hang with its mount; who calls sees to that. Knows no database and no Celery.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from worker.doctor.store_checks import Request
from worker.errors import MigratorError
from worker.findings import Check, Verdict, failed, passed, warned
from worker.legacy.roots import Roots, check_place
from worker.store.digest import printable


def look_at_root(root: str, *, may_be_empty: bool = False) -> tuple[Verdict, str | None]:
    """Is it there and readable? An empty one may be a mount point without its mount; a new DATA_DIR is empty as well."""
    try:
        with os.scandir(root) as entries:
            empty = next(entries, None) is None
    except OSError as error:
        return Verdict.FAIL, _reason(error)
    if empty and not may_be_empty:
        return Verdict.WARN, "is empty; is it mounted?"
    return Verdict.PASS, None


def roots_check(roots: Mapping[str, tuple[Verdict, str | None]]) -> Check:
    """All of LEGACY_ROOTS in one line."""
    name = "legacy roots"
    troubled = {root: trouble for root, (_, trouble) in roots.items() if trouble}
    if not troubled:
        return passed(name, f"{', '.join(map(printable, roots))} can be read")
    words = "; ".join(f"{printable(root)} {trouble}" for root, trouble in troubled.items())
    remedy = "Mount the directory on every worker's machine at the same path, readable for the worker's user."
    if any(verdict is Verdict.FAIL for verdict, _ in roots.values()):
        return failed(name, words, remedy)
    return warned(name, words, remedy)


def read_only_check(request: Request) -> list[Check]:
    """Nothing is ever written to a legacy directory; where it has a mount of its own, the mount can see to that."""
    name = "legacy roots protected"
    try:
        home = os.stat(request.data_dir).st_dev
        writable = [
            root
            for root in request.legacy_roots
            if os.stat(root).st_dev != home
            and not os.statvfs(root).f_flag & os.ST_RDONLY
            and os.access(root, os.W_OK)
        ]
    except OSError:
        writable = []
    if not writable:
        return [passed(name, "no separate mount of them is writable")]
    return [
        warned(
            name,
            f"{', '.join(map(printable, writable))} is a mount that could be written",
            "Mount it read-only on the workers: nothing needs more.",
        )
    ]


def look_at_project(path: str, roots: Roots) -> str | None:
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
