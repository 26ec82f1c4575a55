"""What a store says of itself: `store.json` with its format, its id and its digest algorithm, and its
directories.
"""

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path

from worker.errors import StoreUnusableError
from worker.store.digest import Algorithm
from worker.store.files import give_name, make_directory, new_file

FORMAT = 1
"""Raised when the store's layout changes in a way that older versions would misread."""

DRAFT = "store-"
"""How the names of drafts of store.json begin in staging; no task id does."""


def make_directories(root: Path, trees: Path) -> None:
    """Make what is missing of a store's directories."""
    for directory in (trees, root / "blobs", root / "manifests", root / "staging", root / "quarantine"):
        make_directory(directory)


def describe_once(root: Path, algorithm: Algorithm) -> None:
    """Write store.json unless it is there; of several workers that start at once, one wins."""
    if (root / "store.json").exists():
        return
    description = {"format": FORMAT, "id": str(uuid.uuid4()), "digest": algorithm}
    draft = root / f"staging/{DRAFT}{uuid.uuid4().hex}.json"
    try:
        # A name without its bytes after a power failure would make the whole store unreadable.
        with new_file(os.fspath(draft), durably=True) as descriptor:
            os.write(descriptor, json.dumps(description, indent=2).encode() + b"\n")
            os.fchmod(descriptor, 0o644)
        # Another worker was first, and may have removed this draft since.
        with suppress(FileExistsError, FileNotFoundError):
            give_name(os.fspath(draft), f"{root}/store.json")
    finally:
        draft.unlink(missing_ok=True)


def description_of(root: Path) -> tuple[Algorithm, str] | None:
    """Digest algorithm and id of the store at `root`; None when there is no store yet.

    Raises `StoreUnusableError` for a description that this version cannot read.
    """
    path = root / "store.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreUnusableError(f"{path} cannot be read: {error}") from error
    match document:
        case {"format": format_, "id": str(store_id), "digest": "blake3" | "sha256" as algorithm} if (
            format_ == FORMAT
        ):
            return algorithm, store_id
        case {"format": format_} if format_ != FORMAT:
            raise StoreUnusableError(
                f"{path} says format {format_!r}; this version reads format {FORMAT} only"
            )
        case _:
            raise StoreUnusableError(
                f"{path} is not a description of a store with digests of blake3 or sha256"
            )
