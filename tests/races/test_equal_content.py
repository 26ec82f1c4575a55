"""Workers that meet on equal content, on one job or on one project: one stores, one ends the job, all others
agree.

The threads here are workers in all but the process: each has an engine and reading threads of its own, and a
barrier brings them to the place where they would collide.
"""

import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tests.estate import make_project, record_session, snapshot_tree, write_recording
from tests.support.ledger_rows import recorded_outcomes
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker.db import leases, ledger
from worker.db.engine import connect
from worker.db.leases import Lease
from worker.db.ledger import NewJob
from worker.errors import ClaimLostError
from worker.jobs import migrate as steps
from worker.jobs import read_once
from worker.jobs.migrate import migrate
from worker.jobs.tools import Tools
from worker.legacy import ingest
from worker.messages import JobRef, Outcome, Status, Verb


def make_equal_projects(site: Site, count: int, *, rows: int = 200) -> list[int]:
    """Projects that hold the same two sessions; their ids."""
    with site.engine.begin() as conn:
        projects = [make_project(conn, site.legacy_root, f"equal {number}") for number in range(count)]
        for project in projects:
            for day in (1, 2):
                record_session(conn, project, f"day {day}", rows=rows, seed=day)
    return [project.project_id for project in projects]


def open_run(engine: Engine, project_ids: Sequence[int]) -> list[JobRef]:
    """A migration run over these projects, as if its messages had been sent."""
    run_id = uuid.uuid4()
    with engine.begin() as conn:
        rows = conn.execute(
            text(
                "select project_id as subject_id, project_name as subject_name, path from projects where project_id = any(:ids)"
            ),
            {"ids": list(project_ids)},
        )
        jobs = [NewJob(**row) for row in rows.mappings()]
        ledger.open_run(conn, run_id, Verb.MIGRATE, dry_run=False, selection={})
        ledger.add_jobs(conn, run_id, jobs)
        ledger.start_run(conn, run_id)
    return [JobRef(run_id=run_id, subject_id=number) for number in project_ids]


@contextmanager
def a_worker(site: Site) -> Iterator[Tools]:
    """What one worker process has for its jobs."""
    engine = connect(site.engine.url, application_name="tests: a worker")
    with ThreadPoolExecutor(2) as threads:
        try:
            yield Tools(settings=site.settings, engine=engine, threads=threads)
        finally:
            engine.dispose()


def migrate_at_once(site: Site, refs: Sequence[JobRef]) -> list[Outcome | None]:
    """Migrate every job by a worker of its own, all beginning at the same moment."""
    start = threading.Barrier(len(refs))

    def work(number: int) -> Outcome | None:
        with a_worker(site) as tools:
            start.wait(PATIENCE_S)
            return migrate(tools, refs[number], f"worker {number}")

    with ThreadPoolExecutor(len(refs)) as workers:
        return list(workers.map(work, range(len(refs)), timeout=PATIENCE_S))


def meet_after(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, count: int) -> None:
    """Keep every worker at a step until `count` workers have done it."""
    done, meeting = getattr(room, name), threading.Barrier(count)

    def step(*args: Any, **options: Any) -> Any:
        result = done(*args, **options)
        meeting.wait(PATIENCE_S)
        return result

    monkeypatch.setattr(room, name, step)


def rows(site: Site, query: str) -> list[Any]:
    """What a query finds."""
    with site.engine.connect() as conn:
        return list(conn.execute(text(query)).all())


def blobs(site: Site) -> dict[str, int]:
    """The sizes of all blobs by name."""
    found = {}
    for folder, _, names in os.walk(site.settings.store_dir / "blobs"):
        found |= {name: Path(folder, name).stat().st_size for name in names}
    return found


def assert_whole(site: Site, outcomes: Sequence[Outcome]) -> None:
    """Every tree equals the legacy directory of each project on it, and each content is stored and counted
    once.
    """
    for outcome in outcomes:
        assert _files(outcome.dataset_path) == _files(outcome.original_path)
    stored = blobs(site)
    assert sum(outcome.bytes.stored for outcome in outcomes) == sum(stored.values())
    assert sum(outcome.files.stored for outcome in outcomes) == len(stored)
    assert os.listdir(site.settings.store_dir / "staging") == []
    assert os.listdir(site.settings.store_dir / "quarantine") == []
    assert sorted(os.listdir(site.settings.datasets_dir)) == sorted(
        {os.path.basename(str(outcome.dataset_path)) for outcome in outcomes}
    )


def _files(path: str | None) -> Mapping[bytes, bytes]:
    return {
        name: entry.content for name, entry in snapshot_tree(Path(str(path))).items() if entry.kind == "file"
    }


