"""Where links lead in a directory that was moved away, as if it were at its own place. Changes nothing."""

import errno
import os
from dataclasses import dataclass

from worker.legacy.roots import is_within

_LINKS_MOST = 40
"""As many as the kernel follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Where a directory lies by right (`source`, resolved), and where it is when it was moved away."""

    source: str
    target: str


def followed(path: str, move: Move) -> str:
    """Where a resolved path in a directory that was moved leads to, links followed as they were at its own
    place: by where it is now, no link in it. Raises `OSError` as `os.path.realpath` with `strict` does.
    """
    home, now = move.source, move.target
    real, names, links = "/", _exchanged(path, now, home).split("/")[::-1], 0
    while names:
        real = os.path.normpath(os.path.join(real, names.pop()))
        place = _exchanged(real, home, now)
        if os.path.islink(place):
            links += 1
            if links > _LINKS_MOST:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            text = os.readlink(place)
            real = "/" if text.startswith("/") else os.path.dirname(real)
            names += text.split("/")[::-1]
    place = _exchanged(real, home, now)
    os.lstat(place)
    return place


def _exchanged(path: str, old: str, new: str) -> str:
    """The same path below another directory, if it is below this one."""
    return new + path[len(old) :] if is_within(path, old) else path
