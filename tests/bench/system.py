"""The migrator as an operator runs it: PostgreSQL, Valkey and two workers, timed from `enqueue` to the last
outcome.
"""

import itertools
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import redis
from sqlalchemy import Engine, text

from producer.local.child_process import Child
from producer.local.stack import Stack, run_workers, stack
from producer.runs.collect import collect
from producer.runs.legacy_projects import enqueue
from tests.bench import counting, noop
from tests.bench.corpora import Corpus, tiny
from tests.bench.measure import Measured, Settle, bytes_below, cpu_s, peak_mb
from tests.bench.noop import NOOP_TASK
from tests.support.process_tree import descendants
from worker.broker.config import create_app
from worker.db import ledger
from worker.db.engine import connect
from worker.messages import JobRef, Outcome, RunState, Status
from worker.settings import Settings

WORKERS = 2
_LOOK_EVERY_S = 0.01
_WITHIN_S = 1800.0
_WARM_UP_NOOPS = 20
_RESULTS_AT_ONCE = 50
_SENT_AT_ONCE = 500
_STAYS = ("schema_steps", "migration_state_arrows")


class System:
    """A running stack that migrates one corpus after another, each time with fresh rows, store and
    workers.
    """

    def __init__(self, servers: Stack, folder: Path, corpora: Path) -> None:
        self._servers = servers
        self._folder = folder
        self._corpora = corpora
        self._counts = folder / "statements"
        self._batches = itertools.count(1)
        self._warm_up = tiny(corpora, 1, name="warm-up", projects=16, first=1_000_000)

    @staticmethod
    @contextmanager
    def running(folder: Path, corpora: Path) -> Iterator["System"]:
        """Start the servers, with every promise of durability kept; they end with the block."""
        with stack(folder / "state", workers=0, durable=True) as servers:
            yield System(servers, folder, corpora)

    @property
    def database_url(self) -> str:
        """Of the rows."""
        return self._servers.addresses.database_url

    def through(self, database_url: str) -> "System":
        """The same system with another way to the same rows."""
        addresses = replace(self._servers.addresses, database_url=database_url)
        return System(replace(self._servers, addresses=addresses), self._folder, self._corpora)

    def migrate(
        self,
        corpus: Corpus,
        data_dir: Path,
        settle: Settle,
        *,
        emptied: bool = True,
        counted: bool = False,
        workers: int = WORKERS,
    ) -> Measured:
        """Migrate a corpus into the store of `data_dir`. Unless `emptied`, rows and results of earlier runs
        stay.

        `counted`: count the workers' statements, too, which costs them a little.
        """
        if emptied:
            self._empty()
        with (
            self._database(data_dir) as (settings, engine),
            self.workers(data_dir, counted=counted, count=workers) as first,
        ):
            self._warm(settings, engine)
            self._register(engine, corpus)
            settle()
            before, servers_before, asked_before = (
                cpu_s(first),
                self._servers_cpu_s(),
                counting.counted(self._counts),
            )
            begin = time.perf_counter()
            run_id = enqueue(settings, engine, dry_run=False).run_id
            await_end(engine, run_id)
            seconds = time.perf_counter() - begin
            # After so many tasks a worker's process is replaced by a new one.
            pids = descendants(first)
            used, servers_used = cpu_s(pids) - before, self._servers_cpu_s() - servers_before
            outcomes = _collected(settings, engine, run_id)
            collected_s = time.perf_counter() - begin
            begin = time.perf_counter()
            os.sync()
            return Measured(
                seconds=seconds,
                cpu_s=used,
                stored_bytes=bytes_below(data_dir),
                peak_mb=peak_mb(pids),
                count=len(outcomes),
                flush_s=time.perf_counter() - begin,
                collected_s=collected_s,
                servers_cpu_s=servers_used,
                statements=counting.counted(self._counts) - asked_before if counted else None,
            )

    def noops(self, count: int, data_dir: Path, settle: Settle) -> Measured:
        """Send as many tasks that do nothing, in the way of real ones, and wait for all results."""
        with self._database(data_dir) as (settings, _), self.workers(data_dir) as pids:
            _send_noops(settings, _WARM_UP_NOOPS)
            settle()
            before = cpu_s(pids)
            begin = time.perf_counter()
            _send_noops(settings, count)
            return Measured(
                seconds=time.perf_counter() - begin,
                cpu_s=cpu_s(pids) - before,
                count=count,
                peak_mb=peak_mb(pids),
            )

    @contextmanager
    def ready(self, corpus: Corpus, data_dir: Path) -> Iterator[tuple[Engine, set[int], dict[str, str]]]:
        """Only the rows of a corpus, and warm workers; gives their processes' ids and the environment of a
        producer.
        """
        self._empty()
        with self._database(data_dir) as (settings, engine), self.workers(data_dir) as pids:
            self._warm(settings, engine)
            self._register(engine, corpus)
            yield engine, pids, dict(os.environ)

    @contextmanager
    def prepared(self, corpus: Corpus, data_dir: Path) -> Iterator[tuple[Settings, Engine]]:
        """Only the rows of a corpus and the servers: for a producer or worker within this process."""
        self._empty()
        with self._database(data_dir) as (settings, engine):
            self._register(engine, corpus)
            yield settings, engine

    # The surroundings ---------------------------------------------------------------------------------------

    @contextmanager
    def workers(self, data_dir: Path, *, counted: bool = False, count: int = WORKERS) -> Iterator[set[int]]:
        """Worker processes that take tasks; gives the ids of all their processes."""
        self._counts.mkdir(exist_ok=True)
        for file in self._counts.iterdir():
            file.unlink()
        env = {
            **self._servers.env,
            "DATA_DIR": str(data_dir),
            "LEGACY_ROOTS": str(self._corpora),
            # Celery's command line takes any option from the environment, so this is `worker --include
            # tests.bench.noop`: nothing of the program has to know the bench's task.
            "CELERY_WORKER_INCLUDE": f"{noop.__name__},{counting.__name__}" if counted else noop.__name__,
            counting.FOLDER: str(self._counts),
        }
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True)
        name = f"bench-{next(self._batches)}-"
        with run_workers(env, count, concurrency=1, log_folder=logs, name=name, stop_within_s=20) as children:
            yield _processes(children)

    def _servers_cpu_s(self) -> float:
        return cpu_s(descendants({child.process.pid for child in self._servers.children}))

    @contextmanager
    def _database(self, data_dir: Path) -> Iterator[tuple[Settings, Engine]]:
        with self.settings(data_dir) as settings:
            engine = connect(settings.sqlalchemy_url, application_name="bench")
            try:
                yield settings, engine
            finally:
                engine.dispose()

    @contextmanager
    def settings(self, data_dir: Path) -> Iterator[Settings]:
        """The settings of a producer that uses this system; the environment is as that producer's
        meanwhile.
        """
        variables = {**self._servers.env, "DATA_DIR": str(data_dir), "LEGACY_ROOTS": str(self._corpora)}
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            yield Settings(_env_file=None)  # type: ignore[call-arg]
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _empty(self) -> None:
        """Forget all rows and results."""
        with self._database(self._folder) as (settings, engine):
            with engine.begin() as conn:
                tables = conn.scalars(
                    text("select quote_ident(tablename) from pg_tables where schemaname = 'public'")
                )
                emptied = ", ".join(table for table in tables if table not in _STAYS)
                conn.execute(text(f"truncate {emptied} restart identity cascade"))
            with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
                client.flushdb()

    def _warm(self, settings: Settings, engine: Engine) -> None:
        """Let both workers do a few projects, so that nothing that happens once a process happens in the
        timed part.
        """
        self._warm_up.make()
        self._register(engine, self._warm_up)
        run_id = enqueue(settings, engine, dry_run=False).run_id
        await_end(engine, run_id)
        _collected(settings, engine, run_id)

    def _register(self, engine: Engine, corpus: Corpus) -> None:
        corpus.make()
        with engine.begin() as conn:
            corpus.register(conn, f"{next(self._batches)}")
            # As a laboratory's database: these rows are old, and its statistics know them.
            conn.execute(text("analyze"))


