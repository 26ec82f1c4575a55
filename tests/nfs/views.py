"""What one client sees of files and recordings, as digests that fit into a line of JSON. Called on a client
as `module:function`; each prints what it sees.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blake3
import pandas as pd
from sqlalchemy import create_engine

from tests.estate import readings, snapshot_tree
from tests.estate.compare import Entry, Reading
from tests.support.waiting import eventually


def everything(order: Mapping[str, Any]) -> None:
    """Every directory in `folders`, every session, and every file of the store by name and digest."""
    folders = {name: _folder(Path(path)) for name, path in order["folders"].items()}
    data_dir = Path(order["data_dir"])
    _say(folders | {"sessions": _sessions(data_dir), "store": _store(data_dir)})


def held_open(order: Mapping[str, Any]) -> None:
    """Keep the file at `path` open until `repaired` is there, as a program that plots it does; then look, by
    its name, for the bytes of the digest `good`.
    """
    path = Path(order["path"])
    with path.open("rb", buffering=0) as file:
        before = _bytes_of(file.fileno())
        assert before != order["good"]
        Path(order["opened"]).touch()
        eventually(Path(order["repaired"]).exists, "it is repaired")
        begin = time.monotonic()
        after = _bytes_of(file.fileno())
        eventually(lambda: _by_name(path) == order["good"], "the name leads to the right bytes")
        seconds = time.monotonic() - begin
    descriptor = "the bytes it had opened" if after == before else after
    _say({"descriptor": descriptor, "after": f"within {seconds:.1f} s"})


def _say(seen: Mapping[str, Any]) -> None:
    print(json.dumps(seen), flush=True)


def _bytes_of(descriptor: int) -> str:
    try:
        return hashlib.sha256(os.pread(descriptor, os.fstat(descriptor).st_size, 0)).hexdigest()
    except OSError as error:
        return f"\u201c{error.strerror}\u201d"


def _by_name(path: Path) -> str | None:
    """The digest; None in the moment in which the name is absent."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _folder(path: Path) -> dict[str, str] | None:
    """Exactly as it is, and only its names and bytes; None if it is not there."""
    if not path.exists():
        return None
    entries = snapshot_tree(path)
    return {"exact": _digest(entries), "content": _digest(entries, only=("kind", "content"))}


def _digest(entries: Mapping[bytes, Entry], only: tuple[str, ...] = Entry.__slots__) -> str:
    lines = [(name, *(getattr(entry, part) for part in only)) for name, entry in sorted(entries.items())]
    return hashlib.sha256(repr(lines).encode()).hexdigest()


def _sessions(data_dir: Path) -> dict[str, str]:
    engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as conn:
        read = readings(conn, data_dir)
    engine.dispose()
    return {f"{session} by {reader}": _rows(reading) for (session, reader), reading in read.items()}


def _rows(reading: Reading) -> str:
    if reading is None:
        return "unreadable"
    hashed = pd.util.hash_pandas_object(reading).to_numpy().tobytes()
    return f"{len(reading)} rows {hashlib.sha256(hashed).hexdigest()}"


def _store(data_dir: Path) -> dict[str, Any]:
    """How many blobs and manifests there are, which are not what their names say, and what is left over."""
    store = data_dir / "dataset_store"
    blobs = list((store / "blobs").glob("*/*"))
    bad = [path.name for path in blobs if blake3.blake3(path.read_bytes()).hexdigest() != path.name]
    hidden = [str(path) for path in store.rglob(".nfs*")]
    return {
        "blobs": len(blobs),
        "bad": bad,
        "staging": sorted(path.name for path in (store / "staging").glob("*")),
        "hidden": hidden,
    }
