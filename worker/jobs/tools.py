"""What a worker process keeps from job to job: settings, connections, threads, limits. Knows no job."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, Engine

from worker.db import engine, retry
from worker.jobs.one_store import Remembered, open_store
from worker.jobs.progress import Progress
from worker.legacy.mounts import Lacking
from worker.legacy.roots import Roots
from worker.runtime.throttle import Pace, Throttle, unlimited
from worker.settings import Settings
from worker.store.store import Store

T = TypeVar("T")

_PATIENCE_S = 600.0
"""How long a worker waits for PostgreSQL before it lets a message go; the job is sent again later."""


@dataclass(frozen=True)
class Tools:
    """What a worker process needs for any job; made once a process, never shared across a fork."""

    settings: Settings
    engine: Engine
    threads: ThreadPoolExecutor
    limit: Throttle = field(default_factory=partial(Throttle, None))
    """How fast this worker process may read (BWLIMIT)."""
    pace: Pace = unlimited
    """Called with what was read, before any limit is kept."""
    stopping: Callable[[], bool] = lambda: False
    on_progress: Callable[[Progress], None] = lambda _progress: None
    """Told every other second how far the job is; must return at once."""
    remembered: Remembered = field(default_factory=Remembered)
    """Which store this process has found to be the database's."""
    lacking: Lacking = field(default_factory=Lacking)
    """Which legacy roots it has found to lack on this machine."""

    @property
    def roots(self) -> Roots:
        """Where projects may lie, and where they may not."""
        return roots_of(self.settings)

    def open_store(self, *, create: bool) -> Store:
        """The store of DATA_DIR, which must be the one the database names; `create` makes the first one."""
        return open_store(self.settings, self.engine, self.remembered, create=create)

    def write(
        self, opened: Callable[[Engine], AbstractContextManager[Connection]], write: Callable[[Connection], T]
    ) -> T:
        """Write as soon as there is a database: an attempt that gives up before its lease is over loses its
        work to an outage.

        `opened` says whether it is a single statement (`autocommit`) or a transaction (`Engine.begin`), whose
        locks last until its end. Raises `DatabaseUnavailableError` after ten minutes, or some seconds if the
        worker is told to stop.
        """

        def transaction() -> T:
            with opened(self.engine) as conn:
                return write(conn)

        return retry.when_there(transaction, _PATIENCE_S, self.stopping)


def roots_of(settings: Settings) -> Roots:
    """Where projects may lie, and where they may not, as the settings say."""
    return Roots(allowed=settings.legacy_roots, store=(settings.datasets_dir, settings.store_dir))


def connect(settings: Settings, application_name: str) -> Engine:
    """The engine of a process that does jobs: no transaction of it stays open, with all its locks, longer
    than a lease while the process is stopped.
    """
    return engine.connect(
        settings.sqlalchemy_url, application_name=application_name, idle_limit_s=settings.lease_s
    )
