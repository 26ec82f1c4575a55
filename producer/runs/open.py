"""Opening a run: one row for each of its jobs, then one message each. Knows not how its projects were
chosen.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from producer.runs.selection import LeftOut
from worker.broker import client as broker
from worker.db import ledger, messages_sent
from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.db.waves import NewWave, add_waves
from worker.errors import BrokerUnavailableError
from worker.messages import JobRef, JobState, Message, Outcome, RunOptions, Status, Verb
from worker.settings import Settings

_BATCH = 500
"""So many messages are sent before the ledger notes it; what a dying producer has not noted is sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A run whose jobs are written and sent, in the order of sending."""

    run_id: uuid.UUID
    verb: Verb
    dry_run: bool
    jobs: tuple[NewJob, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    of_other_type: int = 0
    warnings: tuple[str, ...] = ()
    waves: tuple[NewWave, ...] = ()
    forecast: Mapping[str, Any] | None = None
    """What is expected of a migration, as the run keeps it."""
    workers: int | None = None
    """How many workers were online, where that was asked before the run was opened."""


def open_run(  # noqa: PLR0913 - what a run keeps
    settings: Settings,
    engine: Engine,
    *,
    verb: Verb,
    dry_run: bool,
    jobs: Sequence[NewJob],
    left_out: Sequence[LeftOut],
    options: RunOptions,
    limit_bytes_per_second: int | None = None,
    facts: Mapping[str, Any] | None = None,
    waves: Sequence[NewWave] = (),
) -> Opened:
    """Write a run, its jobs and its waves, commit, then send one message for each waiting job: none for one
    that is held for a later wave.

    In this order a message never speaks of a job that is not there. If the broker goes away between, the run
    is cancelled and says so: nothing is left that would start by itself later. `facts` is what the run keeps
    for its report beside its options: JSON values.
    """
    run_id = uuid.uuid4()
    left_out = [*left_out, *(_left_out(job.skipped) for job in jobs if job.skipped)]
    selection = {
        "options": options.to_json(),
        "left_out": [one.to_json() for one in left_out],
        **(facts or {}),
    }
    with engine.begin() as conn:
        ledger.open_run(
            conn,
            run_id,
            verb,
            dry_run=dry_run,
            selection=selection,
            limit_bytes_per_second=limit_bytes_per_second,
        )
        if waves:
            add_waves(conn, run_id, waves, all_open=dry_run)
        ledger.add_jobs(conn, run_id, jobs)
    waiting = [_message(run_id, verb, job) for job in jobs if job.state is JobState.QUEUED]
    try:
        send(settings, engine, run_id, waiting)
    except BrokerUnavailableError as error:
        with engine.begin() as conn:
            ledger.cancel_run(conn, run_id, f"the broker went away while the run was sent: {error}")
        raise
    return Opened(
        run_id=run_id,
        verb=verb,
        dry_run=dry_run,
        jobs=tuple(jobs),
        left_out=tuple(left_out),
        waves=tuple(waves),
    )


def send(settings: Settings, engine: Engine, run_id: uuid.UUID, messages: Sequence[Message]) -> None:
    """Send the messages of a run's waiting jobs; then it is running, or has ended if none is left.

    Dying in the middle: the workers send the rest. Raises `BrokerUnavailableError`; a part may have been sent
    then.
    """
    for start in range(0, len(messages), _BATCH):
        batch = messages[start : start + _BATCH]
        epoch = broker.condition(settings).epoch
        broker.send(settings, batch)
        with engine.begin() as conn:
            messages_sent.note_sent(conn, [message.ref for message in batch], epoch)
    with engine.begin() as conn:
        ledger.start_run(conn, run_id)
        ledger.finish_run_if_ended(conn, run_id)


def _message(run_id: uuid.UUID, verb: Verb, job: NewJob) -> Message:
    return Message(
        ref=JobRef(run_id=run_id, subject_id=job.subject_id, subject=job.subject),
        verb=verb,
        subject_name=job.subject_name,
        size_bytes=job.size_bytes,
    )


def skipped_job(project: Project, path: str | None, reason: str, remedy: str | None = None) -> NewJob:
    """A job that gets no message because there is nothing to do; it is named in the report, with the
    reason.
    """
    return NewJob(
        subject_id=project.project_id,
        subject_name=project.project_name,
        path=path,
        skipped=Outcome(
            project_id=project.project_id,
            project_name=project.project_name,
            status=Status.SKIPPED,
            reason=reason,
            remedy=remedy,
            original_path=path,
        ),
    )


def _left_out(outcome: Outcome) -> LeftOut:
    _, subject_id = outcome.key
    return LeftOut(
        subject=outcome.subject,
        subject_id=subject_id,
        subject_name=outcome.subject_name or "",
        reason=outcome.reason,
    )
