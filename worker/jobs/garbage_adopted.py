"""What a gc does about adopted datasets: an adoption whose job died comes to its end, and the directory that
Label had goes for good once all that is ours was read and found right since.
"""

from collections.abc import Iterator
from typing import Protocol

from worker.db import adoptions
from worker.db.adoptions import Adoption, Due
from worker.db.engine import autocommit
from worker.errors import AdoptionRefusedError
from worker.jobs.adopted_directory import is_untouched
from worker.jobs.attempt import Attempt
from worker.messages import GarbageEntry, Warning_
from worker.store.digest import printable
from worker.store.garbage import Size


class Hands(Protocol):
    """Those of a gc, or of a dry run of one."""

    def settle_adoption(self, row: Adoption) -> None:
        """Bring an adoption to its end."""

    def remove_adopted(self, row: Adoption) -> Size:
        """Remove what Label had; what came free."""


def settle_begun(attempt: Attempt, hands: Hands) -> Iterator[Warning_]:
    """Adoptions and undos whose jobs died; a warning of each that does not come to its end."""
    with autocommit(attempt.engine) as conn:
        begun = adoptions.in_states(conn, adoptions.BETWEEN)
    for row in begun:
        attempt.pace(0)
        try:
            hands.settle_adoption(row)
        except AdoptionRefusedError as error:
            yield Warning_(message=f"dataset {row.dataset_id}, which was being adopted: {error}")


def remove_originals(attempt: Attempt, hands: Hands, grace_h: float) -> Iterator[GarbageEntry | Warning_]:
    """What Label had and was put aside long enough ago; what was removed, and warnings of what stays."""
    with autocommit(attempt.engine) as conn:
        found = adoptions.due(conn, grace_h)
    unverified = [due.adoption.dataset_id for due in found if not due.is_verified]
    if unverified:
        yield Warning_(
            message=f"what Label had of {len(unverified):,} adopted datasets, the first is {unverified[0]}, stays in "
            "quarantine until all of them was read since: producer verify --store"
        )
    for due in found:
        attempt.pace(0)
        if due.is_verified:
            yield _remove(attempt, hands, due)


def _remove(attempt: Attempt, hands: Hands, due: Due) -> GarbageEntry | Warning_:
    row = due.adoption
    if not is_untouched(attempt, row):
        return Warning_(
            message=f"what Label had of adopted dataset {row.dataset_id} stays: it is not in quarantine/{row.folder}, "
            "or was written to since it was put there"
        )
    size = hands.remove_adopted(row)
    return GarbageEntry(
        action="removed",
        entry_id=row.folder,
        kind="adopted",
        dataset_id=row.dataset_id,
        name=printable(due.dataset_name),
        reason="what Label had before the dataset was adopted",
        since=row.adopted_at,
        files=size.files,
        size_bytes=size.size_bytes,
    )
