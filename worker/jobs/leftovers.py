"""What attempts left in the store's staging whose jobs are over: the next job that comes removes it."""

import time
import uuid
from collections.abc import Collection

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.db import overview
from worker.db.engine import autocommit
from worker.errors import MigratorError
from worker.runtime import log
from worker.store.store import Store

_log = log.get(__name__)

_EVERY_S = 600.0
"""How often one process looks: what comes back after a power failure is there at its first job."""

_looked_at: dict[str, float] = {}


def import_task() -> str:
    """What an import is called, in its staging and its claims, as a job is by its task id: one drawn at
    random, which no job's is.
    """
    return str(uuid.uuid4())


def is_of_import(task: str) -> bool:
    """Is what has this name in staging an import's? For the process that has the claim of a gc it is over."""
    try:
        return uuid.UUID(task).version == 4
    except ValueError:
        return False


def over(engine: Engine, tasks: Collection[str]) -> set[str]:
    """Those of these task ids whose jobs no worker has. A task id that is not in this ledger is left
    alone. Usually all are of running jobs, and no other job is read: an id does not say which job it is of.
    """
    with autocommit(engine) as conn:
        rest = set(tasks) - {ref.task_id for ref in overview.running_jobs(conn)}
        return {task for ref in overview.idle_jobs(conn) if (task := ref.task_id) in rest} if rest else set()


def clear(engine: Engine, store: Store) -> None:
    """Remove the staging of attempts whose jobs are over, at most every ten minutes.

    A power failure may bring back what was removed, or leave what no job knows of any more. A worker that
    only sleeps there has lost its lease, and finds that out. What goes wrong is logged; no job fails for it.
    """
    now, before = time.monotonic(), _looked_at.get(str(store.root))
    if before is not None and now - before < _EVERY_S:
        return
    _looked_at[str(store.root)] = now
    try:
        # Listed first: what is in the list and has no job afterwards had one that ended.
        found = store.staged_by()
        for task in over(engine, found) if found else ():
            _log.info("leftover_removed", task=task)
            store.clear_staging(task, found[task])
        store.finish_removals()
    except (MigratorError, SQLAlchemyError, OSError) as error:
        _log.warning("staging_not_cleared", reason=str(error))
