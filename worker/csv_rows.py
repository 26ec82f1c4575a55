"""Counting the records of a CSV from the bytes that pass by while it is hashed. Parses nothing; says when in doubt."""

import numpy as np

from worker.blobs.digest import CHUNK_BYTES

_NEWLINE = 0x0A
_DIGITS_BEGIN = 0x2D
"""`-`, `.` and all digits and letters lie above; newline, comma, quotes, blanks and control characters below."""


class RowCounter:
    """Counts lines, and the bytes below `-`. In a plain CSV of numbers these are the newlines and the commas, so that
    every line adds one more than the header has commas. Where the sums differ (a blank line, a ragged one, a
    carriage return, a blank) or a quote appears, a parser has to count, and `records` is None.
    """

    def __init__(self) -> None:
        self._matches = np.empty(CHUNK_BYTES, dtype=np.bool_)
        self._lines = 0
        self._separators = 0
        self._header: bytes | None = None
        self._head = bytearray()
        self._ends_with_newline = True
        self._quoted = False

    def feed(self, chunk: memoryview) -> None:
        """Take the next part of the file, at most `CHUNK_BYTES` long."""
        if self._quoted:
            return
        content = bytes(chunk)
        self._quoted = b'"' in content
        if self._header is None:
            self._take_header(content)
        values = np.frombuffer(chunk, dtype=np.uint8)
        matches = self._matches[: len(values)]
        self._lines += int(np.count_nonzero(np.equal(values, _NEWLINE, out=matches)))
        self._separators += int(np.count_nonzero(np.less(values, _DIGITS_BEGIN, out=matches)))
        self._ends_with_newline = content.endswith(b"\n")

    @property
    def records(self) -> int | None:
        """Data rows, header not counted; None when only a parser can tell (also for a file without any line)."""
        if self._quoted or self._header is None:
            return None
        missing = not self._ends_with_newline
        lines, separators = self._lines + missing, self._separators + missing
        plain = separators == lines * (self._header.count(b",") + 1)
        return lines - 1 if plain else None

    def _take_header(self, content: bytes) -> None:
        self._head += content
        end = self._head.find(b"\n")
        if end >= 0:
            self._header = bytes(self._head[:end])
            self._head.clear()
