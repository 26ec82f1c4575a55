"""Datasets: one who stores at a time, whatever becomes of him, and rows that are whole."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from tests.support import rows
from tests.support.ledger_rows import at_once, processes
from tests.support.waiting import PATIENCE_S, eventually
from worker.db import claims, datasets
from worker.db.datasets import Dataset, RawSession
from worker.errors import ClaimLostError, DatabaseBusyError, DatabaseUnavailableError

HASH, OTHER = "ab" * 32, "cd" * 32
LONG_S = 60.0


def claim(engine: Engine, digest: str = HASH, idle_timeout_s: float = LONG_S) -> Any:
    return claims.hold(engine, [digest], what=f"dataset {digest[:12]}", idle_timeout_s=idle_timeout_s)


def kill(database: Engine, engine: Engine) -> None:
    """End every connection of one engine from the server's side, as a restart or a vanished host does."""
    with engine.connect() as conn:
        name = conn.scalar(text("show application_name"))
    with database.begin() as conn:
        ended = conn.scalars(
            text(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
                " where application_name = :name and pid <> pg_backend_pid()"
            ),
            {"name": name},
        ).all()
    assert ended
    assert all(ended)


def waiting_for_a_lock(database: Engine) -> int:
    with database.connect() as conn:
        query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        return conn.scalar(text(query)) or 0


@contextmanager
def another_waits(database: Engine, engine: Engine) -> Iterator[threading.Event]:
    """Another job that waits for the claim when the block begins, or has got it already, as the event
    says.
    """
    got, release = threading.Event(), threading.Event()

    def wait() -> None:
        with claim(engine):
            got.set()
            release.wait(PATIENCE_S)

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(wait)
        eventually(lambda: got.is_set() or waiting_for_a_lock(database) == 1, "the other waits")
        try:
            yield got
        finally:
            release.set()
        waiting.result(30)


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


# The claim --------------------------------------------------------------------------------------------------


def test_of_many_jobs_that_claim_a_dataset_at_once_each_has_it_alone(database: Engine):
    holders: list[int] = []
    most: list[int] = []

    def hold(engine: Engine) -> None:
        with claim(engine) as held:
            holders.append(1)
            most.append(len(holders))
            held.ping()
            holders.pop()

    with processes(database, 8) as engines:
        at_once(engines, hold)

    assert most == [1] * 8


def test_claims_on_different_datasets_do_not_wait_for_each_other(database: Engine):
    with processes(database, 2) as (one, other), claim(one), claim(other, OTHER) as held:
        held.ping()


def test_a_claim_is_free_again_after_its_block(database: Engine):
    for _ in range(3):
        with claim(database) as held:
            held.ping()


def test_a_claim_is_free_again_after_an_error_which_is_passed_on(database: Engine):
    with pytest.raises(ZeroDivisionError), claim(database):
        raise ZeroDivisionError

    with processes(database, 1) as (other,), claim(other) as held:
        held.ping()


def test_a_waiting_job_gets_the_claim_when_its_owner_is_done(database: Engine):
    with processes(database, 2) as (one, other), ExitStack() as waiting:
        with claim(one):
            got = waiting.enter_context(another_waits(database, other))
            assert not got.is_set()

        eventually(got.is_set, "the other has the claim")


def test_when_the_owners_connection_dies_the_next_job_gets_the_claim(
    database: Engine,
):
    with processes(database, 2) as (one, other), claim(one) as held, another_waits(database, other) as got:
        held.ping()
        assert not got.is_set()

        kill(database, one)

        eventually(got.is_set, "the other has the claim")
        with pytest.raises(
            ClaimLostError, match=f"^The claim on dataset {HASH[:12]} was lost while it was stored$"
        ):
            held.ping()


def test_an_owner_that_does_not_ping_loses_the_claim_to_the_next_job(database: Engine):
    with (
        processes(database, 2) as (one, other),
        claim(one, idle_timeout_s=0.2) as held,
        another_waits(database, other) as got,
    ):
        eventually(got.is_set, "the other has the claim")

        with pytest.raises(ClaimLostError):
            held.ping()


def test_an_owner_that_pings_keeps_the_claim_beyond_the_time_limit(database: Engine):
    with (
        processes(database, 2) as (one, other),
        claim(one, idle_timeout_s=3) as held,
        another_waits(database, other) as got,
    ):
        end = time.monotonic() + 3.6
        while time.monotonic() < end:
            held.ping()
            assert not got.wait(0.05)


def test_the_time_limit_is_the_claims_own_and_not_the_connections(database: Engine):
    with processes(database, 1) as (one,):
        with claim(one, idle_timeout_s=0.2):
            pass

        with one.connect() as conn:
            assert conn.scalar(text("show idle_in_transaction_session_timeout")) == "0"


def test_work_that_was_committed_under_a_claim_that_died_stands(database: Engine):
    with processes(database, 1) as (one,):
        with claim(one), database.begin() as conn:
            new_dataset(conn)
            kill(database, one)

        with one.connect() as conn:
            assert datasets.find(conn, HASH) is not None


def test_a_claim_that_was_given_back_cannot_be_pinged(database: Engine):
    with claim(database) as held:
        pass

    with pytest.raises(ClaimLostError):
        held.ping()


def test_a_wait_whose_connection_dies_ends_with_an_unavailable_database(database: Engine):
    with processes(database, 2) as (one, other), claim(one), ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: claim(other).__enter__())
        eventually(lambda: waiting_for_a_lock(database) == 1, "the other waits")

        kill(database, other)

        assert isinstance(waiting.exception(30), DatabaseUnavailableError)


def test_a_claim_whose_row_was_removed_meanwhile_is_no_claim(database: Engine):
    with claim(database):
        pass

    with processes(database, 2) as (one, other), ThreadPoolExecutor(1) as thread:
        with one.begin() as removing:
            removing.execute(text("select from dataset_claims for update"))
            waiting = thread.submit(lambda: claim(other).__enter__())
            eventually(lambda: waiting_for_a_lock(database) == 1, "the other waits")
            removing.execute(text("delete from dataset_claims"))

        assert isinstance(waiting.exception(30), ClaimLostError)


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
