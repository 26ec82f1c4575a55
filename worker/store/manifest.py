"""The manifest of a directory: its sorted entries, whose digest names the dataset. Knows no disk and no
database.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from worker.store.digest import Algorithm, new_hasher

_FORMAT = 1
_PART = 4_096
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory at a path relative to the tree's root (`/` between names, any bytes in them)."""

    path: str


@dataclass(frozen=True, slots=True)
class File:
    """A regular file: where it lies in the tree, and its content's size and digest."""

    path: str
    size_bytes: int
    digest: str


Entry = Directory | File


@dataclass(frozen=True)
class Manifest:
    """All entries of one tree in the byte order of their paths.

    The identity of a dataset: two trees with equal manifests are the same dataset, whatever their names,
    owners, modes or times. Every entry is framed (kind, path, size, digest), so that no two different trees
    can have one serialised form.
    """

    algorithm: Algorithm
    entries: tuple[Entry, ...]

    @staticmethod
    def of(algorithm: Algorithm, entries: Iterable[Entry]) -> "Manifest":
        """A manifest of entries in any order."""
        return Manifest(algorithm, tuple(sorted(entries, key=lambda entry: os.fsencode(entry.path))))

    @cached_property
    def files(self) -> tuple[File, ...]:
        """The regular files."""
        return tuple(entry for entry in self.entries if isinstance(entry, File))

    @cached_property
    def directories(self) -> tuple[Directory, ...]:
        """All directories, parents before their children."""
        return tuple(entry for entry in self.entries if isinstance(entry, Directory))

    @cached_property
    def session_names(self) -> tuple[str, ...]:
        """The immediate subdirectories: Label's sessions."""
        return tuple(entry.path for entry in self.directories if "/" not in entry.path)

    @property
    def size_bytes(self) -> int:
        """The sum of all file sizes."""
        return sum(file.size_bytes for file in self.files)

    def parts(self) -> Iterator[bytes]:
        """The serialised form, some thousand entries at a time: whole, it would be as big as all the entries
        themselves.
        """
        yield f'{{"format":{_FORMAT},"digest":{json.dumps(self.algorithm)},"entries":[\n'.encode("ascii")
        between = b""
        for start in range(0, len(self.entries), _PART):
            rows = (_encode(_row(entry)) for entry in self.entries[start : start + _PART])
            yield between + ",\n".join(rows).encode("ascii")
            between = b",\n"
        yield b"\n]}\n"

    @property
    def content(self) -> bytes:
        """The serialised form: ASCII JSON, one entry a line; names that are not UTF-8 as lone surrogates."""
        return b"".join(self.parts())

    @cached_property
    def digest(self) -> str:
        """The dataset's digest: that of `content`."""
        hasher = new_hasher(self.algorithm)
        for part in self.parts():
            hasher.update(memoryview(part))
        return hasher.hexdigest()

    @staticmethod
    def parse(content: bytes) -> "Manifest":
        """Read `content` back; raises `ValueError` for anything that is not a manifest of this format."""
        match json.loads(content):
            case {"format": format_, "digest": "blake3" | "sha256" as algorithm, "entries": list(rows)} if (
                format_ == _FORMAT
            ):
                return Manifest(algorithm, tuple(_entry(row) for row in rows))
            case _:
                raise ValueError("not a manifest of a format that this version reads")


def salvage(content: bytes) -> list[Entry]:
    """The entries that can still be read of a manifest that is damaged: any of them may be wrong, too."""
    found: list[Entry] = []
    for line in content.splitlines():
        with suppress(ValueError):
            found.append(_entry(json.loads(line.rstrip(b","))))
    return found


def _row(entry: Entry) -> list[Any]:
    return ["f", entry.path, entry.size_bytes, entry.digest] if isinstance(entry, File) else ["d", entry.path]


def _entry(row: list[Any]) -> Entry:
    match row:
        case ["d", str(path)] if _is_inside(path):
            return Directory(path)
        case ["f", str(path), int(size), str(digest)] if _is_inside(path):
            return File(path, size, digest)
        case _:
            raise ValueError(f"not an entry of a manifest: {row!r}")


def _is_inside(path: str) -> bool:
    """Does the path stay inside the tree? Manifests may come from elsewhere, and trees are written by
    them.
    """
    return not any(name in {"", ".", ".."} for name in path.split("/"))