def assert_one_dataset(site: Site, project_ids: Sequence[int]) -> None:
    """One dataset that all of these projects refer to, once each."""
    (dataset,) = rows(site, "select dataset_id from raw_datasets")
    refs = rows(site, "select project_id, dataset_id from project_dataset_refs order by project_id")
    assert [tuple(ref) for ref in refs] == [(number, dataset.dataset_id) for number in sorted(project_ids)]


@pytest.mark.parametrize("meeting", ["at the start", "after hashing", "after finding it not stored"])
def test_eight_projects_of_equal_content_at_once_are_one_dataset_stored_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, meeting: str
):
    """However far they come side by side: with nothing read, with all read, or knowing that nothing is
    stored.
    """
    projects = make_equal_projects(site, 8)
    refs = open_run(site.engine, projects)
    if meeting == "after hashing":
        meet_after(monkeypatch, read_once, "hash_tree", 8)
    if meeting == "after finding it not stored":
        _meet_after_first(monkeypatch, "find_stored", 8)

    outcomes = [outcome for outcome in migrate_at_once(site, refs) if outcome is not None]

    assert [outcome.status for outcome in outcomes] == [Status.MIGRATED] * 8
    assert Counter(outcome.dataset_created for outcome in outcomes) == {True: 1, False: 7}
    assert [outcome.bytes.stored for outcome in outcomes if not outcome.dataset_created] == [0] * 7
    assert len({outcome.dataset_id for outcome in outcomes}) == 1
    assert_one_dataset(site, projects)
    assert_whole(site, outcomes)
    assert rows(site, "select state from migration_runs") == [("finished",)]
    assert [tuple(row) for row in rows(site, "select distinct state, attempt from migration_jobs")] == [
        ("done", 1)
    ]


def _meet_after_first(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """As `meet_after`, but each thread waits only once: the holder of the claim asks again, alone."""
    done, meeting, met = getattr(steps, name), threading.Barrier(count), threading.local()

    def step(*args: Any) -> Any:
        result = done(*args)
        if not hasattr(met, "once"):
            met.once = True
            meeting.wait(PATIENCE_S)
        return result

    monkeypatch.setattr(steps, name, step)


def test_24_jobs_of_equal_content_over_real_workers_are_one_dataset(
    site: Site, workers: Callable[..., object]
):
    projects = make_equal_projects(site, 24, rows=20)
    workers(2, concurrency=2)

    done = site.run_producer("enqueue", "--wait")

    assert done.returncode == 0, done.stderr
    assert "24 of 24 projects migrated" in done.stderr
    assert_one_dataset(site, projects)
    with site.engine.connect() as conn:
        run = ledger.find_run(conn, "latest")
        outcomes = recorded_outcomes(conn, run.run_id)
    assert Counter(outcome.dataset_created for outcome in outcomes.values()) == {True: 1, False: 23}
    assert len({outcome.worker for outcome in outcomes.values()}) == 2
    assert_whole(site, list(outcomes.values()))


@pytest.mark.parametrize("meeting", ["hash_tree", "missing_from"])
def test_two_datasets_that_share_blobs_stored_at_once_are_both_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch, meeting: str
):
    """Both find the shared content missing and copy it; the one that comes second to the name counts it as
    reused.
    """
    with site.engine.begin() as conn:
        projects = [make_project(conn, site.legacy_root, name) for name in ("one", "two")]
        for number, project in enumerate(projects):
            for day in range(5):
                record_session(conn, project, f"shared {day}", rows=300, seed=day)
            record_session(conn, project, "own", rows=100, seed=100 + number)
    refs = open_run(site.engine, [project.project_id for project in projects])
    meet_after(monkeypatch, {"hash_tree": read_once, "missing_from": ingest}[meeting], meeting, 2)

    outcomes = [outcome for outcome in migrate_at_once(site, refs) if outcome is not None]

    assert [outcome.status for outcome in outcomes] == [Status.MIGRATED] * 2
    assert [outcome.dataset_created for outcome in outcomes] == [True, True]
    assert len(blobs(site)) == 5 + 2
    assert sorted(outcome.files.total for outcome in outcomes) == [6, 6]
    assert_whole(site, outcomes)


def test_bytes_count_for_the_job_that_stored_them_although_another_registers_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    """The claim is lost between storing and converting, and the other job needs none of the bytes."""
    refs = open_run(site.engine, make_equal_projects(site, 2))
    find_stored: Callable[..., Any] = steps.find_stored
    outcomes: list[Outcome | None] = []

    def lose_the_claim(*_args: Any, **_options: Any) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(steps, "find_stored", let_the_other_go_first)
        raise ClaimLostError("The claim was lost")

    def let_the_other_go_first(*args: Any) -> Any:
        monkeypatch.undo()
        outcomes.extend(migrate_at_once(site, refs[1:]))
        return find_stored(*args)

    monkeypatch.setattr(steps, "convert", lose_the_claim)
    outcomes.extend(migrate_at_once(site, refs[:1]))

    other, first = (outcome for outcome in outcomes if outcome is not None)
    assert (other.dataset_created, first.dataset_created) == (True, False)
    assert (other.files.stored, first.files.stored) == (0, 2)
    assert first.bytes.stored == sum(blobs(site).values())


