"""Runs that are opened and done in this process: the ledger's rows as the producer writes them, jobs as a
worker does them.
"""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, text

from tests.support.ledger_rows import await_old_server
from tests.support.sites import LEASE_S, Site
from tests.support.waiting import PATIENCE_S
from worker.db import datasets, ledger, projects
from worker.db.ledger import NewJob
from worker.jobs.adopt import adopt
from worker.jobs.collect_garbage import collect_garbage
from worker.jobs.migrate import migrate
from worker.jobs.reclaim import reclaim
from worker.jobs.rollback import rollback
from worker.jobs.tools import Tools, connect
from worker.jobs.verify import verify_sessions
from worker.jobs.verify_store import verify_store
from worker.messages import THE_STORE, JobRef, Outcome, Status, Subject, Verb

WORK: dict[tuple[Verb, Subject], Callable[[Tools, JobRef, str], Outcome | None]] = {
    (Verb.MIGRATE, Subject.PROJECT): migrate,
    (Verb.ROLLBACK, Subject.PROJECT): rollback,
    (Verb.VERIFY, Subject.PROJECT): verify_sessions,
    (Verb.GC, Subject.STORE): collect_garbage,
    (Verb.RECLAIM, Subject.PROJECT): reclaim,
    (Verb.VERIFY, Subject.DATASET): verify_store,
    (Verb.ADOPT, Subject.DATASET): adopt,
}


@contextmanager
def tools_of(site: Site, *, engine: Engine | None = None) -> Iterator[Tools]:
    """What a worker process of this site has."""
    with ThreadPoolExecutor(2, thread_name_prefix="ingest") as threads:
        yield Tools(settings=site.settings, engine=engine or site.engine, threads=threads)


@contextmanager
def another_worker(site: Site, name: str) -> Iterator[Tools]:
    """The same with connections of its own, as another process would have."""
    engine = connect(site.settings, name)
    try:
        with tools_of(site, engine=engine) as tools:
            yield tools
    finally:
        engine.dispose()


def open_run(
    engine: Engine,
    verb: Verb,
    *,
    only: Iterable[int] | None = None,
    dry_run: bool = False,
    subject: Subject = Subject.PROJECT,
    **options: object,
) -> list[JobRef]:
    """Write a running run over all subjects that the verb concerns, or some of them; its jobs in the order of
    ids.
    """
    run_id = uuid.uuid4()
    with engine.begin() as conn:
        found = _subjects(conn, verb, subject)
        wanted = [number for number, (_, path) in found.items() if path] if only is None else only
        # A project that was deleted since somebody chose it has no job.
        chosen = sorted(number for number in wanted if number in found)
        ledger.open_run(conn, run_id, verb, dry_run=dry_run, selection={"options": options})
        ledger.add_jobs(
            conn,
            run_id,
            [
                NewJob(
                    subject=subject,
                    subject_id=number,
                    subject_name=found[number][0],
                    path=found[number][1],
                )
                for number in chosen
            ],
        )
        ledger.start_run(conn, run_id)
    return [JobRef(run_id=run_id, subject=subject, subject_id=number) for number in chosen]


def _subjects(conn: Connection, verb: Verb, subject: Subject) -> dict[int, tuple[str, str | None]]:
    """Name and path of everything that a run of this verb may have a job about."""
    if subject is Subject.STORE:
        return {THE_STORE: ("", None)}
    if subject is Subject.DATASET:
        return {one.dataset_id: (one.dataset_name, one.file_path) for one in datasets.all_of(conn)}
    if verb is Verb.MIGRATE:
        return {one.project_id: (one.project_name, one.path) for one in projects.legacy_projects(conn)}
    return {one.project_id: (one.project_name, one.legacy_path) for one in projects.converted(conn)}


def do(tools: Tools, verb: Verb, refs: Iterable[JobRef], worker: str = "worker") -> dict[int, Outcome]:
    """Do these jobs one after the other; the outcomes of those that were ours to do, by id."""
    outcomes = {ref.subject_id: WORK[verb, ref.subject](tools, ref, worker) for ref in refs}
    return {number: outcome for number, outcome in outcomes.items() if outcome is not None}


def run(
    tools: Tools,
    verb: Verb,
    *,
    only: Iterable[int] | None = None,
    dry_run: bool = False,
    **options: Any,
) -> dict[int, Outcome]:
    """Open a run and do all its jobs."""
    return do(tools, verb, open_run(tools.engine, verb, only=only, dry_run=dry_run, **options))


def migrate_all(site: Site, tools: Tools) -> list[Outcome]:
    """Migrate every project, each of which must be; their outcomes by the order of ids."""
    outcomes = do(tools, Verb.MIGRATE, open_run(site.engine, Verb.MIGRATE))
    assert {outcome.status for outcome in outcomes.values()} == {Status.MIGRATED}
    return [outcomes[number] for number in sorted(outcomes)]


def verify_datasets(tools: Tools, *, only: Iterable[int] | None = None, **options: Any) -> list[Outcome]:
    """Verify stored datasets, all or some; their outcomes by the order of ids."""
    outcomes = run(tools, Verb.VERIFY, only=only, subject=Subject.DATASET, store=True, **options)
    return [outcomes[number] for number in sorted(outcomes)]


def run_one(
    tools: Tools, verb: Verb, project_id: int, *, dry_run: bool = False, **options: object
) -> Outcome:
    """Open a run over one project and do its job."""
    return run(tools, verb, only=[project_id], dry_run=dry_run, **options)[project_id]


def gc(tools: Tools, *, dry_run: bool = False, **options: object) -> Outcome:
    """A gc without a grace time, unless one is given."""
    options = {"grace_hours": 0} | options
    return run(tools, Verb.GC, only=[THE_STORE], subject=Subject.STORE, dry_run=dry_run, **options)[THE_STORE]


def at_once(site: Site, jobs: Sequence[tuple[Verb, JobRef]]) -> list[Outcome | None]:
    """Do every job by a worker of its own, with connections of its own, all beginning at the same moment."""
    together = threading.Barrier(len(jobs))

    def work(number: int) -> Outcome | None:
        verb, ref = jobs[number]
        with another_worker(site, f"worker {number}") as tools:
            together.wait(PATIENCE_S)
            return WORK[verb, ref.subject](tools, ref, f"worker {number}")

    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(work, range(len(jobs))))


def let_lease_run_out(engine: Engine, ref: JobRef) -> None:
    """What time does to the lease of a dead holder, and to its claims."""
    with engine.begin() as conn:
        await_old_server(conn, LEASE_S)
        conn.execute(
            text("""
                update migration_jobs set lease_until = clock_timestamp() - interval '1 second'
                where run_id = :run_id and subject = :subject and subject_id = :id and state = 'running'"""),
            {"run_id": ref.run_id, "subject": ref.subject, "id": ref.subject_id},
        )
        conn.execute(
            text("""
                update dataset_claims set expires_at = clock_timestamp() - interval '1 second'
                where owner = :task_id"""),
            {"task_id": ref.task_id},
        )
