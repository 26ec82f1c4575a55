"""A dataset as a BagIt bag (RFC 8493): what lies where in it, and how one is written. Knows no database.

A bag has its name only when all of it is on the disk. Every byte is read once: what the payload's manifest
says was hashed while it was copied, and so was what the dataset's own manifest promises.
"""

import errno
import hashlib
import os
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from worker.errors import (
    BagNotWrittenError,
    EntryUnreadableError,
    SourceChangedError,
    StoredBytesMismatchError,
    StoreStoppedError,
    StoreUnusableError,
)
from worker.runtime.throttle import Pace
from worker.store.cloning import Cloner
from worker.store.copying import copy
from worker.store.digest import BIG_CHUNK_BYTES, Signature, new_buffer, new_hasher, printable
from worker.store.files import new_file
from worker.store.manifest import File, Manifest
from worker.store.removal import remove_tree
from worker.store.syscalls import OpenFolder, rename_without_replacing, sync_file_system

TREE = "data/tree"
"""Where a bag has the dataset's directory, as it is in the store."""

MANIFEST = "data/manifest.json"
"""Where it has the dataset's manifest, whose digest names the dataset."""

ROW = "data/row.json"
"""Where it has what rows say of the dataset."""

UNFINISHED = ".unfinished-"
"""What follows a bag's name until it is written, and something unique after it."""

_VERSION = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A bag that was written, and how much its payload is."""

    path: str
    files: int
    size_bytes: int


def check_place(output: str) -> None:
    """Raise `BagNotWrittenError` unless a new directory can have this path."""
    if os.path.lexists(output):
        raise _taken(output)
    above = os.path.dirname(output)
    if not os.path.isdir(above):
        raise BagNotWrittenError(f"There is no directory {printable(above)} to write the bag into")


def unfinished(output: str) -> list[str]:
    """What exports to this path have left that did not come to their end, or have not yet."""
    above, name = os.path.split(output)
    with suppress(OSError):
        return sorted(f"{above}/{one}" for one in os.listdir(above) if one.startswith(name + UNFINISHED))
    return []


def check_names(manifest: Manifest) -> None:
    """Raise `BagNotWrittenError` naming the first path that a bag cannot have, or that tools read otherwise.

    A line of a manifest is text in UTF-8 and ends with the path. Tools compare paths after Unicode
    normalisation, because file systems of other machines normalise them.
    """
    normal: dict[str, str] = {}
    for entry in manifest.entries:
        try:
            entry.path.encode("utf-8")
        except UnicodeEncodeError:
            raise _unfit(entry.path, "its name is not UTF-8") from None
        if isinstance(entry, File) and entry.path[-1].isspace():
            raise _unfit(entry.path, "its name ends in white space, which tools cut off")
        same = entry.path if entry.path.isascii() else unicodedata.normalize("NFC", entry.path)
        if normal.setdefault(same, entry.path) != entry.path:
            raise _unfit(entry.path, f"its name differs from that of {normal[same]} in its Unicode form only")


def write_bag(
    manifest: Manifest, tree: str, output: str, *, row: bytes, tags: Mapping[str, str], pace: Pace
) -> Written:
    """Write a dataset from its tree as the bag `output`, which must not be there, durably.

    `row` is what rows say of it, `tags` what bag-info.txt is to say beside the payload's size. Raises
    `BagNotWrittenError` naming what a bag cannot have, or where it could not be written;
    `StoredBytesMismatchError` for a file of the tree that has not the bytes of its digest. Dying anywhere: a
    directory that is named as unfinished stays beside the place, and nothing at it.
    """
    check_place(output)
    check_names(manifest)
    if not os.path.isdir(tree):
        raise StoredBytesMismatchError(f"The dataset's tree is not there: {printable(tree)}")
    _check_room(manifest, tree, os.path.dirname(output))
    draft = f"{output}{UNFINISHED}{uuid.uuid4().hex[:8]}"
    try:
        with _writing(draft):
            os.mkdir(draft)
            folder = OpenFolder(draft)
            writer = _Writer(draft, manifest, os.path.realpath(tree), pace)
            written = writer.write(row, tags)
            sync_file_system(folder.descriptor)
        _give_name(draft, output)
    except BaseException:
        with suppress(OSError):
            remove_tree(draft)
        raise
    return Written(path=output, files=written.files, size_bytes=written.size_bytes)


def _check_room(manifest: Manifest, tree: str, above: str) -> None:
    """Before hours of copying; not on one file system with the store, which may share blocks."""
    with _writing(above):
        disk = os.statvfs(above)
        is_another = os.stat(above).st_dev != os.stat(tree).st_dev
    free = disk.f_bavail * disk.f_frsize
    if is_another and free < manifest.size_bytes:
        raise BagNotWrittenError(
            f"Not enough room in {printable(above)}: {manifest.size_bytes} bytes are to be written, {free} are free"
        )


@dataclass(slots=True)
class _Payload:
    """The lines of the payload's manifest, by path in the bag, and what all of it amounts to."""

    digests: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0

    @property
    def files(self) -> int:
        return len(self.digests)

    def add(self, path: str, digest: str, size_bytes: int) -> None:
        self.digests[path] = digest
        self.size_bytes += size_bytes


