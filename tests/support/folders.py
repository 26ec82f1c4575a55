"""Folders that every user may enter, and the removal of what the store has made read-only."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import walk
from pathlib import Path


@contextmanager
def passable_folder() -> Iterator[Path]:
    """Give a new folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="label-tests-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        remove_all(folder)


def remove_all(folder: Path) -> None:
    """Remove a folder although the store makes its trees read-only, which stops everybody but root."""
    folder.chmod(0o700)
    for above, names, _ in walk(folder):
        for directory in (Path(above, name) for name in names):
            if not directory.is_symlink():
                directory.chmod(0o700)
    shutil.rmtree(folder)
