"""Datasets that travel by disk, as bags. Does itself what a worker does, on the machine that has the disk."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from sqlalchemy import Engine

from worker.jobs.export_dataset import Exported, export_dataset
from worker.jobs.import_dataset import Imported, import_dataset
from worker.jobs.tools import Tools
from worker.runtime.throttle import Throttle
from worker.settings import Settings

_PROGRAM = "label-dataset-migrator"


def export(settings: Settings, engine: Engine, dataset_id: int, output: str) -> Exported:
    """Write a dataset as a bag. Errors as `export_dataset`."""
    with _tools(settings, engine) as tools:
        return export_dataset(tools, dataset_id, output, agent=f"{_PROGRAM} {version(_PROGRAM)}")


def take_in(settings: Settings, engine: Engine, bag: str, say: Callable[[str], None]) -> Imported:
    """Store a bag's dataset, and `say` what takes long. Errors as `import_dataset`."""
    with _tools(settings, engine) as tools:
        return import_dataset(
            tools,
            bag,
            on_read=partial(say, "Verifying the bag; its files are read twice, and copied the second time"),
            on_wait=partial(say, "Waiting for a gc, or another import, to end"),
        )


@contextmanager
def _tools(settings: Settings, engine: Engine) -> Iterator[Tools]:
    """What a worker process has."""
    with ThreadPoolExecutor(settings.hash_threads, thread_name_prefix="ingest") as threads:
        yield Tools(settings=settings, engine=engine, threads=threads, limit=Throttle(settings.bwlimit))


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
