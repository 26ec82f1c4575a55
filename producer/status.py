"""What a run looks like right now, as one JSON document. Reads the ledger only."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from worker.db import ledger
from worker.db.ledger import Run


def describe(engine: Engine, run: Run) -> dict[str, Any]:
    """State, progress, who holds what, and what failed with its remedy."""
    with engine.connect() as conn:
        progress = ledger.progress(conn, run.run_id)
        jobs = ledger.jobs(conn, run.run_id)
    elapsed = ((run.finished_at or datetime.now(UTC)) - run.created_at).total_seconds()
    rate = progress.bytes_done / elapsed if elapsed > 0 else 0.0
    left = progress.bytes_total - progress.bytes_done
    return {
        **summary(run),
        "elapsed_s": round(elapsed, 1),
        "projects": {
            "total": progress.jobs,
            "ended": progress.ended,
            "failed": progress.failed,
            "running": progress.running,
            "waiting": progress.jobs - progress.ended - progress.running,
        },
        "bytes": {"total": progress.bytes_total, "done": progress.bytes_done, "per_second": round(rate)},
        "eta_s": round(left / rate, 1) if rate and run.finished_at is None else None,
        "holders": [
            {
                "project_id": job.project_id,
                "project_name": job.project_name,
                "worker": job.worker,
                "phase": job.phase,
                "attempt": job.attempt,
                "age_s": round(job.age_s, 1),
                "files_done": job.files_done,
                "bytes_done": job.bytes_done,
                "bytes_total": job.bytes_total,
            }
            for job in jobs
            if job.state == "running"
        ],
        "failures": [
            {
                "project_id": job.project_id,
                "project_name": job.project_name,
                "error_class": job.error_class,
                "error": job.error,
                "remedy": job.outcome["remedy"],
            }
            for job in jobs
            if job.state == "failed"
        ],
    }


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
        found = [(run, ledger.progress(conn, run.run_id)) for run in ledger.runs(conn, limit)]
    return [
        summary(run) | {"projects": progress.jobs, "ended": progress.ended, "failed": progress.failed}
        for run, progress in found
    ]
