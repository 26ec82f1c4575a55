"""A gc, or a restore from quarantine, that is cut off or meets an error at any call: the next one ends it,
nothing that is referred to is ever missing, and all that was taken comes back.
"""

import errno
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from blake3 import blake3
from sqlalchemy import text

from tests.faults.child import Children, End
from tests.faults.disturbing import NUMBERS, PAUSING
from tests.faults.lost_writes import lose_what_was_not_synced
from tests.faults.stories import first_of_each_kind
from tests.support.ledger_rows import recorded_outcomes
from tests.support.runs import WORK, gc, let_lease_run_out, migrate_all, open_run, run_one, verify_datasets
from tests.support.shim import Act, Call, Fault
from tests.support.sites import Site
from tests.support.studies import mode, plain_study, staged
from worker.db import ledger
from worker.jobs.tools import Tools
from worker.messages import THE_STORE, JobRef, Outcome, RunState, Status, Subject, Verb
from worker.store.garbage import Entry, Garbage

ACTS = ("gc", "dataset", "tree", "blobs")
"""A gc, and the restore of what it took, by kind."""

_HOURS = 24.0


@dataclass(slots=True)
class Told:
    """What became of one telling."""

    ref: JobRef
    end: End


class Collecting:
    """A store with every kind of garbage. What a gc takes comes back at the end of each telling, so that the
    next one begins alike.
    """

    def __init__(self, site: Site, tools: Tools, watched: Children, act: str) -> None:
        self._site, self._tools, self._watched, self._act = site, tools, watched, act
        site.empty()
        for number, name in enumerate(("goes", "stays", "orphan"), start=1):
            plain_study(site, name, number, number + 1)
        goes, self._stays, orphan = migrate_all(site, tools)
        for one in (goes, orphan):
            run_one(tools, Verb.ROLLBACK, one.project_id or 0)
        for table in ("raw_dataset_sessions", "raw_datasets"):
            self._do(f"delete from {table} where dataset_id = {orphan.dataset_id}")
        self._store = tools.open_store(create=False)
        self._garbage = Garbage(self._store)
        loose = Path(self._store.blob_path(blake3(b"loose").hexdigest()))
        loose.parent.mkdir(exist_ok=True)
        loose.write_bytes(b"loose")
        loose.chmod(0o444)
        self._dead = open_run(site.engine, Verb.ROLLBACK, only=[self._stays.project_id or 0])[0].task_id
        self._all = self._everything()

    def _do(self, statement: str) -> None:
        with self._site.engine.begin() as conn:
            conn.execute(text(statement))

    def _everything(self) -> dict[str, object]:
        """Every stored file and directory with its mode and bytes, and the rows of datasets."""
        found: dict[str, object] = {}
        for folder in (self._store.trees, self._store.root / "blobs", self._store.root / "manifests"):
            for path in folder.rglob("*"):
                if path.is_file():
                    found[str(path)] = mode(path), path.read_bytes()
                elif folder == self._store.trees:
                    found[str(path)] = mode(path)
        with self._site.engine.connect() as conn:
            for table in ("raw_datasets", "raw_dataset_sessions"):
                rows = conn.execute(text(f"select cast(t as text) from {table} t order by 1"))
                found[table] = list(rows.scalars())
        return found

    def calls(self) -> list[Call]:
        """The calls of the whole story, undisturbed."""
        told = self.tell(None)
        assert told.end.answer["status"] in {Status.COLLECTED, Status.RESTORED}, told.end.answer
        self.check_end(self._outcome(told.ref))
        return [call for call in told.end.counted if call.result != -1]

    def tell(self, fault: Fault | None) -> Told:
        """Tell the story from its beginning, disturbed."""
        gc(self._tools, grace_hours=10_000)
        self._do("update project_conversions set rolled_back_at = rolled_back_at - interval '9 days'")
        self._do("update migration_unreferenced set marked_at = marked_at - interval '9 days'")
        self._options: dict[str, object] = {"grace_hours": _HOURS}
        if self._act == "gc":
            self._leave_old_things()
        else:
            taken = {one.kind: one.entry_id for one in gc(self._tools, grace_hours=_HOURS).garbage}
            assert taken.keys() == {"dataset", "tree", "blobs"}
            self._options = {"restore_entry": taken[self._act]}
        ref = self._open()
        return Told(ref=ref, end=self._watched.do(Verb.GC, ref, fault))

    def _leave_old_things(self) -> None:
        old = Entry(
            entry_id="old",
            kind="blobs",
            name="old",
            reason="no dataset needs them",
            quarantined_at=datetime.now(UTC) - timedelta(days=2),
        )
        self._garbage.describe(old)
        folders = (
            self._store.root / "quarantine" / "old" / "blobs",
            self._store.root / "staging" / f"{self._dead}-1",
        )
        for folder in folders:
            folder.mkdir(exist_ok=True)
            (folder / "0").write_bytes(b"old")

    def _open(self) -> JobRef:
        (ref,) = open_run(
            self._site.engine, Verb.GC, only=[THE_STORE], subject=Subject.STORE, **self._options
        )
        return ref

    def check_between(self) -> None:
        """What is referred to is there, whole."""
        (outcome,) = verify_datasets(self._tools, only=[self._stays.dataset_id or 0])
        assert outcome.status is Status.VERIFIED, outcome

    def go_on(self, ref: JobRef, *, in_another_run: bool = False) -> Outcome:
        """The message comes again, or the operator asks again; a paused run is resumed before."""
        let_lease_run_out(self._site.engine, ref)
        with self._site.engine.begin() as conn:
            if ledger.find_run(conn, str(ref.run_id)).state is RunState.PAUSED:
                ledger.resume_run(conn, ref.run_id)
            ended = recorded_outcomes(conn, ref.run_id).get(ref)
        if ended is not None and ended.status is not Status.FAILED:
            return ended
        if in_another_run or ended is not None:
            ref = self._open()
        WORK[Verb.GC, Subject.STORE](self._tools, ref, "the next worker")
        return self._outcome(ref)

    def _outcome(self, ref: JobRef) -> Outcome:
        with self._site.engine.connect() as conn:
            return recorded_outcomes(conn, ref.run_id)[ref]

    def check_end(self, outcome: Outcome) -> None:
        """What the act is for has come about; and all comes back."""
        kinds = {one.kind for one in self._garbage.entries() if one.is_whole}
        if self._act == "gc":
            assert outcome.status is Status.COLLECTED, outcome
            assert kinds == {"dataset", "tree", "blobs"}
            assert self._garbage.find("old") is None
            assert os.listdir(self._store.trees) == [Path(str(self._stays.dataset_path)).name]
            assert staged(self._site) == []
        else:
            assert outcome.status is Status.RESTORED, outcome
            assert kinds >= {"dataset", "tree", "blobs"} - {self._act}
        for entry in list(self._garbage.entries()):
            restored = gc(self._tools, restore_entry=entry.entry_id)
            assert restored.status is Status.RESTORED, restored
        assert self._everything() == self._all
        assert {one.status for one in verify_datasets(self._tools)} == {Status.VERIFIED}
        assert not list(self._garbage.entries())


