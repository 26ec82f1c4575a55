"""Runs that meet over the same projects, or the same dataset: no deadlock, every end an outcome, rows as the
model says.

The threads here are workers in all but the process: each has connections of its own, and a barrier lets them
go together.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

from sqlalchemy import Engine, text

from tests.estate import (
    Project,
    differences,
    make_project,
    readings,
    record_session,
    split_session,
)
from tests.support.ledger_rows import jobs_of, recorded_outcomes
from tests.support.runs import (
    another_worker,
    at_once,
    do,
    open_run,
    run,
    tools_of,
)
from tests.support.sites import Site
from tests.support.states import check_legacy, check_migrated, look
from tests.support.waiting import PATIENCE_S
from worker.db import ledger
from worker.db.engine import connect
from worker.jobs.tools import Tools
from worker.messages import JobRef, JobState, Outcome, RunState, Status, Verb

ROUNDS = 4


def make(site: Site, name: str, *, content: int) -> Project:
    """A project with a whole session and one that is cut in two; equal `content`, equal files."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name, analysis_config={"mine": name})
        record_session(conn, project, "whole", rows=30, seed=10 * content)
        cut = record_session(conn, project, "cut", rows=30, seed=10 * content + 1)
        split_session(conn, cut.session_id, [12], site.data_dir)
    return project


def the_ledger_agrees(engine: Engine, refs: list[JobRef], outcomes: dict[int, Outcome]) -> None:
    """Every job has ended with the outcome that its worker returned, and the run with them."""
    with engine.connect() as conn:
        found = ledger.find_run(conn, str(refs[0].run_id))
        assert found.state is RunState.FINISHED
        assert {ref.subject_id: one for ref, one in recorded_outcomes(conn, found.run_id).items()} == outcomes
        assert {job.state for job in jobs_of(conn, found.run_id)} <= {JobState.DONE, JobState.SKIPPED}


def test_two_runs_over_the_same_projects_migrate_each_once(site: Site):
    """Two workers a run, in opposite orders; whoever is late finds the project migrated and says by which
    run.
    """
    made = [make(site, f"study {number}", content=number % 2) for number in range(4)]
    legacy = {one.project_id: look(site.engine, one.project_id) for one in made}
    for _ in range(ROUNDS):
        runs = [open_run(site.engine, Verb.MIGRATE) for _ in range(2)]

        results = _in_parallel(
            site,
            [lambda t, r=refs: do(t, Verb.MIGRATE, r) for refs in (runs[0], runs[0][::-1])]
            + [lambda t, r=refs: do(t, Verb.MIGRATE, r) for refs in (runs[1], runs[1][::-1])],
        )

        both = [results[0] | results[1], results[2] | results[3]]
        for refs, outcomes in zip(runs, both, strict=True):
            assert outcomes.keys() == legacy.keys()
            the_ledger_agrees(site.engine, refs, outcomes)
        for number, before in legacy.items():
            ends = {outcomes[number].status: outcomes[number] for outcomes in both}
            assert ends.keys() == {Status.MIGRATED, Status.SKIPPED}
            winner = runs[0 if both[0][number].status is Status.MIGRATED else 1][0].run_id
            assert ends[Status.SKIPPED].reason in {
                f"project {number}: already migrated by run {winner}",
                f"project {number} is being processed by run {winner}",
            }
            check_migrated(look(site.engine, number), before)
        with tools_of(site) as tools:
            run(tools, Verb.ROLLBACK)
        for number, before in legacy.items():
            check_legacy(look(site.engine, number), before)
    assert len(list((site.data_dir / "raw_datasets").iterdir())) == 2


def _in_parallel(site: Site, calls: list[Callable[[Tools], Any]]) -> list[Any]:
    """Each call by a worker of its own, all beginning at the same moment."""
    together = threading.Barrier(len(calls))

    def work(number: int) -> Any:
        with another_worker(site, f"worker {number}") as tools:
            together.wait(PATIENCE_S)
            return calls[number](tools)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(work, range(len(calls))))


