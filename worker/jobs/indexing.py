"""Keeps the index of who needs which blob: its rows are there before any project refers to a dataset."""

import os
from collections.abc import Iterator
from itertools import islice

from sqlalchemy import Connection

from worker.db import blob_index, datasets, garbage
from worker.db.engine import autocommit
from worker.jobs.attempt import Attempt
from worker.jobs.repair import manifest_or_none
from worker.legacy.hashed_tree import HashedTree
from worker.runtime.throttle import Pace
from worker.store.manifest import Manifest

_PORTION = 10_000
"""So many files of a manifest are written in one transaction."""

_FEW = 200
"""So many files are written sooner than it is asked whether they are there."""


def index(attempt: Attempt, manifest: Manifest) -> None:
    """See that the index has all blobs of a dataset. Twice or at once: rows that are there stay. Dying in the
    middle: the dataset does not count as indexed, and the next job that needs it writes the rest.
    """
    if len(manifest.files) <= _FEW:
        with autocommit(attempt.engine) as conn:
            blob_index.add_all(conn, manifest.digest, next(_portions(manifest), {}))
        return
    with autocommit(attempt.engine) as conn:
        if not blob_index.not_indexed(conn, [manifest.digest]):
            return
    for sizes in _portions(manifest):
        attempt.pace(0)
        with attempt.engine.begin() as conn:
            blob_index.add(conn, manifest.digest, sizes)
    with autocommit(attempt.engine) as conn:
        blob_index.mark_indexed(conn, manifest.digest)


def write(conn: Connection, manifest: Manifest, pace: Pace) -> None:
    """The same in the caller's transaction, which also writes the dataset's row."""
    for sizes in _portions(manifest):
        pace(0)
        blob_index.add(conn, manifest.digest, sizes)
    blob_index.mark_indexed(conn, manifest.digest)


def index_rest(attempt: Attempt) -> None:
    """The same for every dataset that has a manifest and is not in the index: those that an earlier release
    stored. To be called before the index is relied upon.
    """
    with attempt.engine.connect() as conn:
        missing = blob_index.not_indexed(conn, (one.dataset_hash for one in datasets.all_of(conn)))
    for dataset_hash in sorted(missing):
        attempt.pace(0)
        if not os.path.exists(attempt.store.manifest_path(dataset_hash)):
            # Label registered it itself, or it is damaged: nothing tells what it needs.
            continue
        manifest = manifest_or_none(attempt, dataset_hash)
        if manifest is not None:
            index(attempt, manifest)


def unmark(attempt: Attempt, tree: HashedTree) -> None:
    """All of this is to be used, whatever a gc has found it to be."""
    with autocommit(attempt.engine) as conn:
        if not garbage.is_any_marked(conn):
            return
    with attempt.engine.begin() as conn:
        garbage.unmark(conn, "blob", tree.distinct)
        for kind in ("manifest", "tree"):
            garbage.unmark(conn, kind, [tree.manifest.digest])


def _portions(manifest: Manifest) -> Iterator[dict[str, int]]:
    files = iter(manifest.files)
    while some := {file.digest: file.size_bytes for file in islice(files, _PORTION)}:
        yield some
