"""How redis-py is told of a broker: one server, or the primary that sentinels name. Knows no message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from worker.broker_url import BrokerUrl, Sentinels

_SENTINEL_S = 2.0
"""A sentinel that does not answer so long is passed over: the next one knows as much."""


def of_sentinels(broker: BrokerUrl, sentinels: Sentinels) -> dict[str, Any]:
    """What a connection to a sentinel is made with, but its address."""
    return {
        "username": sentinels.username,
        "password": sentinels.password,
        "socket_timeout": _SENTINEL_S,
        "socket_connect_timeout": _SENTINEL_S,
        # redis-py waits for seconds and tries one that is away again, before it asks the next.
        "retry": Retry(NoBackoff(), 0),
        **_tls(broker),
    }


@contextmanager
def client(broker: BrokerUrl, within_s: float) -> Iterator[redis.Redis]:
    """A client of the server that takes messages now. With sentinels each new connection asks them anew, and
    a primary that has become a replica is a connection that is lost.
    """
    limits = {"socket_timeout": within_s, "socket_connect_timeout": within_s}
    if broker.sentinels is None:
        with redis.Redis.from_url(broker.url, **limits, **broker.tls) as one:
            yield one
        return
    with asking(broker) as sentinel:
        primary: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
            broker.sentinels.master_name,
            redis.Redis,
            username=broker.username,
            password=broker.password,
            db=broker.database,
            **limits,
            **_tls(broker),
        )
        with primary:
            yield primary


@contextmanager
def asking(broker: BrokerUrl) -> Iterator[Sentinel]:
    """The sentinels themselves, whose connections end with the block."""
    assert broker.sentinels is not None  # noqa: S101 - for the type checker: the caller has looked
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        list(broker.sentinels.addresses), sentinel_kwargs=of_sentinels(broker, broker.sentinels)
    )
    try:
        yield sentinel
    finally:
        sentinel.close()


def _tls(broker: BrokerUrl) -> dict[str, Any]:
    return {"ssl": True, **broker.tls} if broker.tls else {}
