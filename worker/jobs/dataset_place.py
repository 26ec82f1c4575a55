"""Where a dataset's tree is, or where a new one goes: to a name that no other dataset has. Stores nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from worker.db import datasets
from worker.db.datasets import Dataset
from worker.db.engine import autocommit
from worker.errors import StoreUnusableError
from worker.jobs.attempt import Attempt
from worker.legacy.hashed_tree import HashedTree

_NAMES = 10
"""So many names are tried for a new dataset's tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the tree of a dataset is, or, of one that has no row yet, goes."""

    path: Path
    dataset: Dataset | None

    @property
    def dataset_id(self) -> int | None:
        """The dataset's id, if it has one."""
        return self.dataset.dataset_id if self.dataset is not None else None


def find_stored(attempt: Attempt, tree: HashedTree) -> Place | None:
    """The place of the dataset if its manifest is in the store and it has a row."""
    if not os.path.exists(attempt.store.manifest_path(tree.manifest.digest)):
        return None
    with autocommit(attempt.engine) as conn:
        known = datasets.find(conn, tree.manifest.digest)
    return _place_of(attempt, known) if known is not None else None


def find_or_choose(attempt: Attempt, tree: HashedTree) -> Place:
    """The place of the dataset, or one for a new dataset.

    A tree that is there without a row may have got one of Label's own meanwhile: then it is that dataset's.
    Raises `StoreUnusableError` when the dataset lies elsewhere, or no place is left.
    """
    digest = tree.manifest.digest
    candidates = _candidates(attempt, digest)
    with autocommit(attempt.engine) as conn:
        known, taken = datasets.find_or_at(conn, digest, [os.fspath(path) for path in candidates])
        if known is not None:
            return _place_of(attempt, known)
        for path in candidates:
            if os.fspath(path) not in taken and _is_free(conn, attempt, tree, path):
                return Place(path=path, dataset=None)
    raise StoreUnusableError(
        f"Every directory for dataset {digest[:12]} in {attempt.store.trees} is another dataset's"
    )


def _candidates(attempt: Attempt, digest: str) -> list[Path]:
    """The names for a tree, in the order in which they are tried: only the first has not the whole digest."""
    name = attempt.lease.subject_name or "dataset"
    numbered = (name, *(f"{number}-{name}" for number in range(2, _NAMES)))
    return [
        attempt.store.tree_path(name, digest),
        *(attempt.store.tree_path(one, digest, digits=64) for one in numbered),
    ]


def _is_free(conn: Connection, attempt: Attempt, tree: HashedTree, path: Path) -> bool:
    """Is nothing there, or what an earlier attempt at this dataset left?"""
    if not os.path.lexists(path):
        return True
    if datasets.is_registered(conn, path.name):
        return False
    # The short name may be that of another dataset, whose digest begins alike.
    return path.name.endswith(tree.manifest.digest) or attempt.store.holds(
        tree.manifest, os.fspath(path), attempt.pace
    )


def _place_of(attempt: Attempt, known: Dataset) -> Place:
    # By what the paths lead to: DATA_DIR may be spelled otherwise than when the dataset was stored.
    if os.path.realpath(os.path.dirname(known.file_path)) != os.path.realpath(attempt.store.trees):
        raise StoreUnusableError(
            f"Dataset {known.dataset_id} is registered at {known.file_path}, which is not directly in {attempt.store.trees}"
        )
    return Place(path=Path(known.file_path), dataset=known)
