"""What a dry run notes of new content, in whatever order its jobs come."""

from sqlalchemy import Engine, text

from tests.support.ledger_rows import (
    at_once,
    make_run,
    processes,
)
from worker.db import dry_runs
from worker.messages import JobRef


def test_the_lowest_project_that_holds_a_new_content_owns_it_whatever_the_order(database: Engine):
    run_id = make_run(database, [1, 2, 3], dry_run=True)
    other_run = make_run(database, [1], dry_run=True)
    sizes = {"aa": 10, "bb": 20, "cc": 40}

    with database.begin() as conn:
        for number, digests in ((2, ["aa", "bb"]), (3, ["bb", "cc"]), (1, ["bb"]), (1, ["bb"])):
            ref = JobRef(run_id=run_id, subject_id=number)
            dry_runs.note_new_content(conn, ref, {digest: sizes[digest] for digest in digests})
        dry_runs.note_new_content(conn, JobRef(run_id=other_run, subject_id=1), {"aa": 10})
        dry_runs.note_new_content(conn, JobRef(run_id=run_id, subject_id=1), {})

        assert dry_runs.new_content_by_project(conn, run_id) == {1: (1, 20), 2: (1, 10), 3: (1, 40)}
        assert dry_runs.new_content_by_project(conn, other_run) == {1: (1, 10)}


def test_projects_that_note_the_same_contents_at_once_do_not_deadlock(database: Engine):
    count = 6
    run_id = make_run(database, list(range(1, count + 1)), dry_run=True)
    digests = [f"{number:064x}" for number in range(300)]
    orders = [digests, digests[::-1]]

    with processes(database, count) as engines:
        numbers = {id(engine): number for number, engine in enumerate(engines, start=1)}

        def note(engine: Engine) -> None:
            number = numbers[id(engine)]
            with engine.begin() as conn:
                ref = JobRef(run_id=run_id, subject_id=number)
                dry_runs.note_new_content(conn, ref, dict.fromkeys(orders[number % 2], 1))

        at_once(engines, note)

    with database.connect() as conn:
        assert dry_runs.new_content_by_project(conn, run_id) == {1: (300, 300)}


def test_notes_of_a_dry_run_are_deleted_with_the_run(database: Engine):
    run_id = make_run(database, [1], dry_run=True)
    with database.begin() as conn:
        dry_runs.note_new_content(conn, JobRef(run_id=run_id, subject_id=1), {"aa": 1})

        conn.execute(text("delete from migration_runs where run_id = :id"), {"id": run_id})

        assert conn.scalar(text("select count(*) from migration_dry_run_blobs")) == 0
        assert conn.scalar(text("select count(*) from migration_jobs")) == 0
