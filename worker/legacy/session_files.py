"""The two files of a session that rows are made from, its recording and its labels, watched while their bytes pass by.

Knows no tree and no rows.
"""

import codecs
from collections.abc import Container
from pathlib import Path

from worker.legacy.file_list import ScannedFile
from worker.legacy.parallel import buffer_for
from worker.legacy.row_counter import RowCounter
from worker.runtime.throttle import Pace
from worker.sessions_csv import RECORDING, count_records
from worker.store.digest import Signature, opened, read_chunks
from worker.store.store import Source

LABELS = "labels.json"
"""The file of a session that is kept as text in a row, too."""

LABELS_MOST_BYTES = 16 << 20
"""A longer one is kept as a file only: to write a row takes several times its size of memory, here and in PostgreSQL."""


class TextCheck:
    """Watches a file pass by: is it text that PostgreSQL can hold (UTF-8 without NUL)?"""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._holds = True

    def feed(self, chunk: memoryview) -> None:
        """Take the next part of the file."""
        self._holds = self._holds and self._decodes(bytes(chunk), final=False)

    @property
    def is_text(self) -> bool:
        """To be asked once, at the end."""
        return self._holds and self._decodes(b"", final=True)

    def _decodes(self, content: bytes, *, final: bool) -> bool:
        try:
            return "\0" not in self._decoder.decode(content, final)
        except UnicodeDecodeError:
            return False


def is_recording(path: str) -> bool:
    """Is this the file of a session whose records Label counts?"""
    return path.count("/") == 1 and path.endswith(f"/{RECORDING}")


def is_labels(path: str) -> bool:
    """Is this the file of a session that is kept in a row, too?"""
    return path.count("/") == 1 and path.endswith(f"/{LABELS}")


def observer_of(file: ScannedFile, counted_sizes: Container[int]) -> RowCounter | TextCheck | None:
    """Who watches this file while it is hashed: only the two files of a session that rows are made from."""
    if is_recording(file.path):
        return RowCounter() if file.signature.size_bytes not in counted_sizes else None
    if is_labels(file.path):
        return TextCheck() if file.signature.size_bytes <= LABELS_MOST_BYTES else None
    return None


def count(source: Source, pace: Pace) -> int | None:
    """The records of a recording that is read for them alone. Errors as `read_chunks`."""
    counter = RowCounter()
    for chunk in read_chunks(source.path, source.signature, buffer_for(source.signature.size_bytes), pace):
        counter.feed(chunk)
    return records_of(counter, source.path, source.signature, pace)


def records_of(counter: RowCounter, path: str, signature: Signature, pace: Pace) -> int | None:
    """Label's number of records: from the bytes that passed by where they are plain, else from pandas, which Label uses."""
    if counter.records is not None:
        return counter.records or None
    # Pandas opens by name; by this one it gets the file that was checked, whatever lies at the path by now.
    with opened(path, signature) as descriptor:
        return count_records(Path(f"/proc/self/fd/{descriptor}"), pace)
