"""What readers get of recordings, as counts and digests: each recording is read once, however many sessions
are parts of it. Knows no session and no database, and keeps no rows.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from worker.errors import SessionUnreadableError
from worker.long_fields import unheard
from worker.runtime.throttle import Pace, unlimited
from worker.sessions_csv import Selection, chunks_of, read_selected

_AT_ONCE_ROWS = 1 << 16
_HEAD_BYTES = 1 << 16
_NEWLINE = 0x0A
_ODD = (b'"', b"\r", b" ", b"\t")
"""With one of these a line may be blank, or a record go on over several lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Reading in some order: how many, and the digest of their values, by which frames are equal as pandas
    compares them: missing values are equal, and both zeros.
    """

    count: int
    digest: bytes


class Readings:
    """What is read of some selections.

    A selection is hashed in the order of the file, on the one way through it that serves all selections of
    the file. Only where two of them differ so, or where one way does not tell (a file with blank lines or
    quotes of which parts are wanted), they are read by themselves, one after the other, and sorted.
    """

    def __init__(self, selections: Iterable[Selection], pace: Pace = unlimited) -> None:
        """Take all selections that will be asked for; nothing is read yet."""
        self._pace = pace
        self._of_file: defaultdict[Path, set[Selection]] = defaultdict(set)
        for selection in selections:
            self._of_file[selection.path].add(selection)
        self._in_file_order: dict[Selection, Reading | str] = {}
        self._sorted: dict[Selection, Reading | str] = {}

    def both(self, one: Selection, other: Selection) -> tuple[Reading | str, Reading | str]:
        """Two selections' rows, in an order in which they are equal if they are once sorted; of one that
        cannot be read, why.
        """
        as_they_lie = self._passed(one), self._passed(other)
        if isinstance(as_they_lie[0], Reading) and as_they_lie[0] == as_they_lie[1]:
            return as_they_lie[0], as_they_lie[0]
        return self.sorted(one), self.sorted(other)

    def sorted(self, selection: Selection) -> Reading | str:
        """Its rows as `read_selected` gives them, or why it cannot be read."""
        passed = self._passed(selection)
        if isinstance(passed, str):
            return passed
        if selection not in self._sorted:
            self._sorted[selection] = self._read(selection)
        return self._sorted[selection]

    def _read(self, selection: Selection) -> Reading | str:
        try:
            frame = read_selected(selection, self._pace)
        except SessionUnreadableError as error:
            return str(error)
        all_of_it = _Chosen(Selection(path=selection.path))
        for first in range(0, len(frame), _AT_ONCE_ROWS):
            some = slice(first, first + _AT_ONCE_ROWS)
            columns = [frame.iloc[some, place].to_numpy() for place in range(frame.shape[1])]
            all_of_it.take(_values(columns), first)
        return all_of_it.rows()

    def _passed(self, selection: Selection) -> Reading | str | None:
        """What the one way through its file says of it: nothing where that cannot tell."""
        together = self._of_file.pop(selection.path, None)
        if together is not None:
            self._in_file_order |= _one_way_through(selection.path, together, self._pace)
        return self._in_file_order.get(selection)


def _one_way_through(path: Path, selections: set[Selection], pace: Pace) -> dict[Selection, Reading | str]:
    """Read so much of a recording as all of these need; what it says of each, if anything.

    A selection that is parsed alike by itself is what it is here. So is another one where every line is a
    record and every column of numbers: there it does not matter at which line pandas begins.
    """
    part = _together(selections)
    if part is None:
        return {}
    chosen = {one: _Chosen(one, part[0]) for one in selections if _is_ordered(one)}
    lines = None if all(one.part == part for one in chosen) else _Lines()
    are_numbers, count = True, 0
    try:
        for chunk in chunks_of(path, part, pace, lines.hear if lines is not None else unheard):
            are_numbers &= chunk.are_numbers
            values = _values(chunk.columns)
            for one in chosen.values():
                one.take(values, count)
            count += len(values)
    except SessionUnreadableError as error:
        return {one: str(error) for one in chosen if one.part == part}
    told = are_numbers and (lines is None or lines.are_records)
    return {one: rows.rows() for one, rows in chosen.items() if told or one.part == part}


def _together(selections: set[Selection]) -> tuple[int, int | None] | None:
    """The part of the file in which all selections lie that are in order; None if there is none."""
    parts = {one.part for one in selections if _is_ordered(one)}
    if len(parts) <= 1:
        return next(iter(parts), None)
    ends = [None if count is None else start + count for start, count in parts]
    return 0, None if None in ends else max(end for end in ends if end is not None)


def _is_ordered(selection: Selection) -> bool:
    return selection.offsets is None or 0 <= selection.offsets[0] <= selection.offsets[1]


class _Chosen:
    """Counts and hashes the rows of one selection while a file passes by whose first row is number `first`
    of it.
    """

    def __init__(self, selection: Selection, first: int = 0) -> None:
        self._selection = selection
        self._first = first
        self._count = 0
        self._digest = blake3()
        self._last: NDArray[np.float64] | None = None

    def take(self, values: NDArray[np.float64], before: int) -> None:
        """Take what is wanted of the next rows; `before`: how many have passed."""
        if self._selection.offsets is not None:
            start, end = (max(0, number - self._first - before) for number in self._selection.offsets)
            values = values[start:end]
        if self._selection.times is not None:
            begin, end = self._selection.times
            values = values[(values[:, 0] >= begin) & (values[:, 0] <= end)]
        if self._selection.without_last and len(values):
            if self._last is not None:
                self._add(self._last)
            values, self._last = values[:-1], values[-1:]
        self._add(values)

    def _add(self, values: NDArray[np.float64]) -> None:
        if len(values):
            self._count += len(values)
            self._digest.update(values.reshape(-1).view(np.uint8).data)

    def rows(self) -> Reading:
        """What was taken."""
        return Reading(count=self._count, digest=self._digest.digest())


def _values(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The values row by row, such that equal ones have equal bytes."""
    values = np.empty((len(columns[0]), len(columns)))
    for place, column in enumerate(columns):
        np.add(column, 0.0, out=values[:, place])
    values[np.isnan(values)] = np.nan
    return values


class _Lines:
    """Whether every physical line of a text is a record, whose first has no more fields than the header.
    Where a blank line or a quote could be, it says no.
    """

    def __init__(self) -> None:
        self.are_records = True
        self._last = b"\n"
        self._head = b""

    def hear(self, part: bytes) -> None:
        """Take the next part of the text."""
        if not self.are_records:
            return
        if len(self._head) < _HEAD_BYTES:
            self._head += part[:_HEAD_BYTES]
            header, _, rest = self._head.partition(b"\n")
            if rest.partition(b"\n")[0].count(b",") > header.count(b","):
                self.are_records = False
        if any(byte in part for byte in _ODD) or _has_blank_line(self._last + part):
            self.are_records = False
        self._last = part[-1:] or self._last


def _has_blank_line(text: bytes) -> bool:
    """Are there two newlines without anything between them? For text with many newlines, where `in` is
    slow.
    """
    is_newline = np.frombuffer(text, dtype=np.uint8) == _NEWLINE
    return bool((is_newline[1:] & is_newline[:-1]).any())
