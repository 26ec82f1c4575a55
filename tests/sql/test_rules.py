"""What the tables do with rows: what follows a delete, what is refused, and what the application may go on
writing.
"""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from tests.support import rows
from worker.errors import DatabaseRefusedError


def count(connection: Connection, table: str) -> int:
    return int(connection.execute(text(f"select count(*) from {table}")).scalar_one())


# Deletes ----------------------------------------------------------------------------------------------------


def test_deleting_a_project_takes_what_is_its_own_and_leaves_the_dataset(database: Engine) -> None:
    with database.begin() as connection:
        project_id, dataset_id = rows.project(connection), rows.dataset(connection)
        rows.insert(
            connection, "project_dataset_refs", "ref_id", project_id=project_id, dataset_id=dataset_id
        )
        config_id = rows.split_config(connection, project_id, dataset_id)
        rows.session(connection, project_id, dataset_id=dataset_id, split_config_id=config_id)

        connection.execute(text("delete from projects"))

        for table in ("sessions", "project_dataset_refs", "project_split_configs"):
            assert count(connection, table) == 0
        assert count(connection, "raw_datasets") == 1


def test_deleting_a_dataset_takes_its_own_rows(database: Engine) -> None:
    with database.begin() as connection:
        project_id, dataset_id = rows.project(connection), rows.dataset(connection)
        rows.insert(
            connection, "project_dataset_refs", "ref_id", project_id=project_id, dataset_id=dataset_id
        )
        rows.split_config(connection, project_id, dataset_id)
        rows.insert(
            connection,
            "raw_dataset_sessions",
            "raw_session_id",
            dataset_id=dataset_id,
            session_name="one",
            session_path="/raw_datasets/walk/one",
        )

        connection.execute(text("delete from raw_datasets"))

        for table in ("raw_dataset_sessions", "project_dataset_refs", "project_split_configs"):
            assert count(connection, table) == 0
        assert count(connection, "projects") == 1


@pytest.mark.parametrize(
    ("delete", "constraint"),
    [
        ("raw_datasets", "sessions_dataset_id_fkey"),
        ("project_split_configs", "sessions_split_config_id_fkey"),
        ("participants", "projects_participant_id_fkey"),
        ("projects", "session_lineage_child_session_id_fkey"),
    ],
)
def test_a_row_that_others_need_is_not_deleted(database: Engine, delete: str, constraint: str) -> None:
    with database.begin() as connection:
        project_id, dataset_id = rows.project(connection), rows.dataset(connection)
        config_id = rows.split_config(connection, project_id, dataset_id)
        session_id = rows.session(connection, project_id, dataset_id=dataset_id, split_config_id=config_id)
        rows.insert(
            connection, "session_lineage", "id", child_session_id=session_id, parent_session_id=session_id
        )

    with pytest.raises(DatabaseRefusedError, match=constraint), database.begin() as connection:
        connection.execute(text(f"delete from {delete}"))


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("file_size_bytes", -1, "raw_datasets_file_size_bytes_check"),
        ("session_count", -1, "raw_datasets_session_count_check"),
        ("dataset_hash", None, "dataset_hash"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused(
    database: Engine, column: str, value: int | None, constraint: str
) -> None:
    with pytest.raises(DatabaseRefusedError, match=constraint), database.begin() as connection:
        rows.dataset(connection, **{column: value})


def test_equal_content_is_one_dataset(database: Engine) -> None:
    with database.begin() as connection:
        rows.dataset(connection, "first", dataset_hash="a" * 64)

    with (
        pytest.raises(DatabaseRefusedError, match="raw_datasets_dataset_hash_key"),
        database.begin() as connection,
    ):
        rows.dataset(connection, "second", dataset_hash="a" * 64)


def test_types_and_strategies_are_those_of_the_contract(database: Engine) -> None:
    with database.begin() as connection:
        for project_type in (None, "legacy", "dataset_based"):
            project_id = rows.project(connection, f"of type {project_type}", project_type=project_type)
        dataset_id = rows.dataset(connection)
        for strategy in (None, "time_based", "bout_based", "custom"):
            rows.split_config(connection, project_id, dataset_id, split_strategy=strategy)

    with (
        pytest.raises(DatabaseRefusedError, match="projects_project_type_check"),
        database.begin() as connection,
    ):
        rows.project(connection, project_type="archived")
    with pytest.raises(DatabaseRefusedError, match="split_strategy_check"), database.begin() as connection:
        rows.split_config(connection, project_id, dataset_id, split_strategy="by_hand")


def test_a_reference_to_no_dataset_is_refused_from_now_on(database: Engine) -> None:
    with (
        pytest.raises(DatabaseRefusedError, match="sessions_dataset_id_fkey"),
        database.begin() as connection,
    ):
        rows.session(connection, rows.project(connection), dataset_id=999_999)


# What the application may go on doing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"data_start_offset": 5, "data_end_offset": 5},
        {"data_start_offset": 5, "data_end_offset": None},
        {"data_start_offset": 0, "data_end_offset": 10},
        {"parent_session_data_path": "/somewhere", "data_start_offset": None},
    ],
)
def test_odd_sessions_of_the_application_are_not_refused(database: Engine, columns: dict[str, Any]) -> None:
    """Readers assume more than the tables enforce; a refusal here would be a label that is lost."""
    with database.begin() as connection:
        rows.session(connection, rows.project(connection), **columns)

        connection.execute(text("update sessions set bouts = '[]', status = 'Visualized', verified = 100"))


def test_an_odd_project_of_the_application_is_not_refused(database: Engine) -> None:
    with database.begin() as connection:
        rows.project(connection, path="", project_type="dataset_based")

        connection.execute(text("update projects set labelings = '[\"smoking\"]'"))


def test_directories_that_differ_in_case_only_are_two_sessions(database: Engine) -> None:
    with database.begin() as connection:
        project_id = rows.project(connection)
        rows.session(connection, project_id, "A")
        rows.session(connection, project_id, "a")

        assert count(connection, "sessions") == 2


def test_a_path_may_be_longer_than_500_characters(database: Engine) -> None:
    path = "/label" + "/deeper" * 200

    with database.begin() as connection:
        project_id = rows.project(connection, path=path, legacy_path=path)
        rows.session(connection, project_id, parent_session_data_path=path)
        dataset_id = rows.dataset(connection, file_path=path)
        rows.insert(
            connection,
            "raw_dataset_sessions",
            "raw_session_id",
            dataset_id=dataset_id,
            session_name="one",
            session_path=path,
        )


# updated_at -------------------------------------------------------------------------------------------------


def touched(engine: Engine, table: str, assignment: str) -> tuple[datetime, datetime]:
    """`updated_at` before and after an update in a transaction of its own."""
    with engine.begin() as connection:
        before = connection.execute(text(f"select updated_at from {table}")).scalar_one()
    with engine.begin() as connection:
        connection.execute(text(f"update {table} set {assignment}"))
        after = connection.execute(text(f"select updated_at from {table}")).scalar_one()
    return before, after


@pytest.mark.parametrize("table", ["raw_datasets", "project_split_configs", "models"])
def test_an_update_of_a_row_sets_updated_at(database: Engine, table: str) -> None:
    with database.begin() as connection:
        rows.split_config(connection, rows.project(connection), rows.dataset(connection))
        rows.insert(
            connection, "models", "model_id", name="m", py_filename="m.py", pt_filename="m.pt", class_name="M"
        )

    before, after = touched(database, table, "created_at = created_at")
    assert after > before

    _, chosen = touched(database, table, "updated_at = '2001-02-03 04:05:06+00'")
    assert chosen.year == 2001
