"""What a migration's report says of room on disk: honestly, nothing is freed by it."""

import os
from collections.abc import Mapping
from typing import Any

from producer.report.facts import RunFacts
from worker.messages import Outcome


class Space:
    """Allocated bytes: of the migrated projects' own directories, each once whoever shares it; of what the
    store took for them; of their blocks that are the store's, too; what a reclaim of these directories,
    and its purge, would give back.

    A dry run stores nothing: there it is the bytes that would be new, as if none of them could be shared.
    """

    def __init__(self, run: RunFacts, _new_list: object) -> None:
        self._run = run
        self._sizes: dict[bytes, int] = {}
        self._store = self._shared = 0

    def add(self, outcome: Outcome) -> None:
        """Count a migrated project; several may have the same directory."""
        if not self._run.succeeded(outcome):
            return
        path = packed(outcome.original_path or "")
        self._sizes[path] = max(outcome.disk.legacy, self._sizes.get(path, 0))
        self._store += outcome.bytes.stored if self._run.dry_run else outcome.disk.store
        self._shared += outcome.disk.shared

    def keys(self) -> dict[str, Any]:
        """The key `space`."""
        legacy = once(self._sizes)
        return {
            "space": {
                "legacy": legacy,
                "store": self._store,
                "shared": self._shared,
                "freed": 0,
                "reclaimable": max(0, legacy - self._shared),
            }
        }


def packed(path: str) -> bytes:
    """A directory's normal path as bytes, which take half the room of text: one of each project is kept."""
    return os.path.normpath(path).encode("utf-8", "surrogatepass")


def once(sizes: Mapping[bytes, int]) -> int:
    """The room of these directories together: one inside another is part of that."""
    return sum(size for path, size in sizes.items() if not _is_inside_another(path, sizes))


def _is_inside_another(path: bytes, paths: Mapping[bytes, int]) -> bool:
    above = os.path.dirname(path)
    while len(above) > 1:
        if above in paths:
            return True
        above = os.path.dirname(above)
    return False
