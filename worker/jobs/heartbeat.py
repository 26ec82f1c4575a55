"""The thread beside a job, and what the work says to it and hears from it. Knows no step of the work."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from sqlalchemy import Engine

from worker.db.claims import Claim
from worker.db.leases import Lease
from worker.errors import WorkerStoppingError
from worker.jobs.claim_keeper import ClaimKeeper
from worker.jobs.lease_renewer import TICK_S, LeaseRenewer
from worker.jobs.progress import Progress, ProgressCount
from worker.jobs.stop_signal import StopSignal
from worker.runtime.throttle import Throttle


class Heartbeat:
    """Renews a lease every two seconds, or sooner, and pings claims, until the `with` block ends.

    The work calls `advance` at each file boundary and `keep_pace` after each chunk; there it learns that it
    has to stop: because another worker has the job, the run is paused or cancelled, or `stopping` says that
    this worker stops. `on_progress` is told every two seconds how far the job is, and must return at once.
    """

    def __init__(
        self,
        engine: Engine,
        lease: Lease,
        lease_s: float,
        stopping: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
    ) -> None:
        self.progress = ProgressCount(on_progress)
        self.stop = StopSignal()
        self._throttle = Throttle(lease.bytes_per_second)
        self._claims = ClaimKeeper(self.stop)
        self._renewer = LeaseRenewer(engine, lease, lease_s, self.progress, self.stop, self._throttle)
        self._stopping = stopping
        self._tick_s = min(TICK_S, lease_s / 3)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{lease.ref.subject_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def advance(self, files: int, size_bytes: int) -> None:
        """Count what is done. Raises what the work has to stop for: a lost lease or claim, a paused or
        cancelled run, a worker that stops.
        """
        self.progress.add(files, size_bytes)
        self.listen()

    def listen(self) -> None:
        """Raises as `advance`, and does nothing else: for loops and waits that count nothing."""
        self.stop.check()

    def keep_pace(self, size_bytes: int) -> None:
        """Wait as the run's limit wants after so many bytes. Raises as `advance`: a file may take an hour."""
        self._throttle.wait(size_bytes, self.listen)
        self.listen()

    def enter(self, phase: str, dataset_hash: str | None = None, *, at_once: bool = False) -> None:
        """Say what comes next: `at_once` where others read it, else within a second. Raises as `advance`."""
        self.progress.phase = phase
        self.progress.dataset_hash = dataset_hash or self.progress.dataset_hash
        if at_once:
            self._renewer.renew()
        else:
            self._renewer.write_soon()
        self.listen()

    def restart(self) -> None:
        """The work begins again; so does the count."""
        self.progress.restart()

    def keeping_alive(self, claim: Claim) -> AbstractContextManager[None]:
        """Ping this claim, too, inside the block; after it, that the claim was lost matters no longer."""
        return self._claims.keeping_alive(claim)

    def _run(self) -> None:
        """At each tick: does the worker stop, how far is the job, is it time to renew and to ping?"""
        while not self._ended.wait(self._tick_s):
            if self._stopping():
                self.stop.set(WorkerStoppingError("The worker was told to stop"))
            self.progress.tell()
            if self._renewer.is_due:
                self._renewer.renew()
                self._claims.ping()
