"""Claims: one attempt stores at a time, whatever becomes of it, and no transaction stays open meanwhile."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import Engine, text

from tests.support.claims import held, owner, waiting_for_claims
from tests.support.ledger_rows import at_once, processes
from tests.support.waiting import PATIENCE_S, eventually
from worker.db import claims, garbage
from worker.errors import ClaimLostError, DatabaseUnavailableError

HASH, OTHER = "ab" * 32, "cd" * 32
SHORT_S = 0.3


@contextmanager
def another_waits(
    database: Engine, engine: Engine, *keys: str, lease_s: float = PATIENCE_S
) -> Iterator[threading.Event]:
    """Another job that waits for the claim when the block begins, or has got it already, as the event
    says.
    """
    got, release = threading.Event(), threading.Event()

    def wait() -> None:
        with held(engine, *(keys or (HASH,)), lease_s=lease_s):
            got.set()
            release.wait(PATIENCE_S)

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(wait)
        eventually(lambda: got.is_set() or waiting_for_claims(database) == 1, "the other waits")
        try:
            yield got
        finally:
            release.set()
        waiting.result(30)


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


def idle_in_transaction(database: Engine) -> int:
    with database.connect() as conn:
        query = """
            select count(*) from pg_stat_activity
            where datname = current_database() and state like 'idle in transaction%'"""
        return conn.scalar(text(query)) or 0


def test_of_many_jobs_that_claim_a_dataset_at_once_each_has_it_alone(database: Engine):
    holders: list[int] = []
    most: list[int] = []

    def hold(engine: Engine) -> None:
        with held(engine, HASH) as claim:
            holders.append(1)
            most.append(len(holders))
            claim.ping()
            holders.pop()

    with processes(database, 8) as engines:
        at_once(engines, hold)

    assert most == [1] * 8


def test_jobs_whose_claims_overlap_end_all_and_each_is_alone_with_each_key(database: Engine):
    keys = [f"{letter}" * 64 for letter in "abcd"]
    busy: set[str] = set()
    met: list[str] = []

    def hold(engine: Engine) -> None:
        for number in range(12):
            wanted = [keys[number % 4], keys[(number * 3 + 1) % 4], keys[(number + 2) % 4]]
            with held(engine, *wanted):
                met.extend(busy & set(wanted))
                busy.update(wanted)
                busy.difference_update(wanted)

    with processes(database, 6) as engines:
        at_once(engines, hold)

    assert met == []


def test_no_transaction_is_open_while_a_claim_is_held_or_waited_for(database: Engine):
    with processes(database, 2) as (one, other), ExitStack() as waiting, held(one, HASH):
        got = waiting.enter_context(another_waits(database, other))
        for _ in range(20):
            assert idle_in_transaction(database) == 0
        assert not got.is_set()


def test_claims_on_different_datasets_do_not_wait_for_each_other(database: Engine):
    with processes(database, 2) as (one, other), held(one, HASH), held(other, OTHER) as claim:
        claim.ping()


def test_who_cannot_have_all_keys_takes_none(database: Engine):
    with processes(database, 3) as (one, other, third), ExitStack() as waiting, held(one, HASH):
        got = waiting.enter_context(another_waits(database, other, HASH, OTHER))
        with held(third, OTHER) as claim:
            claim.ping()
        assert not got.is_set()


def test_a_claim_is_free_again_after_its_block_and_after_an_error(database: Engine):
    with pytest.raises(ZeroDivisionError), held(database, HASH):
        raise ZeroDivisionError
    for _ in range(3):
        with held(database, HASH) as claim:
            claim.ping()

    with pytest.raises(ClaimLostError):
        claim.ping()


def test_a_waiting_job_hears_at_once_that_the_owner_is_done(
    database: Engine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claims, "_POLL_S", PATIENCE_S)
    with processes(database, 2) as (one, other), ExitStack() as waiting:
        with held(one, HASH):
            got = waiting.enter_context(another_waits(database, other))
            assert not got.is_set()

        eventually(got.is_set, "the other has the claim", within_s=PATIENCE_S / 2)


def test_a_waiting_job_finds_out_by_itself_what_it_does_not_hear(database: Engine):
    with processes(database, 2) as (one, other), held(one, HASH), another_waits(database, other) as got:
        with database.begin() as conn:
            conn.execute(text("update dataset_claims set owner = null, attempt = null, expires_at = null"))

        eventually(got.is_set, "the other has the claim")


@pytest.mark.usefixtures("every_connection_is_pinged")
def test_a_wait_outlives_the_connection_on_which_it_listens(database: Engine):
    with processes(database, 2) as (one, other), ExitStack() as waiting:
        with held(one, HASH):
            got = waiting.enter_context(another_waits(database, other))
            kill(database, other)
            assert not got.wait(0.1)

        eventually(got.is_set, "the other has the claim")


def test_nobody_gets_a_connection_that_listens(database: Engine):
    with processes(database, 2) as (one, other):
        with ExitStack() as waiting:
            with held(one, HASH):
                got = waiting.enter_context(another_waits(database, other))
            eventually(got.is_set, "the other has the claim")

        with other.connect() as conn:
            assert conn.execute(text("select pg_listening_channels()")).all() == []
            assert not conn.connection.driver_connection.autocommit  # type: ignore[union-attr]


def test_an_owner_that_does_not_renew_loses_the_claim_and_is_told(database: Engine):
    with (
        processes(database, 2) as (one, other),
        held(one, HASH, what="a dataset", lease_s=SHORT_S) as claim,
        another_waits(database, other, lease_s=SHORT_S) as got,
    ):
        eventually(got.is_set, "the other has the claim")

        with pytest.raises(ClaimLostError, match=r"^The claim on a dataset was lost while it was stored$"):
            claim.ping()
        # The one who lost it gives nothing back that is another's.
        claim.give_back()
        with database.connect() as conn:
            assert conn.scalar(text("select count(*) from dataset_claims where owner is not null")) == 1


def test_an_owner_that_renews_keeps_the_claim_beyond_its_time(database: Engine):
    with (
        processes(database, 2) as (one, other),
        held(one, HASH, lease_s=3) as claim,
        another_waits(database, other, lease_s=3) as got,
    ):
        end = time.monotonic() + 3.6
        while time.monotonic() < end:
            claim.ping()
            assert not got.wait(0.05)


def test_the_next_attempt_at_a_job_takes_over_and_the_earlier_one_is_fenced_off(database: Engine):
    job = uuid.uuid4()
    with held(database, HASH, by=owner(3, job)) as earlier, held(database, HASH, by=owner(4, job)) as later:
        later.ping()
        with pytest.raises(ClaimLostError):
            earlier.ping()


def test_the_claims_of_a_dead_attempt_are_free_when_its_job_is(database: Engine):
    job = uuid.uuid4()
    with (
        processes(database, 2) as (one, other),
        held(one, HASH, by=owner(3, job)),
        another_waits(database, other) as got,
    ):
        with database.begin() as conn:
            claims.give_back_for(conn, owner(2, job))
        assert not got.wait(0.1)
        with database.begin() as conn:
            claims.give_back_for(conn, owner(3, job))

        eventually(got.is_set, "the other has the claim")


def test_a_claim_that_cannot_be_renewed_is_lost_when_it_may_be_another_s(
    database: Engine, monkeypatch: pytest.MonkeyPatch
):
    def away(_engine: Engine) -> None:
        raise DatabaseUnavailableError("away")

    with held(database, HASH, lease_s=SHORT_S) as claim:
        monkeypatch.setattr(claims, "autocommit", away)
        with pytest.raises(DatabaseUnavailableError):
            claim.ping()
        time.sleep(SHORT_S)
        with pytest.raises(ClaimLostError):
            claim.ping()
        monkeypatch.undo()


def test_a_wait_goes_on_when_somebody_removed_the_row(database: Engine):
    with processes(database, 2) as (one, other), held(one, HASH), another_waits(database, other) as got:
        with database.begin() as conn:
            conn.execute(text("delete from dataset_claims"))

        eventually(got.is_set, "the other has the claim")


def test_gc_removes_no_claim_that_is_held(database: Engine):
    def pruned() -> int:
        with database.begin() as conn:
            return garbage.prune(conn, "dataset_claims", 0, uuid.uuid4())

    with held(database, HASH):
        assert pruned() == 0
    assert pruned() == 1


def test_a_claim_that_a_failover_lost_is_not_the_one_of_the_same_attempt(database: Engine):
    """The attempt gets its number again, and takes the claim that the replica never heard of."""
    job = uuid.uuid4()
    with held(database, HASH, by=owner(1, job)) as lost:
        with database.begin() as conn:
            conn.execute(text("delete from dataset_claims"))
        with held(database, HASH, by=owner(1, job)) as again:
            with pytest.raises(ClaimLostError):
                lost.ping()
            lost.give_back()
            again.ping()
