"""A repair that is cut off, or meets an error, at any call: every stored file is as bad as it was or good,
and the next attempt ends it.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.child import Children, End
from tests.faults.lost_writes import lose_what_was_not_synced
from tests.faults.stories import SOME_OR_ALL_KINDS, Kinds, first_of_each_kind, some_kinds
from tests.support.damages import HAS_BYTES, Twins, flip, open_for_writing, separate, twins
from tests.support.ledger_rows import recorded_outcomes
from tests.support.points import SOME_OR_ALL, Lives, Walk, lives
from tests.support.runs import WORK, at_once, let_lease_run_out, open_run
from tests.support.shim import Act, Call, Fault
from tests.support.sites import Site
from worker.db import ledger
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, RunState, Status, Subject, Verb


def everything(stored: Twins) -> None:
    """A bad blob, a bad copy, a missing file and one too many, all in one dataset."""
    flip(stored.blob)
    tree = stored.trees[0]
    flip(separate(tree / "day 1" / "accelerometer_data.csv"))
    open_for_writing(tree)
    (tree / "a note").write_text("left here")
    tree.chmod(0o555)
    shutil.rmtree(str(stored.first.original_path))


KINDS: dict[str, Callable[[Twins], None]] = {
    "everything": everything,
    "missing directory": HAS_BYTES["missing directory"],
    "missing tree": HAS_BYTES["missing tree"],
    "manifest and copy": HAS_BYTES["manifest and copy"],
}


class Repair:
    """A dataset's repair, each time from the same damage."""

    def __init__(self, site: Site, tools: Tools, watched: Children, kind: str) -> None:
        self._site, self._tools, self._watched = site, tools, watched
        self._damage = KINDS[kind]

    def calls(self) -> list[Call]:
        """The calls of the whole repair, undisturbed."""
        _, end = self.start(None)
        assert end.answer["status"] == Status.REPAIRED, end.answer
        self.stored.check_whole()
        return end.counted

    def start(self, fault: Fault | None) -> tuple[JobRef, End]:
        ref = self.begin()
        return ref, self._watched.do(Verb.VERIFY, ref, fault)

    def begin(self) -> JobRef:
        """The damage, and a run that is to repair it."""
        self._site.empty()
        self.stored = twins(self._site, self._tools)
        self.good = self._files()
        self._damage(self.stored)
        self.bad = self._files()
        (ref,) = open_run(
            self._site.engine,
            Verb.VERIFY,
            only=[self.stored.first.dataset_id],
            subject=Subject.DATASET,
            store=True,
            repair=True,
        )
        return ref

    def check_between(self) -> None:
        """Under every name is what was there before, or what should be: nothing half, nothing of zeros."""
        for path, content in self._files().items():
            assert content in {self.bad.get(path), self.good.get(path)}, path

    def check_end(self, outcome: Outcome, *, may_leave_staging: bool = False) -> None:
        assert outcome.status in {Status.REPAIRED, Status.VERIFIED}, outcome
        self.stored.check_whole(may_leave_staging=may_leave_staging)
        kept = {
            path.read_bytes(): path.with_name(f"{path.name}.reason.txt").read_text()
            for path in (self._site.settings.store_dir / "quarantine").iterdir()
            if not path.name.endswith(".reason.txt")
        }
        bad = {content for path, content in self.bad.items() if content != self.good.get(path)}
        assert bad <= kept.keys()
        assert all("found at" in kept[content] for content in bad)

    def go_on(self, ref: JobRef) -> Outcome:
        """The message comes again when the lease has run out; a paused run is resumed before."""
        let_lease_run_out(self._site.engine, ref)
        with self._site.engine.begin() as conn:
            if ledger.find_run(conn, str(ref.run_id)).state is RunState.PAUSED:
                ledger.resume_run(conn, ref.run_id)
            ended = recorded_outcomes(conn, ref.run_id).get(ref)
        outcome = ended or WORK[Verb.VERIFY, Subject.DATASET](self._tools, ref, "the next worker")
        assert outcome is not None
        return outcome

    def _files(self) -> dict[bytes, bytes]:
        found = {}
        for folder in (*self.stored.trees, self._site.settings.store_dir / "blobs"):
            for above, _, names in os.walk(os.fsencode(folder)):
                for name in names:
                    path = os.path.join(above, name)
                    found[path] = Path(os.fsdecode(path)).read_bytes()
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_repair_that_is_cut_off_is_ended_by_the_next_attempt(
    site: Site, tools: Tools, watched: Children, kind: str
):
    """At the first calls of some kinds, with the plug pulled."""
    told = Repair(site, tools, watched, kind)
    calls = told.calls()

    for point in some_kinds(calls):
        ref, end = told.start(Fault(act=Act.KILL_BEFORE, at=point))
        assert end.died
        lose_what_was_not_synced(end.calls)
        told.check_between()
        told.check_end(told.go_on(ref))

    assert len(first_of_each_kind(calls)) >= 10


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cut", ["killed", "plug pulled"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_repair_may_be_cut_off_at_every_call(
    site: Site, tools: Tools, watched: Children, kind: str, cut: str
):
    told = Repair(site, tools, watched, kind)

    for call in told.calls():
        ref, end = told.start(Fault(act=Act.KILL_BEFORE, at=call.number))
        assert end.died
        if cut == "plug pulled":
            lose_what_was_not_synced(end.calls)
        told.check_between()
        told.check_end(told.go_on(ref))