def test_a_rollback_and_another_projects_migration_share_a_dataset_without_hindrance(site: Site):
    projects = [make(site, f"study {number}", content=1) for number in range(4)]
    legacy = {one.project_id: look(site.engine, one.project_id) for one in projects}
    ids = sorted(legacy)
    with tools_of(site) as tools:
        run(tools, Verb.MIGRATE, only=ids[:2])
    migrated, waiting = set(ids[:2]), set(ids[2:])
    for _ in range(2 * ROUNDS):
        jobs = [(Verb.ROLLBACK, ref) for ref in open_run(site.engine, Verb.ROLLBACK, only=migrated)]
        jobs += [(Verb.MIGRATE, ref) for ref in open_run(site.engine, Verb.MIGRATE, only=waiting)]

        outcomes = at_once(site, jobs)

        assert [outcome.error for outcome in outcomes if outcome] == [None] * 4
        assert {outcome.status for outcome in outcomes if outcome} == {Status.ROLLED_BACK, Status.MIGRATED}
        migrated, waiting = waiting, migrated
        for number, before in legacy.items():
            (check_migrated if number in migrated else check_legacy)(look(site.engine, number), before)
    with site.engine.connect() as conn:
        assert conn.execute(text("select count(*) from raw_datasets")).scalar_one() == 1


def test_a_rollback_and_a_migration_at_once_leave_a_project_in_one_state(site: Site):
    """Whichever comes first; the outcomes say which."""
    number = make(site, "study", content=1).project_id
    legacy = look(site.engine, number)
    seen = set()
    with tools_of(site) as tools:
        for _ in range(3 * ROUNDS):
            first, late = (open_run(site.engine, Verb.MIGRATE)[0] for _ in range(2))
            do(tools, Verb.MIGRATE, [first])
            (back,) = open_run(site.engine, Verb.ROLLBACK)

            rolled_back, migrated = at_once(site, [(Verb.ROLLBACK, back), (Verb.MIGRATE, late)])

            assert rolled_back is not None
            assert migrated is not None
            assert (rolled_back.status, rolled_back.error) == (Status.ROLLED_BACK, None)
            rows = look(site.engine, number)
            if migrated.status is Status.MIGRATED:
                check_migrated(rows, legacy)
            else:
                assert migrated.status is Status.SKIPPED
                check_legacy(rows, legacy)
            seen.add(migrated.status)
            if not rows.is_legacy:
                run(tools, Verb.ROLLBACK)
            check_legacy(look(site.engine, number), legacy)
    assert seen <= {Status.MIGRATED, Status.SKIPPED}


def test_of_two_rollbacks_of_one_project_one_finds_nothing_to_do(site: Site):
    number = make(site, "study", content=1).project_id
    legacy = look(site.engine, number)
    with tools_of(site) as tools:
        for _ in range(ROUNDS):
            run(tools, Verb.MIGRATE)
            jobs = [(Verb.ROLLBACK, open_run(site.engine, Verb.ROLLBACK)[0]) for _ in range(3)]

            outcomes = at_once(site, jobs)

            assert sorted(one.status for one in outcomes if one) == [
                Status.ROLLED_BACK,
                Status.SKIPPED,
                Status.SKIPPED,
            ]
            check_legacy(look(site.engine, number), legacy)


def test_an_old_rollback_job_does_not_half_undo_a_later_migration(site: Site):
    """It was made for the first conversion and meets the second one: all of it is rolled back, or nothing."""
    number = make(site, "study", content=1).project_id
    legacy = look(site.engine, number)
    with tools_of(site) as tools:
        run(tools, Verb.MIGRATE)
        (old,) = open_run(site.engine, Verb.ROLLBACK)
        run(tools, Verb.ROLLBACK)
        run(tools, Verb.MIGRATE)
        for _ in range(ROUNDS):
            (new,) = open_run(site.engine, Verb.ROLLBACK)
            at_once(site, [(Verb.ROLLBACK, old), (Verb.ROLLBACK, new)])

            check_legacy(look(site.engine, number), legacy)
            run(tools, Verb.MIGRATE)
            (old,) = open_run(site.engine, Verb.ROLLBACK)


