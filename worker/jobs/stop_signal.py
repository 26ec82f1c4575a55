"""Why a job's work has to stop: set by the threads beside it, heard by the work. Knows no database."""

import threading

from worker.errors import ClaimLostError, LeaseLostError, MigratorError


class StopSignal:
    """The reason for which the work has to stop, once there is one; any thread may set it or ask for it.

    The first reason stays until its cause has passed, but a lost lease takes the place of any other: from
    then on nothing may be written for the job.
    """

    def __init__(self) -> None:
        self._reason: MigratorError | None = None
        self._setting = threading.Lock()

    @property
    def is_set(self) -> bool:
        """Is there a reason to stop?"""
        return self._reason is not None

    def set(self, reason: MigratorError) -> None:
        """From now on `check` raises this, unless there is another reason already."""
        with self._setting:
            if self._reason is None or isinstance(reason, LeaseLostError):
                self._reason = reason

    def forget_lost_claim(self) -> None:
        """What needed the claim is over, so that it was lost matters no longer; any other reason stays."""
        with self._setting:
            if isinstance(self._reason, ClaimLostError):
                self._reason = None

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        reason = self._reason
        if reason is not None:
            raise reason
