"""What tests of the store put in it, and what is then there."""

import stat
from pathlib import Path

from tests.support.trees import (
    STUDY,
    hashed,
    source_of,
    store_at,
)
from worker.legacy.ingest import Stored
from worker.store.digest import new_buffer
from worker.store.manifest import Manifest
from worker.store.store import Store

FILES = sum(content is not None for content in STUDY.values())
CONTENTS = len({content for content in STUDY.values() if content is not None})


def store_project(store: Store, project: Path, attempt: str = "attempt") -> tuple[Manifest, Path, Stored]:
    """Store a project as a worker does; the tree's name is the project's."""
    tree = hashed(project, store)
    target = store.tree_path(project.name, tree.manifest.digest)
    return tree.manifest, target, store_at(store, tree, target, attempt)


def put_blob(store: Store, content: bytes) -> Path:
    """Store one content; where its bytes are now."""
    path = store.root.parent / "incoming"
    path.write_bytes(content)
    source = source_of(path)
    with store.staging("one") as staging:
        store.admit(store.stage_file(source, staging, new_buffer()), source.digest, len(content))
    path.unlink()
    return Path(store.blob_path(source.digest))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def directories_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_dir()]
