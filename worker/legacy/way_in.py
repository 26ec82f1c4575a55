"""Does a path lead into a certain directory, over whatever links? Reads no file."""

import os

from worker.legacy.roots import is_within

_Place = tuple[str, bool]
"""Where a path leads to, links resolved, and whether the way there goes through the directory."""


class WayIn:
    """The ways into the directory at a resolved path. What it has answered once it says again: another look
    at the disk is another one's of its kind.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self._above: dict[str, _Place] = {}
        self._known: dict[tuple[str, ...], bool] = {}
        self._places: dict[str, str] = {}

    def is_taken_by(self, path: str, *below: str) -> bool:
        """Does this path, continued by the names `below`, lead to the directory, into it, or through it? The
        path need not exist: it leads to where it would.
        """
        asked = (path, *below)
        if asked not in self._known:
            above, name = os.path.split(path.rstrip("/") or "/")
            self._known[asked] = self._continued(self._place(above), (name, *below))[1]
        return self._known[asked]

    def place(self, path: str) -> str:
        """Where this path leads to, links resolved."""
        if path not in self._places:
            above, name = os.path.split(path.rstrip("/") or "/")
            self._places[path] = self._continued(self._place(above), (name,))[0]
        return self._places[path]

    def _place(self, folder: str) -> _Place:
        """Most paths are asked for beside others."""
        if folder not in self._above:
            start = ("/" if folder.startswith("/") else os.path.realpath("."), False)
            self._above[folder] = self._continued(start, folder.split("/"))
        return self._above[folder]

    def _continued(self, place: _Place, names: tuple[str, ...] | list[str]) -> _Place:
        real, passed = place
        for name in names:
            # There is no link in `real`, so that `..` is what is above it by its text, too.
            real = os.path.normpath(os.path.join(real, name))
            if os.path.islink(real):
                real = os.path.realpath(real)
            passed = passed or is_within(real, self._top)
        return real, passed
