"""Counting the records of a CSV from the bytes that pass by. Parses nothing; says when in doubt."""

import threading

import numpy as np
from numpy.typing import NDArray

from worker.store.digest import CHUNK_BYTES

_COMMA = 0x2C
_NEWLINE = 0x0A
_DIGITS_BEGIN = 0x2D
"""`-`, `.`, digits and letters lie above; newline, comma, quotes, blanks and control characters below."""

_HEAD_BYTES = 1 << 16
"""The longest beginning that is kept; a file whose first two lines are longer is no recording."""

_local = threading.local()


def _matches() -> NDArray[np.bool_]:
    """This thread's room for comparisons: a counter outlives its file, and there is one for each session."""
    if not hasattr(_local, "matches"):
        _local.matches = np.empty(CHUNK_BYTES, dtype=np.bool_)
    matches: NDArray[np.bool_] = _local.matches
    return matches


class RowCounter:
    """Counts newlines and commas. In a plain CSV they are the only bytes below `-` and each line has as many
    commas as the header. Wherever that is not so (quotes, blanks, carriage returns, lines of unequal length),
    or a byte is not ASCII, a parser has to count, and `records` is None.

    Lines are not looked at one by one, so a short line and a long one can make up for each other. Pandas
    refuses to read a file with a line longer than its header, unless it is the first after it, and that one
    is looked at: whenever pandas can read a file, `records` is right.
    """

    def __init__(self) -> None:
        self._newlines = 0
        self._commas = 0
        self._head = b""
        self._head_is_whole = False
        self._ends_with_newline = True
        self._plain = True

    def feed(self, chunk: memoryview) -> None:
        """Take the next part of the file."""
        for start in range(0, len(chunk), CHUNK_BYTES):
            if self._plain:
                self._feed(chunk[start : start + CHUNK_BYTES])

    def _feed(self, chunk: memoryview) -> None:
        """Take a part that stays in the second-level cache from one look at it to the next."""
        values: NDArray[np.uint8] = np.frombuffer(chunk, dtype=np.uint8)
        matches = _matches()[: len(values)]
        newlines = int(np.count_nonzero(np.equal(values, _NEWLINE, out=matches)))
        commas = int(np.count_nonzero(np.equal(values, _COMMA, out=matches)))
        below_digits = int(np.count_nonzero(np.less(values, _DIGITS_BEGIN, out=matches)))
        self._plain = below_digits == newlines + commas and bool(values.max() < 0x80)
        if not self._head_is_whole:
            self._take_head(chunk)
        self._newlines += newlines
        self._commas += commas
        self._ends_with_newline = bool(values[-1] == _NEWLINE)

    @property
    def records(self) -> int | None:
        """Data rows, header not counted; None when only a parser can tell (or there is no line)."""
        header, _, first = self._head.partition(b"\n")
        width = header.count(b",")
        lines = self._newlines + (not self._ends_with_newline)
        # A line without a comma may be a blank one, which is no record.
        if not self._plain or width == 0 or self._commas != lines * width:
            return None
        return lines - 1 if lines == 1 or first.count(b",") == width else None

    def _take_head(self, chunk: memoryview) -> None:
        """Keep the header and the line after it."""
        self._head += bytes(chunk[:_HEAD_BYTES])
        self._head_is_whole = self._head.count(b"\n") >= 2
        if self._head_is_whole:
            self._head = b"\n".join(self._head.split(b"\n", 2)[:2])
        elif len(self._head) >= _HEAD_BYTES:
            self._plain = False
