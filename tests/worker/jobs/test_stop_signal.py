"""The reason to stop that the work hears: the first one, unless the lease is lost."""

import pytest

from worker.errors import ClaimLostError, LeaseLostError, MigratorError, RunCancelledError, RunPausedError
from worker.jobs.stop_signal import StopSignal


def signal_of(*reasons: MigratorError) -> StopSignal:
    signal = StopSignal()
    for reason in reasons:
        signal.set(reason)
    return signal


def test_a_stop_signal_raises_nothing_without_a_reason():
    signal = StopSignal()

    signal.check()

    assert not signal.is_set


def test_the_first_reason_to_stop_stays():
    with pytest.raises(RunPausedError):
        signal_of(RunPausedError("paused"), RunCancelledError("cancelled")).check()


@pytest.mark.parametrize("before", [RunPausedError("paused"), ClaimLostError("lost")])
def test_a_lost_lease_takes_the_place_of_any_other_reason(before: MigratorError):
    signal = signal_of(before, LeaseLostError("too late"), RunCancelledError("cancelled"))

    signal.forget_lost_claim()

    with pytest.raises(LeaseLostError):
        signal.check()


def test_a_lost_claim_can_be_forgotten_and_nothing_else():
    lost, held = signal_of(ClaimLostError("lost")), signal_of(RunPausedError("paused"))

    lost.forget_lost_claim()
    held.forget_lost_claim()

    assert not lost.is_set
    assert held.is_set
