"""What a run looks like right now, as one JSON document. Changes nothing."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from worker.broker import client as broker
from worker.db import health, ledger, overview
from worker.db.ledger import Run
from worker.db.overview import Progress
from worker.messages import RunState
from worker.settings import Settings

_GOING = {RunState.PLANNED, RunState.RUNNING}

EXAMPLES = 10
"""So many failed projects of each class are named; the report has them all."""


def describe(engine: Engine, run: Run, settings: Settings | None = None) -> dict[str, Any]:
    """State, progress, which worker runs which job, and what failed with its remedy. A constant number of
    statements, whatever the size. With `settings` the broker of a run that goes on is asked, too: what it
    refuses is what the workers wait for.
    """
    with engine.connect() as conn:
        trouble = health.takes_no_writes_because(conn) if run.state in _GOING else None
        progress = overview.progress(conn, run.run_id)
        active_s = overview.active_s(conn, run.run_id)
        holders = overview.current_attempts(conn, run.run_id)
        retrying = overview.retrying(conn, run.run_id, EXAMPLES)
        failures = overview.failures(conn, run.run_id, EXAMPLES) if progress.failed else []
    elapsed = ((run.finished_at or datetime.now(UTC)) - run.created_at).total_seconds()
    return {
        **summary(run),
        "waiting_because": trouble
        or (broker.trouble(settings) if settings is not None and run.state in _GOING else None),
        "elapsed_s": round(elapsed, 1),
        "active_s": round(active_s, 1),
        "projects": {
            "total": progress.jobs,
            "ended": progress.ended,
            "failed": progress.failed,
            "running": progress.running,
            "waiting": progress.jobs - progress.ended - progress.running,
        },
        "bytes": {
            "total": progress.bytes_total,
            "done": progress.bytes_done,
            "per_second": round(progress.bytes_done / active_s) if active_s > 0 else 0,
            "limit_per_second": run.limit_bytes_per_second,
        },
        "files_done": progress.files_done,
        "eta_s": _eta_s(run, progress, active_s),
        "holders": [
            {
                "project_id": job.project_id,
                "project_name": job.project_name,
                "worker": job.worker,
                "phase": job.phase,
                "attempt": job.attempt,
                "age_s": round(job.age_s, 1),
                "lease_left_s": round(job.lease_left_s, 1),
                "files_done": job.files_done,
                "files_total": job.files_total,
                "bytes_done": job.bytes_done,
                "bytes_total": job.bytes_total,
            }
            for job in holders
        ],
        "retrying": [
            {
                "project_id": job.project_id,
                "project_name": job.project_name,
                "reason": job.reason,
                "retries": job.retries,
                "wait_s": None if job.wait_s is None else round(job.wait_s, 1),
            }
            for job in retrying
        ],
        "failures": [
            {
                "error_class": row.error_class,
                "count": row.jobs,
                "remedy": row.remedy,
                "examples": row.examples,
            }
            for row in failures
        ],
        "incidents": {
            "leases_run_out": progress.crashes,
            "attempts_fenced": progress.fenced,
            "retries": progress.retries,
        },
    }


def _eta_s(run: Run, progress: Progress, active_s: float) -> float | None:
    """Seconds until the end at the speed of the time in which workers had jobs, by bytes where they are
    known, else by projects; None where that cannot be said.
    """
    if run.state is not RunState.RUNNING or active_s <= 0:
        return None
    done, total = (
        (progress.bytes_done, progress.bytes_total)
        if progress.bytes_total
        else (progress.ended, progress.jobs)
    )
    return round((total - done) * active_s / done, 1) if done else None


def summary(run: Run) -> dict[str, Any]:
    """A run in a line."""
    return {
        "run_id": str(run.run_id),
        "verb": run.verb.value,
        "dry_run": run.dry_run,
        "state": run.state.value,
        "paused_because": run.paused_because,
        "created_at": run.created_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
    }


def all_runs(engine: Engine, limit: int) -> list[dict[str, Any]]:
    """The newest runs first, each with its counts."""
    with engine.connect() as conn:
        found = [(run, overview.progress(conn, run.run_id)) for run in ledger.runs(conn, limit)]
    return [
        summary(run) | {"projects": progress.jobs, "ended": progress.ended, "failed": progress.failed}
        for run, progress in found
    ]
