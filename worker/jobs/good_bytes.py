"""Where good bytes for a damaged file may be: other copies in trees, legacy directories, directories that the
operator names. Only bytes that have the digest are taken. Changes nothing outside of staging.
"""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from worker.errors import EntryUnreadableError, PathRefusedError, SourceChangedError
from worker.jobs.attempt import Attempt
from worker.legacy.hash import has_digest
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.parallel import buffer_for
from worker.legacy.roots import Roots, check_place
from worker.runtime import log
from worker.store.digest import Signature, hash_file, printable
from worker.store.files import check_answers

_log = log.get(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodCopy:
    """Bytes that have their digest, in staging, not yet durable, and where they came from."""

    staged: str
    origin: str


Find = Callable[[str, int, str], GoodCopy | None]
"""Looks for the bytes of a digest and size; what is found goes into a staging directory."""


def first_of(sources: Sequence[Find]) -> Find:
    """The first of several sources, in their order, that has the bytes."""

    def find(digest: str, size_bytes: int, staging: str) -> GoodCopy | None:
        found = (source(digest, size_bytes, staging) for source in sources)
        return next((copy for copy in found if copy is not None), None)

    return find


def in_incoming(attempt: Attempt, tree: HashedTree) -> Find:
    """The legacy directory that is being migrated. Raises `SourceChangedError` if it has changed."""

    def find(digest: str, size_bytes: int, staging: str) -> GoodCopy | None:
        source = tree.distinct.get(digest)
        if source is None:
            return None
        staged = attempt.store.stage_file(source, staging, buffer_for(size_bytes), attempt.pace)
        attempt.heartbeat.advance(0, 0)
        return GoodCopy(staged=staged, origin=printable(source.path))

    return find


def in_trees(attempt: Attempt, paths: Mapping[str, Sequence[str]], bad: Callable[[str], int | None]) -> Find:
    """Files of the store's own trees at these paths, by digest, that are not links of the `bad` blob (its
    inode). Linked, not copied, where that can be done.
    """

    def find(digest: str, size_bytes: int, staging: str) -> GoodCopy | None:
        seen = {bad(digest)}
        for path in paths.get(digest, ()):
            status = _status(path)
            if status is None or status.st_size != size_bytes or status.st_ino in seen:
                continue
            seen.add(status.st_ino)
            staged, real = f"{staging}/{digest}", os.path.realpath(path)
            if _is_linked(attempt, path, staged, digest) or _is_copied(attempt, real, staged, digest):
                return GoodCopy(staged=staged, origin=printable(path))
        return None

    return find


def in_legacy_directories(attempt: Attempt, paths: Mapping[str, Sequence[str]]) -> Find:
    """Files at these paths in legacy directories, by digest: read only inside of the allowed roots."""

    def find(digest: str, size_bytes: int, staging: str) -> GoodCopy | None:
        for path in paths.get(digest, ()):
            real = os.path.realpath(path)
            status = _status(real) if is_allowed(path, real, attempt.tools.roots) else None
            staged = f"{staging}/{digest}"
            if (
                status is not None
                and status.st_size == size_bytes
                and _is_copied(attempt, real, staged, digest)
            ):
                return GoodCopy(staged=staged, origin=printable(path))
        return None

    return find


def is_allowed(path: str, real: str, roots: Roots) -> bool:
    """May a path of a legacy project be read that leads to `real`?"""
    try:
        check_place(path, real, roots)
    except PathRefusedError:
        return False
    return True


class Backup:
    """A directory that the operator names: any tree. It is listed once, and each file of a size that is asked
    for is read once.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.realpath(folder)
        self._by_size: dict[int, list[str]] | None = None
        self._digests: dict[str, str | None] = {}

    def find(self, attempt: Attempt, digest: str, size_bytes: int, staging: str) -> GoodCopy | None:
        """Look for the bytes of a digest; a file of that size that has others is a decoy."""
        if self._by_size is None:
            self._by_size = self._listed(attempt)
        for path in self._by_size.get(size_bytes, ()):
            if path not in self._digests:
                self._digests[path] = _digest_at(attempt, path)
            staged = f"{staging}/{digest}"
            if self._digests[path] == digest and _is_copied(attempt, path, staged, digest):
                return GoodCopy(staged=staged, origin=printable(path))
        return None

    def _listed(self, attempt: Attempt) -> dict[int, list[str]]:
        """Every regular file below the directory by its size; no link is followed, what cannot be listed is
        left out.
        """
        found: dict[int, list[str]] = {}
        if not os.path.isdir(self._folder):
            _log.warning("backup_not_there", folder=printable(self._folder))
        for above, folders, names in os.walk(self._folder):
            folders.sort()
            for name in sorted(names):
                attempt.pace(0)
                path = f"{above}/{name}"
                status = _status(path)
                if status is not None:
                    found.setdefault(status.st_size, []).append(path)
        return found


def in_backup(attempt: Attempt, backup: Backup) -> Find:
    """Files in a directory that the operator names."""

    def find(digest: str, size_bytes: int, staging: str) -> GoodCopy | None:
        return backup.find(attempt, digest, size_bytes, staging)

    return find


def _is_linked(attempt: Attempt, path: str, staged: str, digest: str) -> bool:
    """Take a file of the store by a link, if its bytes are right: no byte of it is written again."""
    try:
        os.link(path, staged)
    except OSError:
        return False
    try:
        right = has_digest(staged, digest, attempt.store.algorithm, attempt.pace)
    except (EntryUnreadableError, SourceChangedError) as error:
        check_answers(error)
        right = False
    if not right:
        os.unlink(staged)
    return right


def _is_copied(attempt: Attempt, path: str, staged: str, digest: str) -> bool:
    """Copy a file while it is hashed; what has other bytes, or cannot be read, is removed again."""
    try:
        signature = Signature.of(os.stat(path))
        attempt.store.check_room(signature.size_bytes)
        buffer = buffer_for(signature.size_bytes)
        if attempt.store.copy_hashing(path, signature, staged, buffer, attempt.pace) == digest:
            return True
    except (EntryUnreadableError, SourceChangedError, FileNotFoundError) as error:
        _log.warning("copy_not_read", path=printable(path), reason=str(error))
    with suppress(FileNotFoundError):
        os.unlink(staged)
    return False


def _digest_at(attempt: Attempt, path: str) -> str | None:
    try:
        signature = Signature.of(os.stat(path))
        return hash_file(
            path, signature, attempt.store.algorithm, buffer_for(signature.size_bytes), None, attempt.pace
        )
    except (EntryUnreadableError, SourceChangedError, OSError) as error:
        _log.warning("copy_not_read", path=printable(path), reason=str(error))
        return None


def _status(path: str) -> os.stat_result | None:
    """What is at a path, if it is a regular file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
