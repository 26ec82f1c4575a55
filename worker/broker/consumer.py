"""Celery's consumer, made to outlive its broker. Knows no task and no ledger."""

import time

from celery.worker import state
from celery.worker.consumer import Consumer
from redis.exceptions import ResponseError

from worker.runtime import log

_log = log.get(__name__)

_REFUSED_FOR_S = 2.0
_TICK_S = 0.1


class LastingConsumer(Consumer):  # type: ignore[misc] # Celery ships no types
    """A consumer that connects again, whatever goes wrong while it gives a broken connection away.

    kombu 5.7 closes a broken connection to Redis twice. Of a channel that could not be closed the first time, and that
    has a message of a running task, the second time wants to give the message back over a connection whose address is
    gone by then: an AttributeError, at which Celery ends the whole worker. Nothing is lost with the message: whoever sends
    it again is the ledger.

    A server that answers and refuses (a replica, a full memory, a disk that cannot be written, a right that lacks) can be
    reached again at once, and refuses again: the consumer waits before it asks the next time.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Give the broken connection away; the consumer's loop makes a new one."""
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001 - of a connection that is not used again
            _log.warning("broken_connection_not_closed", reason=f"{type(error).__name__}: {error}")
        _wait_if_refused(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Say that there is no connection; the consumer's loop tries to make one."""
        super().on_connection_error_before_connected(exc)
        _wait_if_refused(exc)


def _wait_if_refused(error: Exception) -> None:
    if isinstance(error, ResponseError):
        _log.warning("broker_refuses", reason=str(error).partition("\n")[0], again_in_s=_REFUSED_FOR_S)
        _wait_a_moment()


def _wait_a_moment() -> None:
    """Hold the consumer up, but not a worker that is told to stop."""
    until = time.monotonic() + _REFUSED_FOR_S
    while time.monotonic() < until and state.should_stop is None and state.should_terminate is None:
        time.sleep(_TICK_S)