def test_a_verification_beside_migrations_never_finds_a_difference(site: Site):
    """It meets projects before, while and after they are migrated or rolled back."""
    projects = [make(site, f"study {number}", content=number % 2) for number in range(4)]
    legacy = {one.project_id: look(site.engine, one.project_id) for one in projects}
    over = threading.Event()
    statuses: list[Status] = []

    def verify() -> None:
        with another_worker(site, "verifier") as own:
            while not over.is_set():
                statuses.extend(outcome.status for outcome in run(own, Verb.VERIFY).values())

    with ThreadPoolExecutor(1) as threads, tools_of(site) as tools:
        verifying = threads.submit(verify)
        try:
            for _ in range(ROUNDS):
                assert {one.status for one in run(tools, Verb.MIGRATE).values()} == {Status.MIGRATED}
                run(tools, Verb.VERIFY)
                assert {one.status for one in run(tools, Verb.ROLLBACK).values()} == {Status.ROLLED_BACK}
        finally:
            over.set()
        verifying.result(timeout=PATIENCE_S)

    assert set(statuses) <= {Status.VERIFIED, Status.SKIPPED}
    assert Status.VERIFIED in statuses
    for number, before in legacy.items():
        check_legacy(look(site.engine, number), before)


def test_people_who_work_beside_runs_lose_nothing_and_never_see_an_error(site: Site):
    """I7: a person draws and splits, each as one transaction that holds a session before it needs the
    project.
    """
    project = make(site, "study", content=1)
    with site.engine.begin() as conn:
        for number in range(12):
            record_session(conn, project, f"session {number:02}", rows=20, seed=100 + number)
    with site.engine.connect() as conn:
        read_before = readings(conn, site.data_dir)
    over = threading.Event()
    done: dict[str, int] = {}

    def work_as_a_person() -> None:
        chance = Random(4)
        engine = connect(site.engine.url, application_name="label")
        pause = threading.Event()
        try:
            for number in range(12):
                with engine.begin() as conn:
                    session_id, name = conn.execute(
                        text("select session_id, session_name from sessions where session_name = :name"),
                        {"name": f"session {number:02}"},
                    ).one()
                    conn.execute(
                        text("update sessions set bouts = '[[1, 2]]', keep = true where session_id = :id"),
                        {"id": session_id},
                    )
                    pause.wait(chance.uniform(0, 0.06))
                    split_session(conn, session_id, [chance.randint(1, 18)], site.data_dir)
                done[name] = session_id
                pause.wait(chance.uniform(0, 0.05))
        finally:
            engine.dispose()
            over.set()

    with ThreadPoolExecutor(1) as threads, tools_of(site) as tools:
        person: Future[None] = threads.submit(work_as_a_person)
        statuses = []
        while not over.is_set():
            for verb in (Verb.MIGRATE, Verb.ROLLBACK):
                statuses += [(one.status, one.error) for one in run(tools, verb).values()]
        person.result(timeout=PATIENCE_S)

    assert {error for _, error in statuses} == {None}
    rows = look(site.engine, project.project_id)
    assert len(done) == 12
    for name, session_id in done.items():
        row = rows.session(name)
        assert (row["bouts"], row["status"], row["session_id"]) == ("[[1, 2]]", "Split", session_id)
        pieces = [rows.session(f"{name}.{number}") for number in (1, 2)]
        assert pieces[0]["data_end_offset"] == pieces[1]["data_start_offset"]
        assert {piece["parent_session_data_path"] for piece in pieces} == {f"{project.path}/{name}"}
        assert {piece["dataset_id"] for piece in pieces} == {None}
    with site.engine.connect() as conn:
        after = readings(conn, site.data_dir)
    assert differences(read_before, after) == []
    assert sum(frame is None for frame in after.values()) == 0
