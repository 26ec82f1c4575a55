"""`python -m tests.upgrade`: what the first release leaves is taken over.

Its own code, from this repository's history, leaves a lab half migrated, with one run paused and one in
progress. Then the tables are upgraded under its worker, and this version goes on. Ends with 0 if all is as
it should be, and says what it sees. Takes a few minutes and a clone with its history; runs on the embedded
servers.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, text

from producer.local.stack import stack
from tests.estate import differences, dump, make_project, readings, record_session, snapshot_tree
from tests.support.waiting import eventually

_CHECKOUT = Path(__file__).parents[2]
_FIRST_RELEASE = "251aa6f"
_PATIENCE_S = 300.0
_SLOWLY = {"BWLIMIT": "200K"}
"""So that jobs of a megabyte are still running when something is done to them."""
_REFUSED = "migration_jobs_worker_of_an_earlier_release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The program as of one commit, on one stack. `name` is what its workers are called."""

    name: str
    code: Path
    env: Mapping[str, str]
    folder: Path

    def producer(self, *words: str) -> str:
        """What a call says, which has to end well."""
        done = subprocess.run(
            [sys.executable, "-m", "producer", *words],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(
                f"{self.name}: producer {' '.join(words)} ended with {done.returncode}:\n{done.stderr}"
            )
        return done.stdout

    @property
    def log(self) -> Path:
        """What its worker says."""
        return self.folder / f"{self.name}.log"

    @contextmanager
    def worker(self, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run one until the block ends, and see that it stops in time."""
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker.app",
            "worker",
            "--concurrency",
            "1",
            "-E",
            "-n",
        ]
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [*command, f"{self.name}@upgrade"],
                cwd=self.folder,
                env=self._environment() | more,
                stdout=output,
                stderr=output,
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(90) != 0:
                raise SystemExit(f"the {self.name} worker ended with {process.returncode}")

    def _environment(self) -> dict[str, str]:
        return {**self.env, "PYTHONPATH": str(self.code), "PYTHONSAFEPATH": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Label's rows and files before anything was migrated, to compare with."""

    engine: Engine
    legacy_root: Path
    data_dir: Path

    def grow(self, first: int, last: int) -> None:
        """Add projects with these numbers, each of which has the content of its neighbour."""
        with self.engine.begin() as conn:
            for number in range(first, last + 1):
                project = make_project(conn, self.legacy_root, f"study {number}")
                for day in range(2):
                    record_session(
                        conn, project, f"day {day}", rows=12_000, seed=(number + 1) // 2 * 10 + day
                    )

    def seen(self) -> tuple[Any, Any, Any]:
        """Rows, trees and readings."""
        with self.engine.connect() as conn:
            rows = dump(conn, ["projects", "sessions"])
            return rows, snapshot_tree(self.legacy_root), readings(conn, self.data_dir)

    def count(self, question: str, **values: Any) -> int:
        """How many jobs there are of which this holds."""
        with self.engine.connect() as conn:
            found: int = conn.execute(
                text(
                    f"select count(*) from migration_jobs j join migration_runs r using (run_id) {question}"
                ),
                values,
            ).scalar_one()
        return found

    def paused_run(self) -> str:
        """The id of the run that is paused."""
        with self.engine.connect() as conn:
            return str(
                conn.execute(text("select run_id from migration_runs where state = 'paused'")).scalar_one()
            )


def main() -> int:
    """Play it; 0 when all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__)
    parser.add_argument(
        "--commit", default=_FIRST_RELEASE, help="the earlier release (default: the first one)"
    )
    commit = parser.parse_args().commit
    folder = Path(tempfile.mkdtemp(prefix="label-upgrade-"))
    try:
        _play(folder, _checked_out(commit, folder / "earlier"))
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
        shutil.rmtree(folder)
    _say("all is well")
    return 0


def _checked_out(commit: str, place: Path) -> Path:
    place.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=_CHECKOUT, capture_output=True, check=False)
    if archive.returncode:
        raise SystemExit(f"This clone has no commit {commit}; fetch its whole history: git fetch --unshallow")
    subprocess.run(["tar", "x", "-C", str(place)], input=archive.stdout, check=True)
    return place


def _play(folder: Path, earlier_code: Path) -> None:
    legacy_root = folder / "legacy"
    legacy_root.mkdir()
    with stack(folder / "state", data_dir=folder / "data", with_tables=False) as servers:
        engine = create_engine(
            servers.addresses.database_url.replace("postgresql://", "postgresql+psycopg2://")
        )
        env = {
            **os.environ,
            **servers.env,
            "LEGACY_ROOTS": str(legacy_root),
            "LEASE_S": "10",
            "LOG_FORMAT": "json",
        }
        earlier = Release(name="earlier", code=earlier_code, env=env, folder=folder)
        later = Release(name="later", code=_CHECKOUT, env=env, folder=folder)
        with engine.begin() as conn:
            conn.exec_driver_sql((_CHECKOUT / "sql" / "label_app_baseline.sql").read_text())
        earlier.producer("schema", "apply")
        lab = Lab(engine=engine, legacy_root=legacy_root, data_dir=servers.data_dir)
        lab.grow(1, 16)
        before = lab.seen()
        _leave_everything_half_done(earlier, lab)
        _upgrade_under_its_worker(earlier, later, lab)
        _finish(later, lab)
        _check_all_is_as_it_was(lab, before)
        engine.dispose()


def _leave_everything_half_done(earlier: Release, lab: Lab) -> None:
    with earlier.worker():
        earlier.producer("enqueue", *_of(1, 4), "--wait")
    _expect(lab.count("where j.state = 'done'") == 4, "four projects are migrated by the earlier release")
    with earlier.worker(**_SLOWLY):
        earlier.producer("enqueue", *_of(5, 8))
        _await(lambda: lab.count("where j.state = 'done'") >= 5, "its second run has begun")
        earlier.producer("pause")
    _expect(lab.count("where r.state = 'paused' and j.state = 'queued'") > 0, "and is paused in the middle")


def _upgrade_under_its_worker(earlier: Release, later: Release, lab: Lab) -> None:
    with earlier.worker(**_SLOWLY):
        earlier.producer("enqueue", *_of(9, 14))
        _await(
            lambda: lab.count("where r.state = 'running' and j.state = 'running'") > 0,
            "its third run is at work",
        )
        later.producer("schema", "apply")
        upgraded = time.time()
        _say("the tables are upgraded, and its worker still runs")
        with later.worker():
            _await(lambda: _open(lab) == 0, "that run has ended")
    by_earlier = "where worker like 'earlier@%' and started_at > to_timestamp(:upgraded)"
    _expect(
        lab.count(by_earlier, upgraded=upgraded) == 0,
        "by the new worker: the earlier one took no job any more",
    )
    _say(f"the ledger refused it {earlier.log.read_text().count(_REFUSED)} times")


def _open(lab: Lab) -> int:
    return lab.count("where r.state in ('planned', 'running') and j.state in ('queued', 'running')")


def _finish(later: Release, lab: Lab) -> None:
    with later.worker():
        later.producer("resume", lab.paused_run())
        _await(
            lambda: lab.count("where j.state in ('queued', 'running')") == 0,
            "the paused run is resumed and ends",
        )
        later.producer("enqueue", "--wait")
        _expect(lab.count("where j.state = 'failed'") == 0, "the rest is migrated, and nothing has failed")
        with lab.engine.connect() as conn:
            datasets = conn.execute(text("select count(*) from raw_datasets")).scalar_one()
        _expect(datasets == 8, "of each pair of equal projects one content is stored")
        later.producer("doctor")
        later.producer("verify", "--store")
        later.producer("verify", "--sessions")
        later.producer("gc", "--yes", "--wait", "--grace", "0")
        _say("doctor, verify and gc have nothing to say")
        later.producer("rollback", "--dry-run", "--wait")
        later.producer("rollback", "--yes", "--wait")


def _check_all_is_as_it_was(lab: Lab, before: tuple[Any, Any, Any]) -> None:
    rows, trees, read = lab.seen()
    _expect(rows == before[0], "all rows are what they were before the first release came")
    _expect(trees == before[1], "and so are the directories")
    _expect(list(differences(before[2], read)) == [], "and every session reads the same")


def _of(first: int, last: int) -> list[str]:
    return [word for number in range(first, last + 1) for word in ("--project-id", str(number))]


def _await(condition: Callable[[], bool], what: str) -> None:
    eventually(condition, what, within_s=_PATIENCE_S)
    _say(what)


def _expect(holds: bool, what: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise SystemExit(f"not so: {what}")
    _say(what)


def _say(what: str) -> None:
    sys.stdout.write(f"  {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
