"""Would a migration on this machine share the blocks of legacy files with the store, or copy them? Found out
by trying.

The check may hang with a mount; the caller sees to that. Knows no database, no Celery.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from worker.doctor.legacy_checks import roots_of, why_unreadable
from worker.doctor.protocol import Request
from worker.doctor.store_checks import probe_folder
from worker.errors import MigratorError
from worker.findings import Check, passed
from worker.legacy.roots import is_within
from worker.store.cloning import CLONE_BYTES, Cloner
from worker.store.digest import Signature, opened, printable

_MOST_ENTRIES = 1000
"""So many entries of a project are looked at for a file to try with."""


def sharing_check(request: Request) -> Check | None:
    """Clone one file of each legacy root that has a sampled project; None where none can be tried."""
    tried: dict[str, bool] = {}
    roots = roots_of(request)
    for path in request.projects.values():
        root = next((one for one in request.legacy_roots if is_within(path, one)), None)
        if root is None or root in tried or why_unreadable(path, roots) is not None:
            continue
        file = next(_files_worth_cloning(path), None)
        if file is not None:
            with suppress(OSError, MigratorError):
                tried[root] = _can_share(request, *file)
    if not tried:
        return None
    shared, copied = (
        [printable(root) for root, can in tried.items() if can is wanted] for wanted in (True, False)
    )
    return passed(
        "; ".join(
            [
                *([f"files of {', '.join(shared)} are stored without taking room again"] if shared else []),
                *([f"files of {', '.join(copied)} are copied"] if copied else []),
            ]
        )
    )


def _files_worth_cloning(project: str) -> Iterator[tuple[str, Signature]]:
    entries = (
        f"{folder}/{name}" for folder, _, names in os.walk(os.path.realpath(project)) for name in names
    )
    for path in islice(entries, _MOST_ENTRIES):
        with suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size >= CLONE_BYTES:
                yield path, Signature.of(status)


def _can_share(request: Request, path: str, signature: Signature) -> bool:
    with probe_folder(request) as folder, opened(path, signature) as source:
        target = os.open(f"{folder}/clone", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return Cloner().clone(source, target)
        finally:
            os.close(target)
