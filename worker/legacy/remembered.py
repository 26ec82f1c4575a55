"""Digests of legacy files that were read before, found again by what `stat` says of a file. Reads no file and
knows no database.

The rules are those of git's index and borg's files cache: a file has the content that it had while device,
inode, size, time of modification and time of change are the same, provided that these times were over when it
was read (`Devices.is_settled`).
"""

import os
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from worker.legacy.file_list import ScannedFile
from worker.runtime import log
from worker.store.beneath import open_resolved
from worker.store.digest import Signature
from worker.store.syscalls import is_remote

_log = log.get(__name__)

_LOCAL_MARGIN_NS = 2_000_000_000
"""No local file system counts time in longer steps (FAT has two seconds)."""

_REMOTE_MARGIN_NS = 60_000_000_000
"""The clock of a file server may be behind ours by so much."""

_COUNTED, _CHECKED, _TEXT = 1, 2, 4
_TIMES = range(-(1 << 63), 1 << 63)

_ENTRY = struct.Struct("=QQQqqqB32s")
"""Inode, device, size, times of modification and change in nanoseconds, records, flags, digest."""

_HEAD = struct.Struct("=32s32s")
"""The digest of a big file and that of its beginning."""

_LENGTHS = struct.Struct("=II")
"""How many entries, and how many heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What was learned of a file when it was read.

    `records` counts those of a recording (None: it has none, or cannot be parsed) if `is_counted`; `is_text`
    says of labels whether a row can hold them, None where that was not asked. `head` is the digest of a big
    file's beginning.
    """

    digest: str
    is_counted: bool = False
    records: int | None = None
    is_text: bool | None = None
    head: str | None = None


class Memory(Protocol):
    """Where a reader looks before it reads a file, and says afterwards what it learned. From any thread."""

    def of(self, file: ScannedFile) -> Known | None:
        """What is known of the file, if it is as it was."""

    def met_again(self, file: ScannedFile, known: Known) -> None:
        """Hear that a file needed no reading, because this was known of it."""

    def note(self, file: ScannedFile, known: Known, began_ns: int) -> None:
        """Take what was learned of a file whose reading began then."""


class NoMemory:
    """Knows nothing and keeps nothing."""

    def of(self, file: ScannedFile) -> Known | None:  # noqa: ARG002 - whatever is asked
        """Nothing."""
        return None

    def met_again(self, file: ScannedFile, known: Known) -> None:
        """Cannot happen."""

    def note(self, file: ScannedFile, known: Known, began_ns: int) -> None:
        """Forget it."""


NO_MEMORY = NoMemory()


