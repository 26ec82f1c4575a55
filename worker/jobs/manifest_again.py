"""A damaged manifest is made again from its dataset's tree, and from what can still be read of it: taken only
if the result has the digest that names the dataset.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path

from worker.db import blob_index, verifications
from worker.errors import EntryUnreadableError, SourceChangedError
from worker.jobs.attempt import Attempt
from worker.jobs.good_bytes import is_allowed
from worker.jobs.repair import Tree, story
from worker.legacy.parallel import buffer_for
from worker.runtime import log
from worker.store.digest import BIG_BYTES, new_hasher, printable, read_stored
from worker.store.manifest import Directory, Entry, File, Manifest, salvage

_log = log.get(__name__)

_MOST_GUESSES = 1_000
"""So many combinations of contents are tried for files of a tree whose own bytes are wrong."""


def rebuild(attempt: Attempt, tree: Tree, staging: str) -> Manifest | None:
    """The manifest of a dataset, in its place again; None where neither tree nor remains give its digest. The
    caller has the dataset's claim.
    """
    with attempt.engine.connect() as conn:
        sizes = blob_index.sizes(conn, tree.dataset_hash)
    for manifest in _candidates(attempt, tree, sizes):
        if manifest.digest == tree.dataset_hash:
            _log.warning("bad_manifest", dataset=tree.dataset_hash)
            attempt.store.replace_manifest(manifest, staging, story(attempt, printable(str(tree.path))))
            return manifest
    return None


def _candidates(attempt: Attempt, tree: Tree, sizes: Mapping[str, int]) -> Iterator[Manifest]:
    """The tree as it is; then with what remains of the manifest, and what the dataset has of that size, where
    the tree has content that the dataset does not, or lacks something, or has too much; then legacy
    directories. `sizes` are the blobs that the index has of the dataset.
    """
    algorithm = attempt.store.algorithm
    found = {entry.path: entry for entry in _entries(attempt, tree.path, sizes)}
    yield Manifest.of(algorithm, found.values())
    remains = {entry.path: entry for entry in _remains(attempt, tree, sizes)}
    known = {path: entry for path, entry in found.items() if _is_known(entry, sizes)}
    for guess in _guesses([entry for path, entry in found.items() if path not in known], sizes):
        yield Manifest.of(algorithm, {**found, **guess, **known}.values())
        yield Manifest.of(algorithm, {**found, **guess, **remains, **known}.values())
    yield Manifest.of(algorithm, {**remains, **known}.values())
    yield Manifest.of(algorithm, {**known, **remains}.values())
    with attempt.engine.connect() as conn:
        directories = verifications.legacy_directories(conn, [tree.dataset_hash])
    for folder in directories.get(tree.dataset_hash, ()):
        if is_allowed(folder, os.path.realpath(folder), attempt.tools.roots):
            yield Manifest.of(algorithm, _entries(attempt, Path(folder), {}))


def _guesses(unknown: Sequence[Entry], sizes: Mapping[str, int]) -> Iterator[dict[str, Entry]]:
    """What the files of a tree should be whose bytes the dataset does not have: any of its contents that have
    their size, of which there is seldom more than one. Beginning with none.
    """
    by_size: dict[int, list[str]] = {}
    for digest, size_bytes in sizes.items():
        by_size.setdefault(size_bytes, []).append(digest)
    files = [one for one in unknown if isinstance(one, File) and one.size_bytes in by_size]
    yield {}
    choices = product(*(by_size[file.size_bytes] for file in files))
    for digests in islice(choices, _MOST_GUESSES if files else 0):
        yield {
            file.path: File(file.path, file.size_bytes, digest)
            for file, digest in zip(files, digests, strict=True)
        }


def _remains(attempt: Attempt, tree: Tree, sizes: Mapping[str, int]) -> list[Entry]:
    """What the damaged manifest still says, without what the index knows to be wrong."""
    with suppress(OSError):
        content = Path(attempt.store.manifest_path(tree.dataset_hash)).read_bytes()
        return [entry for entry in salvage(content) if not sizes or _is_known(entry, sizes)]
    return []


def _is_known(entry: Entry, sizes: Mapping[str, int]) -> bool:
    return not isinstance(entry, File) or sizes.get(entry.digest) == entry.size_bytes


def _entries(attempt: Attempt, tree: Path, sizes: Mapping[str, int]) -> Iterator[Entry]:
    """What is in the tree. A file that is a link of one of the dataset's blobs need not be read again."""
    blobs = {}
    for digest in sizes:
        with suppress(OSError):
            blobs[os.lstat(attempt.store.blob_path(digest)).st_ino] = digest
    for above, folders, names in os.walk(tree):
        below = os.path.relpath(above, tree)
        for name in (*folders, *names):
            attempt.pace(0)
            path = name if below == "." else f"{below}/{name}"
            with suppress(FileNotFoundError):
                status = os.lstat(f"{tree}/{path}")
                if stat.S_ISDIR(status.st_mode):
                    yield Directory(path)
                elif stat.S_ISREG(status.st_mode):
                    known = blobs.get(status.st_ino) or _digest_at(attempt, f"{tree}/{path}")
                    if known is not None:
                        yield File(path, status.st_size, known)


def _digest_at(attempt: Attempt, path: str) -> str | None:
    hasher = new_hasher(attempt.store.algorithm)
    try:
        for chunk in read_stored(path, buffer_for(BIG_BYTES), attempt.pace):
            hasher.update(chunk)
    except (EntryUnreadableError, SourceChangedError) as error:
        _log.warning("copy_not_read", path=printable(path), reason=str(error))
        return None
    return hasher.hexdigest()
