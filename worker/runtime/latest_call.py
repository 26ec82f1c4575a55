"""Makes calls in a thread of its own, of several that wait only the latest. Knows no Celery and no ledger."""

import threading
from collections.abc import Callable

from worker.runtime import log

_log = log.get(__name__)


class LatestCall:
    """A thread of this process that makes one call after the other; of those that wait, only the latest.

    For progress that people watch, which may be lost: a task must not wait for a broker that does not answer.
    """

    def __init__(self) -> None:
        self._next: Callable[[], None] | None = None
        self._came = threading.Condition()
        threading.Thread(target=self._run, name="progress", daemon=True).start()

    def submit(self, call: Callable[[], None]) -> None:
        """Make this call soon, unless a newer one comes first."""
        with self._came:
            self._next = call
            self._came.notify()

    def _run(self) -> None:
        while True:
            with self._came:
                self._came.wait_for(lambda: self._next is not None)
                call, self._next = self._next, None
            try:
                if call is not None:
                    call()
            except Exception as error:  # noqa: BLE001 - whatever the broker's client has, the next call may succeed
                _log.debug("progress_not_told", reason=f"{type(error).__name__}: {error}")
