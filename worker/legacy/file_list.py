"""The files of a legacy tree, of which there may be a million, in little memory. Reads nothing."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from worker.store.digest import Signature

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedFile:
    """A regular file of the tree.

    `source` is where its bytes are (a link's target), `mode` its permission bits, `owner` user and group.
    """

    path: str
    source: str
    signature: Signature
    mode: int
    owner: tuple[int, int]


class FileList(Sequence[ScannedFile]):
    """Files in the order in which they were found, in columns, made into objects when they are asked for.

    An object for each would take some 700 bytes, and a project may have a million files. `size_bytes` is the
    sum of their sizes. Almost every file lies below `root` at its own path; `_elsewhere` has the others,
    which a link led to.
    """

    _NUMBERS = struct.Struct("=QQqqIqIIII")
    """Device, inode, size, times of modification and change, mode, user, group.

    A time is seconds and nanoseconds: nanoseconds alone leave 64 bits in the year 2262, and file systems go
    further.
    """

    def __init__(self, root: str) -> None:
        self.size_bytes = 0
        self._root = root
        self._paths: list[str] = []
        self._elsewhere: dict[int, str] = {}
        self._numbers = bytearray()

    def append(self, file: ScannedFile) -> None:
        """Take one more."""
        if file.source != f"{self._root}/{file.path}":
            self._elsewhere[len(self._paths)] = file.source
        said = file.signature
        self._numbers += self._NUMBERS.pack(
            said.device,
            said.inode,
            said.size_bytes,
            *divmod(said.mtime_ns, _NS_PER_S),
            *divmod(said.ctime_ns or 0, _NS_PER_S),
            file.mode,
            *file.owner,
        )
        self._paths.append(file.path)
        self.size_bytes += said.size_bytes

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int, /) -> ScannedFile: ...
    @overload
    def __getitem__(self, number: slice, /) -> list[ScannedFile]: ...
    def __getitem__(self, number: int | slice, /) -> ScannedFile | list[ScannedFile]:
        """One file, or several."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        path = self._paths[number]
        number = range(len(self))[number]
        device, inode, size_bytes, mtime, mtime_ns, ctime, ctime_ns, mode, user, group = (
            self._NUMBERS.unpack_from(self._numbers, number * self._NUMBERS.size)
        )
        return ScannedFile(
            path=path,
            source=self._elsewhere.get(number) or f"{self._root}/{path}",
            signature=Signature(
                device=device,
                inode=inode,
                size_bytes=size_bytes,
                mtime_ns=mtime * _NS_PER_S + mtime_ns,
                ctime_ns=ctime * _NS_PER_S + ctime_ns,
            ),
            mode=mode,
            owner=(user, group),
        )

    @property
    def paths(self) -> Sequence[str]:
        """The paths alone."""
        return self._paths

    def sizes(self) -> Iterator[int]:
        """The sizes alone, in bytes."""
        return (numbers[2] for numbers in self._NUMBERS.iter_unpack(self._numbers))
