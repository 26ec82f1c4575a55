"""Reading a session's recording as Label does, through pandas. Knows no database and writes nothing.

A session's rows lie in the `accelerometer_data.csv` of a directory that the application finds by rules which
differ from reader to reader. `locate` answers where, `select` which rows of which file, `read` answers with
the rows. All take the session's row as it stands, so that the rows before a migration, after it, and after
its rollback can be compared.

Example, the rows of a session as a plot shows them:

    >>> from pathlib import Path
    >>> from worker.sessions_csv import Reader, SessionRow, read
    >>> frame = read(SessionRow(...), Reader.PLOT, Path("/srv/label"))  # doctest: +SKIP
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from worker.errors import SessionUnreadableError
from worker.long_fields import CsvBytes, unheard
from worker.runtime.throttle import Pace, unlimited

if TYPE_CHECKING:
    import pandas as pd

RECORDING = "accelerometer_data.csv"
"""The file of a session's directory that holds its rows."""

TIME = "ns_since_reboot"

COLUMNS = (TIME, "x", "y", "z")
"""The columns of every frame: time in nanoseconds since the watch booted, acceleration as recorded."""

ACCELEROMETER: Mapping[str, str] = {"accel_x": "x", "accel_y": "y", "accel_z": "z"}
"""How an upload names the columns of a recording, each with its name in `COLUMNS`."""

GYROSCOPE: Mapping[str, str] = {"gyro_x": "x", "gyro_y": "y", "gyro_z": "z"}
"""The same of the gyroscope's file."""

_CHUNK_RECORDS = 1 << 16
_REJECTIONS = (ValueError, OverflowError)
"""What pandas raises for bytes that are no CSV of numbers; `ParserError` and such are `ValueError`s."""


class Reader(StrEnum):
    """The three places of Label that read rows: plotting, splitting a session, scoring by a model."""

    PLOT = "plot"
    SPLIT = "split"
    SCORING = "scoring"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """What Label knows of a session when it reads rows: columns of `sessions`, and two from elsewhere.

    `project_path` is `projects.path`. `dataset_file_path` is `raw_datasets.file_path` of the dataset that
    `dataset_id` names, None where there is no such dataset. Offsets count data rows of the CSV, half-open,
    0-based; `start_ns` and `stop_ns` are nanoseconds since the watch booted, both inclusive.
    """

    session_id: int
    session_name: str
    project_path: str | None
    parent_session_data_path: str | None
    data_start_offset: int | None
    data_end_offset: int | None
    start_ns: int
    stop_ns: int
    dataset_id: int | None
    raw_session_name: str | None
    dataset_file_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows of a recording a reader gets: records [start, end) by `offsets`, or those with
    first <= time <= last by `times`, or all but the last one; all where nothing is said.
    """

    path: Path
    offsets: tuple[int, int] | None = None
    times: tuple[int, int] | None = None
    without_last: bool = False

    @property
    def part(self) -> tuple[int, int | None]:
        """What has to be parsed for it: how many lines to skip after the header, and how many records then;
        None: all that there are.
        """
        return (0, None) if self.offsets is None else (self.offsets[0], self.offsets[1] - self.offsets[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A session's directory. `is_whole`: it is the session's own, so every row of it belongs to it."""

    directory: Path
    is_whole: bool


def locate(row: SessionRow, reader: Reader, data_dir: Path) -> Path:
    """Name the directory in which `reader` looks for the session's recording; it need not exist.

    Rules of Label. Plot: the dataset (see `_dataset_directory`), else the parent path, else the project's
    path joined with the session's name. Split and scoring: the same without the dataset. An empty path counts
    as none.

    Raises `SessionUnreadableError` if the row names no place at all.
    """
    return _find(row, reader, data_dir).directory


def select(row: SessionRow, reader: Reader, data_dir: Path) -> Selection:
    """Say which rows `reader` gets of the session, without reading any.

    Which rows (a rule of Label for each):

    - no parent path: all;
    - a parent path and both offsets: exactly [start, end), an end past the file being cut silently;
    - a parent path without offsets, plot and split: those with start_ns <= time <= stop_ns;
    - a parent path without offsets, scoring: the whole file minus its last record, whatever the times.

    Raises `SessionUnreadableError` if the row names no place at all.
    """
    place = _find(row, reader, data_dir)
    path = place.directory / RECORDING
    start, end = row.data_start_offset, row.data_end_offset
    if place.is_whole:
        return Selection(path=path)
    if start is not None and end is not None:
        return Selection(path=path, offsets=(start, end))
    if reader is Reader.SCORING:
        return Selection(path=path, without_last=True)
    return Selection(path=path, times=(row.start_ns, row.stop_ns))


