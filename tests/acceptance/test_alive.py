"""The file that a worker touches with each heartbeat: young while it takes part, old when it does not."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.sites import Site
from tests.support.waiting import eventually
from tests.support.workers import Worker

pytestmark = pytest.mark.slow

HEARTBEAT_S = 2.0


def test_the_alive_file_is_fresh_while_the_worker_works_and_stale_while_it_hangs(site: Site):
    alive_file = site.folder / "alive"
    with site.workers(ALIVE_FILE=str(alive_file)) as (worker,):
        eventually(alive_file.exists, "a first heartbeat")
        first = alive_file.stat().st_mtime_ns
        eventually(lambda: alive_file.stat().st_mtime_ns > first, "another heartbeat")

        with hanging(worker):
            eventually(lambda: age_s(alive_file) > 3 * HEARTBEAT_S, "an old file")

        eventually(lambda: age_s(alive_file) < HEARTBEAT_S, "a young file")


@contextmanager
def hanging(worker: Worker) -> Iterator[None]:
    """Stop the worker's parent in the middle of whatever it does."""
    worker.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.signal(signal.SIGCONT)


def age_s(file: Path) -> float:
    return time.time() - file.stat().st_mtime
