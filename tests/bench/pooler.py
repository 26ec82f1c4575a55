"""`python -m tests.bench.pooler`: many tiny projects with PostgreSQL behind PgBouncer in transaction mode,
two connections to the server for all, against the same without it, in turn.
"""

import argparse
import os
import shutil
import statistics
from functools import partial
from pathlib import Path

from sqlalchemy.engine import make_url

from tests.bench.corpora import Corpus, tiny, warm
from tests.bench.measure import Measured, machine
from tests.bench.system import System
from tests.support.pooler import pgbouncer
from worker.runtime import log

_CONNECTIONS = 2


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/pooler"))
    parser.add_argument("--size", type=float, default=0.2, help="1 is 2,000 projects")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    log.configure(log_format="console", level="warning")
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = machine(folder)
    corpus = tiny(folder / "corpora", options.size)
    corpus.make()
    try:
        with (
            System.running(folder, folder / "corpora") as direct,
            pgbouncer(make_url(direct.database_url), connections=_CONNECTIONS) as behind,
        ):
            pooled = direct.through(behind.render_as_string(hide_password=False))
            runs: dict[str, list[Measured]] = {"directly": [], "through the pooler": []}
            for number in range(options.rounds):
                for name, system in (("directly", direct), ("through the pooler", pooled)):
                    data_dir = folder / f"{name}-{number}"
                    data_dir.mkdir()
                    runs[name].append(system.migrate(corpus, data_dir, partial(_settle, corpus)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratios = [
        through.seconds / alone.seconds
        for alone, through in zip(runs["directly"], runs["through the pooler"], strict=True)
    ]
    print(
        f"{facts['cores']} cores, load at the start {facts['load_at_start']}; {len(corpus.projects)} tiny projects"
    )
    for name, measured in runs.items():
        print(f"{name}: {statistics.median(run.seconds for run in measured):.2f} s")
    print(
        f"through the pooler, with {_CONNECTIONS} connections, times directly: "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def _settle(corpus: Corpus) -> None:
    warm([corpus])
    os.sync()


if __name__ == "__main__":
    main()
