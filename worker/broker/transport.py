"""Kombu's transport over Redis with the message filter in its channel. Knows no message's fields."""

from collections.abc import Sequence
from typing import Any

from celery.app.amqp import AMQP
from kombu.connection import Connection
from kombu.transport import redis
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ResponseError

from worker.broker.message_validation import RefusedError, check_answer, check_command, job_of
from worker.runtime import log

_log = log.get(__name__)

_REMOTE_CONTROL = ".celery.pidbox"
"""How the names of queues end that hold answers of workers to remote-control commands."""


class _Channel(redis.Channel):
    """A channel that delivers only valid messages. In place of another one its queue seems empty."""

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - kombu's signature
        """A job may end after its connection was given up, and acknowledge its message there. kombu 5.7 then
        raises an AttributeError, at which Celery ends the worker; an error of a connection it logs.
        """
        if self.connection is None or self.connection.client is None:
            raise LostError("The connection that the message came by is closed")
        parameters: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[no-untyped-call]
        return parameters

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        client = super()._create_client(asynchronous)  # type: ignore[no-untyped-call]
        client.set_response_callback("BRPOP", _only_valid)
        return client

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        """Remote-control commands come by publication, decoded already."""
        try:
            check_command(message)
        except RefusedError as error:
            _refuse(exchange, error)
            return True
        delivered: bool = super()._deliver_fanout_message(message, exchange)  # type: ignore[no-untyped-call]
        return delivered


class _SentinelChannel(_Channel, redis.SentinelChannel):
    """The same over the primary that sentinels name."""


def _only_valid(taken: Sequence[bytes] | None, **_options: Any) -> tuple[bytes, bytes] | None:
    """The answer to BRPOP: queue and message, or None if there is none for us."""
    if not taken:
        return None
    key, message = taken
    # A queue has a list for each priority, named with a suffix.
    queue = key.partition(redis.Channel.sep.encode())[0].decode(errors="replace")
    try:
        if queue.endswith(_REMOTE_CONTROL):
            check_answer(message)
        else:
            job_of(message)
    except RefusedError as error:
        _refuse(queue, error, size_bytes=len(message))
        return None
    return key, message


def _refuse(queue: str, error: RefusedError, **more: int) -> None:
    _log.warning("message_refused", queue=queue, reason=str(error), **more)


class _Transport(redis.Transport):
    """A transport to which a server that refuses is like one that is away: transient, and no worker's end."""

    Channel = _Channel
    connection_errors = (*redis.Transport.connection_errors, ResponseError)


class _SentinelTransport(_Transport, redis.SentinelTransport):
    """The same over the primary that sentinels name."""

    Channel = _SentinelChannel


class _Connection(Connection):
    """A connection whose channels filter, whatever the scheme of its URL; its name stays that of the URL."""

    def get_transport_cls(self) -> type[_Transport]:
        """The filtering one."""
        return _SentinelTransport if self.transport_cls == "sentinel" else _Transport


class FilteredAmqp(AMQP):  # type: ignore[misc]
    """Celery's messaging over such connections."""

    Connection = _Connection
