"""File systems that share blocks, made for a measurement on loop devices. Knows no contender."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.bench.measure import DROP_CACHES
from tests.support.disks import file_system

KINDS = ("xfs", "btrfs")


@contextmanager
def loop_disk(kind: str, folder: Path, megabytes: int) -> Iterator[Path | None]:
    """Mount a new file system of a kind below the folder, its image beside it; its place. None, with the
    reason printed, where it cannot be mounted or the kernel's caches cannot be dropped.
    """
    place, images = folder / kind, folder / "images"
    for each in (place, images):
        each.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            if not os.access(DROP_CACHES, os.W_OK):
                pytest.skip(f"{DROP_CACHES} cannot be written")
            stack.enter_context(file_system(kind, place, images, megabytes=megabytes))
        except pytest.skip.Exception as reason:
            print(f"{kind}: not measured: {reason}")
            yield None
            return
        yield place
