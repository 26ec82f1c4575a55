"""Where damaged things go: nothing that was stored is deleted, it moves aside with the reason beside it."""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.store.digest import printable
from worker.store.files import is_directory, new_file, put_in_place
from worker.store.removal import remove_tree

_MOST_NAME_BYTES = 200
"""So much of a name is kept in quarantine, with a suffix behind it: names have 255 bytes at most
(NAME_MAX).
"""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """One store's quarantine: `folder` is on the store's file system, so that everything enters it by a
    rename.
    """

    folder: str

    def replace_if_there(self, good: str, path: str, reason: str, is_bad: Callable[[str], bool]) -> None:
        """As `replace`, but an empty place is just taken."""
        try:
            self.replace(good, path, reason, is_bad)
        except FileNotFoundError:
            os.rename(good, path)

    def replace(self, good: str, path: str, reason: str, is_bad: Callable[[str], bool]) -> None:
        """Let a good thing take the place of a bad one in one moment; the bad one is in quarantine then, its
        reason in a text file beside it.

        `is_bad` judges it once more there: this process may have slept since it was judged, and what has the
        place may be another worker's good one. That is equal to the new one, and removed. Raises
        `FileNotFoundError` when nothing is at the place.
        """
        target, explanation = self._make_ready(path, reason)
        try:
            put_in_place(good, path, target)
        except OSError:
            if _is_put_back(target, path):
                explanation.unlink()
            raise
        if not is_bad(target):
            remove_tree(target)
            explanation.unlink()

    def take(self, path: str, reason: str) -> None:
        """Move a thing here that has no place where it is, its reason beside it; one that is gone is no
        hindrance.
        """
        if not os.path.lexists(path):
            return
        target, explanation = self._make_ready(path, reason)
        try:
            os.rename(path, target)
        except FileNotFoundError:
            explanation.unlink()

    def _make_ready(self, path: str, reason: str) -> tuple[str, Path]:
        """Where a thing goes, and its reason, which comes first: a crash in between must not leave a thing
        without an explanation.
        """
        target = self._free_name(path)
        os.makedirs(self.folder, exist_ok=True)
        if is_directory(path):
            # Only root moves a directory that cannot be written.
            os.chmod(path, 0o755)
        explanation = Path(f"{target}.reason.txt")
        with new_file(f"{explanation}", durably=True) as descriptor:
            os.write(descriptor, f"{printable(path)}\n{reason}\n".encode())
            os.fchmod(descriptor, 0o644)
        return target, explanation

    def move_here(self, path: str) -> None:
        """Empty a place, without a reason: of what is there another name exists, or will be made. Nothing may
        be there.
        """
        with suppress(FileNotFoundError):
            os.rename(path, self._free_name(path))

    def _free_name(self, path: str) -> str:
        """A path in quarantine that nothing has, and that tells what it was."""
        begin = os.fsdecode(os.fsencode(os.path.basename(path))[:_MOST_NAME_BYTES])
        return f"{self.folder}/{begin}-{uuid.uuid4().hex[:8]}"


def _is_put_back(target: str, path: str) -> bool:
    """Undo half of a replacement, if that is what there is; is nothing in quarantine then?"""
    if not os.path.lexists(target):
        return True
    if not os.path.lexists(path):
        os.rename(target, path)
        return True
    if os.path.samestat(os.lstat(target), os.lstat(path)):
        os.unlink(target)
        return True
    return False
