"""The two files of a session that rows are made from: its recording and its labels. Knows no rows."""

import codecs
import os
from collections.abc import Container
from pathlib import Path

from worker.legacy.file_list import FileList, ScannedFile
from worker.legacy.parallel import buffer_for
from worker.legacy.remembered import Known
from worker.legacy.row_counter import RowCounter
from worker.runtime.throttle import Pace
from worker.sessions_csv import RECORDING, count_records
from worker.store.digest import Signature, Sink, opened, read_chunks
from worker.store.store import Source

LABELS = "labels.json"
"""The file of a session that is kept as text in a row, too."""

LABELS_MOST_BYTES = 16 << 20
"""A longer one is kept as a file only: to write a row takes several times its size of memory."""


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


def _is_labels(path: str) -> bool:
    return path.count("/") == 1 and path.endswith(f"/{LABELS}")


def _is_short_labels(file: ScannedFile) -> bool:
    return _is_labels(file.path) and file.signature.size_bytes <= LABELS_MOST_BYTES


class SessionFiles:
    """Watches the recordings and the labels of a tree's sessions while their bytes are hashed, in any thread.

    Not watched are recordings whose paths are in `likely_known` and labels that are too long for a row.
    """

    def __init__(self, files: FileList, likely_known: Container[str] = ()) -> None:
        self._files = files
        self._likely_known = likely_known
        self._counters: dict[int, RowCounter] = {}
        self._texts: dict[int, TextCheck] = {}
        self._is_text: dict[int, bool] = {}
        self._known_records: dict[int, int | None] = {}

    def watch(self, number: int, file: ScannedFile) -> Sink | None:
        """What is to be shown every chunk of the file with this number in the scan; None for most files."""
        if is_recording(file.path) and file.path not in self._likely_known:
            return self._counters.setdefault(number, RowCounter()).feed
        if _is_short_labels(file):
            return self._texts.setdefault(number, TextCheck()).feed
        return None

    def learned(self, number: int, digest: str, head: str | None) -> Known:
        """What is known of a file that has passed by to its end. To be asked once of each."""
        counter, text = self._counters.get(number), self._texts.get(number)
        if text is not None:
            self._is_text[number] = text.is_text
        # What only pandas can count is counted at the end.
        is_counted = counter is not None and counter.records is not None
        return Known(
            digest=digest,
            is_counted=is_counted,
            records=counter.records or None if counter is not None and is_counted else None,
            is_text=self._is_text.get(number),
            head=head,
        )

    def recall(self, number: int, file: ScannedFile, known: Known) -> bool:
        """Take what is known of a file instead of watching it; False if that is not enough. The records of a
        recording may be missing: they are known by its digest, or counted at the end.
        """
        if _is_short_labels(file):
            if known.is_text is None:
                return False
            self._is_text[number] = known.is_text
        if is_recording(file.path) and known.is_counted:
            self._known_records[number] = known.records
        return True

    def records(self, pace: Pace) -> dict[str, int | None]:
        """The records of each recording that was watched. Reads those again that only pandas can count."""
        found = {
            _session(self._files.paths[number]): records for number, records in self._known_records.items()
        }
        for number in sorted(self._counters):
            file = self._files[number]
            found[_session(file.path)] = _records(self._counters[number], file.source, file.signature, pace)
        return found

    def unreadable_labels(self) -> frozenset[str]:
        """The sessions whose labels are not text that a row can hold."""
        return frozenset(
            _session(self._files.paths[number]) for number, is_text in self._is_text.items() if not is_text
        )

    def large_labels(self) -> frozenset[str]:
        """The sessions whose labels are too long for a row."""
        sizes = zip(self._files.paths, self._files.sizes(), strict=True)
        return frozenset(
            _session(path) for path, size in sizes if size > LABELS_MOST_BYTES and _is_labels(path)
        )


def count_records_of(source: Source, pace: Pace) -> int | None:
    """The records of a recording that is read for them alone. Errors as `read_chunks`."""
    counter = RowCounter()
    for chunk in read_chunks(source.path, source.signature, buffer_for(source.signature.size_bytes), pace):
        counter.feed(chunk)
    return _records(counter, source.path, source.signature, pace)


def _records(counter: RowCounter, path: str, signature: Signature, pace: Pace) -> int | None:
    """The number of records: of plain bytes as they passed by, of others from pandas, which Label uses."""
    if counter.records is not None:
        return counter.records or None
    # Pandas opens by name; by this one it gets the file that was checked, whatever lies at the path by now.
    with opened(path, signature) as descriptor:
        return count_records(Path(f"/proc/self/fd/{descriptor}"), pace)


def _session(path: str) -> str:
    return os.path.dirname(path)
