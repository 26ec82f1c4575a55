"""A legacy tree whose every byte was read: its manifest, and where each file's bytes are. Reads nothing."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from worker.legacy.scan import Scan
from worker.legacy.session_files import LABELS, is_recording
from worker.store.digest import Algorithm
from worker.store.manifest import (
    Directory,
    Entry,
    File,
    Manifest,
)
from worker.store.store import Source


class Sources(Mapping[str, Source]):
    """Where the bytes of each file of a scan are, by path, in its order; made when they are asked for.

    `digests` are in the same order.
    """

    def __init__(self, scanned: Scan, digests: Sequence[str]) -> None:
        self.digests = digests
        self._files = scanned.files

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files.paths)

    def __getitem__(self, path: str, /) -> Source:
        return self.at(self.numbers[path])

    def at(self, number: int) -> Source:
        """That of one file of the scan."""
        file = self._files[number]
        return Source(path=file.source, signature=file.signature, digest=self.digests[number])

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The place of each path in the scan."""
        return {path: number for number, path in enumerate(self._files.paths)}

    @cached_property
    def distinct(self) -> "Contents":
        """One source for each different content."""
        return Contents(self)


class Contents(Mapping[str, Source]):
    """One source for each different content, by digest: equal files of one project need to be stored once."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._numbers: dict[str, int] = {}
        for number, digest in enumerate(sources.digests):
            self._numbers.setdefault(digest, number)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __getitem__(self, digest: str, /) -> Source:
        return self._sources.at(self._numbers[digest])


@dataclass(frozen=True, kw_only=True)
class HashedTree:
    """A legacy tree whose every byte was read once. Sessions are named by their directories."""

    scan: Scan
    manifest: Manifest
    sources: Sources
    records: Mapping[str, int | None]
    """The records of each session's recording: None where it has none or cannot be parsed."""
    unreadable_labels: frozenset[str]
    """The sessions whose labels.json is not text that a row can hold."""
    large_labels: frozenset[str]
    """Those whose labels.json is too much for one."""
    remembered_bytes: int = 0
    """So many bytes were not read, because it was remembered what they are."""

    @property
    def distinct(self) -> Contents:
        """One source for each different content."""
        return self.sources.distinct

    @cached_property
    def labelled(self) -> frozenset[str]:
        """The sessions that have a labels.json which a row can hold. Looks for no path in `sources`: its
        index of all paths is a tenth of a job's memory.
        """
        ending = f"/{LABELS}"
        paths = (path for path in self.scan.files.paths if path.endswith(ending) and path.count("/") == 1)
        found = frozenset(path.removesuffix(ending) for path in paths)
        return found - self.unreadable_labels - self.large_labels

    def recordings(self) -> Iterator[tuple[str, Source]]:
        """Each session that has a recording, with it."""
        for number, path in enumerate(self.scan.files.paths):
            if is_recording(path):
                yield os.path.dirname(path), self.sources.at(number)


def manifest_of(scanned: Scan, digests: Sequence[str], algorithm: Algorithm) -> Manifest:
    """The manifest of a scan whose files have these digests, in the scan's order."""
    entries: list[Entry] = [Directory(entry.path) for entry in scanned.directories]
    entries += map(File, scanned.files.paths, scanned.files.sizes(), digests)
    return Manifest.of(algorithm, entries)
