"""Runs of very many jobs that have ended: rows of the ledger and results of tasks, made up without any
files.
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, text

from tests.support.reports import BEGIN
from worker.db import ledger
from worker.db.texts import as_json
from worker.messages import (
    ByteCounts,
    Damage,
    DiskBytes,
    FileCounts,
    JobRef,
    LinkCounts,
    Outcome,
    RunState,
    Status,
    Subject,
    Verb,
    VerifiedCounts,
    Warning_,
)

if TYPE_CHECKING:
    import redis

WORKERS = 8
_CAUSES = (
    ("DirectoryMissingError", "Directory does not exist", "Mount the directory on every worker; then retry."),
    ("SourceChangedError", "A file changed while it was read", "Wait until nobody writes there; then retry."),
    ("UnreadableSourceError", "A file cannot be read", "Give the workers' user the right to read it."),
)
_AT_ONCE = 2_000


def project_outcomes(count: int, *, dry_run: bool = False, first: int = 1) -> Iterator[Outcome]:
    """What became of so many projects, in the order of their ids: of a hundred three failed and two were
    skipped, ten have a warning, and every third one of the others has the content of the one before.
    """
    for number in range(first, first + count):
        kind = number % 100
        name = f"Study of wrist {number % 977} week {number}"
        path = f"/srv/label/legacy/lab_{number % 13}/{name.replace(' ', '_')}_P{number:06d}_20250301_090000"
        outcome = Outcome(
            project_id=number,
            project_name=name,
            status=Status.WOULD_MIGRATE if dry_run else Status.MIGRATED,
            reason="its content is new: stored, and the project's rows point to it",
            original_path=path,
        )
        if kind in {7, 41, 77}:
            error_class, what, remedy = _CAUSES[number // 100 % len(_CAUSES)]
            yield outcome.with_changes(
                status=Status.FAILED,
                reason=f"{what}: {path}",
                error=f"{what}: {path}",
                error_class=error_class,
                remedy=remedy,
                files=FileCounts(left=6),
                **_times(number),
            )
        elif kind in {13, 59}:
            yield outcome.with_changes(status=Status.SKIPPED, reason="the project has no path")
        else:
            yield _stored(outcome, number, dry_run=dry_run)


def _stored(outcome: Outcome, number: int, *, dry_run: bool) -> Outcome:
    owner = number - 1 if number % 3 == 0 else number
    digest = f"{owner:064x}"
    size = 1_000_003 * (owner % 500 + 1)
    # Each job of a dry run that finds no dataset would create one: the collector settles it between equals.
    is_new = dry_run or owner == number
    return outcome.with_changes(
        dataset_id=None if dry_run else owner,
        dataset_hash=digest,
        dataset_path=f"/srv/label/data/dataset_store/raw_datasets/Study_of_wrist_week_{owner}-{digest[:12]}",
        dataset_created=is_new,
        sessions_count=number % 5,
        files=FileCounts(stored=6 * is_new, reused=6 * (not is_new)),
        bytes=ByteCounts(stored=size * is_new, reused=size * (not is_new)),
        links=LinkCounts(hard=6),
        disk=DiskBytes(legacy=size, store=size * (is_new and not dry_run)),
        warnings=(
            (
                Warning_(
                    message="2 rows point to a file that is not there", session=f"2025-03-0{number % 9 + 1}"
                ),
            )
            if number % 10 == 4
            else ()
        ),
        **_times(number),
    )


def _times(number: int) -> dict[str, object]:
    """Jobs one after the other on each worker, of 0.2 to 1.5 s."""
    start = BEGIN + timedelta(seconds=1.6 * (number // WORKERS))
    duration_s = 0.2 + number * 7919 % 1301 / 1000
    return {
        "worker": f"celery@machine{number % WORKERS}",
        "attempts": 1 + (number % 50 == 0),
        "started_at": start,
        "finished_at": start + timedelta(seconds=duration_s),
        "duration_s": duration_s,
    }


def dataset_outcomes(count: int) -> Iterator[Outcome]:
    """What a verification found of so many datasets: in a hundredth of them a file is damaged that the next
    dataset shares.
    """
    for number in range(1, count + 1):
        is_damaged = number % 100 == 50
        path = f"/srv/label/data/dataset_store/blobs/{number % 256:02x}/{number:064x}"
        error = f"{path} is damaged (wrong bytes)" if is_damaged else None
        yield Outcome(
            subject=Subject.DATASET,
            project_id=None,
            project_name=None,
            dataset_id=number,
            dataset_name=f"Study of wrist week {number}",
            dataset_hash=f"{number:064x}",
            status=Status.FAILED if is_damaged else Status.VERIFIED,
            reason=error or "every file has its digest",
            error=error,
            error_class="StoredBytesMismatchError" if is_damaged else None,
            remedy="producer verify --store --repair" if is_damaged else None,
            damaged=(
                (
                    Damage(
                        digest=f"{number:064x}",
                        what="wrong_bytes",
                        path=path,
                        dataset_ids=(number, number + 1),
                    ),
                )
                if is_damaged
                else ()
            ),
            verified=VerifiedCounts(
                files=6, bytes_total=6_000_000, bytes_verified=6_000_000, oldest_check=BEGIN
            ),
            **_times(number),  # type: ignore[arg-type]
        )


def ended_run(
    engine: Engine,
    outcomes: Iterable[Outcome],
    *,
    verb: Verb = Verb.MIGRATE,
    dry_run: bool = False,
    selection: dict[str, object] | None = None,
    results: "redis.Redis | None" = None,
) -> uuid.UUID:
    """Write a finished run with these outcomes, and if `results` is given the results of its tasks; its id.
    As one who may pass over the ledger's arrows.
    """
    run_id = uuid.uuid4()
    remaining = iter(outcomes)
    with engine.begin() as conn:
        ledger.open_run(conn, run_id, verb, dry_run=dry_run, selection=selection or {"options": {}})
        conn.execute(text("set local session_replication_role = replica"))
        while batch := list(islice(remaining, _AT_ONCE)):
            documents = [outcome.to_json() for outcome in batch]
            conn.execute(
                text("""
                    insert into migration_jobs (run_id, subject, subject_id, subject_name, path, state, attempt, worker,
                                                dataset_hash, bytes_total, bytes_done, files_done, outcome, error_class,
                                                error, sent_at, started_at, finished_at)
                    select :run_id, o->>'subject', coalesce(o->>'project_id', o->>'dataset_id')::integer,
                           coalesce(o->>'project_name', o->>'dataset_name'), o->>'original_path', state,
                           (o->>'attempts')::integer, o->>'worker', o->>'dataset_hash', 1, 1, 1, o, o->>'error_class',
                           o->>'error', now(), (o->>'started_at')::timestamptz, (o->>'finished_at')::timestamptz
                    from jsonb_to_recordset(cast(:rows as jsonb)) as r(o jsonb, state text)"""),
                {
                    "run_id": run_id,
                    "rows": as_json(
                        [
                            {"o": document, "state": outcome.status.job_state}
                            for document, outcome in zip(documents, batch, strict=True)
                        ]
                    ),
                },
            )
            if results is not None:
                _send_results(results, run_id, batch, documents)
        conn.execute(
            text("update migration_runs set state = :state, created_at = :began where run_id = :id"),
            {"id": run_id, "state": RunState.FINISHED, "began": BEGIN},
        )
        if dry_run:
            _note_new_content(conn, run_id)
        # No trigger saw these jobs.
        conn.execute(text("select migration_count_all_jobs()"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("analyze migration_jobs"))
    return run_id


def _send_results(
    results: "redis.Redis", run_id: uuid.UUID, outcomes: list[Outcome], documents: list[dict[str, object]]
) -> None:
    """As Celery's backend keeps them; of a failed task there is only a line."""
    with results.pipeline(transaction=False) as pipe:
        for outcome, document in zip(outcomes, documents, strict=True):
            subject, subject_id = outcome.key
            task_id = JobRef(run_id=run_id, subject=subject, subject_id=subject_id).task_id
            failed = outcome.status is Status.FAILED
            line = {
                "exc_type": "JobFailedError",
                "exc_message": [outcome.reason],
                "exc_module": "worker.tasks",
            }
            kept = {
                "status": "FAILURE" if failed else "SUCCESS",
                "result": line if failed else document,
                "traceback": None,
                "children": [],
                "task_id": task_id,
            }
            pipe.set(f"celery-task-meta-{task_id}", json.dumps(kept))
        pipe.execute()


def _note_new_content(conn: Connection, run_id: uuid.UUID) -> None:
    """Six files of each dataset, which the project with the lowest id would be the first to store."""
    conn.execute(
        text("""
            insert into migration_dry_run_blobs (run_id, digest, size_bytes, project_id)
            select run_id, dataset_hash || '/' || n, size / 6, project_id
            from (select run_id, dataset_hash, min(subject_id) as project_id,
                         min((outcome #>> '{bytes,stored}')::bigint) as size
                  from migration_jobs where run_id = :run_id and dataset_hash is not null
                  group by run_id, dataset_hash) as datasets,
                 generate_series(1, 6) as n"""),
        {"run_id": run_id},
    )
