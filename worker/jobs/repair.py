"""Bad stored bytes are replaced by good ones in every tree that has them; what is bad goes to quarantine with
its story. Knows no outcome.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from worker.db import blob_index
from worker.db.blob_index import User
from worker.errors import StoredBytesMismatchError
from worker.jobs.attempt import Attempt
from worker.jobs.good_bytes import Find, GoodCopy
from worker.jobs.judging import is_right
from worker.runtime import log
from worker.store import batches
from worker.store.digest import printable
from worker.store.inspection import is_folder
from worker.store.manifest import Manifest

_log = log.get(__name__)

CLAIM = "mending"
"""What one job at a time holds that replaces stored files. The name is known to workers of earlier releases.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A tree of a dataset; `dataset_id` is None for one that no row knows yet."""

    path: Path
    dataset_hash: str
    dataset_id: int | None = None


class Needs:
    """Which trees need some contents, and where in each: found by the index, so that of all the store's
    manifests only theirs are read, one at a time.
    """

    def __init__(
        self, attempt: Attempt, digests: Collection[str], own: Tree, manifest: Manifest | None
    ) -> None:
        """`own` is the tree of this job's dataset, with its manifest, also if no row knows it yet."""
        with attempt.engine.connect() as conn:
            users = blob_index.users(conn, digests)
        self.users: Mapping[str, Sequence[User]] = users
        self.without_manifest: list[Tree] = []
        """The trees whose manifests are damaged: where they have the contents only inodes tell."""
        self._places: dict[str, list[tuple[Tree, str]]] = {}
        wanted = frozenset(digests)
        for tree in _trees(attempt, users.values(), own):
            listed = manifest if tree is own else manifest_or_none(attempt, tree.dataset_hash)
            if listed is None:
                self.without_manifest.append(tree)
                continue
            for file in listed.files:
                attempt.pace(0)
                if file.digest in wanted:
                    self._places.setdefault(file.digest, []).append((tree, file.path))

    def places(self, digest: str) -> Sequence[tuple[Tree, str]]:
        """Each tree that needs the content, with the path in it."""
        return self._places.get(digest, ())

    def paths(self) -> dict[str, list[str]]:
        """Where in trees each content should be."""
        return {
            digest: [f"{tree.path}/{path}" for tree, path in places]
            for digest, places in self._places.items()
        }


def _trees(attempt: Attempt, users: Iterable[Sequence[User]], own: Tree) -> Iterator[Tree]:
    """The trees of these datasets, each once, this job's own first."""
    yield own
    seen = {own.dataset_hash}
    for user in (user for some in users for user in some):
        if user.dataset_hash in seen or user.file_path is None:
            continue
        seen.add(user.dataset_hash)
        path = Path(user.file_path)
        # By what the paths lead to: DATA_DIR may be spelled otherwise than when the dataset was stored.
        if os.path.realpath(path.parent) == os.path.realpath(attempt.store.trees):
            yield Tree(path=path, dataset_hash=user.dataset_hash, dataset_id=user.dataset_id)


def manifest_or_none(attempt: Attempt, dataset_hash: str) -> Manifest | None:
    """A dataset's manifest; None for one whose manifest is damaged or gone."""
    try:
        return attempt.store.read_manifest(dataset_hash)
    except StoredBytesMismatchError as error:
        _log.warning("manifest_not_read", reason=str(error))
        return None


def replace_blobs(
    attempt: Attempt, bad: Mapping[str, int], needs: Needs, find: Find, staging: str
) -> dict[str, str]:
    """Replace blobs (sizes by digest) that are bad, in every tree that has them; where the good bytes of each
    came from. What is not found stays as it is.

    The caller has the claim `CLAIM`. Good copies come into the trees first, and last under the blobs' names:
    as long as a blob is bad the next job after a crash in between begins again.
    """
    origins: dict[str, str] = {}
    for batch in _batches(bad):
        copies: dict[str, GoodCopy] = {}
        for digest in batch:
            attempt.pace(0)
            copy = find(digest, bad[digest], staging)
            if copy is not None:
                copies[digest] = copy
        if not copies:
            continue
        attempt.store.sync()
        for digest, copy in copies.items():
            _replace_in_trees(attempt, digest, copy, needs, staging)
            _log.warning("bad_blob", digest=digest, replaced_from=copy.origin)
            attempt.store.replace_blob(digest, copy.staged, story(attempt, copy.origin))
            origins[digest] = copy.origin
        attempt.store.sync()
    return origins


