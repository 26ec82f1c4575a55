"""Runs, jobs and engines as tests of the ledger need them."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import Row

from tests.support.waiting import PATIENCE_S
from worker.db import leases, ledger
from worker.db.engine import connect
from worker.db.leases import Lease
from worker.db.ledger import NewJob
from worker.messages import JobRef, Outcome, Status, Verb

T = TypeVar("T")

LEASE_S = 60.0


def make_run(
    engine: Engine,
    projects: Sequence[int] = (1,),
    *,
    run_id: uuid.UUID | None = None,
    sent: bool = True,
    dry_run: bool = False,
    **columns: Any,
) -> uuid.UUID:
    """Open a run with a job for each project; `columns` are those of the jobs."""
    run_id = run_id or uuid.uuid4()
    jobs = [
        NewJob(
            **{"subject_id": number, "subject_name": f"study {number}", "path": f"/studies/{number}"}
            | columns
        )
        for number in projects
    ]
    with engine.begin() as conn:
        ledger.open_run(conn, run_id, Verb.MIGRATE, dry_run=dry_run, selection={"options": {"limit": 5}})
        ledger.add_jobs(conn, run_id, jobs)
        if sent:
            ledger.start_run(conn, run_id)
    return run_id


def take(engine: Engine, run_id: uuid.UUID, project_id: int = 1, worker: str = "w") -> Lease | None:
    """Try to take a job's lease, as a delivery of its message does."""
    with engine.begin() as conn:
        return leases.take_lease(conn, JobRef(run_id=run_id, subject_id=project_id), worker, LEASE_S)


def must_take(engine: Engine, run_id: uuid.UUID, project_id: int = 1, worker: str = "w") -> Lease:
    lease = take(engine, run_id, project_id, worker)
    assert lease is not None
    return lease


def renew(engine: Engine, lease: Lease, phase: str = "hash", **done: Any) -> bool:
    """Renew a lease as its worker does; is the job still its own?"""
    with engine.begin() as conn:
        return leases.renew_lease(
            conn,
            lease,
            LEASE_S,
            phase=phase,
            **{"dataset_hash": None, "files_done": 0, "bytes_done": 0} | done,
        )


def await_old_server(conn: Connection, lease_s: float = LEASE_S) -> None:
    """After a server's start no lease runs out for a while; the server of a test may be that young."""
    conn.execute(
        text("select pg_sleep_until(pg_postmaster_start_time() + make_interval(secs => :young_s))"),
        {"young_s": lease_s / 4 + 2},
    )


def expire(engine: Engine, run_id: uuid.UUID) -> None:
    """Let the time of every lease of a run be over."""
    with engine.begin() as conn:
        await_old_server(conn)
        conn.execute(
            text(
                "update migration_jobs set lease_until = clock_timestamp() - interval '1 second'"
                " where run_id = :id and state = 'running'"
            ),
            {"id": run_id},
        )


def outcome(project_id: int = 1, status: Status = Status.MIGRATED, **changes: Any) -> Outcome:
    return Outcome(
        **{
            "project_id": project_id,
            "project_name": f"study {project_id}",
            "status": status,
            "reason": "because",
        }
        | changes
    )


def end(engine: Engine, lease: Lease, ended: Outcome | None = None) -> None:
    with engine.begin() as conn:
        leases.end_job(conn, lease, ended or outcome(lease.ref.subject_id))


def set_run_state(engine: Engine, run_id: uuid.UUID, state: str) -> None:
    with engine.begin() as conn:
        conn.execute(
            text("update migration_runs set state = :state where run_id = :id"),
            {"id": run_id, "state": state},
        )


def its_time_comes(engine: Engine) -> None:
    """Let no job wait for its time any longer."""
    with engine.begin() as conn:
        conn.execute(text("update migration_jobs set not_before = clock_timestamp() where state = 'queued'"))


def job_of(engine: Engine, run_id: uuid.UUID, project_id: int = 1) -> dict[str, Any]:
    """A job's whole row."""
    with engine.connect() as conn:
        row = conn.execute(
            text("select * from migration_jobs where run_id = :id and project_id = :project"),
            {"id": run_id, "project": project_id},
        ).one()
    return dict(row._mapping)


@contextmanager
def processes(database: Engine, count: int) -> Iterator[list[Engine]]:
    """As many engines as workers would have, each with connections of its own."""
    with ExitStack() as all_of_them:
        engines = [connect(database.url, application_name=f"tests {number}") for number in range(count)]
        for engine in engines:
            all_of_them.callback(engine.dispose)
        yield engines


def at_once(engines: Sequence[Engine], call: Callable[[Engine], T]) -> list[T]:
    """Call once with each engine, all at the same moment; results or the first error."""
    together = threading.Barrier(len(engines))

    def one(engine: Engine) -> T:
        with engine.connect():  # a connection is open before the race begins
            together.wait(PATIENCE_S)
        return call(engine)

    with ThreadPoolExecutor(len(engines)) as threads:
        return list(threads.map(one, engines))


def jobs_of(conn: Connection, run_id: uuid.UUID) -> list[Row[Any]]:
    """The rows of a run's jobs, by project."""
    return list(
        conn.execute(
            text("select * from migration_jobs where run_id = :run_id order by project_id"),
            {"run_id": run_id},
        )
    )


def recorded_outcomes(conn: Connection, run_id: uuid.UUID) -> dict[JobRef, Outcome]:
    """The outcome of every job that has ended."""
    rows = conn.execute(
        text(
            "select run_id, subject, subject_id, outcome from migration_jobs where run_id = :run_id and outcome is not null"
        ),
        {"run_id": run_id},
    )
    return {JobRef.from_row(row): Outcome.from_json(row.outcome) for row in rows}
