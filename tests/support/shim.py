"""The calls of a process to libc, seen, failed or made deadly by a library that is loaded before it
(`shim.c`).

Needs gcc and nothing else. A test compiles the library once a session (`build`), starts a process with
`environment`, and reads what it did with `calls`. Knows no store.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})
SENDS = frozenset({"send", "sendto", "sendmsg"})
REMOVALS = frozenset({"unlink", "unlinkat", "rmdir"})
_MOST_FOLDERS = 4


class Act(StrEnum):
    """What is done to a call."""

    KILL_BEFORE = "kill before"
    KILL_AFTER = "kill after"
    FAIL_ONCE = "fail once"
    FAIL_FROM = "fail from"
    """This call fails, and every later one that is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What to do to the `at`-th counted call (from 1). Counted are calls that change something below the
    watched folders or, when `call` names a function of libc, the watched calls of that name: `send` counts
    wherever it goes to, and `readv` and its like are watched only then.
    """

    act: Act
    at: int
    call: str = ""
    errno: int = 0
    stale: str = ""
    """A path that seems absent, with what is below it, until its directory is asked anew
    (AT_STATX_FORCE_SYNC).
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call. `started` and `ended` are moments on one clock of all threads; `number` is 0 for a call that
    is not counted, `result` None for the one that the process died at.
    """

    started: int
    ended: int
    number: int
    thread: int
    name: str
    path: str
    target: str
    result: int | None
    errno: int
    text: str

    def before(self, other: "Call") -> bool:
        """Was this one over when the other began?"""
        return self.ended < other.started


def build(folder: Path) -> Path:
    """Compile the library into a folder; its path."""
    library = folder / "shim.so"
    compiler = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O2",
        "-U_FORTIFY_SOURCE",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
    ]
    subprocess.run(compiler, check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """What a process needs to be watched at all, from its start on."""
    return {"LD_PRELOAD": str(library)}


def order(log: Path, below: Sequence[Path], fault: Fault | None = None) -> Mapping[str, str]:
    """What the library reads when a process starts, or calls `faults_arm`: where to write, what to watch,
    what to do.
    """
    folders = [str(folder) for folder in below] + [""] * (_MOST_FOLDERS - len(below))
    asked = {
        "FAULTS_LOG": str(log),
        **{f"FAULTS_BELOW_{number}": folder for number, folder in enumerate(folders)},
        "FAULTS_ACT": "watch",
        "FAULTS_STALE": "",
    }
    if fault is not None:
        asked |= {
            "FAULTS_ACT": fault.act.value,
            "FAULTS_AT": str(fault.at),
            "FAULTS_CALL": fault.call,
            "FAULTS_ERRNO": str(fault.errno),
            "FAULTS_STALE": fault.stale,
            "FAULTS_READS": "1" if "read" in fault.call else "",
        }
    return asked


def calls(log: Path) -> list[Call]:
    """What was written down, in the order in which the calls began."""
    if not log.exists():
        return []
    return sorted((_call(line) for line in log.read_text().splitlines()), key=lambda call: call.started)


def _call(line: str) -> Call:
    started, ended, number, thread, name, path, target, result, error, text = line.split("\t")
    return Call(
        started=int(started),
        ended=int(ended),
        number=int(number),
        thread=int(thread),
        name=name,
        path=_unescaped(path),
        target=_unescaped(target),
        result=None if result == "killed" else int(result),
        errno=int(error),
        text=text,
    )


def _unescaped(text: str) -> str:
    r"""A path whose odd bytes stand as `\xNN`."""
    head, *rest = text.split("\\x")
    return os.fsdecode(
        head.encode() + b"".join(bytes([int(part[:2], 16)]) + part[2:].encode() for part in rest)
    )
