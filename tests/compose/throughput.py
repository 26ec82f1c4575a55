"""How much faster more workers are on one estate: each number of them with an installation of its own. What
counts are ratios.
"""

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from producer.demo import projects
from tests.compose.installation import Installation, installation

COUNTS = (1, 2, 4)
_LIMIT = "100M"
_SOME_FAILED = 3

Say = Callable[[str], None]


def measure(*, megabytes: int, say: Say) -> None:
    """Migrate the same estate with each number of workers, and say how they compare.

    Each worker has one job and one thread, a core at most. Once they share what this machine has, once each
    reads no faster than from a disk or over a link of its own: that is what workers on several machines are
    like.
    """
    cores = len(os.sched_getaffinity(0))
    _compare(f"as fast as {cores} cores and one disk can", "", megabytes, say)
    _compare(f"each reading at most {_LIMIT} a second", _LIMIT, megabytes, say)


def _compare(how: str, limit: str, megabytes: int, say: Say) -> None:
    seconds = {count: _migrated_within_s(count, limit, megabytes) for count in COUNTS}
    taken = ", ".join(f"{each:.1f} s with {count}" for count, each in seconds.items())
    ratios = ", ".join(f"{seconds[COUNTS[0]] / each:.2f}" for each in seconds.values())
    say(f"{megabytes} MB, {how}: {taken}; throughput {ratios} times that of one worker")


def _migrated_within_s(workers: int, limit: str, megabytes: int) -> float:
    with installation(HASH_THREADS="1", BWLIMIT=limit) as made:
        made.build()
        made.make_labels_tables()
        made.start_everything(workers=workers)
        return _migrate(made, megabytes)


def _migrate(made: Installation, megabytes: int) -> float:
    """Seconds from the call of `enqueue` to the end of the last job, as the report has them."""
    with made.engine() as engine:
        projects.build(engine, made.legacy_dir, megabytes=megabytes, say=lambda _: None)
    said = json.loads(made.producer("enqueue", "--wait", "--json", exit_code=_SOME_FAILED))
    document = json.loads((made.reports / Path(said["report_path"]).name).read_text(encoding="utf-8"))
    start, end = (datetime.fromisoformat(document[key]) for key in ("start_time", "end_time"))
    return (end - start).total_seconds()
