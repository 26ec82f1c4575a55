"""What the jobs of one verification say together of files that datasets share: each is read by one job only.
Pure: from outcomes to outcomes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import StoredBytesMismatchError
from worker.messages import Damage, Outcome, Status, Subject

_PROVED = {Status.VERIFIED, Status.REPAIRED}


class SharedFiles:
    """What the jobs found of files that datasets share: to be added job by job, then each dataset can be
    settled. Only what is wrong is kept.
    """

    def __init__(self) -> None:
        self._damage: dict[int, _Found] = {}
        self._unread: set[int] = set()

    @staticmethod
    def says_nothing(document: Mapping[str, Any]) -> bool:
        """Is an outcome, still as JSON, one that need not be added? Most say that all is well."""
        return document["status"] in _PROVED and not document.get("damaged")

    def add(self, outcome: Outcome) -> None:
        """Take what one job found."""
        if outcome.subject is not Subject.DATASET:
            return
        finder = outcome.key[1]
        for damage in outcome.damaged:
            for dataset_id in damage.dataset_ids:
                before = self._damage.get(dataset_id)
                self._damage[dataset_id] = _Found(
                    finder=before.finder if before else finder,
                    left=(before.left if before else None) or (None if damage.repaired else (finder, damage)),
                )
        if not (outcome.status in _PROVED or outcome.damaged):
            # It did not read what it had taken.
            self._unread.add(finder)

    def settle(self, outcome: Outcome) -> Outcome:
        """Say of a dataset what it is, given what the other jobs found of its files.

        One that has a file that another job found damaged, and nothing repaired, is not verified; one whose
        damage another job repaired is repaired; of one that left files to a job that never read them nothing
        is proved.
        """
        if outcome.subject is not Subject.DATASET or outcome.status not in _PROVED:
            return outcome
        found = self._damage.get(outcome.key[1])
        if found is not None and found.left is not None:
            finder, one = found.left
            reason = f"{one.path} is damaged ({one.what.replace('_', ' ')}): dataset {finder}, which shares it, found that"
            return outcome.with_changes(
                status=Status.FAILED,
                reason=reason,
                error=reason,
                error_class=StoredBytesMismatchError.__name__,
                remedy=StoredBytesMismatchError.remedy,
            )
        # A job that has not ended yet is in no set: an interim report says that.
        unread = [number for number in outcome.verified.left_to if number in self._unread]
        if unread:
            return outcome.with_changes(
                status=Status.SKIPPED,
                reason=f"shares files with dataset {unread[0]}, whose job ended without reading them",
            )
        if found is not None and outcome.status is Status.VERIFIED:
            return outcome.with_changes(
                status=Status.REPAIRED,
                reason=f"repaired with dataset {found.finder}, which shares what was damaged; {outcome.reason}",
            )
        return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The damage of one dataset: whose job found the first, and the first that is left, with its finder."""

    finder: int
    left: tuple[int, Damage] | None
