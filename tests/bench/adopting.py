"""`python -m tests.bench.adopting`: datasets that Label registered itself, each with a project that reads it,
are adopted, verified and given back by two workers; what each takes, and that every session reads the same
before, after and at the end.
"""

import argparse
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from producer.runs import adoptions, verification
from producer.runs.open import Opened
from producer.runs.verification import Wanted
from tests.bench.corpora import tiny
from tests.bench.system import System, await_end
from tests.support.ledger_rows import recorded_outcomes
from tests.support.registered import register
from tests.support.sites import Site
from worker.messages import RunOptions
from worker.runtime import log

_LOOKED_AT = 25
"""Of so many adopted datasets one is looked at entry by entry."""


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/adopting"))
    parser.add_argument("--datasets", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=500, help="of each of two recordings of a dataset")
    options = parser.parse_args()
    log.configure(log_format="console", level="warning")
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with System.running(folder, folder / "corpora") as system:
            _measure(system, folder, options.datasets, options.rows)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _measure(system: System, folder: Path, count: int, rows: int) -> None:
    data_dir = folder / "data"
    with system.prepared(tiny(folder / "corpora", 1, name="one", projects=1), data_dir) as (settings, engine):
        site = Site(
            engine=engine,
            redis_url="",
            folder=folder,
            data_dir=data_dir,
            legacy_root=folder / "corpora",
            env={},
            settings=settings,
        )
        made = [
            register(site, f"walk {number}", 2 * number, 2 * number + 1, rows=rows) for number in range(count)
        ]
        with engine.begin() as conn:
            conn.execute(text("analyze"))

        def timed(what: str, open_run: Callable[[], Opened]) -> None:
            begin = time.perf_counter()
            run_id = open_run().run_id
            await_end(engine, run_id)
            seconds = time.perf_counter() - begin
            with engine.connect() as conn:
                ends = [one.status.value for one in recorded_outcomes(conn, run_id).values()]
            counts = ", ".join(f"{ends.count(status)} {status}" for status in sorted(set(ends)))
            print(f"{what}: {counts} in {seconds:.1f} s, {len(ends) / seconds:.0f} a second", flush=True)
            for one in made:
                one.check_read()

        def adopt(options: RunOptions, *, dry_run: bool = False) -> Callable[[], Opened]:
            return lambda: adoptions.adopt(settings, engine, dry_run=dry_run, options=options)

        with system.workers(data_dir):
            timed("adopt --dry-run", adopt(RunOptions(), dry_run=True))
            timed("adopt", adopt(RunOptions()))
            for one in made[::_LOOKED_AT]:
                one.check_adopted()
            timed("verify --store", lambda: verification.verify(settings, engine, wanted=Wanted(store=True)))
            timed("adopt --undo", adopt(RunOptions(undo=True)))
            for one in made[::_LOOKED_AT]:
                one.check_untouched()


if __name__ == "__main__":
    main()
