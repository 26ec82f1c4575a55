"""One run of the machine: it sees this checkout and its Python at their own paths, runs one module of it, and
says lines of JSON. It has no network card.
"""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nfs.image import Image

_CHECKOUT = Path(__file__).parents[2]
_EXPORT_BYTES = 1 << 30
_MEMORY = "3G"

_START = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \\
  PYTHONPATH={checkout} TESTS_PATIENCE_S=1800 PGCONNECT_TIMEOUT=60
unset start
see() {{
  mkdir -p "$1"
  mount -t hostfs -o "$1" none "$1"
  mount -o remount,ro "$1"
}}
chmod o+x /root
{shares}
hostname file-server
echo 127.0.0.1 localhost file-server > /etc/hosts
cd {checkout}
{python} -m {program} >/dev/ttyS0 2>/dev/console </dev/null
sync
echo o > /proc/sysrq-trigger
sleep 60
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that runs. Its console is in a file."""

    process: subprocess.Popen[str]
    console: Path

    def lines(self) -> Iterator[dict[str, Any]]:
        """What its program says, until the machine ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def last_words(self) -> str:
        """The end of its console."""
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-80:]) + "\n"


@contextmanager
def machine(image: Image, program: Sequence[str], folder: Path) -> Iterator[Machine]:
    """Run a module with arguments in a new machine, whose disks are in `folder`; it ends with the block."""
    start, console, disk = folder / "start", folder / "console.log", folder / "export.raw"
    start.mkdir()
    (start / "start.sh").write_text(_script(program))
    with disk.open("xb") as file:
        file.truncate(_EXPORT_BYTES)
    command = [
        *("nice", "-n", "10", str(image.kernel), f"mem={_MEMORY}", "root=/dev/ubda", "rw", "quiet"),
        # The root is only read, and what is written to it is kept beside it.
        *(f"ubd0={folder / 'written'},{image.root}", f"ubd1={disk}"),
        *("con=null", "con0=null,fd:2", "ssl=null", "ssl0=null,fd:1"),
        *("init=/sbin/label-start", f"start={start}"),
    ]
    with (
        console.open("w") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Its memory is a file there, and its own files are in HOME.
            env=os.environ | {"TMPDIR": "/dev/shm", "HOME": str(folder)},  # noqa: S108
            process_group=0,
        ) as process,
    ):
        try:
            yield Machine(process=process, console=console)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def processor_seconds() -> float:
    """What machines that have ended used of this one's processors: it stays the same on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _script(program: Sequence[str]) -> str:
    shares = [_CHECKOUT]
    if sys.base_prefix != "/usr":  # Debian's own Python is inside already
        shares.append(Path(sys.base_prefix))
    return _START.format(
        checkout=shlex.quote(str(_CHECKOUT)),
        shares="\n".join(f"see {shlex.quote(str(path))}" for path in shares),
        python=shlex.quote(sys.executable),
        program=shlex.join(program),
    )