class _Writer:
    """Writes one bag in a directory of its own."""

    def __init__(self, draft: str, manifest: Manifest, tree: str, pace: Pace) -> None:
        self._draft = draft
        self._manifest = manifest
        self._tree = tree
        self._pace = pace
        self._buffer = new_buffer(BIG_CHUNK_BYTES)
        self._cloner = Cloner()
        self._payload = _Payload()

    def write(self, row: bytes, tags: Mapping[str, str]) -> _Payload:
        os.makedirs(f"{self._draft}/{TREE}")
        for directory in self._manifest.directories:
            os.mkdir(f"{self._draft}/{TREE}/{directory.path}")
        for file in self._manifest.files:
            self._payload.add(f"{TREE}/{file.path}", self._copied(file), file.size_bytes)
        for path, content in ((MANIFEST, self._manifest.content), (ROW, row)):
            self._payload.add(path, self._text(path, content), len(content))
        oxum = f"{self._payload.size_bytes}.{self._payload.files}"
        of_tags = {
            name: self._text(name, text.encode("utf-8"))
            for name, text in (
                ("bagit.txt", _VERSION),
                ("bag-info.txt", "".join(_tag_lines({**tags, "Payload-Oxum": oxum}))),
                ("manifest-sha256.txt", _lines(self._payload.digests)),
            )
        }
        self._text("tagmanifest-sha256.txt", _lines(of_tags).encode("utf-8"))
        return self._payload

    def _copied(self, file: File) -> str:
        """Copy a file of the tree; the SHA-256 of what is in the bag now."""
        source, target = f"{self._tree}/{file.path}", f"{self._draft}/{TREE}/{file.path}"
        own, plain = new_hasher(self._manifest.algorithm), hashlib.sha256()
        try:
            signature = Signature.of_stored(os.lstat(source))
        except OSError as error:
            raise _damaged(file, source, f"cannot be read: {error.strerror}") from error
        if signature.size_bytes != file.size_bytes:
            raise _damaged(file, source, f"has {signature.size_bytes} bytes instead of {file.size_bytes}")
        with _writing(target), new_file(target) as descriptor:
            try:
                copy(
                    source,
                    signature,
                    (descriptor, target),
                    [own.update, plain.update],
                    cloner=self._cloner,
                    buffer=self._buffer,
                    pace=self._pace,
                )
            except (EntryUnreadableError, SourceChangedError) as error:
                raise StoredBytesMismatchError(str(error)) from error
            _let_be_read(descriptor)
        if own.hexdigest() != file.digest:
            raise _damaged(file, source, "does not have the bytes of its digest")
        return plain.hexdigest()

    def _text(self, path: str, content: bytes) -> str:
        with new_file(f"{self._draft}/{path}") as descriptor:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            _let_be_read(descriptor)
        return hashlib.sha256(content).hexdigest()


def _let_be_read(descriptor: int) -> None:
    """Every user of the disk may read it, where its file system has such rights: FAT refuses them."""
    with suppress(PermissionError):
        os.fchmod(descriptor, 0o644)


def _give_name(draft: str, output: str) -> None:
    above = os.path.dirname(output)
    with _writing(output):
        folder = OpenFolder(above)
        try:
            is_free = rename_without_replacing(
                os.path.basename(draft), os.path.basename(output), folder.descriptor
            )
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # NFS does not know this call. What comes in between is no directory with anything in it.
            is_free = not os.path.lexists(output)
            if is_free:
                os.rename(draft, output)
        if not is_free:
            raise _taken(output)
        sync_file_system(folder.descriptor)


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn what the disk says into words that name the bag's file."""
    try:
        yield
    except (StoreStoppedError, StoreUnusableError) as error:
        # What writes files names the store by itself.
        cause = error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise _not_written(path, cause) from error
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> BagNotWrittenError:
    where = printable(os.fspath(error.filename or path))
    return BagNotWrittenError(f"Cannot write {where}: {error.strerror}")


def _taken(output: str) -> BagNotWrittenError:
    return BagNotWrittenError(f"{printable(output)} is there already. Name another directory, or remove it")


def _unfit(path: str, reason: str) -> BagNotWrittenError:
    return BagNotWrittenError(f"No bag can hold {printable(path)}: {reason}")


def _damaged(file: File, source: str, what: str) -> StoredBytesMismatchError:
    return StoredBytesMismatchError(f"{printable(source)} {what} ({file.digest})")


# Texts ------------------------------------------------------------------------------------------------------


def _lines(digests: Mapping[str, str]) -> str:
    """A manifest's lines: RFC 8493, 2.1.3."""
    return "".join(f"{digest}  {_encoded(path)}\n" for path, digest in digests.items())


def _encoded(path: str) -> str:
    return path.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _tag_lines(tags: Mapping[str, str]) -> Iterator[str]:
    """Labels with their values, each on one line."""
    for label, value in tags.items():
        yield f"{label}: {' '.join(value.split())}\n"
