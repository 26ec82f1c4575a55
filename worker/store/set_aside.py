"""A directory that is set aside in quarantine while a tree of ours has its place, and back: the two change
places in one moment. Knows no database.

Which of the two is which their inodes tell, wherever they are. So a job that finds the two after a crash
brings them to where they are to be, by the same call.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from worker.errors import AdoptionRefusedError
from worker.store.digest import printable
from worker.store.files import flushing, new_file, writing
from worker.store.removal import remove_tree, take_away
from worker.store.syscalls import exchange, refresh

_MOST_STEPS = 4
"""Where directories cannot be exchanged, three renames do it, by a third place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Two directories that have one place, `path`, in turn: the `original` and the tree that is `ours`, by
    their inodes. The other one is in a `folder` of its own in quarantine.
    """

    path: str
    folder: str
    original: int
    ours: int

    @property
    def inside(self) -> str:
        """Where the one is that does not have the place."""
        return f"{self.folder}/tree"

    @property
    def _third(self) -> str:
        return f"{self.folder}/third"

    def take_in(self, built: str, reason: str) -> None:
        """Bring a tree that was built in staging into the folder, which is made with its reason. Twice: it is
        there.
        """
        with writing(self.folder):
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            with suppress(FileExistsError), new_file(f"{self.folder}/reason.txt", durably=True) as descriptor:
                os.write(descriptor, f"{printable(self.path)}\n{reason}\n".encode())
            if inode_of(self.inside) is None:
                os.rename(built, self.inside)
            _flush(os.path.dirname(self.folder))

    def set_aside(self) -> None:
        """Let our tree have the place, and the original be in quarantine, durably. Twice, or after dying
        anywhere in either direction: brings both to where they are to be.

        Raises `AdoptionRefusedError` when the place is taken by a third thing, our tree is gone, or the
        operating system does not let the directories be moved.
        """
        self._settle(inside=self.original, at_path=self.ours)

    def put_back(self) -> None:
        """The contrary."""
        self._settle(inside=self.ours, at_path=self.original)

    def is_set_aside(self) -> bool:
        """Is the original in quarantine?"""
        refresh(self.folder, self.inside)
        return inode_of(self.inside) == self.original

    def has_original(self) -> bool:
        """Is the original anywhere in the folder? Then it is not removed with what is ours."""
        return self._original_at() in {self.inside, self._third}

    def remove(self) -> None:
        """Remove the folder and what is in it for good; nothing if it is gone already."""
        with writing(self.folder), suppress(FileNotFoundError):
            above, name = os.path.split(self.folder)
            remove_tree(f"{above}/{take_away(above, name)}")

    def _settle(self, *, inside: int, at_path: int) -> None:
        with _refusals(self.path), self._movable_original():
            for _ in range(_MOST_STEPS):
                if self._step(inside, at_path):
                    break
            if inode_of(self._third) == inside:
                os.rename(self._third, self.inside)
            if at_path == self.ours:
                os.chmod(self.path, 0o555)
        with writing(self.path):
            _flush(os.path.dirname(self.path))
            with suppress(FileNotFoundError):
                _flush(self.folder)

    @contextmanager
    def _movable_original(self) -> Iterator[None]:
        """Only root moves a directory that its owner may not write to; its mode is the same afterwards."""
        place, mode = self._original_at(), 0
        if place is not None and not os.access(place, os.W_OK):
            mode = stat.S_IMODE(os.lstat(place).st_mode)
            os.chmod(place, 0o755)
        try:
            yield
        finally:
            if mode and (place := self._original_at()) is not None:
                os.chmod(place, mode)

    def _original_at(self) -> str | None:
        places = (self.path, self.inside, self._third)
        return next((one for one in places if inode_of(one) == self.original), None)

    def _step(self, inside: int, at_path: int) -> bool:
        """One rename on the way; True when nothing is left to do."""
        refresh(os.path.dirname(self.path), self.path, self.folder, self.inside, self._third)
        here = inode_of(self.path)
        if here == at_path:
            return True
        comes_from = next((one for one in (self.inside, self._third) if inode_of(one) == at_path), None)
        if comes_from is None:
            raise AdoptionRefusedError(
                f"Neither at {printable(self.path)} nor in {printable(self.folder)} is what was there before"
            )
        if here not in {None, inside}:
            raise AdoptionRefusedError(f"Something else is at {printable(self.path)}")
        if self.ours in {here, at_path}:
            os.chmod(self.path if here == self.ours else comes_from, 0o755)
        if here is None:
            os.rename(comes_from, self.path)
        elif comes_from == self._third:
            os.rename(self.path, self.inside)
        elif not exchange(self.path, self.inside):
            os.rename(self.inside, self._third)
        return False


def inode_of(path: str) -> int | None:
    """The directory at a path; None for anything else."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino if stat.S_ISDIR(status.st_mode) else None


def _flush(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with flushing(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """What the operating system says of one of the two directories, and not of the disk."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM, errno.EBUSY}:
            raise AdoptionRefusedError(
                f"Cannot be moved by the migrator's user: {printable(path)}: {error.strerror}"
            ) from error
        with writing(path):
            raise
