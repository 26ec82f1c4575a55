"""Reading a CSV as bytes in which no field is longer than memory allows. Knows quotes, and no column.

A parser keeps a field whole until it ends, and after one stray quote that may be the end of the file. How
many records a file has does not depend on what stands inside a field, so a field that goes on for more than a
mebibyte is shortened on the way to the parser. Its quotes are those of pandas' parser: one opens a field only
right at its beginning, and a doubled one is content.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from worker.runtime.throttle import Pace, unlimited

FIELD_MOST_BYTES = 1 << 20
"""No number is longer, nor any other field of a recording that a person can read."""

_BLOCK_BYTES = 1 << 18
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHORTENED = b'"too long'

_PIECES = re.compile(rb'(?:[^"]++|(?<![,\r\n])"|"[^"]*+(?:""[^"]*+)*+"(?=[^"])){1,1000}')
"""Text, quotes that open nothing, and quoted fields whose end is read; a quote that may be half of a doubled
one ends none.

So many at a time, and none kept for good (`*+`): that would be what is meant, but Python 3.11.2, which
Debian 12 has, then does not go back to where an alternative that failed had begun; and without a bound the
places to go back to take a hundred megabytes.
"""

_CLOSING = re.compile(rb'[^"]*+(?:""[^"]*+)*+"(?=[^"])')
"""From inside a quoted field to its end."""

_TEXT = re.compile(rb"[^,\r\n]++")


def _end_of_pieces(text: bytes, begin: int) -> int:
    """Up to a quoted field whose end is not read yet."""
    end = begin
    while (found := _PIECES.match(text, end)) is not None:
        end = found.end()
    return end


def unheard(_part: bytes) -> None:
    """Take no notice."""


class CsvBytes:
    """The bytes of a CSV for pandas, every overlong field shortened; `pace` is called with the bytes of each
    block, `hear` with each part as pandas gets it.

    A class of no kind that pandas knows as binary: it would decode such a one before it parses, and then
    refuses bytes in a column of numbers that it takes from a file it opens itself, as Label has it do.
    """

    def __init__(self, path: Path, pace: Pace = unlimited, hear: Callable[[bytes], None] = unheard) -> None:
        """Open the file; raises `OSError`."""
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - `close` is this class's own
        self._file = file
        self._pace = pace
        self._hear = hear
        self._ready = b""
        self._rest = b""
        """What is read and not passed on: the beginning of a quoted field, as far as it goes."""
        self._before = b"\n"
        """The byte before `_rest`: a quote opens a field after a delimiter or a newline only."""
        self._is_inside = False
        """Inside a quoted field that is overlong: nothing of it is passed on."""
        self._run_bytes = 0
        """The length of the text since the last delimiter or newline."""
        self._is_cut = False
        """Has something of that text been left out?"""
        self._has_begun = False
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        """What makes it a file to pandas."""
        return iter(lambda: self.read(_BLOCK_BYTES), b"")

    def read(self, count: int) -> bytes:
        """The next bytes, `count` of them unless the file ends: pandas' parser is not quite the same at part
        ends.
        """
        while len(self._ready) < count and not self._is_over:
            self._take_block()
        part, self._ready = self._ready[:count], self._ready[count:]
        self._hear(part)
        return part

    def _take_block(self) -> None:
        block = self._file.read(_BLOCK_BYTES) or b""
        self._is_over = not block
        self._pace(len(block))
        if not self._has_begun and block.startswith(_BYTE_ORDER_MARK):
            self._ready, block = _BYTE_ORDER_MARK, block[len(_BYTE_ORDER_MARK) :]
            if not block:
                return
        self._has_begun = True
        self._ready += self._without_long_text(self._without_long_quotes(block))

    def _without_long_quotes(self, block: bytes) -> bytes:
        """What can be passed on of what was left and the next block; all of it at the end."""
        passed = b""
        data = self._rest + block
        if self._is_inside:
            end = _CLOSING.match(data)
            if end is None and block:
                # Of the quotes at the end only whether they are even can matter.
                self._rest = b'"' * ((len(data) - len(data.rstrip(b'"'))) % 2)
                return b""
            self._is_inside = False
            closed = end.end() if end is not None else len(data)
            passed, data, self._before = (b'"' if end or data == b'"' else b""), data[closed:], b'"'
        if not block:
            self._rest = b""
            return passed + data
        complete = len(data) if b'"' not in data else _end_of_pieces(self._before + data, 1) - 1
        passed += data[:complete]
        self._rest = data[complete:]
        self._before = data[complete - 1 : complete] or self._before
        if len(self._rest) > FIELD_MOST_BYTES:
            self._is_inside = True
            self._rest = b'"' * ((len(self._rest) - 1 - len(self._rest[1:].rstrip(b'"'))) % 2)
            passed += _SHORTENED
        return passed

    def _without_long_text(self, text: bytes) -> bytes:
        """The same, but no text between two delimiters is longer than twice a field, as in a file of NUL
        bytes.
        """
        last = max(text.rfind(byte) for byte in (b",", b"\r", b"\n"))
        if last < 0:
            return self._within_room(text)
        first = _TEXT.match(text)
        begins = first.end() if first is not None else 0
        passed = self._within_room(text[:begins]) + text[begins:]
        self._run_bytes, self._is_cut = len(text) - last - 1, False
        return passed

    def _within_room(self, text: bytes) -> bytes:
        """As much of a text as there is room for, and no part of a character: pandas would refuse the
        file.
        """
        if self._is_cut:
            return b""
        count = max(0, 2 * FIELD_MOST_BYTES - self._run_bytes)
        while count < len(text) and 0x80 <= text[count] < 0xC0:
            count += 1
        self._run_bytes += len(text)
        self._is_cut = count < len(text)
        return text[:count]
