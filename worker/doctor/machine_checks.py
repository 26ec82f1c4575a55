"""What a worker's machine and process have: memory, open files, user. Knows no file of the migrator."""

import os
import pwd
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from worker.findings import Check, passed, warned
from worker.units import human_bytes

_LITTLE_MEMORY = 512 << 20
"""A worker process takes some 150 MB, and more for a project of many files."""

_FEW_FILES = 512


def machine_checks() -> Iterator[Check]:
    """Everything that is known without looking at a disk."""
    yield memory_check(Path("/proc/meminfo").read_text(encoding="utf-8"))
    yield open_files_check(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield user_check(os.geteuid())


def memory_check(meminfo: str) -> Check:
    """By what the kernel thinks new programs could have (`MemAvailable` of /proc/meminfo, proc(5))."""
    name = "memory"
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if match is None:
        return passed(name, "the kernel does not say")
    available = int(match[1]) * 1024
    words = f"{human_bytes(available)} available"
    if available < _LITTLE_MEMORY:
        return warned(name, words, "Start the worker with a smaller --concurrency, or give it more memory.")
    return passed(name, words)


def open_files_check(limit: int) -> Check:
    """How many files a process may have open at once."""
    name = "open files"
    if limit != resource.RLIM_INFINITY and limit < _FEW_FILES:
        return warned(
            name, f"{limit} at most", f"Raise the limit for the worker (ulimit -n) to {_FEW_FILES}."
        )
    return passed(name, "no limit" if limit == resource.RLIM_INFINITY else f"{limit} at most")


def user_check(uid: int) -> Check:
    """A defect of a program that runs as root can do anything."""
    name = "user"
    if uid == 0:
        return warned(
            name,
            "runs as root",
            "Give the worker a user of its own that reads the legacy directories and writes to DATA_DIR.",
        )
    return passed(name, f"runs as {_name_of(uid)}")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
