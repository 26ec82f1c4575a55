"""What only a verification's report says: the damage that was found, and how much of the store was read.

Pure: from outcomes to JSON values.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from producer.report.facts import LongList, RunFacts
from worker.messages import Damage, Outcome, Status, Subject
from worker.wording import VERB_WORDS

_READ = {Status.VERIFIED, Status.REPAIRED}

COVERAGE = "coverage"
"""Under which key a run keeps what the store held when it was opened."""


class Verification:
    """The keys `damaged` and `coverage`, of a run that verifies the store; nothing of one that does not."""

    def __init__(self, run: RunFacts, new_list: Callable[[], LongList]) -> None:
        opened = run.selection.get(COVERAGE)
        self._opened = opened if isinstance(opened, Mapping) else None
        self._successes = VERB_WORDS[run.verb].successes(dry_run=run.dry_run)
        self._damaged = new_list()
        self._datasets = self._files = self._bytes = 0
        self._oldest = _OldestCheck()

    def add(self, outcome: Outcome) -> None:
        """Count what was read of a dataset, and keep its damage."""
        if outcome.subject is not Subject.DATASET:
            return
        for one in outcome.damaged:
            self._damaged.append(_damaged(one))
        self._datasets += outcome.status in self._successes
        self._files += outcome.verified.files
        self._bytes += outcome.verified.bytes_verified
        self._oldest.add(outcome)

    def keys(self) -> dict[str, Any]:
        """Both keys, or none."""
        if self._opened is None:
            return {}
        return {
            "damaged": self._damaged,
            COVERAGE: {
                "datasets": self._datasets,
                "files": self._files,
                "bytes_total": self._opened["bytes_total"],
                "bytes_verified": self._bytes,
                "oldest_check": self._oldest.of(self._opened),
            },
        }


def detail(run: RunFacts, outcome: Outcome) -> dict[str, Any]:
    """How much of a dataset was read; nothing of a run that does not verify the store, nor of a project."""
    if outcome.subject is not Subject.DATASET or COVERAGE not in run.selection:
        return {}
    return {
        "files_verified": outcome.verified.files,
        "bytes_verified": outcome.verified.bytes_verified,
    }


def _damaged(one: Damage) -> dict[str, Any]:
    return {
        "digest": one.digest,
        "what": one.what,
        "path": one.path,
        "dataset_ids": list(one.dataset_ids),
        "project_ids": list(one.project_ids),
        "sessions": list(one.sessions),
        "repaired": one.repaired,
        "from": one.source,
    }


class _OldestCheck:
    """When the least recently read byte of the store was read, as of this run; None if one never was."""

    def __init__(self) -> None:
        self._has_unread = False
        self._moments: set[datetime | None] = set()

    def add(self, outcome: Outcome) -> None:
        if not (outcome.damaged or outcome.status in _READ):
            # A job that ended before it read anything leaves its dataset as it was when the run was opened.
            self._has_unread = True
        elif outcome.verified.bytes_total:
            found = self._moments | {outcome.verified.oldest_check}
            self._moments = {None} if None in found else {min(one for one in found if one is not None)}

    def of(self, opened: Mapping[str, Any]) -> str | None:
        before = opened["oldest_check"] if self._has_unread else opened["oldest_check_elsewhere"]
        if before is None and (self._has_unread or opened["bytes_elsewhere"]):
            return None
        moments = self._moments | ({datetime.fromisoformat(before)} if before else set())
        if not moments or None in moments:
            return None
        return min(moment for moment in moments if moment is not None).isoformat(timespec="microseconds")
