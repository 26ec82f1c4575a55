"""The thread beside a job: renews its lease, keeps its claim alive, records its progress. Knows no step of the work."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.db import leases
from worker.db.claims import Claim
from worker.db.leases import Reins
from worker.errors import (
    ClaimLostError,
    LeaseLostError,
    MigratorError,
    RunCancelledError,
    RunHeldError,
    WorkerStoppingError,
)
from worker.legacy.ingest import Stored
from worker.messages import RunState
from worker.runtime import log
from worker.runtime.throttle import Throttle

_log = log.get(__name__)

_TICK_S = 1.0
"""How old the ledger's picture of a job may be, for people, and how long a worker that stops is not heard."""

_RENEW_S = 2.0
"""How often the ledger is asked what it wants of the job: an operator's word is heard within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is. `files_total` is 0 until somebody has counted them."""

    phase: str
    files_done: int
    files_total: int
    bytes_done: int


class Heartbeat:
    """Renews a lease every two seconds (sooner if it is a short one) until the `with` block ends.

    The work calls `advance` at each file boundary and `keep_pace` after each chunk; there it learns that it has to stop:
    because the job is not its own any more, the run is held or cancelled, or `stopping` says that the worker stops.
    `on_progress` is told every two seconds how far the job is, and must return at once.
    A database that does not answer is no reason to stop: the lease may outlive the outage, and if it does not, the
    fencing number refuses the late outcome.
    """

    def __init__(
        self,
        engine: Engine,
        lease: leases.Lease,
        lease_s: float,
        stopping: Callable[[], bool] = lambda: False,
        on_progress: Callable[["Progress"], None] = lambda _progress: None,
    ) -> None:
        self._on_progress = on_progress
        self._told_at = time.monotonic()
        self._engine = engine
        self._lease = lease
        self._lease_s = lease_s
        self._stopping = stopping
        self._throttle = Throttle(lease.bytes_per_second)
        self._stopped = threading.Event()
        self._has_news = threading.Event()
        self._renewed_at = time.monotonic()
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._pinging = threading.Lock()
        self._stop: MigratorError | None = None
        self._claims: list[Claim] = []
        self._phase = "scan"
        self._dataset_hash: str | None = None
        self._files_done = 0
        self._bytes_done = 0
        self.files_seen = 0
        self.stored: Stored | None = None
        """What this attempt has brought into the store so far, for the outcome of a job that fails all the same."""
        """How many files the job's directory has, once somebody has counted them."""
        self._thread = threading.Thread(target=self._run, name=f"lease-{lease.ref.project_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def advance(self, files: int, size_bytes: int) -> None:
        """Count what is done. Raises what the work has to stop for: a lost lease or claim, a held or cancelled run, a
        worker that stops.
        """
        with self._lock:
            self._files_done += files
            self._bytes_done += size_bytes
        self.listen()

    def listen(self) -> None:
        """Raises as `advance`, and does nothing else: for loops and waits in which nothing is done that could be counted."""
        if self._stop is not None:
            raise self._stop

    def keep_pace(self, size_bytes: int) -> None:
        """Wait as the run's limit wants after so many bytes. Raises as `advance`: a file may take an hour."""
        self._throttle.wait(size_bytes, self.listen)
        self.listen()

    def enter(self, phase: str, dataset_hash: str | None = None, *, at_once: bool = False) -> None:
        """Say what comes next: `at_once` where others read it, otherwise within a second. Raises as `advance`.

        Most jobs are over before anybody could read their phases; writing each would cost more than the work.
        """
        self._phase = phase
        self._dataset_hash = dataset_hash or self._dataset_hash
        if at_once or time.monotonic() - self._renewed_at > _TICK_S:
            self._renew()
        else:
            self._has_news.set()
        self.advance(0, 0)

    def restart(self) -> None:
        """The work begins again; so does the count."""
        with self._lock:
            self._files_done = self._bytes_done = 0

    @contextmanager
    def keeping_alive(self, claim: Claim) -> Iterator[None]:
        """Ping this claim, too, inside the block; after it, that the claim was lost matters no longer."""
        with self._pinging:
            self._claims.append(claim)
        try:
            yield
        finally:
            # Whoever gives a claim back must not find a ping on its connection, which the pool gives to others.
            with self._pinging:
                self._claims.remove(claim)
                if isinstance(self._stop, ClaimLostError):
                    self._stop = None

    def _run(self) -> None:
        """Renew in time, and a moment after news, until the job ends."""
        every_s = min(_RENEW_S, self._lease_s / 3)
        while not self._stopped.wait(min(_TICK_S, self._lease_s / 3)):
            if self._stopping():
                self._stop = self._stop or WorkerStoppingError("The worker was told to stop")
            self._tell_progress()
            age_s = time.monotonic() - self._renewed_at
            if age_s >= every_s or (self._has_news.is_set() and age_s >= _TICK_S):
                self._renew()
                self._ping()

    def _tell_progress(self) -> None:
        if time.monotonic() - self._told_at < _RENEW_S:
            return
        self._told_at = time.monotonic()
        self._on_progress(
            Progress(
                phase=self._phase,
                files_done=self._files_done,
                files_total=self.files_seen,
                bytes_done=self._bytes_done,
            )
        )

    def _renew(self) -> None:
        self._has_news.clear()
        self._renewed_at = time.monotonic()
        try:
            # One at a time: the thread must not write an older phase over the one that the work has just entered.
            with self._renewing, self._engine.begin() as conn:
                reins = leases.renew_lease(
                    conn,
                    self._lease,
                    self._lease_s,
                    phase=self._phase,
                    dataset_hash=self._dataset_hash,
                    files_done=self._files_done,
                    bytes_done=self._bytes_done,
                )
        except (MigratorError, SQLAlchemyError) as error:
            # Whatever the database has: without this thread the job would go on and lose its lease for certain.
            _log.warning("lease_not_renewed", reason=str(error))
            return
        self._obey(reins)

    def _obey(self, reins: Reins | None) -> None:
        if reins is None:
            self._stop = LeaseLostError(f"project {self._lease.ref.project_id}: another worker has the job")
            return
        self._throttle.limit(reins.bytes_per_second)
        match reins.run_state:
            case RunState.PAUSED:
                self._stop = self._stop or RunHeldError("The run is paused")
            case RunState.CANCELLED:
                self._stop = self._stop or RunCancelledError("The run was cancelled")
            case _:
                pass

    def _ping(self) -> None:
        with self._pinging:
            for claim in self._claims:
                try:
                    claim.ping()
                except ClaimLostError as error:
                    self._stop = self._stop or error
