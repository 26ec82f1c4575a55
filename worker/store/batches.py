"""Finished copies become blobs, many at a time: bytes to the disk first, then their names. Knows no tree and
no database.
"""

import threading
from types import TracebackType
from typing import Self

from worker.errors import MigratorError
from worker.runtime import log
from worker.store.store import Store

BATCH_BYTES = 512 << 20
"""So many bytes of finished copies get their names together: about so much a worker that dies leaves to be
written again.
"""

BATCH_FILES = 20_000
"""So many finished copies get their names at the latest, however small they are: what waits is kept in
memory.
"""

_log = log.get(__name__)


class Admission:
    """Gives finished copies their names as blobs, many at a time, so that one wait for the disk serves a
    whole batch.

    Every `BATCH_BYTES` or `BATCH_FILES`, and what is left at the end of the `with` block: also when an error
    ends it, be it that the job is to stop or that another file changed. The next attempt finds these blobs,
    and a copy has the digest it was read with, whatever became of its source.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._admitting = threading.Lock()
        self._waiting: list[tuple[str, str, int]] = []
        self._waiting_bytes = 0
        self._bytes_were_lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None:
            self._admit_waiting()
        elif isinstance(error, Exception):
            # A process that has to end at once (SystemExit) does not wait for the disk.
            try:
                self._admit_waiting()
            except MigratorError as another:
                _log.warning("finished_copies_not_kept", reason=str(another))

    def add(self, copy: str, digest: str, size_bytes: int) -> None:
        """Take a finished copy, from any thread; raises as `Store.sync` and `Store.admit` when that makes a
        batch full.
        """
        with self._lock:
            self._waiting.append((copy, digest, size_bytes))
            self._waiting_bytes += size_bytes
            is_full = self._waiting_bytes >= BATCH_BYTES or len(self._waiting) >= BATCH_FILES
        if is_full:
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Bytes before names: a crash after a blob has its name must not leave that name without its
        bytes.
        """
        with self._admitting:
            with self._lock:
                batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            if not batch or self._bytes_were_lost:
                return
            try:
                self._store.sync()
            except MigratorError:
                # The disk tells once, and not of which bytes: they may be those of copies that came in since.
                self._bytes_were_lost = True
                raise
            for copy, digest, size_bytes in batch:
                self._store.admit(copy, digest, size_bytes)
