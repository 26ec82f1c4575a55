"""What a run took: seconds, processor time, memory, bytes on disk; and what machine it was on. Knows no
contender.
"""

import os
import platform
import resource
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.process_tree import stat_of

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One timed run. `seconds` lasts until everything is durable.

    `cpu_s` is the processor time of the contender's own processes. `stored_bytes` are the bytes of all
    different inodes that it left. `peak_mb` is the resident memory of its biggest process. `count` is how
    many things (projects, tasks) it did. `flush_s`: how long a `sync` took *after* a run that was durable by
    itself; not part of `seconds`. `collected_s`: when the producer's collector had all outcomes in hand.
    `servers_cpu_s` is the processor time of PostgreSQL and Valkey, and `statements` how many the workers
    asked of the former, where that was counted. `decided_by` names which of several ways this is the time of.
    """

    seconds: float
    cpu_s: float
    stored_bytes: int | None = None
    peak_mb: float | None = None
    count: int | None = None
    flush_s: float | None = None
    collected_s: float | None = None
    servers_cpu_s: float | None = None
    statements: int | None = None
    decided_by: str | None = None


Settle = Callable[[], None]
"""To be called between the preparation of a run and its timing: warms the page cache, flushes, lets the
machine rest.
"""


def timed(start: Callable[[], Sequence[subprocess.Popen[bytes]]], *, spent_s: float = 0) -> Measured:
    """Start processes, wait for them, then for the disk. `spent_s` is processor time that they had before."""
    cpu = _children_cpu_s() + spent_s
    begin = time.perf_counter()
    for process in start():
        if process.wait() != 0:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
    os.sync()
    return Measured(seconds=time.perf_counter() - begin, cpu_s=_children_cpu_s() - cpu)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# Processes that go on after a run ---------------------------------------------------------------------------


def cpu_s(pids: Collection[int]) -> float:
    """Processor time of these processes and of those children of theirs that have ended."""
    return sum(sum(int(ticks) for ticks in stat_of(pid)[11:15]) for pid in pids) / _TICKS


def peak_mb(pids: Collection[int]) -> float:
    """The most resident memory that any of these processes ever had, in 10^6 bytes."""
    return max((_peak_kib(pid) for pid in pids), default=0) * 1024 / 1e6


def _peak_kib(pid: int) -> int:
    try:
        content = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in content.splitlines() if line.startswith("VmHWM:")), 0)


def read_bytes(pids: Collection[int]) -> int:
    """What these processes have read by calls such as read(2), from memory or from the disk."""
    return sum(_of_io(pid, "rchar") for pid in pids)


def _of_io(pid: int, what: str) -> int:
    try:
        content = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in content.splitlines() if line.startswith(f"{what}:"))


# Disk -------------------------------------------------------------------------------------------------------

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches() -> None:
    """Let the kernel forget what it has read, so that the disk is asked again. Only root may."""
    os.sync()
    DROP_CACHES.write_text("3", encoding="ascii")


def used_bytes(folder: Path) -> int:
    """What is allocated on a file system, its own records included, once all is written."""
    os.sync()
    said = os.statvfs(folder)
    return (said.f_blocks - said.f_bfree) * said.f_frsize


def bytes_below(folder: Path) -> int:
    """The sizes of all regular files below a folder, each inode once."""
    found = {(status.st_dev, status.st_ino): status.st_size for status in _files(folder)}
    return sum(found.values())


def _files(folder: Path) -> Iterator[os.stat_result]:
    for above, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(above, name))
            if stat.S_ISREG(status.st_mode):
                yield status


def file_system(folder: Path) -> str:
    """What a folder is on: the kind of file system, whether it has a journal, and its device."""
    device, _, kind = max(
        (line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines() if _holds(line, folder)),
        key=lambda mount: len(mount[1]),
    )
    if not kind.startswith("ext"):
        return f"{kind} on {device}"
    journal = Path("/proc/fs/jbd2")
    has_one = journal.exists() and any(
        name.startswith(f"{Path(device).name}-") for name in os.listdir(journal)
    )
    return f"{kind} {'with' if has_one else 'without'} a journal on {device}"


def _holds(mount: str, folder: Path) -> bool:
    return folder.resolve().is_relative_to(mount.split()[1])


def machine(folder: Path) -> dict[str, str | float | int]:
    """What to know about this machine when reading its figures."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": file_system(folder),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
