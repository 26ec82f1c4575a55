"""Processes that end when we end: start, wait until ready, stop. Knows nothing of what they do.

Start them from the main thread: Linux sends the parent-death signal when the *thread* that forked is gone
(prctl(2)).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from worker.errors import PermanentError

LOOK_EVERY_S = 0.03
START_WITHIN_S = 60.0
_STOP_WITHIN_S = 30.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class LocalStackError(PermanentError):
    """A part of the local stack did not start or did not stay up."""

    remedy = "Read the log file that the message names; a fresh state folder starts from nothing."


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process of the stack: how an operator knows it, and where it writes. Earlier starts fill the log up
    to `log_start`.
    """

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path
    log_start: int

    def log_tail(self, lines: int = 12) -> str:
        """Return the last lines that this process wrote."""
        with self.log_file.open("rb") as log:
            log.seek(self.log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a process runs as; None means: as this one."""

    uid: int | None = None
    gid: int | None = None
    extra_groups: tuple[int, ...] | None = None


OURSELVES = Identity()


def start(
    name: str,
    command: Sequence[str | Path],
    *,
    log_file: Path,
    on_parent_death: signal.Signals,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    standard_input: bytes = b"",
    identity: Identity = OURSELVES,
) -> Child:
    """Start a process that reads `standard_input`, and gets a signal when this process is gone.

    It has a session of its own, so that a Ctrl-C at our terminal reaches only us and the order of stopping is
    ours.
    """
    with open(log_file, "ab", opener=partial(os.open, mode=0o600)) as log:
        log_start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=env,
            cwd=cwd,
            start_new_session=True,
            # Safe enough beside threads: the hook makes two system calls and takes no lock.
            preexec_fn=partial(_die_with, os.getpid(), on_parent_death),  # noqa: PLW1509
            user=identity.uid,
            group=identity.gid,
            extra_groups=identity.extra_groups,
        )
    # One that ended at once has closed the pipe; waiting for it to be ready will report that.
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(standard_input)
    return Child(name=name, process=process, log_file=log_file, log_start=log_start)


def await_ready(child: Child, is_ready: Callable[[], bool], *, within_s: float = START_WITHIN_S) -> None:
    """Wait until `is_ready`; raise `LocalStackError` with the log's last lines if the child ends or time runs
    out.
    """
    deadline = time.monotonic() + within_s
    while child.process.poll() is None:
        if is_ready():
            return
        if time.monotonic() > deadline:
            raise LocalStackError(_did_not_start(child, f"was not ready within {within_s:.0f} seconds"))
        time.sleep(LOOK_EVERY_S)
    raise LocalStackError(_did_not_start(child, f"ended with status {child.process.returncode}"))


def stop(
    children: Sequence[Child], *, within_s: float = _STOP_WITHIN_S, politely: signal.Signals = signal.SIGTERM
) -> None:
    """Ask all of them at once to end, wait for them together, and kill what is left (with its own
    children).
    """
    deadline = time.monotonic() + within_s
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(politely)
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


def _did_not_start(child: Child, why: str) -> str:
    return f"{child.name} {why}; its log is {child.log_file} and ends with:\n{child.log_tail()}"


def _die_with(parent_pid: int, signum: int) -> None:
    """In the new process, after it took its user (which would reset the setting): end when the parent
    ends.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent_pid:  # the parent was killed before the kernel knew of our wish
            os._exit(1)
