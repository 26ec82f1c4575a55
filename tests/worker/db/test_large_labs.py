"""What one job asks of projects, sessions and datasets costs the same however many a lab has."""

import os
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text

from tests.support.costs import pages, plans, rows
from tests.support.servers import Databases
from worker.db import garbage, projects

FEW, MANY = 1_000, 20_000


def lab(engine: Engine, count: int) -> None:
    """As many migrated projects in ten directories, each with a dataset and a session of its own that reads
    from the dataset's tree.
    """
    with engine.begin() as conn:
        conn.execute(text("insert into participants (participant_code) values ('P001')"))
        for statement in (
            """
            insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path)
            select n, 'study ' || n, encode(sha256(cast(cast(n as text) as bytea)), 'hex'),
                   '/data/raw_datasets/study_' || n || '-' || lpad(to_hex(n), 12, '0')
            from generate_series(1, :count) as n""",
            """
            insert into projects (project_id, project_name, participant_id, legacy_path, project_type)
            select n, 'study ' || n, 1, '/studies/lab' || n % 10 || '/study_' || n, 'dataset_based'
            from generate_series(1, :count) as n""",
            """
            insert into sessions (project_id, session_name, start_ns, stop_ns, dataset_id, parent_session_data_path)
            select n, 'day', 0, 1, n, '/data/raw_datasets/study_' || n || '-' || lpad(to_hex(n), 12, '0') || '/day'
            from generate_series(1, :count) as n""",
            """
            insert into project_conversions (project_id, run_id, dataset_id, dataset_hash, legacy_path, before, tree_attributes)
            select project_id, gen_random_uuid(), project_id, dataset_hash, legacy_path, '{}', ''
            from projects join raw_datasets on dataset_id = project_id""",
        ):
            bound = {"count": count} if ":count" in statement else {}
            conn.execute(text(statement), bound)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("vacuum"))  # no statistics, as after an upgrade


@pytest.fixture(scope="module")
def few_and_many(databases: Databases) -> Iterator[tuple[Engine, Engine]]:
    """A lab of a thousand projects, and one of twenty times as many."""
    with databases.one() as few, databases.one() as many:
        lab(few, FEW)
        lab(many, MANY)
        yield few, many


def neighbours_of_one(conn: Connection) -> None:
    assert [
        one.project_id for one in projects.converted_at(conn, ["/studies/lab7/study_7", "/studies", "/"])
    ] == [7]


def is_read(conn: Connection) -> None:
    assert not garbage.is_used(conn, "gone-000000000007")


def take_one(conn: Connection) -> None:
    conn.execute(text("delete from projects where project_id = 7"))
    assert garbage.take_rows(conn, conn.scalar(text("select encode(sha256('7'), 'hex')")), 0) is None


def test_a_rollback_finds_the_directories_around_its_own_by_an_index(few_and_many: tuple[Engine, Engine]):
    few, many = (pages(engine, neighbours_of_one) for engine in few_and_many)

    assert many <= few + 5
    assert rows(few_and_many[1], neighbours_of_one) < 50


def test_whether_a_tree_is_read_is_asked_of_an_index(few_and_many: tuple[Engine, Engine]):
    # The second question is of datasets.
    few, many = (plans(engine, is_read)[0]["Shared Hit Blocks"] for engine in few_and_many)

    assert many <= few + 5


def test_a_dataset_goes_without_a_look_at_all_sessions(few_and_many: tuple[Engine, Engine]):
    few, many = (pages(engine, take_one) for engine in few_and_many)

    assert many <= 1.6 * few + 10


@pytest.mark.parametrize(
    "path",
    [
        "/data/raw_datasets/study-0123456789ab/day",
        "/elsewhere/raw_datasets/study-0123456789ab/day/",
        "/mnt/study-0123456789ab",
        "study-0123456789ab/day",
    ],
)
def test_a_session_that_only_reads_from_a_tree_keeps_it(database: Engine, path: str):
    with database.begin() as conn:
        conn.execute(text("insert into participants (participant_code) values ('P001')"))
        conn.execute(text("insert into projects (project_name, participant_id) values ('study', 1)"))
        conn.execute(
            text("""
                insert into sessions (project_id, session_name, start_ns, stop_ns, parent_session_data_path)
                values (1, 'day', 0, 1, :path)"""),
            {"path": path},
        )

        assert garbage.is_used(conn, "study-0123456789ab")
        assert not garbage.is_used(conn, "study-0123456789a")
        assert not garbage.is_used(conn, "dy-0123456789ab")


def test_a_path_leads_where_python_says(database: Engine):
    """But for two slashes at its beginning, which POSIX lets mean anything."""
    dice = random.Random(1)
    parts = ["", ".", "..", "...", "a", "b.", ".c", "é x"]
    paths = ["/".join(dice.choices(parts, k=dice.randint(0, 7))) for _ in range(3_000)]
    paths = [f"/{path}" for path in paths]

    with database.connect() as conn:
        found = conn.scalars(
            text("""
                select migration_normal_path(path)
                from unnest(cast(:paths as text[])) with ordinality as t (path, n) order by n"""),
            {"paths": paths},
        ).all()

    assert list(found) == [os.path.normpath("/" + path.lstrip("/")) for path in paths]
