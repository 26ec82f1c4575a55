"""A file that a command was told to write: a new one, whole, and never over another."""

import os
from pathlib import Path

from worker.errors import UsageError


def check(path: Path) -> None:
    """Raise `UsageError` if something is there, before anything is done for it."""
    if os.path.lexists(path):
        raise _taken(path)


def write(path: Path, text: str) -> None:
    """Write it. Raises `UsageError` if something is there by now, or it cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UsageError(f"Cannot write {path}: {error.strerror}") from error


def _taken(path: Path) -> UsageError:
    return UsageError(f"{path} is there already. Name another file, or remove it")
