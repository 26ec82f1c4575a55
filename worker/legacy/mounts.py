"""Legacy roots that lack on this machine: a mount point without its mount is no project's fault.

Knows no job and no database. What it asks for are names of directories, once a root.
"""

import os
from dataclasses import dataclass, field

from worker.legacy.roots import Roots
from worker.runtime import log
from worker.store.digest import printable

_log = log.get(__name__)


@dataclass
class Lacking:
    """The roots that a process has found to be absent or empty, and why. Checked before each job."""

    _why: dict[str, str] = field(default_factory=dict)

    def of(self, path: str, roots: Roots) -> str | None:
        """The root that `path` lies in, if it lacks here; remembered from now on."""
        lack = lack_of(path, roots)
        if lack is None:
            return None
        self._note(*lack)
        return lack[0]

    def now(self) -> list[str]:
        """Those that lack still."""
        for root in list(self._why):
            if (why := _trouble(root)) is None:
                del self._why[root]
                _log.info("root_is_back", root=printable(root))
            else:
                self._why[root] = why
        return list(self._why)

    def words(self, root: str) -> str:
        """What is wrong with one, for people."""
        return lack_words(root, self._why.get(root, "lacks"))

    def _note(self, root: str, why: str) -> None:
        if root not in self._why:
            _log.error("root_lacks", root=printable(root), because=why)
        self._why[root] = why


def lack_of(path: str, roots: Roots) -> tuple[str, str] | None:
    """The root that `path` lies in, and what is wrong with it, if it lacks here."""
    root = _root_of(path, roots)
    return (root, why) if root is not None and (why := _trouble(root)) is not None else None


def lack_words(root: str, why: str) -> str:
    """What is wrong with a root, for people."""
    return f"{printable(root)} of LEGACY_ROOTS {why} there; is it mounted?"


def _root_of(path: str, roots: Roots) -> str | None:
    """The allowed root that a path is in, by its text or by what it leads to; the innermost one."""
    spellings = (os.path.normpath(path), os.path.realpath(path))
    found = [
        str(root)
        for root, real in zip(roots.allowed, roots.real_allowed, strict=True)
        if any(
            one == base or one.startswith(f"{base.rstrip('/')}/")
            for one in spellings
            for base in (str(root), real)
        )
    ]
    return max(found, key=len, default=None)


def _trouble(root: str) -> str | None:
    """Why nothing can be read below a root; None when there is something."""
    try:
        with os.scandir(root) as entries:
            return None if next(entries, None) is not None else "is empty"
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
