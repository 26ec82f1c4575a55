"""A damaged manifest is made again from its dataset's tree, and from what can still be read of it: taken only
if the result has the digest that names the dataset.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from worker.db import blob_index
from worker.errors import EntryUnreadableError, SourceChangedError
from worker.jobs.attempt import Attempt
from worker.jobs.repair import Tree, story
from worker.legacy.parallel import buffer_for
from worker.runtime import log
from worker.store.digest import BIG_BYTES, new_hasher, printable, read_stored
from worker.store.manifest import Directory, Entry, File, Manifest, salvage

_log = log.get(__name__)


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
    """The tree as it is; then with what remains of the manifest where the tree has content that the dataset
    does not, or lacks something, or has too much. `sizes` are the blobs that the index has of it.
    """
    algorithm = attempt.store.algorithm
    found = {entry.path: entry for entry in _entries(attempt, tree.path, sizes)}
    yield Manifest.of(algorithm, found.values())
    remains = {entry.path: entry for entry in _remains(attempt, tree, sizes)}
    if not remains:
        return
    known = {path: entry for path, entry in found.items() if _is_known(entry, sizes)}
    yield Manifest.of(algorithm, {**found, **remains, **known}.values())
    yield Manifest.of(algorithm, {**remains, **known}.values())
    yield Manifest.of(algorithm, {**known, **remains}.values())


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
