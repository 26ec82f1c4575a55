"""Projects that keep a slow worker busy for seconds, and what the ledger says of them meanwhile."""

import os
import signal
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tests.estate import make_project, record_session
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S, eventually
from tests.support.workers import Worker

LEASE_S = "4"
"""Short, and yet longer than a busy machine lets a heartbeat wait."""

SLOW = "6M"
"""A BWLIMIT at which a big study takes seconds."""

VERY_SLOW = ("--limit-bytes-per-second", "50K")
"""A run's limit at which one file of a big study takes longer than any test waits; until it is lifted."""

_LINE = b"1000000000000,0.100000,0.200000,0.300000\n"
_BIG_BYTES = 9 << 20


def big_study(site: Site, name: str, *seeds: int) -> int:
    """A project with a recording of 9 MiB for each seed; its id."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        for seed in seeds:
            record_session(conn, project, f"day {seed}", rows=20, seed=seed)
    for seed in seeds:
        path = site.legacy_root / Path(project.path or "").name / f"day {seed}" / "accelerometer_data.csv"
        path.write_bytes(b"ns_since_reboot,x,y,z\n%d,0,0,0\n" % seed + _LINE * (_BIG_BYTES // len(_LINE)))
    return project.project_id


def small_studies(site: Site, count: int) -> list[Path]:
    """As many projects of one small recording each, all different; their directories."""
    directories = []
    with site.engine.begin() as conn:
        for number in range(count):
            project = make_project(conn, site.legacy_root, f"small {number}")
            record_session(conn, project, "day", rows=40, seed=1000 + number)
            directories.append(Path(project.path or ""))
    return directories


def enqueue(site: Site, *options: str) -> None:
    """Open a run."""
    done = site.run_producer("enqueue", *options)
    assert done.returncode == 0, done.stderr


def lift_the_limit(site: Site) -> None:
    """Let the run go on as fast as it can."""
    done = site.run_producer("throttle")
    assert done.returncode == 0, done.stderr


def jobs(site: Site) -> list[dict[str, Any]]:
    """The jobs of all runs, by project."""
    with site.engine.connect() as conn:
        rows = conn.execute(
            text("""
                select project_id, state, attempt, worker, crashes, fenced, retries, bytes_done, outcome,
                       (lease_until < clock_timestamp()) as is_expired
                from migration_jobs order by project_id""")
        )
        return [dict(row) for row in rows.mappings()]


def await_work(site: Site, *, after_bytes: int = 0) -> dict[str, Any]:
    """Wait until some worker is in the middle of a job; that job."""

    def busy() -> list[dict[str, Any]]:
        return [job for job in jobs(site) if job["state"] == "running" and job["bytes_done"] >= after_bytes]

    eventually(lambda: bool(busy()), "a worker is in the middle of a job")
    return busy()[0]


def await_end(site: Site, *, within_s: float = PATIENCE_S) -> list[dict[str, Any]]:
    """Wait until every job has ended; all of them."""
    ended = {"done", "failed", "skipped", "cancelled"}
    eventually(
        lambda: {job["state"] for job in jobs(site)} <= ended, "all jobs have ended", within_s=within_s
    )
    return jobs(site)


def holder(job: dict[str, Any], workers: list[Worker]) -> Worker:
    """The worker that has a job."""
    return next(worker for worker in workers if worker.name == job["worker"])


def signal_all(worker: Worker, number: signal.Signals) -> None:
    """Send a signal to a worker's parent and all its children: it is the leader of a session of its own."""
    os.killpg(worker.pid, number)


def child_of(worker: Worker) -> int:
    """The process that does a worker's jobs."""
    parent = worker.pid
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


def staged(site: Site) -> list[str]:
    """What is in staging."""
    return sorted(os.listdir(site.settings.store_dir / "staging"))


def conversions(site: Site) -> list[int]:
    """The projects that were converted, as often as they were."""
    with site.engine.connect() as conn:
        return list(conn.scalars(text("select project_id from project_conversions order by project_id")))
