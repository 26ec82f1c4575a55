"""A database that the first release left, with runs in progress, after `producer schema apply`."""

import json
import re
import uuid
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.support.ledger_rows import end, expire, must_take, outcome, recorded_outcomes, renew
from tests.support.psql import SQL, catalog, psql
from worker.db import ledger, messages_sent, schema
from worker.errors import DatabaseRefusedError
from worker.messages import JobRef, JobState, Status, Subject

_FIRST_RELEASE = Path(__file__).parent / "earlier" / "create_migration_ledger_0_1.sql"
_RUN = uuid.UUID(int=7)


@pytest.fixture
def of_first_release(empty_database: Engine) -> Engine:
    """A database with a run of which one job has ended, one is owned by a worker, and two wait."""
    for name in ("label_app_baseline", "add_virtual_split_columns", "create_raw_datasets_tables"):
        psql(empty_database, "-f", str(SQL / f"{name}.sql"))
    psql(empty_database, "-f", str(_FIRST_RELEASE))
    ended = outcome(1).to_json()
    first_release_keys = {key: ended[key] for key in ("project_id", "project_name", "status", "reason")}
    with empty_database.begin() as conn:
        conn.execute(
            text("insert into migration_runs (run_id, verb, dry_run) values (:run, 'migrate', false)"),
            {"run": _RUN},
        )
        conn.execute(
            text("""
                insert into migration_jobs (run_id, project_id, project_name, path, state, attempt, worker, lease_until,
                                            outcome, bytes_total)
                select :run, id, 'study ' || id, '/studies/' || id,
                       case id when 1 then 'skipped' else 'queued' end, 0, null, null,
                       case id when 1 then cast(:outcome as jsonb) end, 100
                from generate_series(1, 4) as id;
                update migration_runs set state = 'running' where run_id = :run;
                update migration_jobs set state = 'running', attempt = 1, worker = 'old',
                                          lease_until = clock_timestamp() + interval '1 minute'
                where project_id = 2"""),
            {"run": _RUN, "outcome": json.dumps(first_release_keys)},
        )
    return empty_database


def test_runs_in_progress_go_on_and_ended_jobs_keep_their_outcomes(of_first_release: Engine):
    engine = of_first_release
    schema.apply(engine)

    with engine.begin() as conn:
        waiting = [message.ref for message in messages_sent.waiting(conn, _RUN)]
        kept = recorded_outcomes(conn, _RUN)
    assert waiting == [JobRef(run_id=_RUN, subject_id=number) for number in (3, 4)]
    assert [(ref.subject, ref.subject_id, one.status) for ref, one in kept.items()] == [
        (Subject.PROJECT, 1, Status.MIGRATED)
    ]
    expire(engine, _RUN)
    for number in (2, 3, 4):
        lease = must_take(engine, _RUN, number)
        assert (lease.subject_name, lease.path) == (f"study {number}", f"/studies/{number}")
        assert renew(engine, lease)
        end(engine, lease)
    with engine.begin() as conn:
        ledger.finish_run_if_ended(conn, _RUN)
        assert ledger.find_run(conn, "latest").state == "finished"


def test_an_upgraded_ledger_is_the_same_as_a_new_one(of_first_release: Engine, database: Engine):
    schema.apply(of_first_release)
    schema.apply(of_first_release)

    assert "\n".join(_tables(of_first_release)).split("\n") == "\n".join(_tables(database)).split("\n")


def test_queries_by_project_answer_as_before(of_first_release: Engine):
    """Also those of workers of the first release, which are stopped only after the upgrade."""
    schema.apply(of_first_release)

    with of_first_release.begin() as conn:
        renewed = conn.execute(
            text("""
                update migration_jobs j set phase = 'hash', lease_until = clock_timestamp() + interval '1 minute'
                where j.run_id = :run and j.project_id = 2 and j.attempt = 1 and j.state = 'running'
                returning project_name, state"""),
            {"run": _RUN},
        ).one()
    assert tuple(renewed) == ("study 2", JobState.RUNNING)


def _tables(engine: Engine) -> list[str]:
    """The ledger's tables, constraints, indexes and triggers, each table's columns in any order."""
    statements = re.split(r"\n--\n.*\n--\n", catalog(engine))
    return sorted(
        "\n".join(sorted(one.replace(",", "").split("\n"))) for one in statements if "migration_" in one
    )


def test_a_worker_of_the_first_release_ends_its_job_and_can_take_no_other(of_first_release: Engine):
    """It holds claims by row locks, which newer workers do not, and knows nothing of a gc beside it."""
    engine = of_first_release
    schema.apply(engine)

    with engine.begin() as conn:
        ended = conn.execute(
            text("""
                update migration_jobs set state = 'done', lease_until = null, outcome = '{}'
                where project_id = 2 and attempt = 1 and state = 'running'""")
        ).rowcount
    with pytest.raises(DatabaseRefusedError, match="worker_of_an_earlier_release"), engine.begin() as conn:
        conn.execute(
            text("""
                update migration_jobs set state = 'running', attempt = attempt + 1, worker = 'old',
                                          lease_until = clock_timestamp() + interval '1 minute'
                where project_id = 3""")
        )

    assert ended == 1
    assert must_take(engine, _RUN, 3).attempt == 1
