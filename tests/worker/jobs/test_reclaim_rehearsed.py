"""A rehearsal says what the real run then does: reclaim, undo, purge, and rollbacks after them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import snapshot_tree
from tests.support.runs import migrate_all, run, run_one
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker import errors
from worker.jobs.tools import Tools
from worker.messages import MOVED_AWAY, Outcome, Status, Verb

_UNDO = {"undo": True}
_PURGE = {"purge": True, "grace_days": 0}
_REBUILD = {"restore_files": True}
_WOULD = {
    Status.WOULD_RECLAIM: Status.RECLAIMED,
    Status.WOULD_UNDO: Status.UNDONE,
    Status.WOULD_PURGE: Status.PURGED,
    Status.WOULD_ROLL_BACK: Status.ROLLED_BACK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A project that was reclaimed, and what a test does to it."""

    site: Site
    tools: Tools
    home: Path

    @property
    def away(self) -> Path:
        (found,) = self.site.legacy_root.glob(f"{MOVED_AWAY}/*")
        return found

    def left(self, state: str) -> None:
        """Leave the ledger's row as a job does that dies."""
        with self.site.engine.begin() as conn:
            conn.execute(text("update migration_reclaims set state = :state"), {"state": state})

    def come_home(self) -> None:
        self.away.rename(self.home)

    def edit(self) -> None:
        next(self.away.glob("*/*.csv")).write_text("edited")
        (self.away / "came later").touch()

    def lose(self) -> None:
        shutil.rmtree(self.away)

    def purge(self) -> None:
        assert run_one(self.tools, Verb.RECLAIM, 1, **_PURGE).status is Status.PURGED

    def state(self) -> tuple[object, ...]:
        with self.site.engine.connect() as conn:
            rows = conn.execute(text("select * from migration_reclaims order by reclaim_id")).all()
        return snapshot_tree(self.site.legacy_root), [tuple(row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked for, after what, and how it ends: a status, or the error of what is skipped or fails."""

    end: Status | type[errors.ProjectError]
    options: dict[str, object] = field(default_factory=dict)
    verb: Verb = Verb.RECLAIM
    before: Callable[[Lab], object] = lambda _lab: None


CASES = {
    "undo": Case(options=_UNDO, end=Status.UNDONE),
    "undo, its place is taken": Case(
        options=_UNDO, before=lambda lab: lab.home.mkdir(), end=errors.LegacyPlaceTakenError
    ),
    "undo, it is gone": Case(options=_UNDO, before=Lab.lose, end=errors.MovedAwayMissingError),
    "undo, a person moved it back": Case(options=_UNDO, before=Lab.come_home, end=Status.UNDONE),
    "undo, a job died before it moved it": Case(
        options=_UNDO, before=lambda lab: lab.left("undoing"), end=Status.UNDONE
    ),
    "undo, a job died after it moved it": Case(
        options=_UNDO, before=lambda lab: [lab.left("undoing"), lab.come_home()], end=Status.UNDONE
    ),
    "undo, it is purged": Case(options=_UNDO, before=Lab.purge, end=errors.PurgeBegunError),
    "purge": Case(options=_PURGE, end=Status.PURGED),
    "purge, things came later": Case(options=_PURGE, before=Lab.edit, end=Status.PURGED),
    "purge, it is gone": Case(options=_PURGE, before=Lab.lose, end=errors.MovedAwayMissingError),
    "purge, a job died after it removed it": Case(
        options=_PURGE, before=lambda lab: [lab.left("purging"), lab.lose()], end=Status.PURGED
    ),
    "purge, not long enough": Case(options=_PURGE | {"grace_days": 1}, end=errors.ReclaimedLatelyError),
    "reclaim again": Case(end=errors.AlreadyReclaimedError),
    "reclaim, a job died before it moved it": Case(
        before=lambda lab: [lab.left("moving"), lab.come_home()], end=Status.RECLAIMED
    ),
    "reclaim, a job died after it moved it": Case(
        before=lambda lab: lab.left("moving"), end=Status.RECLAIMED
    ),
    "reclaim, a job died and what it moved was changed": Case(
        before=lambda lab: [lab.left("moving"), lab.edit()], end=errors.DirectoryChangedError
    ),
    "reclaim, a job died while it moved it back": Case(
        before=lambda lab: lab.left("undoing"), end=Status.RECLAIMED
    ),
    "reclaim, a job died and its place was taken": Case(
        before=lambda lab: [lab.left("moving"), lab.home.mkdir()], end=errors.AlreadyReclaimedError
    ),
    "rollback": Case(verb=Verb.ROLLBACK, end=Status.ROLLED_BACK),
    "rollback, its place is taken": Case(
        verb=Verb.ROLLBACK, before=lambda lab: lab.home.mkdir(), end=errors.LegacyPlaceTakenError
    ),
    "rollback, it is gone": Case(verb=Verb.ROLLBACK, before=Lab.lose, end=errors.MovedAwayMissingError),
    "rollback that may rebuild, it is gone": Case(
        verb=Verb.ROLLBACK, options=_REBUILD, before=Lab.lose, end=Status.ROLLED_BACK
    ),
    "rollback that may rebuild, a job died and it is gone": Case(
        verb=Verb.ROLLBACK,
        options=_REBUILD,
        before=lambda lab: [lab.left("undoing"), lab.lose()],
        end=Status.ROLLED_BACK,
    ),
    "rollback, a job died before it moved it": Case(
        verb=Verb.ROLLBACK,
        before=lambda lab: [lab.left("moving"), lab.come_home()],
        end=Status.ROLLED_BACK,
    ),
    "rollback, a job died after it moved it": Case(
        verb=Verb.ROLLBACK, before=lambda lab: lab.left("moving"), end=Status.ROLLED_BACK
    ),
    "rollback, it was changed": Case(verb=Verb.ROLLBACK, before=Lab.edit, end=errors.RollbackRefusedError),
    "rollback, it is purged": Case(verb=Verb.ROLLBACK, before=Lab.purge, end=errors.PurgedError),
    "rollback that may rebuild, it is purged": Case(
        verb=Verb.ROLLBACK, options=_REBUILD, before=Lab.purge, end=Status.ROLLED_BACK
    ),
}


@pytest.fixture
def lab(site: Site, tools: Tools) -> Lab:
    home = plain_study(site, "study", 1)
    # By its whole path: it leads nowhere while the directory is away.
    (home / "link").symlink_to(next(home.glob("*/*.csv")))
    migrate_all(site, tools)
    assert run_one(tools, Verb.RECLAIM, 1).status is Status.RECLAIMED
    return Lab(site=site, tools=tools, home=home)


@pytest.mark.parametrize("name", CASES)
def test_a_rehearsal_predicts_what_the_real_run_does(lab: Lab, name: str):
    case = CASES[name]
    case.before(lab)
    before = lab.state()

    predicted = run_one(lab.tools, case.verb, 1, dry_run=True, **case.options)

    assert lab.state() == before
    real = run_one(lab.tools, case.verb, 1, **case.options)
    assert _WOULD.get(predicted.status, predicted.status) is real.status
    assert _numbers(predicted) == _numbers(real)
    if isinstance(case.end, Status):
        assert real.status is case.end, real
        assert "would " in predicted.reason or real.reason == predicted.reason
    else:
        assert (real.status, real.remedy) == (_status(case), case.end.remedy), real


def _status(case: Case) -> Status:
    return Status.SKIPPED if case.verb is Verb.RECLAIM else Status.FAILED


def _numbers(outcome: Outcome) -> tuple[object, ...]:
    said = [one.message.replace("would stay", "stays") for one in outcome.warnings]
    return outcome.disk, outcome.remedy, outcome.error_class, said


def test_rehearsed_sums_are_those_of_projects_that_go_together(site: Site, tools: Tools):
    """Each directory counts once, although the first job of a real run does it for all."""
    plain_study(site, "study", 1)
    plain_study(site, "another", 2)
    with site.engine.begin() as conn:
        conn.execute(text("update projects set path = (select min(path) from projects)"))
    migrate_all(site, tools)

    for options in ({}, _UNDO, {}, _PURGE):
        predicted, real = (
            [one.disk for one in run(tools, Verb.RECLAIM, only=[1, 2], dry_run=dry_run, **options).values()]
            for dry_run in (True, False)
        )
        for key in ("legacy", "moved", "freed"):
            assert sum(getattr(one, key) for one in predicted) == sum(getattr(one, key) for one in real), key
