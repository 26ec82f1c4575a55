"""Holding the reins of a run: letting a paused one go on. Knows no work."""

from sqlalchemy import Engine

from producer.enqueue import send_jobs
from worker import broker
from worker.db import ledger
from worker.db.ledger import Run
from worker.errors import UsageError
from worker.messages import RunState
from worker.settings import Settings


def resume(settings: Settings, engine: Engine, run: Run) -> int:
    """Let a paused run go on and send its waiting jobs again; how many. Twice is harmless: a job is taken once.

    Raises `UsageError` for a run that has ended.
    """
    if run.state in {RunState.FINISHED, RunState.CANCELLED}:
        raise UsageError(f"Run {run.run_id} is {run.state.value}; there is nothing to go on with")
    broker.check(settings)
    with engine.begin() as conn:
        waiting = ledger.resume_run(conn, run.run_id)
    send_jobs(settings, engine, run.verb, run.run_id, waiting)
    with engine.begin() as conn:
        ledger.finish_run_if_ended(conn, run.run_id)
    return len(waiting)