def cut_off(told: Collecting, point: int, *, plug: bool) -> None:
    """Let a worker die before one of its calls, look at what it left, and let the next one end it."""
    one = told.tell(Fault(act=Act.KILL_BEFORE, at=point))
    assert one.end.died
    if plug:
        lose_what_was_not_synced(one.end.calls)
    told.check_between()
    told.check_end(told.go_on(one.ref, in_another_run=point % 2 == 0))


def disturb(told: Collecting, point: int, number: int) -> None:
    """Let a call fail, look at what the worker made of it, and let the next one end it."""
    one = told.tell(Fault(act=Act.FAIL_ONCE, at=point, errno=number))
    told.check_between()
    status = one.end.answer["status"]
    if status == Status.FAILED:
        assert one.end.answer["error_class"] == "StoreUnusableError", (
            one.end.answer,
            one.end.counted[point - 1],
        )
    elif status is None:
        assert number in PAUSING, (one.end.answer, one.end.counted[point - 1])
    told.check_end(told.go_on(one.ref))


@pytest.mark.parametrize("act", ACTS)
def test_a_gc_that_is_cut_off_or_meets_an_error_is_ended_by_the_next_one(
    site: Site, tools: Tools, watched: Children, act: str
):
    """At the first call of every fifth kind; by turns with the plug pulled and by one error after another."""
    told = Collecting(site, tools, watched, act)
    points = first_of_each_kind(told.calls())[::5]

    for turn, point in enumerate(points):
        if turn % 2:
            disturb(told, point, NUMBERS[turn // 2 % len(NUMBERS)])
        else:
            cut_off(told, point, plug=True)

    assert len(points) >= (8 if act == "gc" else 3)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("end", ["killed", "plug pulled"])
@pytest.mark.parametrize("act", ACTS)
def test_a_gc_may_be_cut_off_at_every_call(site: Site, tools: Tools, watched: Children, act: str, end: str):
    told = Collecting(site, tools, watched, act)
    for call in told.calls():
        cut_off(told, call.number, plug=end == "plug pulled")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("act", ACTS)
def test_every_error_at_every_call_of_a_gc_loses_nothing(
    site: Site, tools: Tools, watched: Children, act: str, number: int
):
    told = Collecting(site, tools, watched, act)
    for call in told.calls():
        disturb(told, call.number, number)
