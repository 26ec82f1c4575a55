"""A file system on a disk that remembers, and the same as it would be found if the power had failed at some
moment.

Knows neither projects nor jobs. Needs root, FUSE, loop devices and the file system's mkfs; `missing` says
what is not there.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO

from tests.powercut.disk import RECORD

_ENVIRONMENT = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C"}
_BLOCK = 4096

FILE_SYSTEMS = {
    # Nothing is written before somebody asks for it: neither after five seconds, nor because a file was
    # replaced.
    "ext4": ("-F -m 0 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard", "commit=300,noauto_da_alloc"),
    "xfs": ("--unsupported -K -l size=8m", "noatime"),
}
"""How a file system is made and mounted."""


class Loss(StrEnum):
    """What becomes of the writes that came after the last flush."""

    ALL = "all is lost"
    END = "a first part is kept"
    SOME = "some blocks are kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One write to the disk; a flush has no bytes."""

    offset: int
    content: bytes


class Disk:
    """A mounted file system whose disk remembers."""

    def __init__(self, base: Path, log: Path, orders: IO[str]) -> None:
        self._base = base
        self.log = log
        self._orders = orders

    def slow_down(self, flush_s: float) -> None:
        """From now on every flush takes so long."""
        self._order(f"flush {flush_s}")

    def refuse(self, text: str) -> None:
        """From now on writes with this text fail."""
        self._order(f"refuse {text}")

    def fail_once(self) -> None:
        """Let the next write fail."""
        self._order("fail")

    def take_all(self) -> None:
        """From now on no write fails."""
        self._order("take")

    def _order(self, words: str) -> None:
        self._orders.write(words + "\n")
        self._orders.flush()

    def after_a_cut(self, position: int, loss: Loss, seed: int, image: Path) -> None:
        """Make the image that the disk is after the power failed when its log had this length."""
        run("cp", "--sparse=always", str(self._base), str(image))
        with image.open("r+b", buffering=0) as file:
            for write in _survivors(list(_writes(self.log, position)), loss, random.Random(seed)):
                os.pwrite(file.fileno(), write.content, write.offset)


def missing(*programs: str) -> str | None:
    """Why the power cannot be cut here, if it cannot."""
    if os.geteuid() != 0:
        return "a disk is mounted by root only"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.access(device, os.R_OK | os.W_OK):
            return f"{device} is not there"
    for program in programs:
        if shutil.which(program, path=_ENVIRONMENT["PATH"]) is None:
            return f"{program} is not installed"
    return None


@contextmanager
def remembering(kind: str, folder: Path, place: Path, *, megabytes: int = 96) -> Iterator[Disk]:
    """Mount a new file system at an empty directory, on a disk that remembers; `folder` holds what it is made
    of.
    """
    base, image, log, device = (folder / name for name in ("base.img", "disk.img", "log", "device"))
    device.touch()
    with base.open("wb") as file:
        file.truncate(megabytes << 20)
    making, options = FILE_SYSTEMS[kind]
    run(f"mkfs.{kind}", "-q", *making.split(), str(base))
    run("cp", "--sparse=always", str(base), str(image))
    program = Path(__file__).with_name("disk.py")
    with subprocess.Popen(
        [sys.executable, "-I", str(program), str(image), str(log), str(device)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as served:
        assert served.stdin is not None
        assert served.stdout is not None
        assert served.stdout.readline() == "mounted\n"
        try:
            disk = Disk(base, log, served.stdin)
            with mounted(device, place, options):
                yield disk
                disk.slow_down(0)
        finally:
            _unmount(device)
            served.kill()


@contextmanager
def mounted(image: Path, place: Path, options: str = "noatime") -> Iterator[None]:
    """Mount an image, whose journal is replayed if it has to be."""
    run("mount", "-o", f"loop,{options}", str(image), str(place))
    try:
        yield
    finally:
        _unmount(place)


def _unmount(place: Path) -> None:
    try:
        run("umount", str(place))
    except AssertionError:
        # A test that failed may have left something open.
        run("umount", "--lazy", str(place))


def run(*command: str) -> None:
    """Run one of the system's programs; what it says is part of the error."""
    done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


def _writes(log: Path, position: int) -> Iterator[Write]:
    """What the disk had done when its log had this length."""
    with log.open("rb") as file:
        while (head := file.read(RECORD.size)) and len(head) == RECORD.size:
            offset, size = RECORD.unpack(head)
            content = file.read(size)
            if file.tell() > position or len(content) != size:
                return
            yield Write(offset=offset, content=content)


def _survivors(writes: Sequence[Write], loss: Loss, chance: random.Random) -> Iterator[Write]:
    """Everything until the last flush, and what this kind of loss leaves of the rest."""
    flushed = max((number for number, write in enumerate(writes) if not write.content), default=-1) + 1
    yield from writes[:flushed]
    rest = writes[flushed:]
    if loss is Loss.END:
        yield from islice(rest, chance.randint(0, len(rest)))
    if loss is Loss.SOME:
        yield from (block for write in rest for block in _blocks(write) if chance.random() < 0.5)


def _blocks(write: Write) -> Iterator[Write]:
    for start in range(0, len(write.content), _BLOCK):
        yield Write(offset=write.offset + start, content=write.content[start : start + _BLOCK])
