"""What a disk does that loses its power: bytes that were never synced are gone."""

import os
from collections.abc import Sequence

from tests.support.shim import SYNCS, Call

_FILLS = {"write", "writev", "pwrite64", "pwritev64v2", "fallocate", "sendfile64", "copy_file_range"}


def lose_what_was_not_synced(calls: Sequence[Call]) -> None:
    """Let every file that was written after the last sync that covers it hold nothing but zeros."""
    unsynced: dict[str, None] = {}
    for call in calls:
        if call.result is None or call.result < 0:
            continue
        if call.name in _FILLS:
            unsynced[call.path] = None
        elif call.name == "syncfs":
            unsynced.clear()
        elif call.name in SYNCS:
            unsynced.pop(call.path, None)
        elif call.name == "rename":
            unsynced = {_moved(path, call): None for path in unsynced}
    for path in unsynced:
        if os.path.lexists(path):
            os.chmod(path, 0o644)
            size = os.path.getsize(path)
            with open(path, "r+b") as file:
                file.write(b"\0" * size)
            os.chmod(path, 0o444)


def _moved(path: str, call: Call) -> str:
    """Where a file is after a rename of it, or of a directory above it."""
    if path == call.path or path.startswith(f"{call.path}/"):
        return call.target + path[len(call.path) :]
    return path
