"""Which processes are below which. Reads /proc."""

import os
from collections.abc import Collection
from pathlib import Path


def descendants(roots: Collection[int]) -> set[int]:
    """These processes and all below them."""
    parents = {int(name): stat_of(int(name))[1] for name in os.listdir("/proc") if name.isdigit()}
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if int(parent) in found} - found:
        found |= more
    return found


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything; zeros for a process that has
    gone.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 20
    return content.rpartition(")")[2].split()