def story(attempt: Attempt, origin: str | None = None) -> str:
    """What is kept beside a bad thing in quarantine: when and by which job it was found, and by what it was
    replaced.
    """
    found = f"found at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC by {attempt.worker}, run {attempt.run_id}"
    return found if origin is None else f"{found}\nreplaced by the bytes of {origin}"


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Contents, biggest first, in groups of about `BATCH_BYTES`: one wait for the disk serves a whole
    group.
    """
    group: list[str] = []
    size = 0
    for digest in sorted(sizes, key=lambda digest: (-sizes[digest], digest)):
        group.append(digest)
        size += sizes[digest]
        if size >= batches.BATCH_BYTES or len(group) >= batches.BATCH_FILES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _replace_in_trees(attempt: Attempt, digest: str, copy: GoodCopy, needs: Needs, staging: str) -> None:
    """Give every tree that needs this content the good copy. A separate bad copy goes to quarantine; the
    links of the bad blob go with it.
    """
    good, bad = inode_at(copy.staged), inode_at(attempt.store.blob_path(digest))
    told = story(attempt, copy.origin)
    for tree, path in needs.places(digest):
        attempt.pace(0)
        _put(attempt, copy.staged, digest, tree, path, staging, known=(good, bad), told=told)
    for tree in needs.without_manifest if bad is not None else ():
        for path in _links_of(attempt, tree.path, bad):
            attempt.store.replace_in_tree(copy.staged, path, staging)


def _put(
    attempt: Attempt,
    good: str,
    digest: str,
    tree: Tree,
    path: str,
    staging: str,
    *,
    known: tuple[int | None, int | None],
    told: str,
) -> None:
    """Let a tree's file be a link of the good one, unless it is."""
    target = f"{tree.path}/{path}"
    there, (good_inode, bad_inode) = inode_at(target), known
    if not is_folder(os.fspath(tree.path), os.path.dirname(path)):
        return
    if there is not None and there == good_inode:
        # Perhaps put there by an attempt that died before it had closed the directory.
        if is_open(attempt, os.path.dirname(target)):
            attempt.store.close_directory(os.path.dirname(target))
        return
    bad_copy_of = digest if there != bad_inode or there is None else None
    attempt.store.replace_in_tree(good, target, staging, bad_copy_of=bad_copy_of, story=told)


def _links_of(attempt: Attempt, tree: Path, inode: int | None) -> Iterator[str]:
    """The files of a tree that are this one: of a dataset whose manifest is damaged nothing else tells."""
    for above, _, names in os.walk(tree):
        for name in names:
            attempt.pace(0)
            if inode_at(f"{above}/{name}") == inode:
                yield f"{above}/{name}"


def replace_copies(attempt: Attempt, bad: Mapping[str, str], tree: Tree, staging: str) -> dict[str, str]:
    """Let files of a tree (digests by path) that are bad, or missing, be links of their blobs, or copies
    where links are refused; by path where the good bytes came from. A file whose blob is bad stays.
    """
    origins: dict[str, str] = {}
    blobs = {digest: attempt.store.blob_path(digest) for digest in bad.values()}
    right = {digest for digest, blob in blobs.items() if is_right(attempt, blob, digest)}
    for path, digest in bad.items():
        attempt.pace(0)
        blob = blobs[digest]
        if digest not in right:
            continue
        _log.warning("bad_copy", path=printable(f"{tree.path}/{path}"))
        _put(
            attempt,
            blob,
            digest,
            tree,
            path,
            staging,
            known=(inode_at(blob), None),
            told=story(attempt, f"blob {digest}"),
        )
        origins[path] = printable(blob)
    if origins:
        attempt.store.sync()
    return origins


def is_open(attempt: Attempt, folder: str) -> bool:
    """Is it a directory that can be written to?"""
    attempt.pace(0)
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & 0o222)


def inode_at(path: str) -> int | None:
    """The inode of what is at a path, if anything is."""
    with suppress(OSError):
        return os.lstat(path).st_ino
    return None
