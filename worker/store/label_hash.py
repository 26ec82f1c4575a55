"""Label's own hash of a directory, as its scan, its uploads and its import compute it. Knows no store.

SHA-256 over a walk: a directory's own files in code point order of their names, then its directories in the
same order; of each file the path below the root, in UTF-8, and then its bytes, with nothing between. A file
that cannot be read adds its path only; a directory that is empty, cannot be read, or is a link adds nothing;
a link to a file adds the bytes that it leads to. (Label contract, section 7.)

It is not a good name for content: two trees may have the same bytes in this row of paths and contents. It is
what other installations of Label know a dataset by.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress

from worker.runtime.throttle import Pace, unlimited
from worker.store.digest import BIG_CHUNK_BYTES, new_buffer


def label_hash(root: str, pace: Pace = unlimited) -> str | None:
    """The hash in lower-case hex characters, read in one pass; None where a file's name is not UTF-8, which
    Label's tool does not survive.
    """
    digest = hashlib.sha256()
    buffer = new_buffer(BIG_CHUNK_BYTES)
    for path, source in _files(root, ""):
        try:
            digest.update(path.encode("utf-8"))
        except UnicodeEncodeError:
            return None
        # What has been read of a file that cannot be read to its end counts, as it does there. A pipe has
        # nothing to be waited for.
        with suppress(OSError), open(source, "rb", buffering=0, opener=_at_once) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                pace(count)
    return digest.hexdigest()


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _files(directory: str, below: str) -> Iterator[tuple[str, str]]:
    """Path below the root and path to open of every file, in the order of the hash. A stack of its own: a
    tree may be deeper than Python's.
    """
    pending = [(directory, below)]
    while pending:
        here, path = pending.pop()
        files, directories = _entries(here)
        for name in files:
            yield path + name, os.path.join(here, name)
        pending += [(os.path.join(here, name), f"{path}{name}/") for name in reversed(directories)]


def _entries(directory: str) -> tuple[list[str], list[str]]:
    """Names of files, with links to anything but directories and all special files, and of directories that
    are none by a link; both in code point order. None of a directory that cannot be read.
    """
    files: list[str] = []
    directories: list[str] = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if not _leads_to_directory(entry):
                files.append(entry.name)
            elif not entry.is_symlink():
                directories.append(entry.name)
    return sorted(files), sorted(directories)


def _leads_to_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # As a link that leads to itself.
        return False
