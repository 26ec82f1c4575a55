"""`python -m tests.bench.large_ledger`: what the questions to a large ledger cost, on generated rows.

No file of any project exists. The rows stay in the folder, and are measured again by the next call.
"""

import argparse
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine, text

from producer.local.stack import stack
from worker.database_url import parse
from worker.db import garbage, leases, ledger, messages_sent, overview, projects, reclaims, recordings, schema
from worker.db.engine import connect
from worker.messages import JobRef, Outcome, Status

_LEASE_S = 60.0
_ROUNDS = 5
_FEW, _MANY = uuid.UUID(int=1), uuid.UUID(int=2)
"""Open runs, of 1,000 jobs and of as many as there are projects: half of them have ended, some run."""
_ENDED = "cast('00000000-0000-4000-8000-' || lpad(cast(run as text), 12, '0') as uuid)"
_OTHERS = "cast('00000000-0000-4001-8000-' || lpad(cast(run as text), 12, '0') as uuid)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many rows there are of each kind. `runs` have ended, of 10,000 jobs each."""

    projects: int
    sessions: int
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something that the program asks, done once and undone."""

    name: str
    ask: Callable[[Connection], object]


def main() -> None:
    """Make the rows unless they are there, ask everything, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/large-ledger"))
    parser.add_argument("--projects", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=100, help="that have ended, of 10,000 jobs each")
    parser.add_argument("--only", default="", help="questions that have this in their name")
    options = parser.parse_args()
    size = Size(projects=options.projects, sessions=options.sessions, runs=options.runs)
    console = Console(width=130, highlight=False)
    with stack(options.folder.resolve() / "state", workers=0) as servers:
        engine = connect(parse(servers.addresses.database_url), application_name="large ledger")
        begin = time.perf_counter()
        schema.apply(engine, with_baseline=True)
        console.print(f"tables: {time.perf_counter() - begin:.1f} s")
        if make(engine, size):
            console.print(f"rows: {time.perf_counter() - begin:.1f} s")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("question", "median ms", "min", "max"):
            table.add_column(column, justify="left" if column == "question" else "right", no_wrap=True)
        for question in questions(size):
            if options.only in question.name:
                times = [_once_ms(engine, question) for _ in range(_ROUNDS)]
                shown = (statistics.median(times), min(times), max(times))
                table.add_row(question.name, *(f"{one:,.1f}" for one in shown))
                console.print(question.name, *(f"{one:,.1f}" for one in shown))
        console.print(table)
        engine.dispose()


def _once_ms(engine: Engine, question: Question) -> float:
    with engine.connect() as conn:
        conn.execute(text("select 1"))
        begin = time.perf_counter()
        question.ask(conn)
        elapsed = time.perf_counter() - begin
        conn.rollback()
    return elapsed * 1000


# Rows -------------------------------------------------------------------------------------------------------


def make(engine: Engine, size: Size) -> bool:
    """Make all rows, if there are none: nine projects of ten are migrated, each session's own content in two
    projects; every run has jobs of 10,000 projects, of which one in a hundred failed.
    """
    with engine.begin() as conn:
        if conn.scalar(text("select exists (select from projects)")):
            return False
    sessions_each = size.sessions // size.projects
    values = {
        "projects": size.projects,
        "each": sessions_each,
        "runs": size.runs,
        "most": min(10_000, size.projects),
        "few": _FEW,
        "many": _MANY,
    }
    for statement in _ROWS:
        with engine.begin() as conn:
            conn.execute(text("set local session_replication_role = replica; set local work_mem = '256MB'"))
            names = {name for name in values if f":{name}" in statement}
            conn.execute(text(statement), {name: values[name] for name in names})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("select migration_count_all_jobs()"))
        conn.execute(text("vacuum analyze"))
    return True


_OUTCOME = """jsonb_build_object('project_id', p, 'project_name', 'study ' || p, 'status',
                   case when p % 100 = 0 then 'failed' else 'migrated' end, 'reason', repeat('because ', 40),
                   'remedy', 'Look at it', 'links', jsonb_build_object('cloned', p % 2, 'hard', 0, 'copied', 1),
                   'disk', jsonb_build_object('shared', p, 'allocated', p))"""

_JOBS = """
    insert into migration_jobs (run_id, subject_id, subject_name, path, state, attempt, worker, lease_until, started_at,
                                finished_at, sent_at, sent_epoch, sessions_total, files_total, bytes_total, files_done, bytes_done,
                                outcome, error_class, error, queued_at)"""

