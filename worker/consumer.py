"""Celery's consumer, made to outlive its broker. Knows no task and no ledger."""

from celery.worker.consumer import Consumer

from worker import log

_log = log.get(__name__)


class LastingConsumer(Consumer):  # type: ignore[misc] # Celery ships no types
    """A consumer that connects again, whatever goes wrong while it gives a broken connection away.

    kombu 5.7 closes a broken connection to Redis twice. Of a channel that could not be closed the first time, and that
    has a message of a running task, the second time wants to give the message back over a connection whose address is
    gone by then: an AttributeError, at which Celery ends the whole worker. Nothing is lost with the message: whoever sends
    it again is the ledger.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Give the broken connection away; the consumer's loop makes a new one."""
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001 - of a connection that is not used again
            _log.warning("broken_connection_not_closed", reason=f"{type(error).__name__}: {error}")
