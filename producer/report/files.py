"""A report's files: whole, durable, and never over another file; lists that are too long for memory lie in
files without a name until then. Knows no outcomes and no ledger.
"""

import errno
import json
import os
import tempfile
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, overload

from worker.errors import UsageError
from worker.messages import Verb
from worker.wording import VERB_WORDS

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}

_CHUNK = 1 << 20
_ENTRIES = 256


class ReportDirectoryError(UsageError):
    """The report cannot be written where it is wanted. Nothing else is lost: outcomes are in the ledger."""

    remedy: ClassVar[str] = (
        "Name a directory that you may write to and that has room: --report-dir DIR. "
        "A run that has ended keeps its outcomes: producer collect RUN --report-dir DIR writes the report again."
    )


def encode(document: Mapping[str, Any]) -> bytes:
    """Turn the document into the bytes of its file: UTF-8, indented, one line feed at the end.

    A lone surrogate, which UTF-8 cannot hold, becomes the JSON escape of the same character.
    """
    return b"".join(_pieces(document))


def _pieces(document: Mapping[str, Any]) -> Iterator[bytes]:
    """The same in pieces, none of which is much longer than the longest entry that is no `Spool`."""
    lead = b"{\n"
    for key, value in document.items():
        yield lead + b"  " + _encoded(key, "") + b": "
        if isinstance(value, Spool):
            yield from value.pieces()
        else:
            yield _encoded(value, "  ")
        lead = b",\n"
    yield b"\n}\n"


def _encoded(value: object, indent: str) -> bytes:
    """A JSON value whose lines but the first begin with `indent`."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    # No text in JSON has a line feed of its own.
    return text.replace("\n", f"\n{indent}").encode("utf-8", "backslashreplace")


class Spool(Sequence[Any]):
    """A list of a report that may be too long for memory: its entries in a file, as they will stand in the
    report's.

    The file has no name, so nothing of it stays, however the program ends. Entries are added at the end; one
    that is asked for is read anew. Raises `ReportDirectoryError` naming the directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = array("Q", [0])
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=_CHUNK)  # noqa: SIM115 - see close
        except OSError as error:
            raise _cannot_write(directory, error) from error

    def close(self) -> None:
        """Give the room on disk back."""
        # What is still in the buffer is not wanted any more, and might find the disk full.
        with suppress(OSError):
            self._file.close()

    def append(self, entry: object) -> None:
        """Add one JSON value at the end."""
        content = (b",\n    " if self else b"    ") + _encoded(entry, "    ")
        try:
            self._file.write(content)
        except OSError as error:
            raise _cannot_write(self._directory, error) from error
        self._ends.append(self._ends[-1] + len(content))

    def extend(self, entries: Iterable[object]) -> None:
        """Add JSON values at the end."""
        for entry in entries:
            self.append(entry)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self._decoded(self._read(self._ends[number], self._ends[number + 1]))

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, len(self), _ENTRIES):
            ends = self._ends[first : first + _ENTRIES + 1]
            content = self._read(ends[0], ends[-1])
            for start, end in pairwise(ends):
                yield self._decoded(content[start - ends[0] : end - ends[0]])

    def pieces(self) -> Iterator[bytes]:
        """The whole list as it stands in the report's file."""
        if not self:
            yield b"[]"
            return
        yield b"[\n"
        for start in range(0, self._ends[-1], _CHUNK):
            yield self._read(start, min(start + _CHUNK, self._ends[-1]))
        yield b"\n  ]"

    def _read(self, start: int, end: int) -> bytes:
        try:
            self._file.flush()
            return os.pread(self._file.fileno(), end - start, start)
        except OSError as error:
            raise _cannot_write(self._directory, error) from error

    @staticmethod
    def _decoded(content: bytes) -> Any:
        return json.loads(content.lstrip(b",\n"))


@contextmanager
def spools(directory: Path) -> Iterator[Callable[[], Spool]]:
    """Makes lists in files of `directory`, which are gone after the block."""
    with ExitStack() as made:

        def new_spool() -> Spool:
            spool = Spool(directory)
            made.callback(spool.close)
            return spool

        yield new_spool


