"""A bag (RFC 8493) of a dataset as it comes from elsewhere: opened, verified, and refused with a reason.
Believes nothing, writes nothing, knows no database.
"""

import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import bagit

from worker.errors import BagRefusedError
from worker.store.bag_writing import MANIFEST, ROW, TREE
from worker.store.digest import printable
from worker.store.manifest import Manifest

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 30
"""A larger manifest of a dataset is none: this has room for some millions of files."""

_NAMED = 5
"""So many things that are wrong are named."""

_ENCODED = re.compile(r"%(25|0[AaDd])")
_ENCODED_BEFORE_1_0 = re.compile(r"%(0[AaDd])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """A bag that has the parts of a dataset: its path with all links resolved, its manifest, and what rows
    said of it.
    """

    path: str
    manifest: Manifest
    row: bytes

    @property
    def tree(self) -> str:
        """The dataset's directory."""
        return f"{self.path}/{TREE}"


def open_bag(path: str) -> Bag:
    """The bag at a path, by its parts; the payload is not read. Raises `BagRefusedError` naming what is
    wrong.
    """
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise BagRefusedError(f"{printable(path)} is not a directory")
    if not os.path.lexists(f"{real}/bagit.txt"):
        raise BagRefusedError(f"{printable(path)} is not a BagIt bag: it has no bagit.txt")
    _check_entries(real)
    return Bag(path=real, manifest=_manifest(real), row=_content(real, ROW))


def verify(bag: Bag) -> None:
    """Read the whole bag, and compare every file with the bag's manifests. Raises `BagRefusedError` naming
    what is wrong, several things if need be.
    """
    # It reports by its log as well as by its errors.
    logging.getLogger("bagit").disabled = True
    with _refusing(bag.path):
        found = bagit.Bag(bag.path)
        _decode_names(found)
        missing, unexpected = found.compare_manifests_with_fs()
        wrong = [f"{one} is missing" for one in missing]
        wrong += [f"{one} is in no manifest" for one in unexpected]
        if wrong:
            raise _refused(bag.path, _some(sorted(wrong)))
        found.validate()


def _check_entries(root: str) -> None:
    """Raise `BagRefusedError` for anything but files and directories: a link may lead anywhere, and a pipe
    be waited for.
    """
    pending = [root]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode):
                        pending.append(entry.path)
                    elif not stat.S_ISREG(mode):
                        what = "a link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
                        raise _refused(root, f"{_inside(entry.path, root)} is {what}")
        except OSError as error:
            where = _inside(os.fspath(error.filename or root), root)
            raise _refused(root, f"cannot read {where}: {error.strerror}") from error


def _manifest(root: str) -> Manifest:
    content = _content(root, MANIFEST)
    try:
        manifest = Manifest.parse(content)
    except (ValueError, RecursionError) as error:
        raise _refused(root, f"{MANIFEST} cannot be read: {error}") from error
    if manifest.content != content:
        raise _refused(root, f"{MANIFEST} is not written as a manifest is")
    wrong = next(_wrong_entries(manifest), None)
    if wrong is not None:
        raise _refused(root, f"{MANIFEST}: {wrong}")
    return manifest


def _wrong_entries(manifest: Manifest) -> Iterator[str]:
    """What in a manifest is no tree. Whether its files are those of the bag is seen when they are read."""
    directories = {""} | {directory.path for directory in manifest.directories}
    paths: set[str] = set()
    if Manifest.of(manifest.algorithm, manifest.entries) != manifest:
        yield "its entries are not in their order"
    for entry in manifest.entries:
        above = entry.path.rpartition("/")[0]
        if not _is_text(entry.path) or entry.path in paths or above not in directories:
            yield f"no tree can have {printable(entry.path)}"
        paths.add(entry.path)
    for file in manifest.files:
        if not _DIGEST.fullmatch(file.digest) or file.size_bytes < 0:
            yield f"no digest or size of {printable(file.path)}"
    if not manifest.session_names:
        yield "no session directories"


def _is_text(path: str) -> bool:
    try:
        return b"\0" not in path.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _content(root: str, path: str) -> bytes:
    try:
        with open(f"{root}/{path}", "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise _refused(root, f"it has no {path}, so it holds no dataset") from error
    except OSError as error:
        raise _refused(root, f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise _refused(root, f"{path} is too large")
    return content


def _decode_names(bag: bagit.Bag) -> None:
    """Read names as RFC 8493, 2.1.3 writes them: the package knows neither `%25`, nor more than two ends of
    lines in a name.
    """
    encoded = _ENCODED if bag.version_info >= (1, 0) else _ENCODED_BEFORE_1_0
    bag.entries = {
        encoded.sub(lambda found: chr(int(found[1], 16)), name): digests
        for name, digests in bag.entries.items()
    }
    bag.normalized_manifest_names = {bagit.normalize_unicode(name): name for name in bag.entries}


@contextmanager
def _refusing(root: str) -> Iterator[None]:
    """Turn the package's errors into ours, and what it meets in malformed files."""
    try:
        yield
    except bagit.BagValidationError as error:
        details = _some([str(one) for one in error.details])
        raise _refused(root, f"{error.message}: {details}" if details else error.message) from error
    except (bagit.BagError, OSError, ValueError, LookupError) as error:
        raise _refused(root, str(error)) from error


def _some(wrong: Sequence[str]) -> str:
    more = [f"and {len(wrong) - _NAMED:,} more"] if len(wrong) > _NAMED else []
    return "; ".join([*(one.encode("utf-8", "backslashreplace").decode() for one in wrong[:_NAMED]), *more])


def _inside(path: str, root: str) -> str:
    return printable(os.path.relpath(path, root))


def _refused(root: str, reason: str) -> BagRefusedError:
    return BagRefusedError(f"{printable(root)} is refused: {reason}")
