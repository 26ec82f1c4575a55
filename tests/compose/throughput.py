"""How much faster more workers are on one estate: each number of them with an installation of its own. Ratios, no seconds."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from producer import demo_estate
from tests.compose.installation import Installation, installation

COUNTS = (1, 2, 4)
_SOME_FAILED = 3


def measure(*, megabytes: int, say: Callable[[str], None]) -> None:
    """Migrate the same estate with each number of workers, one job at a time each, and say how they compare."""
    seconds = []
    for count in COUNTS:
        with installation(concurrency=1) as made:
            made.start_servers()
            made.start_everything(workers=count)
            seconds.append(_migrated_within_s(made, megabytes))
        say(f"{count} workers: {seconds[-1]:.1f} s for {megabytes} MB")
    say(_ratios(seconds))


def _migrated_within_s(made: Installation, megabytes: int) -> float:
    """From the call of `enqueue` to the end of the last job."""
    with made.engine() as engine:
        demo_estate.build(engine, made.legacy_dir, megabytes=megabytes, say=lambda _: None)
    said = json.loads(made.producer("enqueue", "--wait", "--json", exit_code=_SOME_FAILED))
    document = json.loads((made.reports / Path(said["report_path"]).name).read_text(encoding="utf-8"))
    start, end = (datetime.fromisoformat(document[key]) for key in ("start_time", "end_time"))
    return (end - start).total_seconds()


def _ratios(seconds: Sequence[float]) -> str:
    parts = (f"{count} workers {seconds[0] / each:.2f}" for count, each in zip(COUNTS, seconds, strict=True))
    return f"throughput as a multiple of one worker's: {', '.join(parts)}"
