"""What a migration's report says of room on disk: honestly, nothing is freed by it."""

import os
from collections.abc import Sequence
from typing import Any

from producer.report.facts import RunFacts
from worker.messages import Outcome


def part(run: RunFacts, ordered: Sequence[Outcome]) -> dict[str, Any]:
    """Allocated bytes: of the migrated projects' own directories, each once whoever shares it; of what the
    store took for them; of their blocks that are the store's, too; what a reclaim of these directories,
    and its purge, would give back.

    A dry run stores nothing: there it is the bytes that would be new, as if none of them could be shared.
    """
    migrated = [outcome for outcome in ordered if run.succeeded(outcome)]
    legacy = _outermost(migrated)
    store = sum(o.bytes.stored if run.dry_run else o.disk.store for o in migrated)
    shared = sum(outcome.disk.shared for outcome in migrated)
    return {
        "space": {
            "legacy": legacy,
            "store": store,
            "shared": shared,
            "freed": 0,
            "reclaimable": max(0, legacy - shared),
        }
    }


def _outermost(migrated: Sequence[Outcome]) -> int:
    """What the directories take that are in no other one of them; several projects may have the same."""
    sizes: dict[str, int] = {}
    for outcome in migrated:
        path = os.path.normpath(outcome.original_path or "")
        sizes[path] = max(outcome.disk.legacy, sizes.get(path, 0))
    return sum(size for path, size in sizes.items() if not _is_inside_another(path, sizes))


def _is_inside_another(path: str, paths: dict[str, int]) -> bool:
    above = os.path.dirname(path)
    while len(above) > 1:
        if above in paths:
            return True
        above = os.path.dirname(above)
    return False
