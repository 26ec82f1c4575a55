"""What only a verification's report says: the damage that was found, and how much of the store was read.

Pure: from outcomes to JSON values.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from producer.report.facts import RunFacts
from worker.messages import Damage, Outcome, Status, Subject
from worker.wording import VERB_WORDS

_READ = {Status.VERIFIED, Status.REPAIRED}

COVERAGE = "coverage"
"""Under which key a run keeps what the store held when it was opened."""


def part(run: RunFacts, ordered: Sequence[Outcome]) -> dict[str, Any]:
    """The keys `damaged` and `coverage`, of a run that verifies the store; nothing of one that does not."""
    opened = run.selection.get(COVERAGE)
    if not isinstance(opened, Mapping):
        return {}
    datasets = [outcome for outcome in ordered if outcome.subject is Subject.DATASET]
    successes = VERB_WORDS[run.verb].successes(dry_run=run.dry_run)
    return {
        "damaged": [_damaged(one) for outcome in datasets for one in outcome.damaged],
        COVERAGE: {
            "datasets": sum(outcome.status in successes for outcome in datasets),
            "files": sum(outcome.verified.files for outcome in datasets),
            "bytes_total": opened["bytes_total"],
            "bytes_verified": sum(outcome.verified.bytes_verified for outcome in datasets),
            "oldest_check": _oldest_check(opened, datasets),
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


def _oldest_check(opened: Mapping[str, Any], datasets: Sequence[Outcome]) -> str | None:
    """When the least recently read byte of the store was read, as of this run; None if one never was."""
    # A job that ended before it read anything leaves its dataset as it was when the run was opened.
    ended = [one for one in datasets if one.damaged or one.status in _READ]
    read = [one.verified.oldest_check for one in ended if one.verified.bytes_total]
    unread = len(ended) < len(datasets)
    before = opened["oldest_check"] if unread else opened["oldest_check_elsewhere"]
    if before is None and (unread or opened["bytes_elsewhere"]):
        return None
    moments = [*read, *([datetime.fromisoformat(before)] if before else [])]
    if not moments or None in moments:
        return None
    return min(moment for moment in moments if moment is not None).isoformat(timespec="microseconds")
