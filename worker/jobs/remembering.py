"""The digests that a job remembers of its project's files: loaded from the ledger, and kept there in batches
while it reads. A ledger that does not answer costs only the reading.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from worker.db import remembered as rows
from worker.db.engine import autocommit
from worker.errors import MigratorError
from worker.jobs.attempt import Attempt
from worker.legacy.file_list import ScannedFile
from worker.legacy.remembered import NO_MEMORY, Devices, Draft, Known, Memory, Remembered
from worker.legacy.scan import Scan
from worker.runtime import log
from worker.store.digest import Algorithm

_log = log.get(__name__)

T = TypeVar("T")

_BATCH_FILES = 20_000
_BATCH_S = 20.0
"""A job that dies has to read again what it read in so many seconds."""

_FEW_BYTES = 1 << 20
_FEW_FILES = 64
"""So few files are read sooner than the ledger answers."""

_SPARE_PARTS = 4
"""So many more parts than the files of a project need are put together."""


@contextmanager
def remembering(attempt: Attempt, project_id: int, scanned: Scan, algorithm: Algorithm) -> Iterator[Memory]:
    """The memory for one reading of a project's directory.

    When the block ends well, what is no longer so is forgotten; when it ends in an error, what was read by
    then is kept. With the option `rehash` nothing is believed and all is learned anew.
    """
    if scanned.size_bytes <= _FEW_BYTES and len(scanned.files) <= _FEW_FILES:
        yield NO_MEMORY
        return
    memory = _LedgerMemory(attempt, project_id, algorithm)
    try:
        yield memory
    except Exception:
        memory.write()
        raise
    memory.complete()


class _LedgerMemory:
    """Knows what the ledger has, and writes what is new to it."""

    def __init__(self, attempt: Attempt, project_id: int, algorithm: Algorithm) -> None:
        self._engine = attempt.engine
        self._project_id = project_id
        self._algorithm = algorithm
        self._devices = Devices()
        self._lock = threading.Lock()
        self._met, self._unwritten = Draft(), Draft()
        self._written_at = time.monotonic()
        kept = self._loaded()
        self._parts = set(kept)
        self._own_parts = set[int]()
        """Written by this job: what it learned is there and not in memory."""
        self._learned = 0
        self._remembered = Remembered(() if attempt.lease.options.rehash else kept.values())
        self._is_stale = attempt.lease.options.rehash and bool(kept)

    def of(self, file: ScannedFile) -> Known | None:
        """What is known of the file, if it is as it was."""
        if not self._remembered:
            return None
        return self._remembered.of(self._devices.number(file), file.signature)

    def met_again(self, file: ScannedFile, known: Known) -> None:
        """Keep it when the rest is forgotten."""
        device = self._devices.number(file)
        with self._lock:
            self._met.add(device, file.signature, known)

    def note(self, file: ScannedFile, known: Known, began_ns: int) -> None:
        """Take what was learned of a file, and write it with others."""
        if not self._devices.is_settled(file, began_ns):
            return
        device = self._devices.number(file)
        with self._lock:
            self._unwritten.add(device, file.signature, known)
            self._learned += 1
            is_due = time.monotonic() - self._written_at > _BATCH_S or len(self._unwritten) >= _BATCH_FILES
            if is_due:
                self._write(self._unwritten)
                self._unwritten, self._written_at = Draft(), time.monotonic()

    def write(self) -> None:
        """Write what has not been written yet."""
        with self._lock:
            if len(self._unwritten):
                self._write(self._unwritten)
                self._unwritten = Draft()

    def complete(self) -> None:
        """Write the rest; where some of what is kept is of no use any more, or in many parts, write all
        anew.
        """
        if not self._learned:
            return
        self.write()
        count = len(self._met) + self._learned
        needed = 1 + count // _BATCH_FILES
        is_stale = self._is_stale or len(self._met) < len(self._remembered)
        if not is_stale and len(self._parts) <= needed + _SPARE_PARTS:
            return
        kept = self._loaded()
        if not self._own_parts <= kept.keys():
            # The ledger did not answer once. What is there serves, the latest first.
            return
        others, learned = set(self._parts), Draft()
        for part in sorted(self._own_parts):
            learned.add_packed(kept[part])
        for draft in (self._met, learned):
            for portion in draft.portions(_BATCH_FILES):
                self._write(portion, others)
                others = set()

    def _loaded(self) -> dict[int, bytes]:
        def load() -> dict[int, bytes]:
            with autocommit(self._engine) as conn:
                return rows.load(conn, self._project_id, self._algorithm)

        return _if_there_is_a_ledger(load) or {}

    def _write(self, draft: Draft, instead_of: set[int] | None = None) -> None:
        part = max(self._parts, default=-1) + 1
        self._parts.add(part)
        self._own_parts.add(part)

        def keep() -> None:
            with autocommit(self._engine) as conn:
                rows.keep(
                    conn,
                    self._project_id,
                    part,
                    self._algorithm,
                    draft.packed(),
                    instead_of=instead_of or (),
                )

        _if_there_is_a_ledger(keep)


def _if_there_is_a_ledger(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except (MigratorError, SQLAlchemyError) as error:
        _log.warning("digests_not_remembered", reason=str(error).partition("\n")[0])
        return None
