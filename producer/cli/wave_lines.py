"""What a person reads of a run's waves and gates, in plan, status and report. Pure: prints nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from producer.cli.escaping import escape
from producer.report.notation import plural
from producer.report.waves import found, stands
from producer.runs.open import Opened
from producer.runs.waves import RULE
from worker.db.overview import GateAtWork
from worker.messages import Gate, RunState, WaveState
from worker.units import human_bytes

_STYLES = {
    WaveState.WAITING: "dim",
    WaveState.VERIFYING: "bold",
    WaveState.PASSED: "green",
    WaveState.STOPPED: "red",
    WaveState.WAIVED: "yellow",
}


def plan_lines(opened: Opened) -> Iterator[str]:
    """The waves of a run that was opened, and what will be between them."""
    for one in opened.waves:
        gate = "; then its gate: its sessions and stored bytes are verified" * (one.gate is Gate.VERIFY)
        yield f"{_wave(one.wave, one.asked_for, one.projects, one.size_bytes)}{gate}"
    if opened.waves:
        yield f"[dim]{RULE}[/]"
    if opened.waves and opened.dry_run:
        yield "[dim]a dry run rehearses all waves at once; it stores nothing that a gate could verify[/]"


def wave_lines(waves: Sequence[Mapping[str, Any]], run_state: str) -> Iterator[str]:
    """Each wave of a run in this state, and what its gate did or found: of a status or a report, which have
    the same.
    """
    for one in waves:
        style = _STYLES.get(WaveState(one["state"]))
        words = stands(one, run_state)
        gate = f": {escape(found(one))}" if found(one) else ""
        stood = f"[{style}]{words}[/]" if style else words
        yield f"{_wave(one['wave'], one['asked_for'], one['projects'], one['bytes'])}: {stood}{gate}"


def at_gate_lines(waves: Sequence[Mapping[str, Any]], run_state: str, short: str) -> Iterator[str]:
    """What can be done about a gate that has stopped the run `short`; nothing about one that is over."""
    for one in waves:
        if one["state"] == WaveState.STOPPED and run_state == RunState.PAUSED:
            number = one["wave"]
            if one["gate"]["run_id"] is not None:
                yield f"  all that the gate found: producer collect {one['gate']['run_id'][:8]}"
            yield f"  take wave {number} back: producer rollback --run {short} --wave {number}"
            yield f"  let the gate look again, after mending: producer resume {short}"
            yield f"  go on all the same: producer resume {short} --skip-gate"


def gate_words(gate: GateAtWork) -> str:
    """How far a gate is: `gate of wave 2: 12 of 40 verified`."""
    counts = gate.progress
    failed = f" ({counts.failed} failed)" if counts.failed else ""
    return f"gate of wave {gate.wave}: {counts.ended} of {counts.jobs} verified{failed}"


def _wave(number: int, asked_for: str, projects: int, size_bytes: int) -> str:
    return (
        f"wave {number} ({asked_for}): {projects:,} {plural(projects, 'project')}, {human_bytes(size_bytes)}"
    )
