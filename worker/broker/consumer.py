"""Celery's consumer, made to outlive its broker. Knows no task and no ledger."""

import time

from celery.worker import state
from celery.worker.consumer import Consumer
from redis.exceptions import ResponseError

from worker.runtime import log

_log = log.get(__name__)

_PAUSE_S = 2.0
_TICK_S = 0.1


class LastingConsumer(Consumer):  # type: ignore[misc] # Celery ships no types
    """A consumer that reconnects, whatever goes wrong while it closes a broken connection.

    kombu 5.7 closes a broken connection to Redis twice. If a channel with the message of a running task could
    not be closed the first time, the second time wants to give the message back over a connection whose
    address is gone by then: an AttributeError, at which Celery ends the whole worker. Nothing is lost with
    the message: the reaper sends it again.

    A server that answers and refuses (a replica, full memory, a disk that cannot be written, a missing right)
    can be reached again at once, and refuses again: the consumer waits before it asks the next time.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the broken connection; the consumer's loop makes a new one."""
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001 - of a connection that is not used again
            _log.warning("broken_connection_not_closed", reason=f"{type(error).__name__}: {error}")
        _wait_if_refused(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Log that there is no connection; the consumer's loop tries to make one."""
        super().on_connection_error_before_connected(exc)
        _wait_if_refused(exc)


def _wait_if_refused(error: Exception) -> None:
    if isinstance(error, ResponseError):
        _log.warning("broker_refuses", reason=str(error).partition("\n")[0], again_in_s=_PAUSE_S)
        _pause()


def _pause() -> None:
    """Hold the consumer up, but not a worker that was told to stop."""
    until = time.monotonic() + _PAUSE_S
    while time.monotonic() < until and state.should_stop is None and state.should_terminate is None:
        time.sleep(_TICK_S)
