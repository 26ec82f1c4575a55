"""`kill -9` and errors of the disk at every call of a reclaim, an undo and a purge: nothing is half done,
every recording can be read, and the next call completes it.

What a worker says to PostgreSQL is cut off in tests/fidelity/test_freeing_killed.py; here it is the files.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import Project, snapshot_tree
from tests.faults.child import Children, End
from tests.faults.stories import first_of_each_kind, some_kinds
from tests.support.ledger_rows import its_time_comes, recorded_outcomes
from tests.support.runs import WORK, let_lease_run_out, migrate_all, open_run, run_one
from tests.support.shim import Act, Call, Fault
from tests.support.sites import Site
from tests.support.studies import folder_of, study
from worker.jobs.tools import Tools
from worker.messages import MOVED_AWAY, JobRef, Outcome, Status, Verb

NUMBERS = (errno.EIO, errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EDQUOT)
_PURGE = {"purge": True, "grace_days": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A reclaim, an undo or a purge, told again and again from the same beginning."""

    site: Site
    tools: Tools
    watched: Children
    options: dict[str, object]
    done: Status

    def calls(self) -> list[Call]:
        """The calls of the whole story, undisturbed."""
        _, _, end = self.tell(None)
        assert end.answer["status"] == self.done, end.answer
        return [call for call in end.counted if call.result != -1]

    def tell(self, fault: Fault | None) -> tuple["Scene", JobRef, End]:
        """Tell it from its beginning, disturbed."""
        self.site.empty()
        scene = Scene.of(self.site, self.tools)
        if self.options:
            assert run_one(self.tools, Verb.RECLAIM, scene.project.project_id).status is Status.RECLAIMED
        (ref,) = open_run(self.site.engine, Verb.RECLAIM, only=[scene.project.project_id], **self.options)
        return scene, ref, self.watched.do(Verb.RECLAIM, ref, fault)

    def end(self, scene: "Scene", ref: JobRef) -> None:
        """The dead worker's message is delivered again, or the project named in another run."""
        scene.check(self.done)
        let_lease_run_out(self.site.engine, ref)
        its_time_comes(self.site.engine)
        outcome = self._ended(ref)
        if outcome is None:
            WORK[Verb.RECLAIM, ref.subject](self.tools, ref, "the next worker")
            outcome = self._ended(ref)
        if outcome is not None and outcome.status is not self.done:
            outcome = run_one(self.tools, Verb.RECLAIM, ref.subject_id, **self.options)
        assert outcome is not None
        assert (outcome.status, outcome.error) == (self.done, None), outcome
        scene.check_end(self.done)

    def _ended(self, ref: JobRef) -> Outcome | None:
        with self.site.engine.connect() as conn:
            return recorded_outcomes(conn, ref.run_id).get(ref)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A migrated project, and what its directory was before anything was done to it."""

    site: Site
    tools: Tools
    project: Project
    home: Path
    files: dict[str, object]
    recordings: dict[str, bytes]

    @classmethod
    def of(cls, site: Site, tools: Tools) -> "Scene":
        """Migrate a project with a link, a read-only directory and an empty one in it."""
        project = study(site, "study", 1, 2)
        home = folder_of(project)
        (home / "notes" / "empty").mkdir(parents=True)
        (home / "notes" / "link").symlink_to(next(home.glob("*/*.csv")))
        (home / "notes").chmod(0o500)
        recordings = {path.parent.name: path.read_bytes() for path in home.glob("*/*.csv")}
        files = dict(snapshot_tree(home))
        migrate_all(site, tools)
        return cls(site=site, tools=tools, project=project, home=home, files=files, recordings=recordings)

    @property
    def places(self) -> list[Path]:
        """Where the directory is."""
        return [
            place for place in (self.home, *self.site.legacy_root.glob(f"{MOVED_AWAY}/*")) if place.exists()
        ]

    def check(self, done: Status) -> None:
        """It is whole in one place or, of a purge, what is left is as it was; every recording can be read."""
        places = self.places
        if done is Status.PURGED:
            assert self.home not in places
            left = [path for place in places for path in place.rglob("*") if path.is_file()]
            assert all(path.read_bytes() in self._contents for path in left)
        else:
            (place,) = places
            assert dict(snapshot_tree(place)) == self.files
        self._check_read()

    def check_end(self, done: Status) -> None:
        """As the story leaves it; and a rollback brings all of it back."""
        at = {Status.PURGED: [], Status.UNDONE: [self.home]}
        if done in at:
            left = [str(path) for place in self.places for path in (place, *place.rglob("*"))]
            assert self.places == at[done], left
        else:
            assert self.home not in self.places
        self.check(done)
        back = run_one(self.tools, Verb.ROLLBACK, self.project.project_id, restore_files=True)
        assert (back.status, back.error) == (Status.ROLLED_BACK, None)
        assert self.places == [self.home]
        if done is not Status.PURGED:
            assert dict(snapshot_tree(self.home)) == self.files
        for name, content in self.recordings.items():
            assert (self.home / name / "accelerometer_data.csv").read_bytes() == content

    @property
    def _contents(self) -> set[bytes]:
        tree = self._tree()
        return {path.read_bytes() for path in tree.rglob("*") if path.is_file()}

    def _tree(self) -> Path:
        with self.site.engine.connect() as conn:
            return Path(conn.execute(text("select file_path from raw_datasets")).scalar_one())

    def _check_read(self) -> None:
        with self.site.engine.connect() as conn:
            paths = conn.execute(text("select parent_session_data_path from sessions")).scalars().all()
        assert paths
        for path in map(Path, paths):
            assert (path / "accelerometer_data.csv").read_bytes() == self.recordings[path.name]


STORIES: dict[str, tuple[dict[str, object], Status]] = {
    "reclaim": ({}, Status.RECLAIMED),
    "undo": ({"undo": True}, Status.UNDONE),
    "purge": (_PURGE, Status.PURGED),
}


@pytest.fixture(params=STORIES)
def told(request: pytest.FixtureRequest, site: Site, tools: Tools, watched: Children) -> Iterator[Story]:
    options, done = STORIES[request.param]
    yield Story(site=site, tools=tools, watched=watched, options=options, done=done)
    # What is read-only is not removed by others than root.
    for place in site.legacy_root.rglob("notes"):
        place.chmod(0o700)


def kill(told: Story, at: int) -> None:
    """Cut a worker off before one of its calls."""
    scene, ref, end = told.tell(Fault(act=Act.KILL_BEFORE, at=at))
    assert end.died
    told.end(scene, ref)


def fail(told: Story, call: Call, number: int, act: Act = Act.FAIL_ONCE) -> None:
    """Let a call fail, or all from it on: what ends the job is said, with what the system said."""
    scene, ref, end = told.tell(Fault(act=act, at=call.number, errno=number))
    assert not end.died
    assert end.answer["status"] in {told.done, Status.SKIPPED, Status.FAILED, None}, end.answer
    assert end.answer["error_class"] != "UnexpectedError", (call, end.answer)
    told.end(scene, ref)


def test_what_frees_space_is_completed_after_a_kill_at_a_call(told: Story):
    """At the first calls of some kinds."""
    calls = told.calls()
    assert len(first_of_each_kind(calls)) >= 3

    for at in some_kinds(calls):
        kill(told, at)


def test_what_frees_space_is_completed_after_an_error_at_a_call(told: Story):
    """At every second kind, the errors by turns; and a disk that refuses everything from the middle on."""
    calls = {call.number: call for call in told.calls()}
    points = first_of_each_kind(calls.values())[::2]

    for turn, at in enumerate(points):
        fail(told, calls[at], NUMBERS[turn % len(NUMBERS)])
    fail(told, calls[points[len(points) // 2]], errno.EROFS, Act.FAIL_FROM)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_frees_space_may_be_killed_at_every_call(told: Story):
    for call in told.calls():
        kill(told, call.number)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("act", [Act.FAIL_ONCE, Act.FAIL_FROM])
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_what_frees_space_may_meet_every_error_at_every_call(told: Story, number: int, act: Act):
    for call in told.calls():
        fail(told, call, number, act)
