"""What tests of a worker's checks share: a request for one folder, and what is found there."""

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.doctor import store_checks
from worker.doctor.probe import Lines, examine
from worker.doctor.protocol import Machine, Request
from worker.findings import Verdict

PATIENCE_S = 20.0


def request(folder: Path, **changes: Any) -> Request:
    """What a worker asks of a machine whose DATA_DIR is this folder."""
    values = {
        "token": uuid.uuid4().hex,
        "data_dir": str(folder),
        "store_digest": "blake3",
        "legacy_roots": (str(folder),),
        "projects": {},
    }
    return Request(**{**values, **changes})


def look(asked: Request, within_s: float = PATIENCE_S) -> Machine:
    return examine(asked, store_checks.new_mark(asked), within_s=within_s)


def bad(found: Machine) -> dict[str, str]:
    return {
        name: check.verdict.value for name, check in found.checks.items() if check.verdict is not Verdict.PASS
    }


@contextmanager
def process(asked: Request, **options: Any) -> Iterator[tuple[Callable[[str], None], Lines]]:
    """Run the real process; say a word, and read its lines."""
    with subprocess.Popen(
        [sys.executable, "-m", "worker.doctor.probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        stdin = running.stdin

        def say(word: str) -> None:
            stdin.write(word.encode() + b"\n")
            stdin.flush()

        say(json.dumps(asked.to_json()))
        try:
            yield say, Lines(running.stdout.fileno())
        finally:
            stdin.close()
            running.wait(PATIENCE_S)
