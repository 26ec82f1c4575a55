"""For which reasons a job may end without having done what it is for, though nothing is wrong."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from tests.chaos.history import Job
from tests.chaos.plan import Flaw

RETRIED = {"WorkerCrashedError", "StoredBytesMismatchError"}
"""What an operator tries again, once the servers are back and the store is repaired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the ledger says that a job has ended."""

    run_id: uuid.UUID
    verb: str
    subject: str
    subject_id: int
    state: str
    error_class: str | None
    reason: str
    finished_at: datetime

    @property
    def key(self) -> Job:
        """Which job."""
        return self.run_id, self.subject, self.subject_id


_ALWAYS = {
    "migrate": ("already migrated by run",),
    "rollback": ("rolled back already",),
    "verify": ("removed since the run was opened",),
    "reclaim": (
        "not migrated, or rolled back since",
        "rolled back since",
        "rolled back already",
        "was reclaimed already",
        "was reclaimed and purged already",
        "its directory was not moved away",
        "nothing of it was moved away",
        "has its directory at it",
        "has its directory in what was moved away; name both",
    ),
    "gc": (),
}
"""What others did to it, or have in hand."""
_AFTER_FLIP = ("is damaged: ", "does not have the bytes its digest promises", "cannot be read: ")
_AFTER_LOSS = {"reclaim": ("Legacy path no longer exists",)}
"""A failover lost the row that says where the directory is; the guide brings it back by hand, later."""


def may_skip(job: Ended, flaw: Flaw | None, *, after_flip: bool, after_loss: bool) -> bool:
    """Is it a reason to skip a project that another run may have had in hand, or to skip this one always?"""
    if flaw is Flaw.NO_PATH:
        return job.reason == "path is NULL"
    known = (
        "is being processed by run",
        *_ALWAYS[job.verb],
        *(_AFTER_FLIP if after_flip else ()),
        *(_AFTER_LOSS.get(job.verb, ()) if after_loss else ()),
    )
    return any(words in job.reason for words in known)


def may_fail(job: Ended, flaw: Flaw | None) -> bool:
    """Has it to fail?"""
    return job.verb == "migrate" and flaw is Flaw.NO_DIRECTORY
