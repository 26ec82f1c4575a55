"""Small real file systems that can be filled and broken, for tests that may mount them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.lacking import lacking

_MEGABYTE = 1 << 20


@contextmanager
def small_disk(place: Path, folder: Path, *, megabytes: int = 16, inodes: int = 1024) -> Iterator[None]:
    """Mount a new ext4 of this size at an empty directory; its image lies in another one. Skips where that is
    not possible.
    """
    image = folder / "small.img"
    with image.open("wb") as file:
        file.truncate(megabytes * _MEGABYTE)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(inodes), str(image))
    try:
        with _mounted(place, str(image), "loop"):
            yield
    finally:
        image.unlink()


_MAKING = {"ext4": ("-q", "-F", "-m", "0"), "xfs": ("-q", "-f"), "btrfs": ("-q", "-f")}


@contextmanager
def file_system(kind: str, place: Path, folder: Path, *, megabytes: int = 320) -> Iterator[None]:
    """Mount a new file system of a kind at an empty directory; its image lies, with holes, in another one.
    Where that is not possible the test is skipped, and fails in continuous integration.
    """
    image = folder / f"{kind}.img"
    with image.open("wb") as file:
        file.truncate(megabytes * _MEGABYTE)
    try:
        _run(f"mkfs.{kind}", *_MAKING[kind], str(image), or_else=lacking)
        with _mounted(place, str(image), "loop", or_else=lacking):
            yield
    finally:
        image.unlink()


@contextmanager
def overcommitted_disk(place: Path, folder: Path, *, real_megabytes: int = 12) -> Iterator[None]:
    """Mount an ext4 that promises 64 MiB of which only so many are there: what does not fit is lost when it
    is written back, as by a disk that breaks. Skips where that is not possible.
    """
    with _mounted(folder, "tmpfs", f"size={real_megabytes}M", "-t", "tmpfs"):
        image = folder / "thin.img"
        with image.open("wb") as file:
            file.truncate(64 * _MEGABYTE)
        # Without a journal, so that nothing but file contents can be lost.
        options = ("-m", "0", "-E", "lazy_itable_init=0,nodiscard", "-O", "^has_journal")
        _run("mkfs.ext4", "-q", "-F", *options, str(image))
        with _mounted(place, str(image), "loop"):
            yield


@contextmanager
def mounted_twice(place: Path) -> Iterator[None]:
    """Mount a directory at itself: the same file system, and yet nothing can be moved or linked into it from
    beside it. Skips where that is not possible.
    """
    with _mounted(place, str(place), "bind"):
        yield


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Mount a directory at itself so that nothing can be written to it. Skips where that is not possible."""
    with _mounted(place, str(place), "bind"):
        _run("mount", "-o", "remount,bind,ro", str(place))
        yield


@contextmanager
def _mounted(
    place: Path, what: str, options: str, *more: str, or_else: Callable[[str], NoReturn] = pytest.skip
) -> Iterator[None]:
    _run("mount", "-o", options, *more, what, str(place), or_else=or_else)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _run(*command: str, or_else: Callable[[str], NoReturn] = pytest.skip) -> None:
    """Do what needs a privilege, or skip the test and say why."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PATH": path, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        or_else(f"cannot make a small file system: {error}")
    except subprocess.CalledProcessError as error:
        or_else(f"cannot make a small file system: {' '.join(command)}: {error.stderr.strip()}")


def fill(folder: Path, name: str = "filler") -> None:
    """Take all the room that is left on a file system."""
    with (folder / name).open("wb", buffering=0) as file:
        for size in (_MEGABYTE, 4096, 512):
            try:
                while True:
                    file.write(b"\1" * size)
            except OSError:
                continue


def fill_with_names(folder: Path) -> None:
    """Take all but a few of the inodes of a file system."""
    folder.mkdir()
    free = os.statvfs(folder).f_favail
    for number in range(free - 30):
        (folder / str(number)).touch()


# Mounts that are missing ------------------------------------------------------------------------------------


def unmount(root: Path) -> None:
    """Leave of a directory what is left of a mount: an empty directory."""
    remove(root)
    root.mkdir()


def mount(root: Path) -> None:
    """Undo `unmount`."""
    root.rmdir()
    root.with_name("mounted elsewhere").rename(root)


def remove(root: Path) -> None:
    """Leave nothing, not even the place to mount it at."""
    root.rename(root.with_name("mounted elsewhere"))
