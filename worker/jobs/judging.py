"""Does a stored file have the bytes of its digest? Asked anew of the file system before it is called bad."""

import os
import stat
from dataclasses import dataclass

from worker.errors import EntryUnreadableError, SourceChangedError
from worker.jobs.attempt import Attempt
from worker.legacy.hash import has_digest
from worker.store.files import check_answers, fresh_status
from worker.store.inspection import What

_LOOKS = 3
"""How often a file is checked that is replaced meanwhile."""

Identity = tuple[int, int]
"""Inode and time of change: while these stay, what was found out about the bytes is taken to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of a check: `what` is wrong, None for the right bytes, whose file is told by `identity`."""

    what: What | None
    identity: Identity | None = None


def judge(attempt: Attempt, path: str, digest: str, size_bytes: int | None = None) -> Judged:
    """Read a stored file. Of one that is gone, or has not `size_bytes`, that is said without reading.

    Another worker may be putting a good file there: then what was judged is not what is there now, and that
    is judged. On a network file system a name may lead to the old file for seconds after it was replaced.
    """
    judged = Judged(what=What.MISSING)
    for look in range(_LOOKS):
        before = fresh_status(path) if look else _status(path)
        judged = _judge(attempt, path, digest, size_bytes, before)
        if judged.what is None:
            if judged.identity == _identity(_status(path)):
                break
        elif look and _identity(before) == _identity(fresh_status(path)):
            break
    return judged


def is_right(attempt: Attempt, path: str, digest: str) -> bool:
    """Are the bytes at a path those of the digest?"""
    return judge(attempt, path, digest).what is None


def _judge(
    attempt: Attempt, path: str, digest: str, size_bytes: int | None, status: os.stat_result | None
) -> Judged:
    if status is None:
        return Judged(what=What.MISSING)
    if size_bytes is not None and stat.S_ISREG(status.st_mode) and status.st_size != size_bytes:
        return Judged(what=What.WRONG_SIZE, identity=_identity(status))
    try:
        right = has_digest(path, digest, attempt.store.algorithm, attempt.pace)
    except (EntryUnreadableError, SourceChangedError) as error:
        check_answers(error)
        right = False
    return Judged(what=None if right else What.WRONG_BYTES, identity=_identity(status))


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _identity(status: os.stat_result | None) -> Identity | None:
    return (status.st_ino, status.st_mtime_ns) if status is not None else None