_ROWS = (
    "insert into participants (participant_code) values ('P001')",
    """
    insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path)
    select d, 'study ' || d, encode(sha256(cast('d' || d as bytea)), 'hex'),
           '/data/raw_datasets/study_' || d || '-' || left(encode(sha256(cast('d' || d as bytea)), 'hex'), 12)
    from generate_series(1, :projects / 2) as d""",
    """
    insert into projects (project_id, project_name, participant_id, path, legacy_path, project_type)
    select p, 'study ' || p, 1, case when p % 10 = 0 then place end, case when p % 10 > 0 then place end,
           case when p % 10 = 0 then 'legacy' else 'dataset_based' end
    from generate_series(1, :projects) as p, lateral (select '/studies/lab' || p % 97 || '/study_' || p as place) as at""",
    """
    insert into project_dataset_refs (project_id, dataset_id)
    select p, 1 + p % (:projects / 2) from generate_series(1, :projects) as p where p % 10 > 0""",
    """
    insert into sessions (project_id, session_name, start_ns, stop_ns, parent_session_data_path, dataset_id, raw_session_name)
    select p, 'session_' || s, 0, 1000000000, case when p % 10 > 0 then d.file_path || '/session_' || s end,
           case when p % 10 > 0 then d.dataset_id end, case when p % 10 > 0 then 'session_' || s end
    from generate_series(1, :projects) as p join raw_datasets d on d.dataset_id = 1 + p % (:projects / 2)
    cross join generate_series(1, :each) as s""",
    """
    insert into migration_runs (run_id, verb, dry_run, state, selection, created_at, finished_at)
    select """
    + _ENDED
    + """, case when run % 4 = 3 then 'verify' else 'migrate' end, run % 2 = 0, 'finished', '{"options": {}}',
           timestamptz '2026-01-01' + run * interval '1 hour', timestamptz '2026-01-01' + run * interval '1 hour 30 minutes'
    from generate_series(1, :runs) as run
    union all
    select id, 'migrate', false, 'running',
           jsonb_build_object('options', '{}'::jsonb, 'skipped', (select jsonb_agg(repeat('left out ', 8)) from generate_series(1, jobs))),
           clock_timestamp() - interval '1 hour', null
    from (values (cast(:few as uuid), 1000), (cast(:many as uuid), :projects)) as open (id, jobs)""",
    _JOBS
    + """
    select """
    + _ENDED
    + """, p, 'study ' || p, '/studies/lab' || p % 97 || '/study_' || p,
           case when p % 100 = 0 then 'failed' else 'done' end, 1, 'worker ' || p % 8, null,
           began, began + interval '3 seconds', began, 'epoch', 100, 300, 1000000, 300, 1000000, """
    + _OUTCOME
    + """, case when p % 100 = 0 then 'NoSessionsError' end, case when p % 100 = 0 then repeat('no ', 30) end, began
    from generate_series(1, :runs) as run cross join lateral (
        select 1 + (run * 7919 + n) % :projects as p, timestamptz '2026-01-01' + run * interval '1 hour' + n * interval '100 ms' as began
        from generate_series(1, :most) as n) as jobs""",
    *(
        _JOBS
        + f"""
    select :{name}, p, 'study ' || p, '/studies/lab' || p % 97 || '/study_' || p,
           case when half = 0 and p % 100 = 0 then 'failed' when half = 0 then 'done' when p % 10001 = 1 then 'running' else 'queued' end,
           case when half = 0 or p % 10001 = 1 then 1 else 0 end, case when half = 0 or p % 10001 = 1 then 'worker ' || p % 8 end,
           case when half <> 0 and p % 10001 = 1 then clock_timestamp() + interval '100 days' end,
           case when half = 0 or p % 10001 = 1 then began end, case when half = 0 then began + interval '3 seconds' end,
           case when half = 0 or p % 7 > 0 then began end, 'epoch', 100, 300, 1000000, case when half = 0 then 300 else 0 end,
           case when half = 0 then 1000000 else 0 end, case when half = 0 then {_OUTCOME} end,
           case when half = 0 and p % 100 = 0 then 'NoSessionsError' end, case when half = 0 and p % 100 = 0 then repeat('no ', 30) end,
           clock_timestamp() - interval '1 hour'
    from generate_series(1, {count}) as p, lateral (
        select (p / 64) % 2 as half, clock_timestamp() - interval '1 hour' + p * interval '20 ms' as began) as at"""
        for name, count in (("few", "1000"), ("many", ":projects"))
    ),
    """
    insert into project_conversions (project_id, run_id, dataset_id, dataset_hash, legacy_path, before, tree_attributes)
    select p.project_id, :many, d.dataset_id, d.dataset_hash, p.legacy_path,
           jsonb_build_object('path', p.legacy_path, 'sessions', (select jsonb_agg(s) from generate_series(1, 100) as s)),
           decode(repeat('00', 500), 'hex')
    from projects p join project_dataset_refs r using (project_id) join raw_datasets d using (dataset_id)""",
    """
    insert into migration_reclaims (conversion_id, project_id, run_id, legacy_path, moved_from, moved_to, state)
    select conversion_id, project_id, run_id, legacy_path, legacy_path, '/studies/.label-reclaimed/' || project_id, 'reclaimed'
    from project_conversions where project_id % 3 = 0""",
    # Recordings of an hour or so: a million of sizes that are all near each other.
    """
    insert into migration_recording_counts (digest, size_bytes, records)
    select encode(sha256(cast('r' || r as bytea)), 'hex'), 30000000 + (cast(r as bigint) * 7919) % 3000000, 400000
    from generate_series(1, :projects * :each / 5) as r""",
)


