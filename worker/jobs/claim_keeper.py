"""Keeps claims alive while bytes are stored: a job that waits for one takes it when it is not renewed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from worker.db.claims import Claim
from worker.errors import ClaimLostError, MigratorError
from worker.jobs.stop_signal import StopSignal
from worker.runtime import log

_log = log.get(__name__)


class ClaimKeeper:
    """Pings the claims that a job has at the moment; sets `stop` when one of them is lost."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._claims: list[Claim] = []
        # A claim that is given back must not be found lost by a ping that comes late.
        self._pinging = threading.Lock()

    @contextmanager
    def keeping_alive(self, claim: Claim) -> Iterator[None]:
        """Ping this claim, too, inside the block; after it, that the claim was lost matters no longer."""
        with self._pinging:
            self._claims.append(claim)
        try:
            yield
        finally:
            with self._pinging:
                self._claims.remove(claim)
                self._stop.forget_lost_claim()

    def ping(self) -> None:
        """Ping every claim. None is given back meanwhile."""
        with self._pinging:
            for claim in self._claims:
                try:
                    claim.ping()
                except ClaimLostError as error:
                    self._stop.set(error)
                except (MigratorError, SQLAlchemyError) as error:
                    # Of any kind, as for leases: it may outlive the outage, and says itself when it has not.
                    _log.warning("claim_not_renewed", reason=str(error))
