"""What people read of datasets that travel, made from values. Pure: prints nothing."""

import os
from collections.abc import Iterator

from producer.cli.escaping import escape
from producer.report.notation import plural
from worker.jobs.export_dataset import Exported
from worker.jobs.import_dataset import Imported
from worker.units import human_bytes


def exported_lines(dataset_id: int, found: Exported) -> Iterator[str]:
    """What was written, and where; and what does not belong there."""
    for path in found.unfinished:
        yield f"[yellow]Warning: an export that did not end has left {escape(path)}; remove it[/]"
    yield (
        f"Dataset {dataset_id} {escape(found.dataset_name)} is in {escape(found.bag.path)}: "
        f"{_files(found.bag.files)}, {human_bytes(found.bag.size_bytes)}"
    )
    yield f"To take it in elsewhere: producer datasets import {escape(os.path.basename(found.bag.path))}"


def imported_line(found: Imported) -> str:
    """Which dataset the bag's is here."""
    one = found.dataset
    named = f"{one.dataset_id} {escape(one.dataset_name)}"
    if not found.is_new:
        return f"Already here as {named}; nothing was written"
    return (
        f"Imported dataset {named}: {_files(found.files)}, {human_bytes(found.bytes.stored)} stored, "
        f"{human_bytes(found.bytes.reused)} reused; {escape(one.file_path)}"
    )


def _files(count: int) -> str:
    return f"{count:,} {plural(count, 'file')}"
