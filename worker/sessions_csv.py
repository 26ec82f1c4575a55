"""Reading a session's recording as Label does, through pandas. Knows no database and writes nothing.

A session's rows lie in the `accelerometer_data.csv` of a directory that the application finds by rules which
differ from reader to reader. `locate` answers where, `read` answers with the rows. Both take the session's
row as it stands, so that the rows before a migration, after it, and after its rollback can be compared.

Example, the rows of a session as a plot shows them:

    >>> from pathlib import Path
    >>> from worker.sessions_csv import Reader, SessionRow, read
    >>> frame = read(SessionRow(...), Reader.PLOT, Path("/srv/label"))  # doctest: +SKIP
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from worker.errors import SessionUnreadableError
from worker.long_fields import CsvBytes
from worker.runtime.throttle import Pace, unlimited

if TYPE_CHECKING:
    import pandas as pd

RECORDING = "accelerometer_data.csv"
"""The file of a session's directory that holds its rows."""

COLUMNS = ("ns_since_reboot", "x", "y", "z")
"""The columns of every frame: time in nanoseconds since the watch booted, acceleration as recorded."""

_SPELLINGS = {"accel_x": "x", "accel_y": "y", "accel_z": "z"}
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


def read(row: SessionRow, reader: Reader, data_dir: Path, pace: Pace = unlimited) -> "pd.DataFrame":
    """Read the session's rows as `reader` gets them: `COLUMNS`, all float64, sorted by time, index from 0.

    Which rows (a rule of Label for each):

    - no parent path: all;
    - a parent path and both offsets: exactly [start, end), an end past the file being cut silently;
    - a parent path without offsets, plot and split: those with start_ns <= time <= stop_ns;
    - a parent path without offsets, scoring: the whole file minus its last record, whatever the times.

    The frame is complete, where a plot draws every 50th row of it. It is also in one form, whichever rule
    chose the rows, because frames are read to be compared: Label itself sorts and casts only where it has
    offsets or scores, and among rows of equal time its order is not defined, while here it is the file's.

    `pace` is called with the bytes of each block that was read. Raises `SessionUnreadableError`, naming the
    file, if it is missing, unreadable, not a CSV, or lacks a column.
    """
    place = _find(row, reader, data_dir)
    path = place.directory / RECORDING
    start, end = row.data_start_offset, row.data_end_offset
    try:
        if place.is_whole:
            frame = _records(path, pace)
        elif start is not None and end is not None:
            frame = _records(path, pace, start, end)
        elif reader is Reader.SCORING:
            frame = _records(path, pace).iloc[:-1]
        else:
            frame = _records(path, pace)
            frame = frame[frame["ns_since_reboot"].between(row.start_ns, row.stop_ns)]
    except SessionUnreadableError as error:
        raise SessionUnreadableError(f"session {row.session_id} ({row.session_name}): {error}") from error
    return frame.sort_values("ns_since_reboot", kind="stable", ignore_index=True)


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


def _records(path: Path, pace: Pace, start: int = 0, end: int | None = None) -> "pd.DataFrame":
    """Read records [start, end) of a CSV in the order of the file, as floats.

    `start` counts physical lines after the header, `end - start` counts records, so a blank line is counted
    in the first and not in the second: a rule of Label, whose own files have none.
    """
    import pandas as pd  # noqa: PLC0415 - as in _chunks

    count = None if end is None else end - start
    try:
        frame = pd.concat([_floats(chunk) for chunk in _chunks(path, pace, start, count)], ignore_index=True)
    except OSError as error:
        raise SessionUnreadableError(f"cannot read {path}: {error.strerror or error}") from error
    except _REJECTIONS as error:
        raise SessionUnreadableError(f"{path} is not a recording: {error}") from error
    return frame


def _chunks(path: Path, pace: Pace, start: int = 0, count: int | None = None) -> "Iterator[pd.DataFrame]":
    """Yield the records after `start` skipped lines, at most `count`, in frames that fit in memory; at least
    one.
    """
    # A worker whose recordings are plain files of numbers never needs it, and has 50 MB less without.
    import pandas as pd  # noqa: PLC0415

    # A function instead of a range: pandas would make a set of every number in it, hundreds of megabytes for
    # a day.
    skipped = (lambda line: 0 < line <= start) if start else None
    with CsvBytes(path, pace) as shortened:
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


def _floats(chunk: "pd.DataFrame") -> "pd.DataFrame":
    named = chunk.rename(columns=_SPELLINGS)
    if absent := [column for column in COLUMNS if column not in named.columns]:
        raise ValueError(f"no column {', '.join(absent)} among {', '.join(map(str, chunk.columns))}")
    return named[list(COLUMNS)].astype("float64")
