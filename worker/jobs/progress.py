"""How far a job is: counted by every thread of its work, read by the threads beside it. Knows no database."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_TELL_S = 2.0
"""How often it is said how far a job is, for Flower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is. `files_total` is 0 until the job's directory has been listed."""

    phase: str
    files_done: int
    files_total: int
    bytes_done: int


class ProgressCount:
    """What a job does and how much of it is done. `on_progress` is told now and then; must return at once."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self.phase = "scan"
        self.dataset_hash: str | None = None
        self.files_total = 0
        """How many files the job's directory has; 0 until it has been listed."""
        self._on_progress = on_progress
        self._told_at = time.monotonic()
        self._files_done = self._bytes_done = 0
        self._counting = threading.Lock()

    def add(self, files: int, size_bytes: int) -> None:
        """Count what is done."""
        with self._counting:
            self._files_done += files
            self._bytes_done += size_bytes

    def restart(self) -> None:
        """The work begins again; so does the count."""
        with self._counting:
            self._files_done = self._bytes_done = 0

    def now(self) -> Progress:
        """How far the job is at this moment."""
        with self._counting:
            return Progress(
                phase=self.phase,
                files_done=self._files_done,
                files_total=self.files_total,
                bytes_done=self._bytes_done,
            )

    def tell(self) -> None:
        """Tell `on_progress`, unless it was told a moment ago."""
        if time.monotonic() - self._told_at >= _TELL_S:
            self._told_at = time.monotonic()
            self._on_progress(self.now())
