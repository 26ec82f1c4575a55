"""Datasets: one who stores at a time, whatever becomes of him, and rows that are whole."""

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from tests.support import rows
from tests.support.ledger_rows import processes
from worker.db import datasets
from worker.db.datasets import Dataset, RawSession
from worker.errors import ClaimLostError, DatabaseBusyError

HASH, OTHER = "ab" * 32, "cd" * 32
LONG_S = 60.0


def new_dataset(conn: Connection, **changes: Any) -> Dataset:
    values = {
        "name": "study",
        "dataset_hash": HASH,
        "file_path": "/data/raw_datasets/study-abababababab",
        "size_bytes": 2**40,
        "description": "Migrated from legacy project: study",
        "metadata": {"store": "/data/dataset_store"},
        "sessions": [],
    }
    given = values | changes
    return datasets.add(conn, session_count=len(given["sessions"]), **given)


# Rows -------------------------------------------------------------------------------------------------------


def test_a_dataset_is_found_as_it_was_written(database: Engine):
    with database.begin() as conn:
        made = new_dataset(conn)

    with database.begin() as conn:
        assert (
            datasets.find(conn, HASH)
            == datasets.lock(conn, HASH)
            == datasets.get(conn, made.dataset_id)
            == made
        )
        for missing in (datasets.find(conn, OTHER), datasets.lock(conn, OTHER), datasets.get(conn, 99)):
            assert missing is None
        row = conn.execute(text("select * from raw_datasets")).one()
    assert (row.dataset_name, row.file_size_bytes, row.session_count) == ("study", 2**40, 0)
    assert row.metadata == {"store": "/data/dataset_store"}


def test_a_datasets_sessions_are_written_with_labels_exactly_as_read(database: Engine):
    labels = ["[]", "", None, '{"a": "\\u0000"}', "größe 研究 🙂\r\n\t\\", '"' * 3, "x" * 100_000]
    sessions = [
        RawSession(
            session_name=f"s {number} é", session_path=f"/data/s {number}", labels=one, file_count=number
        )
        for number, one in enumerate(labels)
    ]

    with database.begin() as conn:
        new_dataset(conn, sessions=sessions)

        found = conn.execute(
            text(
                "select session_name, session_path, original_labels_json as labels, file_count"
                " from raw_dataset_sessions order by file_count"
            )
        ).mappings()
        assert [RawSession(**row) for row in found] == sessions
        assert conn.scalar(text("select session_count from raw_datasets")) == len(labels)


def test_a_dataset_that_another_job_wrote_meanwhile_is_not_written_twice(database: Engine):
    with database.begin() as conn:
        new_dataset(conn)

    with (
        database.connect() as conn,
        pytest.raises(ClaimLostError, match="was stored by another job meanwhile"),
    ):
        new_dataset(conn, name="the other")


def test_a_locked_dataset_cannot_be_deleted_meanwhile(database: Engine):
    with database.begin() as conn:
        new_dataset(conn)

    with processes(database, 1) as (other,), database.begin() as locking, other.connect() as deleting:
        datasets.lock(locking, HASH)

        deleting.execute(text("select set_config('lock_timeout', '50ms', true)"))
        with pytest.raises(DatabaseBusyError):
            deleting.execute(text("delete from raw_datasets"))


def test_a_reference_is_made_once_and_only_that_one_is_dropped(database: Engine):
    with database.begin() as conn:
        dataset_id = new_dataset(conn).dataset_id
        mine, theirs = (rows.project(conn, name) for name in ("mine", "theirs"))

        ref_id = datasets.refer(conn, mine, dataset_id)
        assert datasets.refer(conn, theirs, dataset_id) not in {None, ref_id}
        assert datasets.refer(conn, mine, dataset_id) is None

        datasets.drop_reference(conn, ref_id)
        datasets.drop_reference(conn, ref_id)
        datasets.drop_reference(conn, None)
        assert conn.scalars(text("select project_id from project_dataset_refs")).all() == [theirs]
