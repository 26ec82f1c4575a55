"""`kill -9` and errors of the disk at every call of an adoption and its undo: the dataset reads the same at
any moment, nothing is half done, and the next call completes it.

What a worker says to PostgreSQL is cut off in tests/fidelity/test_adoption_killed.py; here it is the files.
"""

import errno
from dataclasses import dataclass

import pytest

from tests.faults.child import Children, End
from tests.faults.stories import first_of_each_kind, some_kinds
from tests.support.ledger_rows import its_time_comes, recorded_outcomes
from tests.support.registered import Registered, register
from tests.support.runs import WORK, let_lease_run_out, open_run, run
from tests.support.shim import Act, Call, Fault
from tests.support.sites import Site
from worker.db import ledger
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, RunState, Status, Subject, Verb

NUMBERS = (errno.EIO, errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """An adoption or an undo, told again and again from the same beginning."""

    site: Site
    tools: Tools
    watched: Children
    undo: bool

    @property
    def done(self) -> Status:
        """How it ends."""
        return Status.UNDONE if self.undo else Status.ADOPTED

    def calls(self) -> list[Call]:
        """The calls of the whole story, undisturbed."""
        _, _, end = self.tell(None)
        assert end.answer["status"] == self.done, end.answer
        return [call for call in end.counted if call.result != -1]

    def tell(self, fault: Fault | None) -> tuple[Registered, JobRef, End]:
        """Tell it from its beginning, disturbed."""
        self.site.empty()
        one = register(self.site, "walk", 1, 2)
        self.tools.open_store(create=True)
        if self.undo:
            assert self._run(one).status is Status.ADOPTED
        options = {"undo": True} if self.undo else {}
        (ref,) = open_run(
            self.site.engine, Verb.ADOPT, only=[one.dataset_id], subject=Subject.DATASET, **options
        )
        return one, ref, self.watched.do(Verb.ADOPT, ref, fault)

    def end(self, one: Registered, ref: JobRef) -> None:
        """The dead worker's message is delivered again, or the dataset named in another run."""
        one.check_read()
        let_lease_run_out(self.site.engine, ref)
        its_time_comes(self.site.engine)
        outcome = self._ended(ref)
        if outcome is None:
            self._resume(ref)
            WORK[Verb.ADOPT, ref.subject](self.tools, ref, "the next worker")
            outcome = self._ended(ref)
        if outcome is None or outcome.status is not self.done:
            outcome = self._run(one, **({"undo": True} if self.undo else {}))
        assert (outcome.status, outcome.error) == (self.done, None), outcome
        (one.check_untouched if self.undo else one.check_adopted)()

    def _run(self, one: Registered, **options: object) -> Outcome:
        (outcome,) = run(
            self.tools, Verb.ADOPT, only=[one.dataset_id], subject=Subject.DATASET, **options
        ).values()
        return outcome

    def _resume(self, ref: JobRef) -> None:
        """As an operator does once the disk is well again."""
        with self.site.engine.begin() as conn:
            if ledger.find_run(conn, str(ref.run_id)).state is RunState.PAUSED:
                ledger.resume_run(conn, ref.run_id)

    def _ended(self, ref: JobRef) -> Outcome | None:
        with self.site.engine.connect() as conn:
            return recorded_outcomes(conn, ref.run_id).get(ref)


@pytest.fixture(params=["adopt", "undo"])
def told(request: pytest.FixtureRequest, site: Site, tools: Tools, watched: Children) -> Story:
    return Story(site=site, tools=tools, watched=watched, undo=request.param == "undo")


def kill(told: Story, at: int) -> None:
    """Cut a worker off before one of its calls."""
    one, ref, end = told.tell(Fault(act=Act.KILL_BEFORE, at=at))
    assert end.died
    told.end(one, ref)


def fail(told: Story, call: Call, number: int, act: Act = Act.FAIL_ONCE) -> None:
    """Let a call fail, or all from it on: what ends the job is said, with what the system said."""
    one, ref, end = told.tell(Fault(act=act, at=call.number, errno=number))
    assert not end.died
    assert end.answer["status"] in {told.done, Status.FAILED, None}, end.answer
    assert end.answer["error_class"] != "UnexpectedError", (call, end.answer)
    told.end(one, ref)


def test_an_adoption_is_completed_after_a_kill_at_a_call(told: Story):
    """At the first calls of some kinds."""
    calls = told.calls()
    assert len(first_of_each_kind(calls)) >= 5

    for at in some_kinds(calls):
        kill(told, at)


def test_an_adoption_is_completed_after_an_error_at_a_call(told: Story):
    """At every fourth kind, the errors by turns."""
    calls = {call.number: call for call in told.calls()}

    points = first_of_each_kind(calls.values())[::4]
    assert len(points) >= 3

    for turn, at in enumerate(points):
        fail(told, calls[at], NUMBERS[turn % len(NUMBERS)])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_an_adoption_may_be_killed_at_every_call(told: Story):
    for call in told.calls():
        kill(told, call.number)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_an_adoption_may_meet_every_error_at_every_call(told: Story, number: int):
    for call in told.calls():
        fail(told, call, number)
