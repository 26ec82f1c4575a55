"""A report's files: whole, durable, and never over another file. Knows no outcomes and no ledger."""

import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from worker.errors import UsageError
from worker.messages import Verb
from worker.wording import VERB_WORDS

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


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
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def check_directory(directory: Path) -> None:
    """Make sure that a report can be written to `directory`, and create it if it is missing.

    Writes a file and removes it: permission bits alone do not tell of read-only or full disks. Raises
    `ReportDirectoryError` naming the directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_temporary(directory, b"Can a report be written here?\n").unlink()
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
    contents = {} if html is None else {".html": html.encode("utf-8", "backslashreplace")}
    contents[".json"] = encode(document)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as cleanup:
            temporaries: dict[str, Path] = {}
            for suffix, content in contents.items():
                temporaries[suffix] = _write_temporary(directory, content)
                cleanup.callback(temporaries[suffix].unlink)
            stem = next(stem for stem in _stems(directory, document, verb, at) if _publish(temporaries, stem))
        _fsync_directory(directory)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    return stem.with_suffix(".json")


def _stems(directory: Path, document: Mapping[str, Any], verb: Verb, at: datetime) -> Iterator[Path]:
    """Names for a report, second by second from `at` on: a suffix would break the pattern that scripts
    match.
    """
    second = at.astimezone(UTC)
    interim = "interim_" if document.get("interim") else ""
    while True:
        yield directory / f"{interim}{VERB_WORDS[verb].report_stem}_{second:%Y%m%d_%H%M%S}"
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
        copy = _write_temporary(target.parent, temporary.read_bytes())
        try:
            target.touch(exist_ok=False)
            copy.replace(target)
        finally:
            copy.unlink(missing_ok=True)


def _write_temporary(directory: Path, content: bytes) -> Path:
    """Make a durable file of a name of its own, with the mode that the umask gives."""
    path = directory / f".report-{uuid.uuid4().hex}.tmp"
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
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