class Devices:
    """By which number a file's device is remembered, and how long its times have to be over.

    A network file system has another number at each mount and on each machine, so there inode, size and times
    alone say that it is the file; and its times are those of the server's clock.
    """

    def __init__(self) -> None:
        self._remote: dict[int, bool] = {}

    def number(self, file: ScannedFile) -> int:
        """The device of the file; 0 for any network file system."""
        return 0 if self._is_remote(file) else file.signature.device

    def is_settled(self, file: ScannedFile, began_ns: int) -> bool:
        """Would a write after `began_ns` have given the file another time than it has?

        Not of a file that was written to a moment before: the next write may fall into the same step of the
        clock. Nor of one without an inode number, which says nothing then.
        """
        said = file.signature
        if said.inode == 0 or said.ctime_ns is None:
            return False
        margin = _REMOTE_MARGIN_NS if self._is_remote(file) else _LOCAL_MARGIN_NS
        return max(said.mtime_ns, said.ctime_ns) < began_ns - margin

    def _is_remote(self, file: ScannedFile) -> bool:
        device = file.signature.device
        if device not in self._remote:
            try:
                folder = open_resolved(
                    os.path.dirname(file.source), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
            except OSError as error:
                _log.info("file_system_not_asked", reason=str(error))
                return True
            try:
                self._remote[device] = is_remote(folder, device)
            finally:
                os.close(folder)
        return self._remote[device]


class Draft:
    """Entries that are to be kept, packed as they come in."""

    def __init__(self) -> None:
        self._entries = bytearray()
        self._heads = bytearray()

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY.size

    def add(self, device: int, said: Signature, known: Known) -> None:
        """Take one more. A file with a time that no other program has heard of is left out."""
        ctime_ns = said.ctime_ns or 0
        if said.mtime_ns not in _TIMES or ctime_ns not in _TIMES:
            return
        flags = (
            _COUNTED * known.is_counted | _CHECKED * (known.is_text is not None) | _TEXT * bool(known.is_text)
        )
        records = -1 if known.records is None else known.records
        self._entries += _ENTRY.pack(
            said.inode,
            device,
            said.size_bytes,
            said.mtime_ns,
            ctime_ns,
            records,
            flags,
            bytes.fromhex(known.digest),
        )
        if known.head is not None:
            self._heads += _HEAD.pack(bytes.fromhex(known.digest), bytes.fromhex(known.head))

    def add_packed(self, packed: bytes) -> None:
        """Take what another draft packed."""
        entries, heads = _unpacked(packed)
        self._entries += entries
        self._heads += heads

    def portions(self, files: int) -> "Iterator[Draft]":
        """The same in drafts of so many entries; of one that is empty none."""
        for start in range(0, len(self._entries), files * _ENTRY.size):
            portion = Draft()
            portion._entries = self._entries[start : start + files * _ENTRY.size]
            portion._heads = bytearray() if start else self._heads
            yield portion

    def packed(self) -> bytes:
        """As it is kept."""
        lengths = _LENGTHS.pack(len(self), len(self._heads) // _HEAD.size)
        return zlib.compress(lengths + self._entries + self._heads, 1)


def _unpacked(packed: bytes) -> tuple[bytes, bytes]:
    """Entries, and beginnings of big files."""
    unpacked = zlib.decompress(packed)
    count, heads = _LENGTHS.unpack_from(unpacked)
    end = _LENGTHS.size + count * _ENTRY.size
    return unpacked[_LENGTHS.size : end], unpacked[end : end + heads * _HEAD.size]


class Remembered:
    """What was kept of a project's files; the latest of it counts. A million entries take some hundred
    megabytes, so they stay packed.
    """

    def __init__(self, parts: Iterable[bytes] = ()) -> None:
        entries, self._heads = bytearray(), dict[bytes, bytes]()
        for part in parts:
            more, heads = _unpacked(part)
            entries += more
            self._heads.update(_HEAD.iter_unpack(heads))
        self._entries = bytes(entries)
        inodes = array("Q", (entry[0] for entry in _ENTRY.iter_unpack(self._entries)))
        # Stable: of several with one inode the latest comes last.
        self._order = array("I", sorted(range(len(inodes)), key=inodes.__getitem__))
        self._inodes = array("Q", (inodes[place] for place in self._order))

    def __len__(self) -> int:
        return len(self._inodes)

    def of(self, device: int, said: Signature) -> Known | None:
        """What is known of a file of which `stat` says this."""
        place = bisect_left(self._inodes, said.inode)
        found = None
        while place < len(self._inodes) and self._inodes[place] == said.inode:
            entry = _ENTRY.unpack_from(self._entries, self._order[place] * _ENTRY.size)
            if entry[1:5] == (device, said.size_bytes, said.mtime_ns, said.ctime_ns):
                found = entry
            place += 1
        return None if found is None else self._known(*found[5:])

    def _known(self, records: int, flags: int, digest: bytes) -> Known:
        head = self._heads.get(digest)
        return Known(
            digest=digest.hex(),
            is_counted=bool(flags & _COUNTED),
            records=None if records < 0 else records,
            is_text=bool(flags & _TEXT) if flags & _CHECKED else None,
            head=None if head is None else head.hex(),
        )
