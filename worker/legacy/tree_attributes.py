"""Modes, times and owners of a legacy tree: not part of its identity, but a restored directory has them.

Kept with the before-image of a conversion, in the order of the manifest's entries.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from worker.legacy.hashed_tree import HashedTree
from worker.store.manifest import Directory

_PART = 4_096
"""So many entries are written at a time: the whole text is many times longer than its compressed form."""


class Attributes(NamedTuple):
    """Permission bits, time of modification in nanoseconds since 1970, user id and group id of one entry."""

    mode: int
    mtime_ns: int
    user: int
    group: int


@dataclass(frozen=True, slots=True)
class TreeAttributes:
    """Those of the tree's root, and of its entries in the manifest's order."""

    root: Attributes
    entries: tuple[Attributes, ...]


def pack(tree: HashedTree) -> bytes:
    """The attributes of a tree that was scanned, compressed."""
    scanned = tree.scan
    root = _row(scanned.root_mode, scanned.root_mtime_ns, scanned.root_owner)
    packed = zlib.compressobj()
    parts = [packed.compress(f'{{"root":{root},"entries":['.encode("ascii"))]
    rows = _rows(tree)
    between = ""
    while part := ",".join(islice(rows, _PART)):
        parts.append(packed.compress(f"{between}{part}".encode("ascii")))
        between = ","
    return b"".join([*parts, packed.compress(b"]}"), packed.flush()])


def unpack(packed: bytes) -> TreeAttributes:
    """Back from what `pack` made."""
    document = json.loads(zlib.decompress(packed))
    return TreeAttributes(
        root=Attributes(*document["root"]), entries=tuple(Attributes(*one) for one in document["entries"])
    )


def _rows(tree: HashedTree) -> Iterator[str]:
    directories = {entry.path: entry for entry in tree.scan.directories}
    for entry in tree.manifest.entries:
        if isinstance(entry, Directory):
            found = directories[entry.path]
            yield _row(found.mode, found.mtime_ns, found.owner)
        else:
            file = tree.scan.files[tree.sources.numbers[entry.path]]
            yield _row(file.mode, file.signature.mtime_ns, file.owner)


def _row(mode: int, mtime_ns: int, owner: tuple[int, int]) -> str:
    return f"[{mode},{mtime_ns},{owner[0]},{owner[1]}]"
