"""What people read of a wave: where it stands, and what its gate found. Pure: from JSON to words."""

from collections.abc import Mapping
from typing import Any

from worker.messages import RunState, WaveState

_STANDS = {
    WaveState.WAITING: "waits for the gates before it",
    WaveState.OPEN: "under way",
    WaveState.VERIFYING: "its gate looks",
    WaveState.PASSED: "passed",
    WaveState.STOPPED: "its gate has stopped the run",
    WaveState.WAIVED: "went on without its gate",
}
_STOOD = _STANDS | {
    WaveState.WAITING: "not begun",
    WaveState.OPEN: "ended",
    WaveState.VERIFYING: "its gate had not ended",
}
"""The same in a run that has ended."""


def stands(one: Mapping[str, Any], run_state: str) -> str:
    """Where a wave of a run in this state stands."""
    return (_STOOD if RunState(run_state).has_ended else _STANDS)[WaveState(one["state"])]


def found(one: Mapping[str, Any]) -> str:
    """How far its gate is, or what it found; nothing where there is none, or before it looks."""
    gate = one["gate"]
    if gate is None:
        return ""
    if one["state"] == WaveState.VERIFYING:
        return f"{gate['ended']} of {gate['jobs']} verified (run {gate['run_id'][:8]})"
    return gate["reason"] or ""
