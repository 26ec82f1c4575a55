"""A call of the store that fails with some error: what the worker may make of it, and that the next one ends
the job.
"""

import errno
import os

from tests.estate import snapshot_tree
from tests.faults.child import End
from tests.faults.order import OPENING_FOR_REMOVAL, is_a_file_of_staging
from tests.faults.stories import Story
from tests.support.ledger_rows import jobs_of, recorded_outcomes
from tests.support.runs import WORK, run_one
from tests.support.shim import REMOVALS, SYNCS, Act, Call, Fault
from tests.support.studies import folder_of, staged
from worker.db import ledger
from worker.jobs.tools import Tools
from worker.messages import JobRef, JobState, Outcome, RunState, Status, Verb

PAUSING = {
    errno.ENOSPC: "No space left in the store: ",
    errno.EDQUOT: "No space left in the store: ",
    errno.EIO: "Cannot write to the store: ",
    errno.EROFS: "Cannot write to the store: ",
    errno.ESTALE: "Cannot write to the store: ",
    errno.ETIMEDOUT: "Cannot write to the store: ",
}
"""What is said of the whole store, and how."""
NUMBERS = (*PAUSING, errno.EACCES)
_HINTS = {"sync_file_range", "ioctl"}
"""Calls whose refusal changes nothing, or only how a file is made."""


def disturb(told: Story, call: Call, number: int) -> None:
    """Let a call fail, look at what the worker made of it, and let the project be migrated when the disk is
    well again.
    """
    ref, end = told.start(Fault(act=Act.FAIL_ONCE, at=call.number, errno=number))
    before = snapshot_tree(folder_of(told.project))
    (failed,) = [one for one in end.counted if one.number == call.number]
    if end.answer["status"] == Status.MIGRATED:
        assert is_harmless(failed), failed
    else:
        assert told.check_between().is_legacy
        check_what_is_said(told, ref, end, number)
        assert staged(told.site) == [] or is_cleaning(end, failed)

    told.check_end(go_on(told.tools, ref))

    assert snapshot_tree(folder_of(told.project)) == before


def is_harmless(failed: Call) -> bool:
    """May the job go on without this call? Hints to the disk, clearing up, and a second name for what is in
    quarantine; and what is tried once more, from the beginning, with everything written again: a flush that
    said that something was lost.
    """
    clears_up = failed.name in REMOVALS | OPENING_FOR_REMOVAL and (
        "/dataset_store/staging/" in failed.path and not is_a_file_of_staging(failed.path)
    )
    unlinks = failed.name in REMOVALS and "/dataset_store/staging/" in failed.path
    said_once = failed.errno == errno.EIO and failed.name in SYNCS | {"close"}
    return failed.name in _HINTS or clears_up or unlinks or said_once or "/quarantine/" in failed.target


def is_cleaning(end: End, failed: Call) -> bool:
    """Was it the removal of what the attempt had made that failed, too?"""
    return failed.name in REMOVALS and end.counted[-1].number >= failed.number


def check_what_is_said(told: Story, ref: JobRef, end: End, number: int) -> None:
    """The reason names a path of the store and what the system said, where the operator looks for it."""
    with told.site.engine.connect() as conn:
        run = ledger.find_run(conn, str(ref.run_id))
        (job,) = jobs_of(conn, ref.run_id)
    if number in PAUSING:
        assert end.answer["status"] is None, end.answer
        assert (run.state, job.state) == (RunState.PAUSED, JobState.QUEUED)
        said = str(run.paused_because)
        assert said.startswith(f"{PAUSING[number]}{told.site.data_dir}"), said
        assert PAUSING[number].startswith("No space") or said.endswith(os.strerror(number)), said
    else:
        assert end.answer["status"] == Status.FAILED, end.answer
        assert end.answer["error_class"] == "StoreUnusableError", end.answer
        assert str(told.site.data_dir) in end.answer["error"]


def go_on(tools: Tools, ref: JobRef) -> Outcome | None:
    """What `producer resume` does for a paused run, and another run for a failed project."""
    with tools.engine.begin() as conn:
        run = ledger.find_run(conn, str(ref.run_id))
        ended = recorded_outcomes(conn, ref.run_id).get(ref)
        if run.state is RunState.PAUSED:
            ledger.resume_run(conn, ref.run_id)
    if ended is not None and ended.status is Status.FAILED:
        return run_one(tools, Verb.MIGRATE, ref.subject_id)
    return ended or WORK[Verb.MIGRATE, ref.subject](tools, ref, "the next worker")
