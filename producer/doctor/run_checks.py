"""What the doctor asks the ledger: is a run paused, does a job wait for a worker that died."""

from sqlalchemy import Engine

from producer.doctor.findings import Chapter
from worker.db import overview
from worker.findings import Check, passed, warned


def check_runs(engine: Engine) -> Chapter:
    """Runs that do not go on by themselves."""
    chapter = Chapter("Runs")
    chapter.carry_out({"held runs": _paused_runs, "dead holders": _dead_owners}, engine)
    return chapter


def _paused_runs(engine: Engine) -> Check:
    with engine.connect() as conn:
        paused = overview.paused_runs(conn)
    if not paused:
        return passed("none")
    finding = "; ".join(
        f"{str(run.run_id)[:8]}: {run.paused_because or 'no reason is known'}" for run in paused
    )
    return warned(finding, f"When the reason is gone: producer resume {str(paused[0].run_id)[:8]}")


def _dead_owners(engine: Engine) -> Check:
    with engine.connect() as conn:
        jobs = overview.open_jobs(conn)
    if jobs.dead:
        finding = f"{jobs.dead} of {jobs.running} running jobs belong to workers that died or sleep"
        return warned(
            finding, "Start workers: each of them puts such jobs back into the queue within seconds."
        )
    return passed(f"none; {jobs.running} jobs are running, {jobs.waiting} are waiting")