def read(row: SessionRow, reader: Reader, data_dir: Path, pace: Pace = unlimited) -> "pd.DataFrame":
    """Read the session's rows as `reader` gets them (`select`, `read_selected`).

    `pace` is called with the bytes of each block that was read. Raises `SessionUnreadableError`, naming the
    file, if it is missing, unreadable, not a CSV, or lacks a column.
    """
    selection = select(row, reader, data_dir)
    try:
        return read_selected(selection, pace)
    except SessionUnreadableError as error:
        raise SessionUnreadableError(f"session {row.session_id} ({row.session_name}): {error}") from error


def read_selected(selection: Selection, pace: Pace = unlimited) -> "pd.DataFrame":
    """Read these rows: `COLUMNS`, all float64, sorted by time, index from 0.

    The frame is complete, where a plot draws every 50th row of it. It is also in one form, whichever rule
    chose the rows, because frames are read to be compared: Label itself sorts and casts only where it has
    offsets or scores, and among rows of equal time its order is not defined, while here it is the file's.

    `pace` and errors as of `read`. Takes a quarter more memory than the frame has in the end.
    """
    import pandas as pd  # noqa: PLC0415 - as in _chunks

    names, columns = _columns(selection, pace)
    _sort(names, columns)
    frame = pd.DataFrame(dict(enumerate(columns)), copy=False)
    frame.columns = pd.Index(names)
    return frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some records of a recording, column by column as `names` say, which are those of `COLUMNS`.
    `are_numbers`: none of them was cast from anything but numbers.
    """

    names: tuple[str, ...]
    columns: tuple[NDArray[np.float64], ...]
    are_numbers: bool


def chunks_of(
    path: Path,
    part: tuple[int, int | None] = (0, None),
    pace: Pace = unlimited,
    hear: Callable[[bytes], None] = unheard,
    spellings: Mapping[str, str] = ACCELEROMETER,
) -> Iterator[Chunk]:
    """Yield the records of a part of a recording (`Selection.part`) in the order of the file, in chunks that
    fit in memory; at least one.

    Lines that are skipped are physical ones, records are not, so a blank line is counted in the first and not
    in the second: a rule of Label, whose own files have none. `hear` is called with the text that pandas
    gets, `spellings` are other names of columns; `pace` and errors are as of `read`.
    """
    try:
        for chunk in _chunks(path, pace, *part, hear=hear):
            yield _floats(chunk, spellings)
    except OSError as error:
        raise SessionUnreadableError(f"cannot read {path}: {error.strerror or error}") from error
    except _REJECTIONS as error:
        raise SessionUnreadableError(f"{path} is not a recording: {error}") from error


def count_records(path: Path, pace: Pace = unlimited) -> int | None:
    """Count the records that pandas reads from a CSV, in memory that does not grow with the file nor with any
    field of it.

    The header is none, nor is a blank line; a last line without newline is one, and so is a record whose
    quoted field runs over several lines. None if pandas cannot parse the file or finds no record: then there
    is nothing that an offset could count. Columns are not looked at.

    Raises `SessionUnreadableError` if the file cannot be opened or read at all.
    """
    try:
        return sum(len(chunk) for chunk in _chunks(path, pace)) or None
    except _REJECTIONS:
        return None
    except OSError as error:
        raise SessionUnreadableError(f"cannot read {path}: {error.strerror or error}") from error


def _find(row: SessionRow, reader: Reader, data_dir: Path) -> _Place:
    directory = _dataset_directory(row, data_dir) if reader is Reader.PLOT else None
    if directory is not None:
        return _Place(directory=directory, is_whole=False)
    if row.parent_session_data_path:
        return _Place(directory=Path(row.parent_session_data_path), is_whole=False)
    if row.project_path:
        return _Place(directory=Path(os.path.join(row.project_path, row.session_name)), is_whole=True)
    raise SessionUnreadableError(
        f"session {row.session_id} ({row.session_name}): it has no parent path and its project has no path"
    )


def _dataset_directory(row: SessionRow, data_dir: Path) -> Path | None:
    """Where a plot finds a session of a dataset whose parent path is of no use; None: by the parent path
    after all.

    The stored path is not believed: only its last component counts, below the data directory of today.
    Without the name of a raw directory the session's name serves, up to its first dot (a rule of Label, wrong
    for names that hold dots of their own, which is why a migration always writes the raw name).
    """
    if row.dataset_id is None or row.dataset_file_path is None or _parent_path_serves(row):
        return None
    tree = data_dir / "raw_datasets" / os.path.basename(row.dataset_file_path)
    return tree / (row.raw_session_name or row.session_name.split(".")[0])


def _parent_path_serves(row: SessionRow) -> bool:
    parent = row.parent_session_data_path
    # Not `Path.exists`: that raises where a directory may not be entered or a name is too long; Label's test
    # says no.
    return bool(parent and "raw_datasets/raw_datasets" not in parent and os.path.exists(parent))


def _columns(selection: Selection, pace: Pace) -> tuple[tuple[str, ...], list[NDArray[np.float64]]]:
    """The selected rows in the order of the file, column by column: nothing is held twice but one column."""
    names: tuple[str, ...] = ()
    parts: list[list[NDArray[np.float64]]] = []
    for chunk in chunks_of(selection.path, selection.part, pace):
        names = chunk.names
        parts = parts or [[] for _ in names]
        rows = _within(chunk, selection.times) if selection.times is not None else slice(None)
        for found, column in zip(parts, chunk.columns, strict=True):
            # A copy: what pandas gave may be one of several rows of a block that stays as a whole.
            found.append(np.array(column[rows]))
    last = -1 if selection.without_last else None
    parts.reverse()
    return names, [np.concatenate(parts.pop())[:last] for _ in names]


def _within(chunk: Chunk, times: tuple[int, int]) -> NDArray[np.bool_]:
    column = chunk.columns[chunk.names.index(TIME)]
    return (column >= times[0]) & (column <= times[1])


def _sort(names: tuple[str, ...], columns: list[NDArray[np.float64]]) -> None:
    """By time; missing times come last, equal ones keep their order."""
    times = columns[names.index(TIME)]
    if bool((times[:-1] <= times[1:]).all()):
        return
    order = times.argsort(kind="stable")
    for place, column in enumerate(columns):
        columns[place] = column.take(order)


def _chunks(
    path: Path,
    pace: Pace,
    start: int = 0,
    count: int | None = None,
    hear: Callable[[bytes], None] = unheard,
) -> "Iterator[pd.DataFrame]":
    """Yield the records after `start` skipped lines, at most `count`, in frames that fit in memory; at least
    one.
    """
    # A worker whose recordings are plain files of numbers never needs it, and has 50 MB less without.
    import pandas as pd  # noqa: PLC0415

    # A function instead of a range: pandas would make a set of every number in it, hundreds of megabytes for
    # a day.
    skipped = (lambda line: 0 < line <= start) if start else None
    with CsvBytes(path, pace, hear) as shortened:
        content = cast("IO[bytes]", shortened)
        if count is not None and count <= 0:
            # In chunks pandas takes a negative count for none, and gives no frame at all for none; at once it
            # does neither.
            yield pd.read_csv(content, skiprows=skipped, nrows=count)
            return
        with pd.read_csv(
            content, skiprows=skipped, nrows=count, chunksize=_CHUNK_RECORDS, low_memory=False
        ) as chunks:
            yield from chunks


def _floats(chunk: "pd.DataFrame", spellings: Mapping[str, str]) -> Chunk:
    named = [spellings.get(column, column) for column in chunk.columns]
    if absent := [column for column in COLUMNS if column not in named]:
        raise ValueError(f"no column {', '.join(absent)} among {', '.join(map(str, chunk.columns))}")
    places = [place for wanted in COLUMNS for place, column in enumerate(named) if column == wanted]
    found = [chunk[chunk.columns[place]] for place in places]
    return Chunk(
        names=tuple(named[place] for place in places),
        columns=tuple(map(_cast, found)),
        are_numbers=all(column.dtype.kind in "if" for column in found),
    )


def _cast(column: "pd.Series") -> NDArray[np.float64]:
    # Numbers are cast as pandas does it, without asking for any other kind of type.
    plain = column if column.dtype.kind in "if" else column.astype("float64")
    floats: NDArray[np.float64] = plain.to_numpy().astype(np.float64, copy=False)
    return floats
