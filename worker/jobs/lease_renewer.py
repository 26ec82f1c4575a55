"""Renews a job's lease, writes with it how far the job is, and applies the run control it gets in return."""

import threading
import time

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.db import leases
from worker.db.leases import Lease, RunControl
from worker.errors import LeaseLostError, MigratorError, RunCancelledError, RunPausedError
from worker.jobs.progress import ProgressCount
from worker.jobs.stop_signal import StopSignal
from worker.messages import RunState
from worker.runtime import log
from worker.runtime.throttle import Throttle

_log = log.get(__name__)

TICK_S = 1.0
"""How old the ledger's picture of a job may be, for people."""

_RENEW_S = 2.0
"""How often the ledger is asked what it wants of the job: an operator's word is heard within seconds."""


class LeaseRenewer:
    """Renews one lease, from any thread, one renewal at a time.

    The answer sets `stop` when another worker has the job or the run is paused or cancelled, and `throttle`
    to the job's share of the run's limit. A database that does not answer is no reason to stop: the lease may
    outlive the outage, and if it does not, the fencing number refuses the late outcome.
    """

    def __init__(
        self,
        engine: Engine,
        lease: Lease,
        lease_s: float,
        progress: ProgressCount,
        stop: StopSignal,
        throttle: Throttle,
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._lease_s = lease_s
        self._progress = progress
        self._stop = stop
        self._throttle = throttle
        self._renewed_at = time.monotonic()
        self._has_news = threading.Event()
        # A thread must not write an older phase over the one that another has just entered.
        self._renewing = threading.Lock()

    @property
    def is_due(self) -> bool:
        """Is it time to renew: because the lease wants it, or because there is news that people wait for?"""
        age_s = self._age_s()
        return age_s >= min(_RENEW_S, self._lease_s / 3) or (self._has_news.is_set() and age_s >= TICK_S)

    def write_soon(self) -> None:
        """There is news: write it now if nothing was written for a while, otherwise a moment later.

        Most jobs are over before their phases could be read; writing each would cost more than the work.
        """
        if self._age_s() > TICK_S:
            self.renew()
        else:
            self._has_news.set()

    def renew(self) -> None:
        """Renew the lease and apply the answer. What goes wrong is logged, and tried again next time."""
        self._has_news.clear()
        self._renewed_at = time.monotonic()
        try:
            with self._renewing, self._engine.begin() as conn:
                progress = self._progress.now()
                control = leases.renew_lease(
                    conn,
                    self._lease,
                    self._lease_s,
                    phase=progress.phase,
                    dataset_hash=self._progress.dataset_hash,
                    files_done=progress.files_done,
                    bytes_done=progress.bytes_done,
                )
        except (MigratorError, SQLAlchemyError) as error:
            # Of any kind: were the thread to end here, the job would go on and lose its lease for certain.
            _log.warning("lease_not_renewed", reason=str(error))
            return
        self._apply(control)

    def _age_s(self) -> float:
        return time.monotonic() - self._renewed_at

    def _apply(self, control: RunControl | None) -> None:
        if control is None:
            self._stop.set(LeaseLostError(f"{self._lease.ref.words}: another worker has the job"))
            return
        self._throttle.limit(control.bytes_per_second)
        match control.run_state:
            case RunState.PAUSED:
                self._stop.set(RunPausedError("The run is paused"))
            case RunState.CANCELLED:
                self._stop.set(RunCancelledError("The run was cancelled"))
            case _:
                pass
