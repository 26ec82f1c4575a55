"""How much room the whole store takes on disk, walked now and then by a thread. Knows no metric."""

import threading
import time

from worker.allocation import allocated_below
from worker.runtime import log
from worker.settings import Settings

_log = log.get(__name__)

_REST_S = 600.0
_REST_SHARE = 9
"""A walk that took long is followed by a rest of so many times that: of the disks at most a tenth is ours."""


class StoreSize:
    """The allocated bytes of blobs, manifests, trees and quarantine, hard links once, as of the last walk."""

    def __init__(self, settings: Settings) -> None:
        self._roots = (settings.store_dir, settings.datasets_dir)
        self._lock = threading.Lock()
        self._walk: threading.Thread | None = None
        self._rests_until = 0.0
        self._latest: int | None = None

    def latest(self, wait_s: float) -> int | None:
        """What the last walk found; None before the first has ended, and after one that failed.

        Has a thread walk anew when the last walk is ten minutes old, and waits for it no longer than asked.
        """
        with self._lock:
            if (self._walk is None or not self._walk.is_alive()) and time.monotonic() >= self._rests_until:
                self._walk = threading.Thread(target=self._look, name="walk the store", daemon=True)
                self._walk.start()
            walk = self._walk
        if walk is not None and wait_s > 0:
            walk.join(wait_s)
        return self._latest

    def _look(self) -> None:
        began = time.monotonic()
        try:
            self._latest = allocated_below(self._roots)
        except OSError as error:
            self._latest = None
            _log.warning("store_not_walked", reason=str(error))
        ended = time.monotonic()
        self._rests_until = ended + max(_REST_S, _REST_SHARE * (ended - began))
