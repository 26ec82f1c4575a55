"""A Celery task that does nothing: what a message costs with our settings. Loaded by the bench's workers
alone.
"""

from celery import shared_task

from worker.broker import message_validation

NOOP_TASK = "tests.bench.noop"

message_validation.TASKS.add(NOOP_TASK)


@shared_task(name=NOOP_TASK)  # type: ignore[untyped-decorator] # Celery's decorators are untyped
def noop(run_id: str, project_id: int) -> None:
    """Take what a job's message carries and return."""
