"""Datasets that travel by disk, as bags. Does itself what a worker does, on the machine that has the disk."""

import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from sqlalchemy import Engine

from producer.datasets.local_tools import local_tools
from worker.jobs.export_dataset import Exported, export_dataset
from worker.jobs.import_dataset import Imported, import_dataset
from worker.settings import Settings
from worker.units import human_bytes

_TELL_EVERY_S = 10.0

_PROGRAM = "label-dataset-migrator"


def export(
    settings: Settings, engine: Engine, dataset_id: int, output: str, say: Callable[[str], None]
) -> Exported:
    """Write a dataset as a bag, and `say` how far that is. Errors as `export_dataset`."""
    with local_tools(settings, engine, _Told(say)) as tools:
        return export_dataset(tools, dataset_id, output, agent=f"{_PROGRAM} {version(_PROGRAM)}")


def take_in(settings: Settings, engine: Engine, bag: str, say: Callable[[str], None]) -> Imported:
    """Store a bag's dataset, and `say` how far that is. Errors as `import_dataset`."""
    with local_tools(settings, engine, _Told(say)) as tools:
        return import_dataset(
            tools,
            bag,
            on_read=partial(say, "Verifying the bag; its files are read twice, and copied the second time"),
            on_wait=partial(say, "Waiting until no gc, rebuild or other import runs"),
        )


class _Told:
    """Counts what is read, by any thread, and tells it now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._told_at = time.monotonic()

    def __call__(self, size_bytes: int) -> None:
        with self._lock:
            self._read_bytes += size_bytes
            if time.monotonic() - self._told_at < _TELL_EVERY_S:
                return
            self._told_at = time.monotonic()
            self._say(f"{human_bytes(self._read_bytes)} read and copied so far")


def exported_json(dataset_id: int, found: Exported) -> dict[str, Any]:
    """As `producer datasets export --json` shows it."""
    return {
        "dataset_id": dataset_id,
        "dataset_name": found.dataset_name,
        "dataset_hash": found.dataset_hash,
        "bag": found.bag.path,
        "files": found.bag.files,
        "size_bytes": found.bag.size_bytes,
        "unfinished": list(found.unfinished),
    }


def imported_json(found: Imported) -> dict[str, Any]:
    """As `producer datasets import --json` shows it."""
    one = found.dataset
    return {
        "dataset_id": one.dataset_id,
        "dataset_name": one.dataset_name,
        "dataset_hash": one.dataset_hash,
        "file_path": one.file_path,
        "imported": found.is_new,
        "files": found.files,
        "bytes_stored": found.bytes.stored,
        "bytes_reused": found.bytes.reused,
    }
