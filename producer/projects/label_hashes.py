"""Label's hash of a stored dataset: remembered, or computed from its tree now. Changes nothing else."""

import os

from sqlalchemy import Engine

from worker.db import exchange
from worker.errors import StoreUnusableError
from worker.runtime import log
from worker.store.label_hash import label_hash

_log = log.get(__name__)


def of_tree(engine: Engine, dataset_id: int, dataset_hash: str, file_path: str) -> str | None:
    """Read a dataset's tree once, and remember its hash; None where Label has none.

    Raises `StoreUnusableError` where this machine does not have the tree.
    """
    if not os.path.isdir(file_path):
        raise StoreUnusableError(f"The tree of dataset {dataset_id} is not on this machine: {file_path}")
    _log.info("computing_label_hash", dataset=dataset_id, tree=file_path)
    found = label_hash(file_path)
    with engine.begin() as conn:
        exchange.remember_label_hash(conn, dataset_hash, found)
    return found