def check_directory(directory: Path) -> None:
    """Make sure that a report can be written to `directory`, and create it if it is missing.

    Writes a file and removes it: permission bits alone do not tell of read-only or full disks. Raises
    `ReportDirectoryError` naming the directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_temporary(directory, [b"Can a report be written here?\n"]).unlink()
    except OSError as error:
        raise _cannot_write(directory, error) from error


def write(
    document: Mapping[str, Any], directory: Path, verb: Verb, at: datetime, *, html: str | None = None
) -> Path:
    """Write the report, and beside it `html` under the same stem; returns the path of the JSON file.

    The name carries the UTC second of `at`, or the next one that is free: no file is ever
    replaced, also by writers at the same time. An interim report's name begins with `interim_`,
    so that it is never taken for the final one. Both files appear whole and durable, the JSON
    last. Raises `ReportDirectoryError` naming the directory.
    """
    contents: dict[str, Iterable[bytes]] = {}
    if html is not None:
        contents[".html"] = [html.encode("utf-8", "backslashreplace")]
    contents[".json"] = _pieces(document)
    interim = "interim_" if document.get("interim") else ""
    return _write(contents, directory, f"{interim}{VERB_WORDS[verb].report_stem}", at)


def _write(contents: Mapping[str, Iterable[bytes]], directory: Path, name: str, at: datetime) -> Path:
    """Write files by their suffixes under one stem; the path of the JSON file."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as cleanup:
            temporaries: dict[str, Path] = {}
            for suffix, content in contents.items():
                temporaries[suffix] = _write_temporary(directory, content)
                cleanup.callback(temporaries[suffix].unlink)
            stem = next(stem for stem in _stems(directory, name, at) if _publish(temporaries, stem))
        _fsync_directory(directory)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    return stem.with_suffix(".json")


def write_plan(document: Mapping[str, Any], directory: Path, verb: Verb, at: datetime) -> Path:
    """Write a run's plan as `write` does a report; returns the path of its JSON file."""
    return _write({".json": _pieces(document)}, directory, f"{VERB_WORDS[verb].noun}_plan", at)


def _stems(directory: Path, name: str, at: datetime) -> Iterator[Path]:
    """Names for a report, second by second from `at` on: a suffix would break the pattern that scripts
    match.
    """
    second = at.astimezone(UTC)
    while True:
        yield directory / f"{name}_{second:%Y%m%d_%H%M%S}"
        second += timedelta(seconds=1)


def _publish(temporaries: Mapping[str, Path], stem: Path) -> bool:
    """Give all files their names at `stem`, or none of them and return False if a name is taken."""
    if any(os.path.lexists(stem.with_suffix(suffix)) for suffix in (".html", ".json")):
        return False
    named: list[Path] = []
    for suffix, temporary in temporaries.items():
        target = stem.with_suffix(suffix)
        try:
            _link(temporary, target)
        except OSError as error:
            # What has been named so far is this call's own; without its twin it would mislead.
            for path in named:
                path.unlink()
            if isinstance(error, FileExistsError):
                return False  # Another writer was faster since the check above.
            raise
        named.append(target)
    return True


def _link(temporary: Path, target: Path) -> None:
    """Make `temporary` appear as `target`; `FileExistsError` if anything is there, even a dangling link."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links: the exclusive creation decides the race, the rename then replaces only our own
        # file.
        with temporary.open("rb") as content:
            copy = _write_temporary(target.parent, iter(partial(content.read, _CHUNK), b""))
        try:
            target.touch(exist_ok=False)
            copy.replace(target)
        finally:
            copy.unlink(missing_ok=True)


def _write_temporary(directory: Path, content: Iterable[bytes]) -> Path:
    """Make a durable file of a name of its own, with the mode that the umask gives."""
    path = directory / f".report-{uuid.uuid4().hex}.tmp"
    try:
        with path.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # Also when the person at the terminal ends it.
        path.unlink(missing_ok=True)
        raise
    return path


def _fsync_directory(directory: Path) -> None:
    """Make names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(directory: Path, error: OSError) -> ReportDirectoryError:
    return ReportDirectoryError(f"cannot write a report to {directory}: {error.strerror or error}")
