"""What a run looks like right now, as values, and their one JSON form. Changes nothing."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from producer.runs.waves import wave_json
from worker.broker import client as broker
from worker.db import health, ledger, overview, verifications, waves
from worker.db.ledger import Run
from worker.db.overview import CurrentAttempt, FailureClass, Progress, Retry
from worker.db.verifications import Coverage
from worker.db.waves import Wave
from worker.messages import RunState, Subject, Verb
from worker.settings import Settings

_GOING = {RunState.PLANNED, RunState.RUNNING}

EXAMPLES = 10
"""So many failed projects of each class are named; the report has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    """A run and how far it is: a line in the list of runs."""

    run: Run
    progress: Progress

    def to_json(self) -> dict[str, Any]:
        """As `producer runs --json` shows it; `projects` counts all jobs, whatever their `subjects` are."""
        counts = {
            "subjects": subjects_json(self.progress.subjects),
            "projects": self.progress.jobs,
            "ended": self.progress.ended,
            "failed": self.progress.failed,
        }
        return _run_json(self.run) | counts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run, how far it is, which worker runs which job of it, what is tried again and what failed.

    `waiting_because` says why workers wait for the database or the broker, where they do. `elapsed_s` is
    since the run was opened, `active_s` the part of it in which at least one worker ran a job.
    """

    run: Run
    progress: Progress
    waiting_because: str | None
    elapsed_s: float
    active_s: float
    attempts: Sequence[CurrentAttempt]
    retrying: Sequence[Retry]
    failures: Sequence[FailureClass]
    coverage: Coverage | None = None
    """How much of the store was read when, for a verification of it that does not go on."""
    waves: Sequence[Wave] = ()
    gate_of: tuple[uuid.UUID, int] | None = None
    """The run and the wave that this run verifies, if it is a gate."""

    @property
    def is_going(self) -> bool:
        """Whether the run has neither ended nor been paused."""
        return self.run.state in _GOING

    @property
    def bytes_per_s(self) -> int:
        """The speed of the time in which workers ran jobs."""
        return round(self.progress.bytes_done / self.active_s) if self.active_s > 0 else 0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at the speed of the time in which workers ran jobs, by bytes where they are
        known, else by projects; None where that cannot be said.
        """
        if self.run.state is not RunState.RUNNING or self.active_s <= 0:
            return None
        counts = self.progress
        done, total = (
            (counts.bytes_done, counts.bytes_total) if counts.bytes_total else (counts.ended, counts.jobs)
        )
        return (total - done) * self.active_s / done if done else None

    def to_json(self) -> dict[str, Any]:
        """As `producer status --json` shows it; `projects` counts all jobs, whatever their `subjects` are."""
        counts = self.progress
        return {
            **_run_json(self.run),
            "waiting_because": self.waiting_because,
            "elapsed_s": _tenths(self.elapsed_s),
            "active_s": _tenths(self.active_s),
            "subjects": subjects_json(counts.subjects),
            "projects": {
                "total": counts.jobs,
                "ended": counts.ended,
                "failed": counts.failed,
                "running": counts.running,
                "waiting": counts.waiting,
                "held": counts.held,
            },
            "bytes": {
                "total": counts.bytes_total,
                "done": counts.bytes_done,
                "per_second": self.bytes_per_s,
                "limit_per_second": self.run.limit_bytes_per_second,
            },
            "files_done": counts.files_done,
            "eta_s": _tenths(self.eta_s),
            "holders": [
                _project(one)
                | asdict(one)
                | {"age_s": _tenths(one.age_s), "lease_left_s": _tenths(one.lease_left_s)}
                for one in self.attempts
            ],
            "retrying": [
                _project(one) | asdict(one) | {"wait_s": _tenths(one.wait_s)} for one in self.retrying
            ],
            "failures": [asdict(one) for one in self.failures],
            "store": _coverage_json(self.coverage),
            "waves": [wave_json(one) for one in self.waves],
            "gate_of": None
            if self.gate_of is None
            else {"run_id": str(self.gate_of[0]), "wave": self.gate_of[1]},
            "incidents": {
                "leases_run_out": counts.crashes,
                "attempts_fenced": counts.fenced,
                "retries": counts.retries,
            },
        }


def describe(engine: Engine, run: Run, settings: Settings | None = None) -> RunStatus:
    """Ask the ledger how a run is. A constant number of statements, whatever the size.

    With `settings` the broker of a run that goes on is asked, too: workers wait for what it refuses.
    """
    with engine.connect() as conn:
        progress = overview.progress(conn, run.run_id)
        described = RunStatus(
            run=run,
            progress=progress,
            waiting_because=health.takes_no_writes_because(conn) if run.state in _GOING else None,
            elapsed_s=((run.finished_at or datetime.now(UTC)) - run.created_at).total_seconds(),
            active_s=overview.active_s(conn, run.run_id),
            attempts=overview.current_attempts(conn, run.run_id),
            retrying=overview.retrying(conn, run.run_id, EXAMPLES),
            failures=overview.failures(conn, run.run_id, EXAMPLES) if progress.failed else (),
            # Counted over all files of the store: not every second of a run that is watched.
            coverage=verifications.coverage(conn) if _has_read_the_store(run) else None,
            waves=waves.waves_of(conn, run.run_id),
            gate_of=waves.whose_gate(conn, run.run_id),
        )
    if settings is None or not described.is_going or described.waiting_because:
        return described
    return replace(described, waiting_because=broker.trouble(settings))


def _has_read_the_store(run: Run) -> bool:
    return run.verb is Verb.VERIFY and run.options.store and run.state not in _GOING


def all_runs(engine: Engine, limit: int) -> list[ListedRun]:
    """The newest runs first, each with its counts."""
    with engine.connect() as conn:
        return [
            ListedRun(run=run, progress=overview.progress(conn, run.run_id))
            for run in ledger.runs(conn, limit)
        ]


def subjects_json(subjects: Mapping[Subject, int]) -> dict[str, int]:
    """How many of a run's jobs are about a `project`, a `dataset` or the `store`."""
    return {subject.value: jobs for subject, jobs in subjects.items()}


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "run_id": str(run.run_id),
        "verb": run.verb.value,
        "dry_run": run.dry_run,
        "state": run.state.value,
        "paused_because": run.paused_because,
        "created_at": run.created_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
    }


def _project(one: CurrentAttempt | Retry) -> dict[str, Any]:
    """The names under which earlier releases showed a subject that is a project."""
    is_one = one.subject is Subject.PROJECT
    return {"project_id": one.subject_id, "project_name": one.subject_name} if is_one else {}


def _coverage_json(coverage: Coverage | None) -> dict[str, Any] | None:
    if coverage is None:
        return None
    oldest = coverage.oldest_check
    return {
        "datasets": coverage.datasets,
        "bytes_total": coverage.size_bytes,
        "bytes_never_read": coverage.never_read_bytes,
        "oldest_check": oldest.isoformat() if oldest is not None else None,
    }


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
