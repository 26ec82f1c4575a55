"""How fast a run is: right now, and over the time in which workers ran its jobs."""

import time

from worker.db.overview import Progress


class CurrentSpeed:
    """How fast a run is right now: the average over the last ten seconds."""

    _OVER_S = 10.0

    def __init__(self) -> None:
        self._looks: list[tuple[float, int, int]] = []

    def measure(self, progress: Progress) -> tuple[float, float]:
        """Bytes and files a second, with this look; zeros at the first one."""
        now = time.monotonic()
        self._looks.append((now, progress.bytes_done, progress.files_done))
        while now - self._looks[0][0] > self._OVER_S and len(self._looks) > 2:
            self._looks.pop(0)
        begin, size, files = self._looks[0]
        seconds = now - begin
        if seconds <= 0:
            return 0.0, 0.0
        return max(0, progress.bytes_done - size) / seconds, max(0, progress.files_done - files) / seconds


class ActiveSpeed:
    """How fast a run is while workers run jobs of it, since it is followed.

    What was done before, and idle time, do not count.
    """

    def __init__(self) -> None:
        self._active_s = 0.0
        self._gained = 0
        self._before: tuple[float, int] | None = None

    def measure(self, progress: Progress) -> float:
        """Bytes a second, with this look; zero at the first one."""
        now = time.monotonic()
        if self._before is not None:
            then, done = self._before
            gained = max(0, progress.bytes_done - done)
            if progress.live or gained:
                self._active_s += now - then
                self._gained += gained
        self._before = now, progress.bytes_done
        return self._gained / self._active_s if self._active_s > 0 else 0.0
