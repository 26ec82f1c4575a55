"""What the drivers raise when the broker is gone or refuses, as errors of ours. Opens no connection."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from kombu.exceptions import BatchPublishError, OperationalError

from worker.broker_url import BrokerUrl
from worker.errors import BrokerRefusesError, BrokerUnavailableError

_WANTS_TLS = ("closed by server", "Connection reset", "Broken pipe")
_WANTS_PLAIN_TEXT = ("WRONG_VERSION_NUMBER", "wrong version number", "EOF occurred", "Timeout connecting")
"""What drivers say when a server wants TLS and gets plain text, and the other way round."""


@contextmanager
def translated_errors(broker: BrokerUrl) -> Iterator[None]:
    """Raise the drivers' errors of this block as `BrokerUnavailableError`, with address and reason."""
    try:
        yield
    except (redis.RedisError, OperationalError, BatchPublishError, OSError) as error:
        cause = _cause(error)
        if isinstance(cause, redis.ResponseError | redis.BusyLoadingError | redis.AuthenticationError):
            raise BrokerRefusesError(f"Broker refuses: {broker.place}: {_reason(cause)}") from error
        raise BrokerUnavailableError(
            f"Broker connection failed: {broker.place}: {_reason(cause)}{_hint(broker, error)}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What the driver raised; a batch that broke, and kombu's own error, hide it behind their words."""
    hidden = isinstance(error, BatchPublishError | OperationalError)
    return error.__cause__ if hidden and error.__cause__ is not None else error


def _reason(error: BaseException) -> str:
    """The first line of the driver's message, with the server's error code, which the driver takes off."""
    message = str(error).partition("\n")[0] or type(error).__name__
    code = getattr(error, "status_code", None)
    return f"{code} {message}" if code and not message.startswith(str(code)) else message


def _hint(broker: BrokerUrl, error: BaseException) -> str:
    """What the driver cannot know: perhaps one end speaks TLS and the other does not."""
    symptoms = _WANTS_PLAIN_TEXT if broker.tls else _WANTS_TLS
    if not any(symptom in str(error) for symptom in symptoms):
        return ""
    if broker.sentinels is not None:
        return " (TLS is spoken with sentinels and servers alike, if REDIS_URL has ssl_cert_reqs=required)"
    other = "redis" if broker.tls else "rediss"
    speaks = "no TLS" if broker.tls else "TLS only"
    return f" (if the server speaks {speaks} there, its URL begins with {other}://)"
