"""A Celery task that does nothing: what a message costs with our settings. Loaded by the bench's workers
alone.
"""

from celery import shared_task

from worker.messages import TASKS, Subject, Verb

NOOP_TASK = "tests.bench.noop"

TASKS[NOOP_TASK] = (Verb.MIGRATE, Subject.PROJECT)


@shared_task(name=NOOP_TASK)  # type: ignore[untyped-decorator] # Celery's decorators are untyped
def noop(run_id: str, project_id: int) -> None:
    """Take what a job's message carries and return."""
