"""Where Celery enters: a message in, one call, an outcome out. Knows Celery and nothing of the work."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore

from worker import settings as settings_module
from worker.jobs import collect_garbage as jobs_gc
from worker.jobs.adopt import adopt
from worker.jobs.migrate import migrate
from worker.jobs.progress import Progress
from worker.jobs.reclaim import reclaim
from worker.jobs.rollback import rollback
from worker.jobs.tools import Tools, connect
from worker.jobs.verify import verify_sessions
from worker.jobs.verify_store import verify_store
from worker.messages import JobRef, Outcome, Status, Subject
from worker.runtime import shutdown
from worker.runtime.latest_call import LatestCall
from worker.runtime.throttle import Throttle
from worker.wording import summary

_BEGIN, _END = 30, 17
"""So many characters of a reason have room in Flower's table beside project, state and result."""


class JobFailedError(Exception):
    """How Celery learns that a job failed: one line for Flower. The whole outcome is in the ledger."""

    def __repr__(self) -> str:
        """What Flower has in its table: without its middle when it is long, as paths differ at their end."""
        words = str(self)
        return words if len(words) <= _BEGIN + _END else f"{words[:_BEGIN]}…{words[-_END:]}"


@shared_task(name="worker.tasks.migrate_project", bind=True, throws=(JobFailedError,))
def migrate_project(self: Task, run_id: str, project_id: int) -> "Result":
    """Migrate one legacy project, or rehearse it if the run is a dry run; the outcome as JSON.

    Twice: the second delivery finds no lease to take and is ignored, the first one's result stays. At once:
    one of them gets the lease. Dying here: the ledger's lease runs out and the job is done by the worker that
    gets it next.
    """
    ref = JobRef(run_id=uuid.UUID(run_id), subject_id=project_id)
    return _result(migrate(_tools_of(self), ref, self.request.hostname))


@shared_task(name="worker.tasks.rollback_project", bind=True, throws=(JobFailedError,))
def rollback_project(self: Task, run_id: str, project_id: int) -> "Result":
    """Take one migrated project back, or rehearse it; the outcome as JSON.

    Twice, at once, or dying here: as `migrate_project`. A rollback and a migration of one project cannot both
    proceed: each checks the project's row under its lock.
    """
    ref = JobRef(run_id=uuid.UUID(run_id), subject_id=project_id)
    return _result(rollback(_tools_of(self), ref, self.request.hostname))


@shared_task(name="worker.tasks.verify_project", bind=True, throws=(JobFailedError,))
def verify_project(self: Task, run_id: str, project_id: int) -> "Result":
    """Prove that one migrated project's sessions read as before; the outcome as JSON, all that is written."""
    ref = JobRef(run_id=uuid.UUID(run_id), subject_id=project_id)
    return _result(verify_sessions(_tools_of(self), ref, self.request.hostname))


@shared_task(name="worker.tasks.verify_dataset", bind=True, throws=(JobFailedError,))
def verify_dataset(self: Task, run_id: str, dataset_id: int) -> "Result":
    """Verify one stored dataset, and repair it if the run asks for that; the outcome as JSON.

    Twice, at once, or dying here: as `migrate_project`. What was read in this run is not read again, and a
    repair leaves each file bad or good, never half.
    """
    ref = JobRef(run_id=uuid.UUID(run_id), subject_id=dataset_id, subject=Subject.DATASET)
    return _result(verify_store(_tools_of(self), ref, self.request.hostname))


@shared_task(name="worker.tasks.reclaim_project", bind=True, throws=(JobFailedError,))
def reclaim_project(self: Task, run_id: str, project_id: int) -> "Result":
    """Move one migrated project's legacy directory away, or undo, purge or share it; the outcome as JSON.

    Twice, at once, or dying here: as `migrate_project`; a directory that was being moved is found by its row.
    """
    ref = JobRef(run_id=uuid.UUID(run_id), subject_id=project_id)
    return _result(reclaim(_tools_of(self), ref, self.request.hostname))


@shared_task(name="worker.tasks.collect_garbage", bind=True, throws=(JobFailedError,))
def collect_garbage(self: Task, run_id: str, subject_id: int) -> "Result":
    """Collect what nothing refers to, or rehearse that, or bring an entry back; the outcome as JSON.

    Twice, at once, or dying here: as `migrate_project`; of two at once the second waits for the first.
    """
    ref = JobRef(run_id=uuid.UUID(run_id), subject_id=subject_id, subject=Subject.STORE)
    return _result(jobs_gc.collect_garbage(_tools_of(self), ref, self.request.hostname))


@shared_task(name="worker.tasks.adopt_dataset", bind=True, throws=(JobFailedError,))
def adopt_dataset(self: Task, run_id: str, dataset_id: int) -> "Result":
    """Make a dataset that Label registered itself ours, in place, or undo that; the outcome as JSON.

    Twice, at once, or dying here: as `migrate_project`; directories that were changing places are found by
    their row.
    """
    ref = JobRef(run_id=uuid.UUID(run_id), subject_id=dataset_id, subject=Subject.DATASET)
    return _result(adopt(_tools_of(self), ref, self.request.hostname))


class Result:
    """What a task returns: the outcome's JSON for the collector, one line for people in Flower or a log."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def __json__(self) -> dict[str, Any]:
        """Asked for by kombu's JSON encoder."""
        return self._outcome.to_json()

    def __repr__(self) -> str:
        return summary(self._outcome)


def _result(outcome: Outcome | None) -> Result:
    if outcome is None:
        # Returning would overwrite the result of the delivery that has the job.
        raise Ignore
    if outcome.status is Status.FAILED:
        raise JobFailedError(outcome.error)
    return Result(outcome)


@cache
def _tools(pid: int) -> Tools:
    """This process's engine and threads. The process id is the key: a fork uses nothing of its parent's."""
    settings = settings_module.load()
    return Tools(
        settings=settings,
        engine=connect(settings, f"label-migrator worker {pid}"),
        threads=ThreadPoolExecutor(settings.hash_threads, thread_name_prefix="ingest"),
        limit=Throttle(settings.bwlimit),
        stopping=shutdown.has_begun,
    )


def _tools_of(task: Task) -> Tools:
    """This process's tools, for one task, whose progress Flower sees as `task-progress` events."""
    events, number, hostname = task.app.events, task.request.id, task.request.hostname

    def send(progress: Progress) -> None:
        with events.default_dispatcher(hostname=hostname) as dispatcher:
            dispatcher.send("task-progress", uuid=number, retry=False, **asdict(progress))

    latest = _latest_call(os.getpid())
    return replace(_tools(os.getpid()), on_progress=lambda progress: latest.submit(partial(send, progress)))


@cache
def _latest_call(_pid: int) -> LatestCall:
    """This process's thread for events; a fork inherits none."""
    return LatestCall()