# Questions --------------------------------------------------------------------------------------------------


def questions(size: Size) -> Iterator[Question]:
    """Everything that is measured."""
    for words, run in (("1,000 jobs", _FEW), (f"{size.projects:,} jobs", _MANY)):
        yield from _of_run(words, run)
    yield Question(name="reaper: expired", ask=lambda conn: leases.expired(conn, 500, _LEASE_S))
    yield Question(name="reaper: never_sent", ask=lambda conn: messages_sent.never_sent(conn, 500))
    yield Question(
        name="reaper: lost",
        ask=lambda conn: messages_sent.lost(conn, "epoch", queue_is_empty=True, limit=500),
    )
    yield Question(name="reaper: finish_ended_runs", ask=ledger.finish_ended_runs)
    yield Question(
        name="reaper: end_waiting_jobs_of_cancelled_runs",
        ask=lambda conn: ledger.end_waiting_jobs_of_cancelled_runs(conn, "because"),
    )
    yield Question(
        name="reaper: pause_runs_that_only_wait", ask=lambda conn: ledger.pause_runs_that_only_wait(conn, 60)
    )
    yield Question(name="metrics: figures", ask=overview.figures)
    yield Question(name="metrics: shared_bytes", ask=overview.shared_bytes)
    yield Question(name="metrics: bytes_by_state", ask=reclaims.bytes_by_state)
    yield Question(name="metrics: count_unreferenced", ask=garbage.count_unreferenced)
    around = ["/", "/studies", "/studies/lab7", "/studies/lab7/study_7"]
    yield Question(name="rollback: projects around", ask=lambda conn: projects.converted_at(conn, around))
    yield Question(name="reclaim: neighbours", ask=reclaims.neighbours)
    yield Question(name="reclaim: legacy_places", ask=reclaims.legacy_places)
    yield Question(name="reclaim: session_paths", ask=reclaims.session_paths)
    yield Question(name="gc: is a tree used", ask=lambda conn: garbage.is_used(conn, "study_0-0123456789ab"))
    yield Question(
        name="counting: known, of 100",
        ask=lambda conn: recordings.known(conn, ((30_000_000 + size, "head") for size in range(100))),
    )


def _of_run(words: str, run: uuid.UUID) -> Iterator[Question]:
    def taken(conn: Connection) -> leases.Lease:
        lease = leases.take_lease(conn, JobRef(run_id=run, subject_id=100), "worker", _LEASE_S)
        assert lease is not None
        return lease

    yield Question(name=f"lease, {words}: take_lease", ask=taken)

    def one_job(conn: Connection, end: Callable[[leases.Lease], Any]) -> None:
        end(taken(conn))

    for name, end in (
        (
            "renew_lease",
            lambda conn, lease: leases.renew_lease(
                conn, lease, _LEASE_S, phase="hash", dataset_hash=None, files_done=1, bytes_done=1
            ),
        ),
        ("hand_back", lambda conn, lease: leases.hand_back(conn, lease, retry_in_s=1.0, reason="because")),
        ("end_job", lambda conn, lease: leases.end_job(conn, lease, _OUTCOME_OF_ONE)),
    ):
        yield Question(
            name=f"lease, {words}: take_lease and {name}",
            ask=lambda conn, end=end: one_job(conn, lambda lease: end(conn, lease)),  # type: ignore[misc]
        )
    yield Question(
        name=f"lease, {words}: finish_run_if_ended", ask=lambda conn: ledger.finish_run_if_ended(conn, run)
    )
    yield Question(name=f"status, {words}: progress", ask=lambda conn: overview.progress(conn, run))
    yield Question(name=f"status, {words}: active_s", ask=lambda conn: overview.active_s(conn, run))
    yield Question(
        name=f"status, {words}: current_attempts", ask=lambda conn: overview.current_attempts(conn, run)
    )
    yield Question(name=f"status, {words}: retrying", ask=lambda conn: overview.retrying(conn, run, 10))
    yield Question(name=f"status, {words}: failures", ask=lambda conn: overview.failures(conn, run, 10))


_OUTCOME_OF_ONE = Outcome(project_id=100, project_name="study 100", status=Status.MIGRATED, reason="because")


if __name__ == "__main__":
    main()
