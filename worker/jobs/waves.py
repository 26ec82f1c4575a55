"""What happens between the waves of a run: a gate is opened and judged, then the next wave is opened or the
run paused. Any number of workers may do it at once; knows no broker.
"""

import uuid

from sqlalchemy import Connection, Engine

from worker.db import ledger, waves
from worker.db.waves import Due, Found
from worker.messages import Gate, RunState, WaveState
from worker.runtime import log

_log = log.get(__name__)


def advance(engine: Engine) -> list[uuid.UUID]:
    """Take each run in waves one step further on which something is to be decided; the runs that have jobs by
    that which no message speaks of yet.

    A step is one transaction that locks the run's row first, as pause, resume, cancel and retry do. At once:
    a run that another worker has locked is left to it. Dying anywhere: the step was made or was not, and jobs
    without a message are found as always.
    """
    with engine.begin() as conn:
        runs = dict.fromkeys(one.run_id for one in waves.due(conn))
    to_send = []
    for run_id in runs:
        with engine.begin() as conn:
            to_send += _step(conn, run_id)
    return to_send


def _step(conn: Connection, run_id: uuid.UUID) -> list[uuid.UUID]:
    """Decide under the lock, by what is so then."""
    if not waves.lock_run(conn, run_id):
        return []
    for one in waves.due(conn, run_id):
        if one.state is WaveState.VERIFYING:
            return _judge(conn, one)
        return _open_gate(conn, one) if one.gate is Gate.VERIFY else _pass(conn, one, "it has no gate")
    return []


def _open_gate(conn: Connection, one: Due) -> list[uuid.UUID]:
    """Every job of the wave has ended. Without anything to verify the gate stays shut, unless there was
    nothing to do in the whole wave.
    """
    gate_run_id = waves.open_gate(conn, one.run_id, one.wave)
    if gate_run_id is not None:
        waves.verify(conn, one.run_id, one.wave, gate_run_id)
        _log.info("gate_opened", run=str(one.run_id), wave=one.wave, gate=str(gate_run_id))
        return [gate_run_id]
    projects, skipped = waves.counts_of(conn, one.run_id, one.wave)
    if skipped == projects:
        return _pass(conn, one, "there was nothing to do, and nothing to verify")
    return _stop(conn, one, f"none of its {projects} projects is migrated, so nothing can be verified")


def _judge(conn: Connection, one: Due) -> list[uuid.UUID]:
    """The gate has ended, or does not go on by itself."""
    assert one.gate_run_id is not None  # noqa: S101 - for the type checker: it is verifying
    if one.gate_state is RunState.PAUSED:
        _pause(conn, one, f"the gate of wave {one.wave} stands still: {one.gate_paused_because}")
        return []
    found = waves.found_by(conn, one.gate_run_id)
    if found.wrong:
        return _stop(conn, one, _words(found))
    if not found.projects:
        return _stop(conn, one, "none of its projects is migrated any more, so nothing was verified")
    return _pass(conn, one, f"{found.projects} projects and {found.datasets} datasets verified")


def _pass(conn: Connection, one: Due, reason: str) -> list[uuid.UUID]:
    jobs = waves.let_pass(conn, one.run_id, one.wave, WaveState.PASSED, reason)
    _log.info("wave_passed", run=str(one.run_id), wave=one.wave, reason=reason, next_jobs=jobs)
    return [one.run_id]


def _stop(conn: Connection, one: Due, reason: str) -> list[uuid.UUID]:
    waves.stop(conn, one.run_id, one.wave, reason)
    _pause(conn, one, f"the gate of wave {one.wave} found: {reason}")
    return []


def _pause(conn: Connection, one: Due, reason: str) -> None:
    ledger.pause_run(conn, one.run_id, reason)
    _log.error("run_paused", run=str(one.run_id), wave=one.wave, reason=reason)


def _words(found: Found) -> str:
    more = found.wrong - len(found.examples)
    return "; ".join(found.examples) + (f"; and {more} more" if more else "")
