"""A gc without a grace time beside everybody else: nothing that is referred to is ever missing, and no job
fails for it.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TimedOutError
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import text

from tests.estate import Project
from tests.support.ledger_rows import recorded_outcomes
from tests.support.points import Lives, Points, lives
from tests.support.runs import WORK, another_worker, gc, open_run, run_one, tools_of, verify_datasets
from tests.support.sites import Site
from tests.support.states import look
from tests.support.studies import check_tree, study
from tests.support.waiting import PATIENCE_S, eventually
from worker.jobs.tools import Tools
from worker.messages import THE_STORE, Status, Subject, Verb

# At each point ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sleeping(module_site: Site) -> Iterator[Lives]:
    """Bring up workers that fall asleep when told to."""
    with lives(module_site) as started:
        yield started


def gc_meanwhile(site: Site, sleeping: Lives, tools: Tools, every: int) -> int:
    """A project is to reuse a dataset that nothing refers to any more; its worker sleeps at a point, at each
    in its turn or some, and a gc comes; at how many.
    """
    project = study(site, "study", 1, 2)
    study(site, "other", 2, 3)
    with site.engine.connect() as conn:
        other = conn.execute(text("select max(project_id) from projects")).scalar_one()
    run_one(tools, Verb.MIGRATE, other)
    points, slept = Points(), 0
    for number, point in enumerate(points):
        if number % every:
            continue
        run_one(tools, Verb.MIGRATE, project.project_id)
        run_one(tools, Verb.ROLLBACK, project.project_id)
        (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])

        life = sleeping.until_sleep(Verb.MIGRATE, ref, at=point)

        points.learn(life)
        slept += life.stopped
        if life.stopped:
            with another_worker(site, "collector") as others, ThreadPoolExecutor(1) as thread:
                collected = thread.submit(gc, others)
                # It may wait for the row that the sleeper holds.
                with suppress(TimedOutError):
                    collected.result(2.0)
                sleeping.wake(life)
                assert collected.result(PATIENCE_S).status is Status.COLLECTED
        with site.engine.connect() as conn:
            outcome = recorded_outcomes(conn, ref.run_id)[ref]
        assert outcome.status is Status.MIGRATED, (point, outcome)
        check_tree(Path(str(outcome.dataset_path)), project)
        assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}, point
        run_one(tools, Verb.ROLLBACK, project.project_id)
    return slept


def test_a_gc_that_comes_at_some_point_of_a_migration_takes_nothing_from_it(
    emptied_site: Site, sleeping: Lives
):
    with tools_of(emptied_site) as tools:
        assert gc_meanwhile(emptied_site, sleeping, tools, every=6) >= 4


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_gc_may_come_at_every_point_of_a_migration(emptied_site: Site, sleeping: Lives):
    with tools_of(emptied_site) as tools:
        assert gc_meanwhile(emptied_site, sleeping, tools, every=1) >= 30


# Again and again --------------------------------------------------------------------------------------------


class Collector:
    """A gc after the other, and what they took."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self.counts: Counter[str] = Counter()

    def collect(self) -> None:
        """Until it is over. A gc that was handed back, because it gave way for too long, is a worker's."""
        with another_worker(self._site, "collector") as tools:
            while not self._over.is_set():
                (ref,) = open_run(
                    self._site.engine, Verb.GC, only=[THE_STORE], subject=Subject.STORE, grace_hours=0
                )
                outcome = WORK[Verb.GC, Subject.STORE](tools, ref, "collector")
                self.counts["gcs" if outcome is not None else "handed back"] += 1
                if outcome is not None:
                    assert outcome.status in {Status.COLLECTED, Status.SKIPPED}, outcome
                    self.counts.update(one.action for one in outcome.garbage)

    def stop(self) -> None:
        """After the one that is at work."""
        self._over.set()


def play(site: Site, operations: int) -> Counter[str]:
    """Projects of overlapping content, some of them equal, are migrated and rolled back by real workers while
    one gc follows the other.
    """
    projects = {}
    for number in range(8):
        one = study(site, f"study {number}", number % 5, number % 5 + 1)
        projects[one.project_id] = one
    chance, migrated = Random(operations), set[int]()
    collector = Collector(site)
    began = time.monotonic()
    with tools_of(site) as tools, site.workers(2, concurrency=2), ThreadPoolExecutor(1) as thread:
        done = step(site, sorted(projects), migrated)
        collecting = thread.submit(collector.collect)
        try:
            while done < operations:
                done += step(site, chance.sample(sorted(projects), 6), migrated)
                check_step(site, tools, projects, migrated)
                assert not collecting.done()
        finally:
            collector.stop()
        collecting.result(PATIENCE_S)
        gc(tools)
        assert {one.status for one in verify_datasets(tools)} <= {Status.VERIFIED}
    collector.counts["operations"] = done
    collector.counts["seconds"] = round(time.monotonic() - began)
    return collector.counts


def step(site: Site, chosen: list[int], migrated: set[int]) -> int:
    """Migrate those of these projects that are legacy, roll back the others, all at once; how many."""
    back = [one for one in chosen if one in migrated]
    there = [one for one in chosen if one not in migrated]
    for verb, ids in (("enqueue", there), ("rollback", back)):
        if ids:
            named = [word for one in ids for word in ("--project-id", str(one))]
            opened = site.run_producer(verb, *named, *(["--yes"] if verb == "rollback" else []))
            assert opened.returncode == 0, opened.stderr
    migrated ^= set(chosen)
    eventually(lambda: states(site).keys() <= ENDED, "all jobs have ended")
    assert states(site).keys() == {"done"}, states(site)
    return len(chosen)


ENDED = {"done", "failed", "skipped", "cancelled"}


def states(site: Site) -> dict[str, object]:
    """Every state that some migration or rollback has, with an outcome of such a one."""
    with site.engine.connect() as conn:
        rows = conn.execute(
            text(
                "select migration_jobs.state, min(cast(outcome as text)) as said from migration_jobs join migration_runs r"
                " using (run_id) where r.verb <> 'gc' and r.verb <> 'verify' group by migration_jobs.state"
            )
        )
        return {row.state: row.said for row in rows}


def check_step(site: Site, tools: Tools, projects: dict[int, Project], migrated: set[int]) -> None:
    """Each migrated project has its tree, byte for byte, and the store all that its dataset needs."""
    datasets = set()
    for project_id in migrated:
        rows = look(site.engine, project_id)
        (ref,) = rows.refs
        datasets.add(ref["dataset_id"])
        check_tree(Path(rows.datasets[ref["dataset_id"]]["file_path"]), projects[project_id])
    if datasets:
        assert {one.status for one in verify_datasets(tools, only=datasets)} == {Status.VERIFIED}


def test_gcs_beside_migrations_and_rollbacks_take_nothing_that_is_needed(emptied_site: Site):
    counts = play(emptied_site, 14)
    assert counts["gcs"] >= 3, counts


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_gcs_beside_many_migrations_and_rollbacks_take_nothing_needed(emptied_site: Site):
    counts = play(emptied_site, 200)
    print(dict(counts))
    assert counts["gcs"] >= 20, counts
    assert counts["quarantined"] >= 10, counts
