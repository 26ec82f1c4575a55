"""What a worker's machine and process have: memory, open files, user, clock. Knows no file of ours."""

import os
import pwd
import re
import resource
from pathlib import Path

from worker.findings import Check, passed, warned
from worker.units import human_bytes

_LITTLE_MEMORY = 512 << 20
"""A worker process takes some 150 MB, and more for a project of many files."""

_FEW_FILES = 512
_CLOCKS_APART_S = 5.0
_CLOCKS_ALIKE_S = 0.1


def machine_checks() -> dict[str, Check]:
    """Everything that is known without reading from a disk."""
    return {
        "memory": memory_check(Path("/proc/meminfo").read_text(encoding="utf-8")),
        "open files": open_files_check(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        "user": user_check(os.geteuid()),
    }


def memory_check(meminfo: str) -> Check:
    """By what the kernel thinks new programs could have (`MemAvailable` of /proc/meminfo, proc(5))."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if match is None:
        return passed("the kernel does not say")
    available = int(match[1]) * 1024
    finding = f"{human_bytes(available)} available"
    if available < _LITTLE_MEMORY:
        return warned(finding, "Start the worker with a smaller --concurrency, or give it more memory.")
    return passed(finding)


def open_files_check(limit: int) -> Check:
    """How many files a process may have open at once."""
    if limit == resource.RLIM_INFINITY:
        return passed("no limit")
    finding = f"{limit} at most"
    if limit < _FEW_FILES:
        return warned(finding, f"Raise the limit for the worker (ulimit -n) to {_FEW_FILES}.")
    return passed(finding)


def user_check(uid: int) -> Check:
    """A defect of a program that runs as root can do anything."""
    if uid == 0:
        return warned(
            "runs as root",
            "Give the worker a user of its own that reads the legacy directories and writes to DATA_DIR.",
        )
    return passed(f"runs as {_name_of(uid)}")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def clock_check(ahead_s: float) -> Check:
    """Leases run by the database's clock alone; logs, reports and their names hold this machine's."""
    if abs(ahead_s) < _CLOCKS_ALIKE_S:
        return passed("the same as the database's")
    finding = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s >= 0 else 'behind'} the database's"
    if abs(ahead_s) > _CLOCKS_APART_S:
        return warned(finding, "Let the machine's clock be set by NTP; times in reports and logs are off.")
    return passed(finding)
