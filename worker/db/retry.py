"""Doing a transaction again: after it gave way to another, or while the database is away. Knows no table."""

from collections.abc import Callable
from typing import TypeVar

import tenacity

from worker.errors import DatabaseBusyError, DatabaseUnavailableError, MigratorError
from worker.runtime import log

T = TypeVar("T")

_log = log.get(__name__)

_HURRY_S = 5.0
"""How long a worker that is told to stop still waits for a database that is away."""

_GIVE_WAY_S = 30.0
"""How long a transaction is tried again that gave way to another."""

GIVE_WAY = "set local lock_timeout = '400ms';"
"""Before the first lock of a transaction, in one text with it: from here on it waits for none longer than a
moment, and fails with `DatabaseBusyError` instead.

People lock a session before its project, as a split does, and we the other way round. PostgreSQL would end
one of the two after a second (`deadlock_timeout`), and it might be theirs. A job that waits without a limit
hears nothing meanwhile.
"""


def when_free(
    transaction: Callable[[], T],
    patience_s: float = _GIVE_WAY_S,
    listen: Callable[[], None] = lambda: None,
) -> T:
    """Do a transaction; when it gave way to another one (`DatabaseBusyError`), do it again, a little later.
    `listen` is called before each further try, and may raise to end it.
    """
    # At random, so that two who gave way do not meet again.
    return _again(
        transaction,
        DatabaseBusyError,
        tenacity.stop_after_delay(patience_s),
        tenacity.wait_random(0.02, 0.2),
        listen,
    )


def when_there(
    transaction: Callable[[], T], patience_s: float, gives_up: Callable[[], bool] = lambda: False
) -> T:
    """Do a transaction; while there is no database (`DatabaseUnavailableError`), wait for it, no longer than
    `patience_s`, and no longer than some seconds once `gives_up` says so.

    A connection that breaks during the commit leaves open whether it took place: the transaction must be one
    that finds out, or may be done twice.
    """
    # Longer from time to time: hundreds of workers must not keep a server down that is starting up.
    return _again(
        transaction,
        DatabaseUnavailableError,
        tenacity.stop_any(
            tenacity.stop_after_delay(patience_s),
            tenacity.stop_all(tenacity.stop_after_delay(_HURRY_S), _StopWhen(gives_up)),
        ),
        tenacity.wait_random_exponential(0.5, max=5),
    )


class _StopWhen(tenacity.stop.stop_base):
    """Stop as soon as something is so."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self._is_so = is_so

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:  # noqa: ARG002 - tenacity names it
        return self._is_so()


def _again(
    transaction: Callable[[], T],
    kind: type[MigratorError],
    stop: tenacity.stop.stop_base,
    wait: tenacity.wait.wait_base,
    listen: Callable[[], None] = lambda: None,
) -> T:
    def before_sleep(state: tenacity.RetryCallState) -> None:
        _log.info("database_asked_again", reason=str(state.outcome.exception()) if state.outcome else "")
        listen()

    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(kind),
        stop=stop,
        wait=wait,
        before_sleep=before_sleep,
        reraise=True,
    )
    return attempts(transaction)