def _processes(children: Sequence[Child]) -> set[int]:
    return descendants({child.process.pid for child in children})


def await_end(engine: Engine, run_id: uuid.UUID | str) -> None:
    """Wait until the last outcome is committed. The producer's collector looks only four times a second."""
    deadline = time.monotonic() + _WITHIN_S
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        while conn.scalar(
            text("select state from migration_runs where run_id = :id"), {"id": run_id}
        ) not in {RunState.FINISHED, RunState.CANCELLED}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run_id} did not end within {_WITHIN_S:.0f} s")
            time.sleep(_LOOK_EVERY_S)


def _collected(settings: Settings, engine: Engine, run_id: uuid.UUID) -> tuple[Outcome, ...]:
    """All outcomes, as the producer gathers them; every project must have been migrated."""
    with engine.connect() as conn:
        run = ledger.find_run(conn, str(run_id))
    outcomes = tuple(collect(settings, engine, run, timeout_s=_WITHIN_S).outcomes)
    for outcome in outcomes:
        if outcome.status is not Status.MIGRATED:
            raise RuntimeError(
                f"project {outcome.project_id} {outcome.status}: {outcome.error or outcome.reason}"
            )
    return outcomes


def _send_noops(settings: Settings, count: int) -> None:
    """Send tasks and wait for their results."""
    run_id = uuid.uuid4()
    refs = [JobRef(run_id=run_id, subject_id=number) for number in range(1, count + 1)]
    app = create_app(settings, with_results=False)
    with app.producer_or_acquire() as producer, producer.batch(_SENT_AT_ONCE):
        for ref in refs:
            app.send_task(
                NOOP_TASK,
                args=(str(ref.run_id), ref.subject_id),
                task_id=ref.task_id,
                producer=producer,
                argsrepr=f"nothing {ref.subject_id}",
                kwargsrepr="",
                retry=False,
            )
    waiting = [f"celery-task-meta-{ref.task_id}" for ref in refs]
    deadline = time.monotonic() + _WITHIN_S
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
        while waiting:
            # They end about in the order of sending, so it is enough to look at the first ones.
            looked_at = waiting[:_RESULTS_AT_ONCE]
            values: list[bytes | None] = client.mget(looked_at)
            left = [key for key, value in zip(looked_at, values, strict=True) if not _is_success(value)]
            waiting[: len(looked_at)] = left
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(waiting)} no-op tasks did not end within {_WITHIN_S:.0f} s")
            if left:
                time.sleep(_LOOK_EVERY_S)


def _is_success(value: bytes | None) -> bool:
    return value is not None and json.loads(value)["status"] == "SUCCESS"
