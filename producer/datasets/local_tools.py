"""What a worker process has for its jobs, for a command that does such work itself on this machine."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sqlalchemy import Engine

from worker.jobs.tools import Tools
from worker.runtime.throttle import Pace, Throttle
from worker.settings import Settings


@contextmanager
def local_tools(
    settings: Settings, engine: Engine, pace: Pace, bytes_per_second: int | None = None
) -> Iterator[Tools]:
    """Threads and a limit, as the settings say if there is no other; `pace` is called with what is read."""
    with ThreadPoolExecutor(settings.hash_threads, thread_name_prefix="ingest") as threads:
        yield Tools(
            settings=settings,
            engine=engine,
            threads=threads,
            limit=Throttle(bytes_per_second or settings.bwlimit),
            pace=pace,
        )
