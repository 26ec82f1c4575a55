"""Run control: pause, resume, cancel, retry, throttle. Knows no work."""

import threading
import time
import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from producer.runs.open import send
from worker.broker import client as broker
from worker.db import ledger, messages_sent, overview, waves
from worker.db.ledger import Run
from worker.db.overview import Progress
from worker.db.retry import when_there
from worker.errors import UsageError
from worker.messages import RunState, WaveState
from worker.settings import Settings

PAUSED = "paused by the operator"
CANCELLED = "cancelled by the operator"
SKIPPED_GATE = "the operator let the run go on without this gate"

_ACKNOWLEDGED_WITHIN_S = 10.0
_POLL_S = 0.1


def pause(engine: Engine, run: Run) -> int:
    """Pause a run. Its workers hand their jobs back at their next chance, which takes a few seconds and is
    waited for; how many have not by then (a stopped worker's job waits again when its lease is over). Twice
    is harmless.

    Raises `UsageError` for a run that has ended.
    """
    _refuse_ended(run, "pause")
    with engine.begin() as conn:
        ledger.pause_run(conn, run.run_id, PAUSED)
    return _wait_for_workers(engine, run)


def cancel(engine: Engine, run: Run) -> int:
    """Stop a run for good: what waits ends as cancelled, what runs does so at its next chance; how many have
    not within seconds. What was converted stays converted. Raises `UsageError` for a run that has ended.
    """
    _refuse_ended(run, "cancel")
    with engine.begin() as conn:
        ledger.cancel_run(conn, run.run_id, CANCELLED)
    return _wait_for_workers(engine, run)


def resume(settings: Settings, engine: Engine, run: Run, *, skip_gate: bool = False) -> int:
    """Resume a run and send its waiting jobs again, and those of its gate; how many. Twice is harmless: a job
    is taken once.

    For a paused run, and for one whose producer died before it had sent all jobs. A gate that stopped the run
    looks again, unless the call is to `skip_gate`: then the next wave begins. Raises `UsageError` for a run
    that has ended, or is at no gate that could be skipped.
    """
    _refuse_ended(run, "resume")
    broker.check(settings)
    with engine.begin() as conn:
        if skip_gate:
            _skip_gate(conn, run)
        ledger.resume_run(conn, run.run_id)
    with engine.connect() as conn:
        gates = ledger.gates_at_work(conn, run.run_id)
    return sum(_send_waiting(settings, engine, run_id) for run_id in (run.run_id, *gates))


def _skip_gate(conn: Connection, run: Run) -> None:
    """What still verifies the wave is cancelled, and the next wave begins. Locks the run's row first."""
    waves.lock_run(conn, run.run_id, waits=True)
    wave = waves.at_gate(conn, run.run_id)
    if wave is None:
        raise UsageError(f"Run {run.run_id} is at no gate: leave out --skip-gate")
    for gate in ledger.gates_at_work(conn, run.run_id):
        ledger.cancel_run(conn, gate, SKIPPED_GATE)
    waves.let_pass(conn, run.run_id, wave, WaveState.WAIVED, SKIPPED_GATE)


def retry(
    settings: Settings,
    engine: Engine,
    run: Run,
    *,
    error_class: str | None = None,
    project_ids: Sequence[int] = (),
) -> int:
    """Queue failed jobs again, all or those chosen; how many. Those of a paused run wait until it is resumed.

    Raises `UsageError` for a cancelled run, and when nothing that failed is chosen.
    """
    if run.state is RunState.CANCELLED:
        raise UsageError(f"Run {run.run_id} is cancelled; open a new one: producer enqueue")
    broker.check(settings)
    with engine.begin() as conn:
        count = ledger.retry_failed(
            conn, run.run_id, error_class=error_class, project_ids=list(project_ids) or None
        )
    if not count:
        raise UsageError(f"No failed job is selected in run {run.run_id}")
    if run.state is not RunState.PAUSED:
        _send_waiting(settings, engine, run.run_id)
    return count


def throttle(engine: Engine, run: Run, bytes_per_second: int | None) -> None:
    """Let all workers of a run together read so many bytes a second from now on; None takes the limit away.

    Raises `UsageError` for a run that has ended.
    """
    _refuse_ended(run, "throttle")
    with engine.begin() as conn:
        ledger.limit_run(conn, run.run_id, bytes_per_second)


def progress_of(engine: Engine, run: Run) -> Progress:
    """How far a run is now."""
    with engine.connect() as conn:
        return overview.progress(conn, run.run_id)


def at_gate(engine: Engine, run: Run) -> int | None:
    """The wave at whose gate a run is; None if at none."""
    with engine.connect() as conn:
        return waves.at_gate(conn, run.run_id)


def _refuse_ended(run: Run, what: str) -> None:
    if run.state.has_ended:
        raise UsageError(f"Run {run.run_id} is {run.state.value}; there is nothing to {what}")


def _send_waiting(settings: Settings, engine: Engine, run_id: uuid.UUID) -> int:
    with engine.connect() as conn:
        waiting = messages_sent.waiting(conn, run_id)
    send(settings, engine, run_id, waiting)
    return len(waiting)


def _wait_for_workers(engine: Engine, run: Run) -> int:
    """Wait until no worker has a job of the run, a few seconds at most; how many still have."""
    deadline = time.monotonic() + _ACKNOWLEDGED_WITHIN_S
    pause_between = threading.Event()
    while True:
        live = when_there(lambda: _live(engine, run), _ACKNOWLEDGED_WITHIN_S)
        if not live or time.monotonic() > deadline:
            return live
        pause_between.wait(_POLL_S)


def _live(engine: Engine, run: Run) -> int:
    return progress_of(engine, run).busy
