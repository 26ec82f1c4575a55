"""What a reclaim moves away, and every reason for which it leaves a directory where it is."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from tests.estate import Project, make_project, record_session, snapshot_tree, split_session
from tests.support.damages import flip
from tests.support.disks import read_only
from tests.support.runs import another_worker, do, open_run, run, run_one
from tests.support.sites import Site
from worker import errors
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb
from worker.sessions_csv import RECORDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A migrated project, and what a test does to it."""

    site: Site
    tools: Tools
    project: Project

    @property
    def home(self) -> Path:
        return Path(str(self.project.path))

    def sql(self, statement: str, **values: object) -> None:
        with self.site.engine.begin() as conn:
            conn.execute(text(statement), values | {"id": self.project.project_id})

    def another_at(self, path: Path, *, migrated: bool = False) -> int:
        """A project with this directory, which may be there already."""
        with self.site.engine.begin() as conn:
            project = make_project(conn, self.site.legacy_root, "another")
            record_session(conn, project, "its day", rows=12, seed=5)
            conn.execute(
                text("update projects set path = :path where project_id = :id"),
                {"path": str(path), "id": project.project_id},
            )
        if migrated:
            assert run_one(self.tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED
        return project.project_id

    def reclaim(self, **options: object) -> Outcome:
        return run_one(self.tools, Verb.RECLAIM, self.project.project_id, **options)


@pytest.fixture
def lab(site: Site, tools: Tools) -> Lab:
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        for number in range(2):
            record_session(conn, project, f"day {number}", rows=12, seed=number)
    assert run_one(tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED
    return Lab(site=site, tools=tools, project=project)


def _blob(lab: Lab) -> Path:
    return next(lab.site.settings.store_dir.glob("blobs/*/*"))


def _reads_from(lab: Lab, path: Path | str | None, project_id: int | None = None) -> None:
    """Let a session, of another project if that is said, read from a path, or from where its project is."""
    lab.sql(
        "insert into sessions (project_id, session_name, start_ns, stop_ns, parent_session_data_path)"
        " values (:owner, 'reads there', 0, 1, :path)",
        owner=project_id or lab.project.project_id,
        path=None if path is None else str(path),
    )


def _another_reads(lab: Lab, link: str, target: Path, *, names: str | None = None) -> None:
    """A project elsewhere has a link into the directory, and a session that reads over it; `names` is its
    parent path in the project's directory.
    """
    far = lab.site.legacy_root / "far"
    (far / link).parent.mkdir(parents=True)
    (far / link).symlink_to(target)
    _reads_from(lab, far / names if names else None, lab.another_at(far))


REASONS: dict[str, tuple[Callable[[Lab], object], type[errors.ReclaimRefusedError], dict[str, object]]] = {
    "migrated lately": (lambda _lab: None, errors.ConvertedLatelyError, {"older_than_days": 1}),
    "a changed file": (
        lambda lab: next(lab.home.glob("*/*.csv")).write_text("edited"),
        errors.DirectoryChangedError,
        {},
    ),
    "a new file": (lambda lab: (lab.home / "note").touch(), errors.DirectoryChangedError, {}),
    "a file that went": (
        lambda lab: next(lab.home.glob("*/*.csv")).unlink(),
        errors.DirectoryChangedError,
        {},
    ),
    "a damaged blob": (lambda lab: flip(_blob(lab)), errors.DatasetUnsoundError, {}),
    "a blob that is gone": (lambda lab: _blob(lab).unlink(), errors.DatasetUnsoundError, {}),
    "a legacy project at it": (lambda lab: lab.another_at(lab.home), errors.LegacyProjectThereError, {}),
    "a legacy project in it": (
        lambda lab: lab.another_at(next(lab.home.iterdir())),
        errors.LegacyProjectThereError,
        {},
    ),
    "a legacy project around it": (
        lambda lab: lab.another_at(lab.home.parent),
        errors.LegacyProjectThereError,
        {},
    ),
    "a migrated project at it": (
        lambda lab: lab.another_at(lab.home, migrated=True),
        errors.MigratedProjectThereError,
        {},
    ),
    "another project's session": (
        lambda lab: _reads_from(lab, next(lab.home.iterdir()), lab.another_at(lab.site.legacy_root / "far")),
        errors.SessionReadsThereError,
        {},
    ),
    "a session left alone": (
        lambda lab: _reads_from(lab, "/elsewhere/day"),
        errors.SessionReadsThereError,
        {},
    ),
    "a session over a link to it": (
        lambda lab: _another_reads(lab, "short cut", lab.home, names="short cut/day 0"),
        errors.SessionReadsThereError,
        {},
    ),
    "a session over a link to what is in it": (
        lambda lab: _another_reads(lab, "day", lab.home / "day 0", names="day"),
        errors.SessionReadsThereError,
        {},
    ),
    "a session without a path over a link in its project": (
        lambda lab: _another_reads(lab, "reads there", lab.home / "day 0"),
        errors.SessionReadsThereError,
        {},
    ),
    "a session whose recording is a link": (
        lambda lab: _another_reads(lab, f"day/{RECORDING}", lab.home / "day 0" / RECORDING, names="day"),
        errors.SessionReadsThereError,
        {},
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_directory_stays_with_the_reason_and_a_remedy(lab: Lab, reason: str):
    happen, error, options = REASONS[reason]
    happen(lab)
    files = snapshot_tree(lab.home)

    outcome = lab.reclaim(**options)

    assert outcome.status is Status.SKIPPED, outcome
    assert outcome.remedy == error.remedy
    assert outcome.disk.kept > 0
    assert snapshot_tree(lab.home) == files
    assert not list(lab.site.legacy_root.glob(".label-reclaimed/*"))


def test_a_read_only_mount_is_named_with_the_worker_that_has_it(lab: Lab):
    root = lab.site.legacy_root
    with read_only(root):
        outcome = lab.reclaim()

    assert outcome.status is Status.SKIPPED, outcome
    assert outcome.reason == f"{root} is on a read-only mount: {root}, as {outcome.worker} sees it"
    assert lab.reclaim().status is Status.RECLAIMED


def test_sessions_are_verified_by_the_directory_where_it_is_while_it_is_anywhere(site: Site, tools: Tools):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        number = record_session(conn, project, "day", rows=40).session_id
        split_session(conn, number, [10, 25], site.settings.data_dir)
    assert run_one(tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED
    verify, reclaim = ((verb, project.project_id) for verb in (Verb.VERIFY, Verb.RECLAIM))
    assert run_one(tools, *reclaim).status is Status.RECLAIMED

    moved = run_one(tools, *verify)
    with next(site.legacy_root.glob(".label-reclaimed/*/*/accelerometer_data.csv")).open("a") as file:
        file.write("1,2,3,4\n")
    edited = run_one(tools, *verify)
    run_one(tools, *reclaim, purge=True, grace_days=0)
    purged = run_one(tools, *verify)

    assert (moved.status, moved.sessions_count) == (Status.VERIFIED, 4)
    assert (edited.status, edited.error_class) == (Status.FAILED, errors.SessionsDifferError.__name__)
    assert purged.status is Status.SKIPPED
    assert "was purged" in purged.reason


def test_a_reclaimed_directory_is_whole_elsewhere_and_a_rollback_brings_it_home(lab: Lab):
    files = snapshot_tree(lab.home)
    predicted = lab.reclaim(dry_run=True)
    assert snapshot_tree(lab.home) == files

    done = lab.reclaim()
    again = lab.reclaim()

    (away,) = lab.site.legacy_root.glob(".label-reclaimed/*")
    assert (predicted.status, done.status) == (Status.WOULD_RECLAIM, Status.RECLAIMED)
    assert predicted.disk == done.disk
    assert not lab.home.exists()
    assert snapshot_tree(away) == files
    assert (again.status, again.remedy) == (Status.SKIPPED, errors.AlreadyReclaimedError.remedy)
    rehearsed = run_one(lab.tools, Verb.ROLLBACK, lab.project.project_id, dry_run=True)
    assert rehearsed.status is Status.WOULD_ROLL_BACK
    assert not lab.home.exists()
    back = run_one(lab.tools, Verb.ROLLBACK, lab.project.project_id)
    assert (back.status, back.error) == (Status.ROLLED_BACK, None)
    assert snapshot_tree(lab.home) == files


def test_an_undo_finds_its_place_taken_and_works_when_it_is_free(lab: Lab):
    files = snapshot_tree(lab.home)
    lab.reclaim()
    lab.home.mkdir()

    taken = lab.reclaim(undo=True)
    os.rmdir(lab.home)
    undone = lab.reclaim(undo=True)

    assert (taken.status, taken.remedy) == (Status.SKIPPED, errors.LegacyPlaceTakenError.remedy)
    assert undone.status is Status.UNDONE
    assert snapshot_tree(lab.home) == files
    assert lab.reclaim().status is Status.RECLAIMED


def test_a_purge_removes_what_was_migrated_and_names_what_came_later(lab: Lab):
    files = snapshot_tree(lab.home)
    lab.reclaim()
    (away,) = lab.site.legacy_root.glob(".label-reclaimed/*")
    (away / "came later").write_text("keep me")
    lately = lab.reclaim(purge=True, grace_days=1)

    done = lab.reclaim(purge=True, grace_days=0)

    assert (lately.status, lately.remedy) == (Status.SKIPPED, errors.ReclaimedLatelyError.remedy)
    assert done.status is Status.PURGED
    assert done.disk.freed > 0
    assert [path.name for path in away.rglob("*")] == ["came later"]
    assert "came later" in done.warnings[0].message
    refused = run_one(lab.tools, Verb.ROLLBACK, lab.project.project_id)
    assert (refused.status, refused.error_class) == (Status.FAILED, "PurgedError")
    back = run_one(lab.tools, Verb.ROLLBACK, lab.project.project_id, restore_files=True)
    assert (back.status, back.error) == (Status.ROLLED_BACK, None)
    assert snapshot_tree(lab.home) == files


def test_projects_with_one_directory_go_together_when_all_are_named(lab: Lab):
    other = lab.another_at(lab.home, migrated=True)

    outcomes = run(lab.tools, Verb.RECLAIM, only=[lab.project.project_id, other])

    assert {one.status for one in outcomes.values()} == {Status.RECLAIMED}
    assert sum(one.disk.moved for one in outcomes.values()) == max(
        one.disk.moved for one in outcomes.values()
    )
    assert not lab.home.exists()
    assert "carried along" in outcomes[other].reason
    assert run_one(lab.tools, Verb.ROLLBACK, other).status is Status.ROLLED_BACK
    assert lab.home.exists()


def test_of_two_purges_of_one_directory_each_says_that_it_is_removed(lab: Lab):
    """The one finds it there, and when it looks again the other one has removed it."""
    other = lab.another_at(lab.home, migrated=True)
    run(lab.tools, Verb.RECLAIM, only=[lab.project.project_id, other])
    first, second = open_run(
        lab.site.engine, Verb.RECLAIM, only=[lab.project.project_id, other], purge=True, grace_days=0
    )
    waiting = [first]

    def meanwhile(*about: Any) -> None:
        if "where moved_to = " in about[2] and waiting:
            (one,) = do(lab.tools, Verb.RECLAIM, [waiting.pop()]).values()
            assert one.status is Status.PURGED

    event.listen(lab.tools.engine, "after_cursor_execute", meanwhile)
    outcomes = do(lab.tools, Verb.RECLAIM, [second])

    assert waiting == []
    assert outcomes[other].status is Status.PURGED
    assert outcomes[other].reason == "removed with another project's directory"


class Between(ThreadPoolExecutor):
    """Threads before whose first work something else happens."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(2)
        self._acts = [act]

    def submit(self, *work: Any, **named: Any) -> Future[Any]:
        while self._acts:
            self._acts.pop()()
        return super().submit(*work, **named)


def test_a_rollback_finds_a_directory_that_is_reclaimed_while_it_is_read(site: Site, tools: Tools):
    with site.engine.begin() as conn:
        one = make_project(conn, site.legacy_root, "one")
        other = make_project(conn, site.legacy_root, "other", path=str(one.path))
        record_session(conn, one, "day", rows=12)
    for number in range(9):
        Path(str(one.path), "day", f"note {number}").write_text(str(number))
    ids = [one.project_id, other.project_id]
    run(tools, Verb.MIGRATE, only=ids)

    with (
        another_worker(site, "another") as others,
        Between(lambda: run(others, Verb.RECLAIM, only=ids)) as threads,
    ):
        outcome = run_one(replace(tools, threads=threads), Verb.ROLLBACK, one.project_id)

    assert outcome.status is Status.ROLLED_BACK, outcome
    assert outcome.reason.startswith("its legacy directory was moved back from")
    assert Path(str(one.path), "day").is_dir()
