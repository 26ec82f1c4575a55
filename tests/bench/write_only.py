"""The store's own way of writing, without a digest: the files named on standard input, one process, each on
the disk before the next. The first name is the folder that they go into.
"""

import mmap
import os
import sys
from pathlib import Path

from worker.store.digest import BIG_CHUNK_BYTES
from worker.store.files import Writer, new_file


def main() -> None:
    """Read the names, say so, and write when told to begin."""
    folder, *names = sys.stdin.readline().rstrip("\n").split("\0")
    buffer = memoryview(mmap.mmap(-1, BIG_CHUNK_BYTES))
    print("ready", flush=True)
    sys.stdin.readline()
    for number, name in enumerate(names):
        target = str(Path(folder, f"{number}"))
        with open(name, "rb", buffering=0) as source, new_file(target, durably=True) as descriptor:
            write = Writer(descriptor, target, os.fstat(source.fileno()).st_size)
            while count := source.readinto(buffer):
                write(buffer[:count])


if __name__ == "__main__":
    main()
