"""The steps of exporting a dataset as a bag: its rows, its manifest, its tree. Changes no row and no stored
file, and no job of the ledger stands behind it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.conversion import dataset_row
from worker.db import datasets
from worker.db.engine import autocommit
from worker.errors import BagNotWrittenError, UsageError
from worker.jobs.tools import Tools
from worker.store import bag_writing
from worker.store.bag_writing import Written
from worker.units import human_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The bag that was written, of which dataset, and what exports that did not end have left beside it."""

    bag: Written
    dataset_name: str
    dataset_hash: str
    unfinished: Sequence[str]


def export_dataset(tools: Tools, dataset_id: int, output: str, *, agent: str) -> Exported:
    """Write a dataset as the bag `output`. `agent` is the program, as the bag names it.

    Twice: the second finds the place taken. Dying anywhere: nothing is at the place. Raises `UsageError` for
    a dataset that is not there or Label's own, and what `write_bag` raises.
    """
    output = os.path.abspath(output)
    bag_writing.check_place(output)
    store = tools.open_store(create=False)
    with autocommit(tools.engine) as conn:
        known = datasets.get(conn, dataset_id)
        if known is None:
            raise UsageError(f"There is no dataset {dataset_id}. See all: producer datasets list")
        if not os.path.lexists(store.manifest_path(known.dataset_hash)):
            raise BagNotWrittenError(
                f"Dataset {dataset_id} has no manifest: Label registered it itself (producer datasets adopt {dataset_id}), "
                f"or the manifest is lost (producer verify --store --repair --dataset {dataset_id})"
            )
        row = dataset_row.read(conn, dataset_id)
    if row is None:
        raise UsageError(f"Dataset {dataset_id} was deleted just now")
    unfinished = bag_writing.unfinished(output)
    manifest = store.read_manifest(row.dataset_hash)
    tags = {
        "Bag-Software-Agent": agent,
        "Bagging-Date": datetime.now(UTC).date().isoformat(),
        "External-Identifier": row.dataset_hash,
        "External-Description": row.dataset_name,
        "Bag-Size": human_bytes(manifest.size_bytes),
        "Dataset-Name": row.dataset_name,
        "Dataset-Hash": row.dataset_hash,
        "Dataset-Hash-Algorithm": manifest.algorithm,
    }
    if row.label_hash is not None:
        tags["Label-Hash"] = row.label_hash

    def pace(size_bytes: int) -> None:
        tools.pace(size_bytes)
        tools.limit.wait(size_bytes, lambda: None)

    written = bag_writing.write_bag(manifest, row.file_path, output, row=row.content, tags=tags, pace=pace)
    return Exported(
        bag=written, dataset_name=row.dataset_name, dataset_hash=row.dataset_hash, unfinished=unfinished
    )