@pytest.mark.parametrize("kinds", SOME_OR_ALL_KINDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full disk", "bad disk"])
def test_a_disk_that_fails_while_it_is_repaired_pauses_the_run_and_nothing_is_lost(
    site: Site, tools: Tools, watched: Children, number: int, kinds: Kinds
):
    told = Repair(site, tools, watched, "everything")
    paused = 0
    for point in kinds(told.calls()):
        ref, end = told.start(Fault(act=Act.FAIL_ONCE, at=point, errno=number))
        told.check_between()
        if end.answer["status"] is None:
            with site.engine.connect() as conn:
                assert ledger.find_run(conn, str(ref.run_id)).state is RunState.PAUSED
            paused += 1
        outcome = told.go_on(ref)
        if outcome.status is Status.FAILED:
            # A file that could not be read counts as bad: its repair is for the next run.
            assert outcome.error_class == "StoredBytesMismatchError", outcome
            continue
        # What could not be removed the next job removes.
        told.check_end(outcome, may_leave_staging=True)
    assert paused >= (5 if kinds is first_of_each_kind else 3)


@pytest.fixture(scope="module")
def dying(module_site: Site) -> Iterator[Lives]:
    """Bring up workers that die when told to."""
    with lives(module_site) as started:
        yield started


@pytest.mark.parametrize("walk", SOME_OR_ALL)
def test_a_repair_may_be_killed_at_every_statement(
    site: Site, tools: Tools, watched: Children, dying: Lives, walk: Walk
):
    told = Repair(site, tools, watched, "everything")
    points, died = walk(), 0
    for point in points:
        ref = told.begin()
        life = dying.until_death(Verb.VERIFY, ref, at=point)
        points.learn(life)
        told.check_between()
        told.check_end(told.go_on(ref))
        died += life.stopped

    assert died >= (25 if points.are_all else 10)


def test_two_jobs_that_repair_the_same_blob_at_once_leave_it_whole(site: Site, tools: Tools):
    """Each in a run of its own, so that neither leaves the blob to the other."""
    for _ in range(5):
        site.empty()
        stored = twins(site, tools)
        flip(separate(stored.shared[1]))
        flip(stored.blob)
        refs = [
            ref
            for one in (stored.first, stored.second)
            for ref in open_run(
                site.engine,
                Verb.VERIFY,
                only=[one.dataset_id],
                subject=Subject.DATASET,
                store=True,
                repair=True,
            )
        ]

        outcomes = at_once(site, [(Verb.VERIFY, ref) for ref in refs])

        assert {one.status for one in outcomes if one is not None} <= {Status.REPAIRED, Status.VERIFIED}
        stored.check_whole()
        kept = site.settings.store_dir / "quarantine"
        assert len([path for path in kept.iterdir() if not path.name.endswith(".reason.txt")]) == 2
