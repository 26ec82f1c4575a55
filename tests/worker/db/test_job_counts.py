"""The kept counts of jobs are those of all rows, whatever happened to them and was asked meanwhile."""

import random
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, text

from tests.support.ledger_rows import (
    at_once,
    end,
    expire,
    its_time_comes,
    make_run,
    must_take,
    outcome,
    processes,
    renew,
)
from worker.db import job_counts, leases, ledger, overview, schema
from worker.db.leases import Lease
from worker.errors import LeaseLostError
from worker.messages import DiskBytes, JobRef, LinkCounts, Outcome, Status, Subject

ERRORS = (None, "DirectoryMissingError", "NoSessionsError")


class History:
    """Random things that happen to some runs; what is possible is chosen by chance."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.leases: list[Lease] = []
        self.runs: list[uuid.UUID] = []
        self.steps: list[Callable[[], object]] = [
            self.open, self.take, self.take, self.take, self.take, self.renew, self.end, self.end, self.hand_back,
            self.wait, self.fenced, self.retry, self.cancel, self.expire, self.finish, self.fold, self.delete, self.skip,
        ]  # fmt: skip

    def step(self) -> None:
        self.random.choice(self.steps)()

    def open(self) -> None:
        if len(self.runs) < 6:
            projects = self.random.sample(range(1, 9), self.random.randint(1, 6))
            size = self.random.choice([None, 100])
            dry = self.random.random() < 0.3
            self.runs.append(make_run(self.engine, projects, dry_run=dry, size_bytes=size))

    def skip(self) -> None:
        """A run whose only job has its outcome from the beginning, and one of a dataset."""
        if len(self.runs) < 6:
            self.runs.append(make_run(self.engine, [9], skipped=outcome(9, Status.SKIPPED)))
            self.runs.append(make_run(self.engine, [3], subject=Subject.DATASET))

    def take(self) -> None:
        its_time_comes(self.engine)
        with self.engine.begin() as conn:
            waiting = [
                JobRef.from_row(row)
                for row in conn.execute(text("select * from migration_jobs where state = 'queued'"))
            ]
            if waiting:
                taken = leases.take_lease(conn, self.random.choice(waiting), "w", 60.0)
                self.leases += [taken] if taken else []

    def renew(self) -> None:
        if self.leases:
            renew(
                self.engine,
                self.random.choice(self.leases),
                files_done=self.random.randint(1, 9),
                bytes_done=150,
            )

    def end(self) -> None:
        if self.leases:
            lease = self.leases.pop(self.random.randrange(len(self.leases)))
            status = self.random.choice([Status.MIGRATED, Status.FAILED, Status.SKIPPED, Status.CANCELLED])
            cloned = self.random.choice([0, 3])
            self.mine(lambda: end(self.engine, lease, self.outcome(lease, status, cloned)))

    def outcome(self, lease: Lease, status: Status, cloned: int) -> Outcome:
        error = self.random.choice(ERRORS) if status is Status.FAILED else None
        return outcome(
            lease.ref.subject_id,
            status,
            error_class=error,
            links=LinkCounts(cloned=cloned),
            disk=DiskBytes(shared=4096 * cloned),
        )

    def hand_back(self) -> None:
        if self.leases:
            lease, again = self.random.choice(self.leases), self.random.choice([None, 5.0])
            self.mine(lambda: self.begin(lambda conn: leases.hand_back(conn, lease, retry_in_s=again)))

    def wait(self) -> None:
        if self.leases:
            lease = self.random.choice(self.leases)
            self.mine(lambda: self.begin(lambda conn: leases.wait_for(conn, lease, "/root", "because")))

    def fenced(self) -> None:
        if self.leases:
            self.begin(lambda conn: leases.note_fenced(conn, self.random.choice(self.leases)))

    def expire(self) -> None:
        if self.runs:
            expire(self.engine, self.random.choice(self.runs))
            self.begin(
                lambda conn: [leases.hand_back_for(conn, dead) for dead in leases.expired(conn, 10, 60.0)]
            )

    def retry(self) -> None:
        if self.runs:
            self.begin(lambda conn: ledger.retry_failed(conn, self.random.choice(self.runs)))

    def cancel(self) -> None:
        if self.runs and self.random.random() < 0.3:
            self.begin(lambda conn: ledger.cancel_run(conn, self.random.choice(self.runs), "why"))

    def finish(self) -> None:
        self.begin(ledger.finish_ended_runs)

    def fold(self) -> None:
        self.begin(job_counts.fold)

    def delete(self) -> None:
        """No job of ours does that, but the database lets people do it."""
        if self.runs and self.random.random() < 0.2:
            gone = self.runs.pop(self.random.randrange(len(self.runs)))
            self.begin(
                lambda conn: conn.execute(
                    text("delete from migration_runs where run_id = :run"), {"run": gone}
                )
            )

    def begin(self, write: Callable[[Connection], object]) -> None:
        with self.engine.begin() as conn:
            write(conn)

    def mine(self, write: Callable[[], object]) -> None:
        try:
            write()
        except LeaseLostError:
            return


def counted(conn: Connection) -> list[tuple[object, ...]]:
    """Over all jobs there are."""
    rows = conn.execute(
        text("""
            select run_id, subject, state, error_class, count(*), sum(retries), sum(crashes), sum(fenced),
                   sum(coalesce(bytes_total, 0)),
                   sum(case state when 'running' then 0 when 'queued' then least(bytes_done, coalesce(bytes_total, bytes_done)) when 'held' then 0
                       else coalesce(bytes_total, 0) end),
                   sum(case state when 'running' then 0 else files_done end),
                   sum(case when (outcome #>> '{links,cloned}')::integer > 0 then (outcome #>> '{disk,shared}')::bigint else 0 end)
            from migration_jobs group by 1, 2, 3, 4 order by 1, 2, 3, 4""")
    )
    return [tuple(row) for row in rows]


def kept(conn: Connection) -> list[tuple[object, ...]]:
    """As they are kept."""
    rows = conn.execute(
        text("""
            select run_id, subject, state, error_class, sum(jobs), sum(retries), sum(crashes), sum(fenced), sum(bytes_total),
                   sum(bytes_done), sum(files_done), sum(shared_bytes)
            from migration_job_counts group by 1, 2, 3, 4
            having (sum(jobs), sum(retries), sum(crashes), sum(fenced), sum(bytes_total), sum(bytes_done), sum(files_done),
                    sum(shared_bytes)) <> (0, 0, 0, 0, 0, 0, 0, 0) order by 1, 2, 3, 4""")
    )
    return [tuple(row) for row in rows]


def check_figures(conn: Connection) -> None:
    """What metrics show, against a count over all jobs."""
    found = overview.figures(conn)
    assert [tuple(row) for row in found.jobs] == [
        tuple(row)
        for row in conn.execute(
            text("""
                select r.verb, r.dry_run, j.state, j.error_class, count(*), sum(j.retries), sum(j.crashes), sum(j.fenced)
                from migration_jobs j join migration_runs r using (run_id) group by 1, 2, 3, 4 order by 1, 2, 3, 4""")
        )
    ]
    assert [tuple(row) for row in found.failed] == [
        tuple(row)
        for row in conn.execute(
            text("""
                select verb, error_class, count(*) from (
                    select distinct on (r.verb, j.subject, j.subject_id) r.verb, j.state, j.error_class
                    from migration_jobs j join migration_runs r using (run_id) where not r.dry_run
                    order by r.verb, j.subject, j.subject_id, r.created_at desc) as latest
                where state = 'failed' group by 1, 2 order by 1, 2""")
        )
    ]
    still_open = conn.execute(
        text("""
            select coalesce(sum(j.bytes_total), 0),
                   coalesce(sum(case when j.state in ('queued', 'running') then least(j.bytes_done, coalesce(j.bytes_total, j.bytes_done))
                                     else j.bytes_total end), 0),
                   count(distinct j.worker) filter (where j.lease_until > clock_timestamp()),
                   min(j.queued_at) filter (where j.state = 'queued') is not null
            from migration_jobs j join migration_runs r using (run_id) where r.state in ('planned', 'running', 'paused')""")
    ).one()
    now = found.open
    assert (now.bytes_total, now.bytes_done, now.workers, now.oldest_waiting_s > 0) == tuple(still_open)


@pytest.mark.parametrize("seed", range(6))
def test_the_counts_are_those_of_all_jobs_after_any_history(
    database: Engine, seed: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_counts, "FOLD_AT", 5)
    history = History(database, seed)

    for _ in range(120):
        history.step()
        with database.connect() as conn:
            assert kept(conn) == counted(conn)
            check_figures(conn)

    # The counts are folded, so there is something to be seen of it.
    with database.begin() as conn:
        job_counts.fold(conn)
        assert conn.scalar(text("select count(*) from migration_job_counts where not folded")) < 5
        assert kept(conn) == counted(conn)


def test_all_are_counted_anew_when_the_tables_are_brought_up_to_date(database: Engine):
    """For jobs that came or changed while no trigger saw it, as in a restore of rows alone."""
    end(database, must_take(database, make_run(database, [1, 2]), 1))
    with database.begin() as conn:
        conn.execute(text("set local session_replication_role = replica"))
        conn.execute(text("update migration_jobs set retries = 7"))
        conn.execute(text("delete from schema_steps where name = 'create_migration_ledger'"))
        assert kept(conn) != counted(conn)

    schema.apply(database)

    with database.begin() as conn:
        assert kept(conn) == counted(conn)
        conn.execute(
            text("set local session_replication_role = replica; update migration_jobs set retries = 8")
        )
        conn.execute(text("select migration_count_all_jobs()"))
        assert kept(conn) == counted(conn)


def test_jobs_that_end_at_once_do_not_wait_for_each_other_nor_for_who_folds(database: Engine):
    run_id = make_run(database, [1, 2, 3], size_bytes=100)
    first, second, third = (must_take(database, run_id, number) for number in (1, 2, 3))

    with database.connect() as ending, database.connect() as folding:
        leases.end_job(ending, first, outcome(1))
        folding.execute(text("set local lock_timeout = '100ms'"))
        job_counts.fold(folding)
        with database.begin() as other:
            other.execute(text("set local lock_timeout = '100ms'"))
            leases.end_job(other, second, outcome(2))
            job_counts.fold(other)
        folding.commit()
        ending.commit()
    end(database, third)

    with database.connect() as conn:
        assert kept(conn) == counted(conn)


def test_counts_add_up_when_many_end_jobs_and_fold_at_once(database: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_counts, "FOLD_AT", 3)
    numbers = range(1, 41)
    run_id = make_run(database, numbers, size_bytes=100)
    waiting = list(numbers)

    def work(engine: Engine) -> None:
        while waiting:
            number = waiting.pop()
            end(engine, must_take(engine, run_id, number), outcome(number))
            with engine.begin() as conn:
                job_counts.fold(conn)

    with processes(database, 4) as engines:
        at_once(engines, work)

    with database.connect() as conn:
        assert kept(conn) == counted(conn)
        assert overview.progress(conn, run_id).ended == len(numbers)
