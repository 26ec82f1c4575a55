"""Small legacy trees, stores and attempts on them, and a way to be an ordinary user. Knows no database."""

import itertools
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

from worker.legacy.hash import hash_tree
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.ingest import Stored, counted, store_tree
from worker.legacy.parallel import Advance
from worker.legacy.roots import Roots
from worker.legacy.scan import scan
from worker.store.digest import Algorithm, Signature, digest_of, read_stored
from worker.store.manifest import (
    Directory,
    Entry,
    File,
    Manifest,
)
from worker.store.store import Source, Store

T = TypeVar("T")

NOBODY = 65534
RECORDING = b"ns_since_reboot,accel_x,accel_y,accel_z\n1000,0.5,-0.5,9.81\n2000,0.25,1.5,9.75\n"
STUDY = {
    b"2025-07-01_10_00_00/accelerometer_data.csv": RECORDING,
    b"2025-07-01_10_00_00/labels.json": b'[{"start": 1000, "end": 2000}]',
    b"2025-07-01_12_00_00/accelerometer_data.csv": RECORDING + b"3000,1,2,3\n",
    b"2025-07-01_12_00_00/copy of the first.csv": RECORDING,
    b"2025-07-01_12_00_00/empty.log": b"",
    b"2025-07-01_14_00_00/nothing/in/here": None,
    b"notes.txt": b"a file beside the sessions",
    b"2025-07-01_10_00_00/caf\xe9.txt": b"a name that is not UTF-8",
}
"""A project with what comes in trees: equal files, empty ones, empty directories, a name that is not UTF-8.
"""


BIG_FIRST = {b"session/1 big": b"1" * 300, b"session/2 middle": b"2" * 200, b"session/3 small": b"3" * 100}
"""Three files, which one thread hashes and copies in this order."""


def write_tree(root: Path, entries: Mapping[bytes, bytes | None] = STUDY) -> Path:
    """Make files of these contents (None: a directory), with the directories above them."""
    for name, content in entries.items():
        path = Path(os.fsdecode(os.path.join(os.fsencode(root), name)))
        directory = path if content is None else path.parent
        directory.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
    return root


def read_tree(root: Path) -> dict[bytes, bytes | None]:
    """Every entry below `root`: a file's bytes, None for a directory."""
    found: dict[bytes, bytes | None] = {}
    for above, directories, files in os.walk(os.fsencode(root)):
        for name in directories:
            found[os.path.relpath(os.path.join(above, name), os.fsencode(root))] = None
        for name in files:
            path = Path(os.fsdecode(os.path.join(above, name)))
            found[os.path.relpath(os.path.join(above, name), os.fsencode(root))] = path.read_bytes()
    return found


def manifest_of(entries: Mapping[bytes, bytes | None], algorithm: Algorithm = "blake3") -> Manifest:
    """The manifest of a tree with these entries, directories above them included."""
    above = {parent for name in entries for parent in _parents(name)}
    directories = above | {name for name, content in entries.items() if content is None}
    listed: list[Entry] = [Directory(os.fsdecode(name)) for name in directories]
    listed += [
        File(os.fsdecode(name), len(content), digest_of(algorithm, content))
        for name, content in entries.items()
        if content is not None
    ]
    return Manifest.of(algorithm, listed)


def _parents(name: bytes) -> set[bytes]:
    parts = name.split(b"/")
    return {b"/".join(parts[:count]) for count in range(1, len(parts))}


def signature_of(path: Path | str) -> Signature:
    return Signature.of(os.stat(path))


def source_of(path: Path, algorithm: Algorithm = "blake3") -> Source:
    """A source as the first reading leaves it."""
    return Source(
        path=str(path), signature=signature_of(path), digest=digest_of(algorithm, path.read_bytes())
    )


# Stores -----------------------------------------------------------------------------------------------------


def open_store(folder: Path, algorithm: Algorithm = "blake3", *, create: bool = True) -> Store:
    return Store.open(folder / "dataset_store", folder / "raw_datasets", algorithm, create=create)


def roots_of(folder: Path) -> Roots:
    """Projects may lie anywhere in `folder` but in the store."""
    return Roots(allowed=(folder,), store=(folder / "raw_datasets", folder / "dataset_store"))


def hashed(
    project: Path, store: Store, advance: Advance = lambda _files, _bytes: None, *, threads: int = 2
) -> HashedTree:
    """Scan and hash a project that lies beside the store."""
    roots = roots_of(store.root.parent)
    with ThreadPoolExecutor(threads) as pool:
        return hash_tree(scan(str(project), roots), roots=roots, store=store, threads=pool, advance=advance)


def after_files(count: int, happening: Callable[[], object]) -> Advance:
    """Let something happen when so many files have been read."""
    done = itertools.count(1)

    def advance(_files: int, _bytes: int) -> None:
        if next(done) == count:
            happening()

    return advance


def store_at(
    store: Store,
    tree: HashedTree,
    target: Path,
    attempt: str = "attempt",
    advance: Advance = lambda _files, _bytes: None,
    *,
    threads: int = 2,
) -> Stored:
    """Store a hashed tree; what of it came in."""
    before = frozenset(store.admitted)
    with ThreadPoolExecutor(threads) as pool:
        links = store_tree(store, tree, target, attempt=attempt, threads=pool, advance=advance)
    return counted(tree, store.admitted - before, links)


def temporary_files(store: Store) -> list[str]:
    """What attempts left in staging."""
    return sorted(entry.name for entry in (store.root / "staging").iterdir())


def condemned(store: Store) -> dict[str, str]:
    """What is in quarantine, without the number behind its name, and the reason beside it."""
    folder = store.root / "quarantine"
    return {
        entry.name.rpartition("-")[0]: (folder / f"{entry.name}.reason.txt").read_text()
        for entry in folder.iterdir()
        if not entry.name.endswith(".reason.txt")
    }


# The ordinary user ------------------------------------------------------------------------------------------


def as_ordinary_user(call: Callable[[], T]) -> T:
    """Do something in a child process that file modes apply to (they do not to root); what it returns or
    raises is ours.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # A fork is discouraged where threads run; this child touches files and nothing of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_ordinary_and_call(call, writing)
    os.close(writing)
    with open(reading, "rb") as answer:
        content = answer.read()
    os.waitpid(child, 0)
    result, error = pickle.loads(content)  # noqa: S301 - from our own child
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _be_ordinary_and_call(call: Callable[[], T], writing: int) -> None:
    result, error = None, None
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        result = call()
    except BaseException as raised:  # noqa: BLE001 - the parent raises it again
        error = raised
    finally:
        with open(writing, "wb") as answer:
            pickle.dump((result, error), answer)
        os._exit(0)


def link_while_reading(monkeypatch: pytest.MonkeyPatch, module: ModuleType, folder: Path) -> list[Path]:
    """Let every stored file that a module reads get a new link in `folder` at each chunk; the links made."""
    links: list[Path] = []

    def read(path: str, *args: Any) -> Iterator[memoryview]:
        for chunk in read_stored(path, *args):
            links.append(folder / f"link {len(links)}")
            os.link(path, links[-1])
            yield chunk

    monkeypatch.setattr(module, "read_stored", read)
    return links
