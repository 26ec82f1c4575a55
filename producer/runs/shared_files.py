"""What the jobs of one verification say together of files that datasets share: each is read by one job only.
Pure: from outcomes to outcomes.
"""

from collections.abc import Iterable, Mapping

from worker.errors import StoredBytesMismatchError
from worker.messages import Damage, JobRef, Outcome, Status, Subject

_PROVED = {Status.VERIFIED, Status.REPAIRED}


def settle_shared_files(outcomes: Mapping[JobRef, Outcome]) -> dict[JobRef, Outcome]:
    """Say of each dataset what it is, given what the other jobs found of its files.

    One that has a file that another job found damaged, and nothing repaired, is not verified; one whose
    damage another job repaired is repaired; of one that left files to a job that never read them nothing is
    proved.
    """
    datasets = {
        outcome.key[1]: outcome for outcome in outcomes.values() if outcome.subject is Subject.DATASET
    }
    damage = _by_dataset(datasets.values())
    return {
        ref: _settled(outcome, datasets, damage.get(outcome.key[1], []))
        if outcome.status in _PROVED
        else outcome
        for ref, outcome in outcomes.items()
    }


def _by_dataset(outcomes: Iterable[Outcome]) -> dict[int, list[tuple[int, Damage]]]:
    """All damage by the datasets that it concerns, with the one whose job found it."""
    found: dict[int, list[tuple[int, Damage]]] = {}
    for outcome in outcomes:
        for damage in outcome.damaged:
            for dataset_id in damage.dataset_ids:
                found.setdefault(dataset_id, []).append((outcome.key[1], damage))
    return found


def _settled(outcome: Outcome, datasets: Mapping[int, Outcome], damage: list[tuple[int, Damage]]) -> Outcome:
    if outcome.subject is not Subject.DATASET:
        return outcome
    left = [(finder, one) for finder, one in damage if not one.repaired]
    if left:
        finder, one = left[0]
        reason = f"{one.path} is damaged ({one.what.replace('_', ' ')}): dataset {finder}, which shares it, found that"
        return outcome.with_changes(
            status=Status.FAILED,
            reason=reason,
            error=reason,
            error_class=StoredBytesMismatchError.__name__,
            remedy=StoredBytesMismatchError.remedy,
        )
    unread = [number for number in outcome.verified.left_to if not _has_read(datasets.get(number))]
    if unread:
        return outcome.with_changes(
            status=Status.SKIPPED,
            reason=f"shares files with dataset {unread[0]}, whose job ended without reading them",
        )
    if damage and outcome.status is Status.VERIFIED:
        finder, _ = damage[0]
        return outcome.with_changes(
            status=Status.REPAIRED,
            reason=f"repaired with dataset {finder}, which shares what was damaged; {outcome.reason}",
        )
    return outcome


def _has_read(outcome: Outcome | None) -> bool:
    """Did a job read what it had taken? None: it has not ended yet, which an interim report says."""
    return outcome is None or outcome.status in _PROVED or bool(outcome.damaged)
