"""`python -m tests.nfs`: the migrator on real NFS, versions 4.2 and 3, in a virtual machine without network.

It needs root and mmdebstrap. The first run makes the machine's root file system by this machine's apt. Ends
with 0 if all is as it should be, with 1 if not, with 5 if it could not run. docs/nfs.md has more.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.nfs.image import image, why_not
from tests.nfs.machine import machine, processor_seconds

_DID_NOT_RUN = 5
_PROGRAM = "tests.nfs.inside"
_VERSIONS = ("4.2", "3")

Say = Callable[[str], None]
Steps = dict[str, dict[str, dict[str, Any]]]
"""What was said of each step, by version."""


def main() -> int:
    """Play it; 0 when all was well, 5 where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m tests.nfs", description=__doc__)
    parser.add_argument("--version", choices=_VERSIONS, action="append", help="only this one (default: both)")
    versions = parser.parse_args().version or _VERSIONS
    if reason := why_not():
        sys.stderr.write(f"did not run: {reason}\n")
        return _DID_NOT_RUN
    # A machine must not outlive us.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    begin = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {line}", flush=True)

    made = image(say)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="label-nfs-") as folder:
        steps: Steps = {}
        with machine(made, (_PROGRAM, *versions), Path(folder)) as running:
            is_well = False
            for line in running.lines():
                is_well = "ended" in line
                _hear(line, steps, say)
            if not is_well:
                sys.stderr.write(running.last_words())
    print(f"\n{_table(steps)}\n")
    say(f"{'all is well' if is_well else 'not as it should be'}; {processor_seconds():.0f} s of processors")
    return 0 if is_well else 1


def _hear(line: dict[str, Any], steps: Steps, say: Say) -> None:
    if "step" in line:
        steps.setdefault(line["step"], {})[line["version"]] = line
        say(f"version {line['version']}: {line['step']}: {line['checked']}")
    elif "failed" in line:
        sys.stderr.write(line["failed"])
    elif "said" in line:
        say(line["said"])


def _table(steps: Steps) -> str:
    """The steps as a table of Markdown."""
    rows = ["| step | 4.2 | 3 | what was checked |", "|---|---|---|---|"]
    for name, said in steps.items():
        seconds = [
            f"{said[version]['seconds']:.0f} s" if version in said else "did not run" for version in _VERSIONS
        ]
        checked = list(dict.fromkeys(said[version]["checked"] for version in said))
        rows.append(f"| {name} | {' | '.join(seconds)} | {'<br>version 3: '.join(checked)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