def test_one_project_with_the_same_file_many_times_stores_it_once(site: Site):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "copies")
        assert project.directory is not None
        for day in range(6):
            write_recording(project.directory / f"copy {day}", rows=50, seed=1)
    refs = open_run(site.engine, [project.project_id])

    (outcome,) = migrate_at_once(site, refs)

    assert outcome is not None
    assert (outcome.files.stored, outcome.files.reused) == (1, 5)
    assert_whole(site, [outcome])


def test_of_two_deliveries_of_one_job_at_once_one_ends_it_and_the_other_is_dropped(site: Site):
    (project,) = make_equal_projects(site, 1)
    (ref,) = open_run(site.engine, [project])

    outcomes = migrate_at_once(site, [ref, ref])

    assert sorted(outcome is None for outcome in outcomes) == [False, True]
    assert [outcome.status for outcome in outcomes if outcome] == [Status.MIGRATED]
    assert [tuple(row) for row in rows(site, "select state, attempt from migration_jobs")] == [("done", 1)]
    assert_one_dataset(site, [project])


def test_a_late_delivery_of_a_finished_job_is_dropped(site: Site):
    (project,) = make_equal_projects(site, 1)
    (ref,) = open_run(site.engine, [project])
    migrate_at_once(site, [ref])
    before = rows(site, "select * from migration_jobs")

    (late,) = migrate_at_once(site, [ref])

    assert late is None
    assert rows(site, "select * from migration_jobs") == before


def see_no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every lease were taken at the same instant, when none is there to be seen yet."""
    take = leases.take_lease

    def take_alone(*arguments: Any, **options: Any) -> Lease | None:
        lease = take(*arguments, **options)
        return None if lease is None else replace(lease, busy_with=None)

    monkeypatch.setattr(leases, "take_lease", take_alone)


@pytest.mark.parametrize("step", [None, "scan", "hash_tree"])
def test_of_two_runs_over_one_project_one_migrates_it_and_the_other_says_who_did(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str | None
):
    """Whether they meet anywhere or having read everything: the claim lets one at a time come to the
    conversion.
    """
    (project,) = make_equal_projects(site, 1)
    refs = [*open_run(site.engine, [project]), *open_run(site.engine, [project])]
    if step is not None:
        see_no_other_run(monkeypatch)
        meet_after(monkeypatch, {"scan": steps, "hash_tree": read_once}[step], step, 2)

    outcomes = [outcome for outcome in migrate_at_once(site, refs) if outcome is not None]

    migrated, skipped = sorted(outcomes, key=lambda outcome: outcome.status is Status.SKIPPED)
    assert (migrated.status, skipped.status) == (Status.MIGRATED, Status.SKIPPED)
    (conversion,) = rows(site, "select run_id from project_conversions")
    assert skipped.reason in {
        f"project {project}: already migrated by run {conversion.run_id}",
        f"project {project} is being processed by run {conversion.run_id}",
    }
    assert conversion.run_id == refs[outcomes.index(migrated)].run_id
    assert (skipped.bytes.read, skipped.dataset_id) == (0, None)
    assert_one_dataset(site, [project])
    assert sorted(rows(site, "select state from migration_runs")) == [("finished",), ("finished",)]


def test_two_runs_of_many_projects_at_once_migrate_each_project_once(
    site: Site, workers: Callable[..., object]
):
    projects = make_equal_projects(site, 3)
    with site.engine.begin() as conn:
        for number in range(9):
            project = make_project(conn, site.legacy_root, f"own {number}")
            record_session(conn, project, "s", rows=30, seed=1000 + number)
            projects.append(project.project_id)
    workers(1, concurrency=2)

    with ThreadPoolExecutor(2) as operators:
        calls = [operators.submit(site.run_producer, "enqueue", "--wait") for _ in range(2)]
        done = [call.result(PATIENCE_S) for call in calls]

    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    refs = rows(site, "select project_id from project_dataset_refs order by 1")
    assert [ref.project_id for ref in refs] == sorted(projects)
    assert len(rows(site, "select from project_conversions")) == len(projects)
    assert len(rows(site, "select from raw_datasets")) == 10
    states = Counter(row.state for row in rows(site, "select state from migration_jobs"))
    assert states["done"] == len(projects)
    assert states.keys() <= {"done", "skipped"}
