"""A worker sleeps at any point of its way for longer than its lease, another one does its job, and then it
wakes up.
"""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TimedOutError
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import Project, make_project, record_session, snapshot_tree, split_session
from tests.support.points import Life, Lives, Points, lives
from tests.support.runs import WORK, another_worker, let_lease_run_out, open_run, run_one, tools_of
from tests.support.sites import Site
from tests.support.states import check_legacy, check_migrated, look
from worker.jobs import reaper
from worker.messages import JobRef, Status, Verb
from worker.store.removal import remove_tree

pytestmark = pytest.mark.long

LEASE_S = "1"
MEETINGS = 150
_PATIENCE_S = 8.0
"""A sleeper must not keep anybody waiting for longer than this: some times its lease."""


@pytest.fixture(scope="module")
def site(module_site: Site) -> Site:
    """One installation for all points: each has a project of its own."""
    return module_site


@pytest.fixture(scope="module")
def sleeping(site: Site) -> Iterator[Lives]:
    """Bring up workers that fall asleep when told to."""
    with lives(site, LEASE_S=LEASE_S) as started:
        yield started


@dataclass(slots=True)
class _Found:
    """Which points made others wait for the sleeper."""

    waited: list[str] = field(default_factory=list)


def make(site: Site, number: int, name: str = "study") -> Project:
    """A project whose content no other number's has."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, f"{name} {number}")
        record_session(conn, project, "whole", rows=12, seed=2 * number)
        cut = record_session(conn, project, "cut", rows=15, seed=2 * number + 1)
        split_session(conn, cut.session_id, [7], site.data_dir)
    return project


def take_over(
    site: Site, sleeping: Lives, sleeper: Life, verb: Verb, ref: JobRef, found: _Found, point: str
) -> None:
    """Another worker does the job of the one that is asleep; then this one wakes up, or sooner, if others
    wait for it.
    """

    def take() -> None:
        let_lease_run_out(site.engine, ref)
        reaper._requeue_expired(site.settings, site.engine, ended_s_ago=None)
        with another_worker(site, "the next worker") as tools:
            WORK[verb, ref.subject](tools, ref, "the next worker")

    with ThreadPoolExecutor(1) as threads:
        doing = threads.submit(take)
        try:
            doing.result(_PATIENCE_S)
        except TimedOutError:
            found.waited.append(point)
        sleeping.wake(sleeper)
        doing.result(120)


def nothing_is_left_over(site: Site) -> None:
    store = site.settings.store_dir
    assert list((store / "staging").iterdir()) == []
    assert list((store / "quarantine").iterdir()) == []


@pytest.mark.timeout(1800)
def test_a_migration_may_sleep_anywhere(site: Site, sleeping: Lives):
    found = _Found()
    points = Points()
    for number, point in enumerate(points, start=1):
        project = make(site, number)
        legacy = look(site.engine, project.project_id)
        files = snapshot_tree(Path(str(project.path)))
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

        sleeper = sleeping.until_sleep(Verb.MIGRATE, ref, at=point)

        points.learn(sleeper)
        if sleeper.stopped:
            take_over(site, sleeping, sleeper, Verb.MIGRATE, ref, found, str(point))
        after = look(site.engine, project.project_id)
        check_migrated(after, legacy)
        tree = Path(after.datasets[after.refs[0]["dataset_id"]]["file_path"])
        assert _contents(tree) == _contents(Path(str(project.path)))
        assert snapshot_tree(Path(str(project.path))) == files
        nothing_is_left_over(site)

    assert found.waited == []


@pytest.mark.timeout(3600)
def test_a_migration_that_rebuilds_a_damaged_dataset_may_sleep_anywhere(site: Site, sleeping: Lives):
    """What its successor made whole meanwhile must stay: rows refer to it."""
    found = _Found()
    points = Points()
    for number, point in enumerate(points, start=3001):
        first, again = make(site, number), make(site, number, "the same")
        with tools_of(site) as tools:
            tree = Path(str(run_one(tools, Verb.MIGRATE, first.project_id).dataset_path))
        tree.chmod(0o755)
        remove_tree(str(tree / "whole"))
        legacy = look(site.engine, again.project_id)
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[again.project_id])

        sleeper = sleeping.until_sleep(Verb.MIGRATE, ref, at=point)

        points.learn(sleeper)
        if sleeper.stopped:
            take_over(site, sleeping, sleeper, Verb.MIGRATE, ref, found, str(point))
        check_migrated(look(site.engine, again.project_id), legacy)
        assert _contents(tree) == _contents(Path(str(first.path))), point
        assert list((site.settings.store_dir / "staging").iterdir()) == []
        # The tree that lacked a session, and no whole one; or none, where it was in the sleeper's staging
        # when that was cleared.
        bad = [one for one in (site.settings.store_dir / "quarantine").iterdir() if one.is_dir()]
        assert [sorted(os.listdir(one)) for one in bad] in ([["cut"]], []), point
        remove_tree(str(site.settings.store_dir / "quarantine"))
        (site.settings.store_dir / "quarantine").mkdir()

    assert found.waited == []


@pytest.mark.timeout(1800)
def test_a_rollback_may_sleep_anywhere(site: Site, sleeping: Lives):
    found = _Found()
    points = Points()
    for number, point in enumerate(points, start=1001):
        project = make(site, number)
        legacy = look(site.engine, project.project_id)
        with tools_of(site) as tools:
            assert run_one(tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED
        (ref,) = open_run(site.engine, Verb.ROLLBACK, only=[project.project_id])

        sleeper = sleeping.until_sleep(Verb.ROLLBACK, ref, at=point)

        points.learn(sleeper)
        if sleeper.stopped:
            take_over(site, sleeping, sleeper, Verb.ROLLBACK, ref, found, str(point))
        check_legacy(look(site.engine, project.project_id), legacy)
        nothing_is_left_over(site)

    assert found.waited == []


@pytest.mark.timeout(1800)
def test_a_sleeper_may_wake_up_while_another_worker_is_in_the_middle_of_its_job(site: Site, sleeping: Lives):
    """One stops at some point, its successor at some other; the first goes on to its end, and then the
    successor does.
    """
    chance = random.Random(MEETINGS)
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[make(site, 2000).project_id])
    points = sleeping.until_sleep(Verb.MIGRATE, ref, at=None).points
    # From there on a sleeper has rows in hand that others wait for.
    converting = next(at for at, point in enumerate(points) if "insert into raw_datasets" in point)

    for number in range(2001, 2001 + MEETINGS):
        first, second = chance.choice(points[:converting]), chance.choice(points[:converting])
        project = make(site, number)
        legacy = look(site.engine, project.project_id)
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

        sleeper = sleeping.until_sleep(Verb.MIGRATE, ref, at=first)
        if sleeper.stopped:
            let_lease_run_out(site.engine, ref)
            reaper._requeue_expired(site.settings, site.engine, ended_s_ago=None)
            successor = sleeping.until_sleep(Verb.MIGRATE, ref, at=second)
            sleeping.wake(sleeper)
            if successor.stopped:
                sleeping.wake(successor)

        assert outcome_of(site, ref) == ("done", None), (first, second)
        check_migrated(look(site.engine, project.project_id), legacy)
        nothing_is_left_over(site)


def outcome_of(site: Site, ref: JobRef) -> tuple[str, str | None]:
    with site.engine.connect() as conn:
        query = text("select state, error from migration_jobs where run_id = :run_id")
        row = conn.execute(query, {"run_id": ref.run_id}).one()
        return row.state, row.error


def _contents(tree: Path) -> dict[bytes, tuple[str, int, bytes]]:
    return {name: (one.kind, one.size_bytes, one.content) for name, one in snapshot_tree(tree).items()}
