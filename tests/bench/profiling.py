"""Where the time of a migration goes: one corpus in this process, job after job, under cProfile. Knows no
worker.
"""

import cProfile
import os
import pstats
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from producer.runs.legacy_projects import enqueue
from tests.bench.corpora import Corpus
from tests.bench.measure import Settle
from tests.bench.system import System
from worker import tasks
from worker.jobs.migrate import migrate
from worker.messages import JobRef
from worker.runtime import log

_LINES = 25
_STEPS = 20


class ProfiledThreads(ThreadPoolExecutor):
    """Threads that are profiled while they work; waiting for work is not counted."""

    def __init__(self, count: int) -> None:
        super().__init__(count, thread_name_prefix="profiled")
        self.profiles: list[cProfile.Profile] = []
        self._own = threading.local()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Profile the call in the thread that makes it."""
        return super().submit(self._call, fn, *args, **kwargs)

    def _call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self._own, "profile"):
            self._own.profile = cProfile.Profile()
            self.profiles.append(self._own.profile)
        with self._own.profile:
            return call(*args, **kwargs)


def profile(system: System, corpus: Corpus, data_dir: Path, settle: Settle) -> None:
    """Migrate the corpus here and print the functions with the most time of their own, all threads together.

    The profiler makes every call slower, small files above all: read the shares, not the seconds.
    """
    log.configure(log_format="console", level="warning")
    with system.prepared(corpus, data_dir) as (settings, engine):
        # The run's messages go to a broker that no worker listens to.
        opened = enqueue(settings, engine, dry_run=False)
        usual = tasks._tools(os.getpid())
        threads = ProfiledThreads(settings.hash_threads)
        tools = replace(usual, threads=threads)
        story = cProfile.Profile()
        settle()
        begin = time.perf_counter()
        for job in opened.jobs:
            with story:
                migrate(tools, JobRef(run_id=opened.run_id, subject_id=job.subject_id), "profile")
        seconds = time.perf_counter() - begin
        threads.shutdown()
        usual.engine.dispose()
        tasks._tools.cache_clear()
    print(
        f"\n{corpus.name}: {len(opened.jobs)} projects in {seconds:.2f} s in one process, {settings.hash_threads} threads"
    )
    print_profiles([story, *threads.profiles])


def print_profiles(profiles: Sequence[cProfile.Profile]) -> None:
    """Print the functions that took most of the time of all of these together."""
    stats = pstats.Stats(profiles[0])
    for other in profiles[1:]:
        stats.add(other)
    print("Functions of our own, by the time until they return:")
    stats.sort_stats("cumtime").print_stats(r"/(worker|producer)/", _STEPS)
    print("All functions, by the time spent in themselves:")
    stats.strip_dirs().sort_stats("tottime").print_stats(_LINES)
