"""Figures of ledger, broker and store in Prometheus' text format. Asks anew at each scrape; changes
nothing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.runs.control import PAUSED
from producer.runs.survey import room_in, store_id_in
from producer.store_size import StoreSize
from worker.broker import client as broker
from worker.db import garbage, overview, reclaims, stores, verifications
from worker.db.overview import Figures
from worker.db.verifications import Coverage
from worker.errors import MigratorError, StoreElsewhereError, UsageError
from worker.runtime import log
from worker.settings import Settings

_log = log.get(__name__)

_PREFIX = "label_migrator"

_WITHIN_S = 8.0
"""How long a scrape waits for all parts together: less than the ten seconds that Prometheus waits by default.
"""

_WAITS_FOR_NAME_S = 1.0

_COVERAGE = "coverage"
"""The part that asks the database of what is stored: apart, because of a big store that takes a while."""

_COVERAGE_EVERY_S = 60.0
"""How old the figures of the store's coverage may be."""

_WAITS_FOR_WALK_S = 5.0
"""How long a single look waits for the walk of the store; a scrape does not wait, the next one has it."""

Look = Callable[[], Iterable[Metric]]


class LedgerCollector(Collector):
    """What Flower cannot know: jobs and runs by state, bytes, failures, the queue's length, the store's room.
    And how many workers answer now, which Flower only hears by and by.

    A part that does not answer is `up 0`, never an error. No label names a project: each would be a series of
    its own.
    """

    def __init__(self, settings: Settings, engine: Engine, *, waits_for_walk: bool) -> None:
        self._settings = settings
        self._engine = engine
        self._count_workers = broker.workers_counter(settings)
        self._looks: dict[str, Look] = {
            "database": self._ledger,
            "broker": self._broker,
            "store": self._store,
            _COVERAGE: self._coverage,
        }
        self._size = StoreSize(settings)
        self._waits_for_walk_s = _WAITS_FOR_WALK_S if waits_for_walk else 0.0
        self._covered: tuple[float, list[Metric]] | None = None
        self._named: str | None = None
        self._named_is_known = threading.Event()
        self._asking = threading.Lock()
        self._under_way: dict[str, Future[list[Metric]]] = {}

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that to register this asks no server."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One look at everything."""
        deadline = time.monotonic() + _WITHIN_S
        asked = {part: self._ask(part, look) for part, look in self._looks.items()}
        up = _gauge("up", "Whether a part answered this scrape", ["part"])
        for part, answer in asked.items():
            found = _answered(part, answer, deadline)
            if part != _COVERAGE:
                up.add_metric([part], float(found is not None))
            yield from found or ()
        yield up

    def _ask(self, part: str, look: Look) -> Future[list[Metric]]:
        """Have a thread look; one that hangs in an earlier look is waited for again, so that there is never
        more than one.
        """
        with self._asking:
            under_way = self._under_way.get(part)
            if under_way is not None and not under_way.done():
                return under_way
            answer = self._under_way[part] = Future()
        # Not by an executor: the program's end would wait for a thread that hangs.
        threading.Thread(target=_look, args=(look, answer), name=f"look at {part}", daemon=True).start()
        return answer

    def _ledger(self) -> Iterator[Metric]:
        with self._engine.connect() as conn:
            named = stores.named(conn)
            self._named = named.store_id if named is not None else None
            self._named_is_known.set()
            found = overview.figures(conn)
            reclaimed = reclaims.bytes_by_state(conn)
            paused = overview.paused_runs(conn)
        yield from _of_jobs(found)
        runs = _gauge("runs", "Runs in the ledger", ["verb", "dry_run", "state"])
        for row in found.runs:
            runs.add_metric([row.verb, _text(is_true=row.dry_run), row.state], row.runs)
        yield runs
        yield _counted(
            "paused_runs",
            "Runs that stand still: the operator paused them, or they did so themselves and need mending",
            ["by"],
            {"operator": 0, "itself": 0}
            | Counter("operator" if run.paused_because == PAUSED else "itself" for run in paused),
        )
        yield _counted(
            "reclaimed_bytes",
            "Allocated bytes of legacy directories that reclaims moved away: not freed yet, or purged",
            ["state"],
            reclaimed,
        )
        now = found.open
        yield _single("open_bytes_total", "Bytes of all projects of open runs", now.bytes_total)
        yield _single(
            "open_bytes_done", "Those of them that are processed, whatever the outcome", now.bytes_done
        )
        yield _single("workers_busy", "Workers that run a job", now.workers)
        yield _single(
            "oldest_waiting_seconds", "How long the oldest waiting job has waited", now.oldest_waiting_s
        )

    def _broker(self) -> Iterator[Metric]:
        waiting = broker.condition(self._settings).waiting
        yield _single("queue_messages", "Messages that no worker has taken yet", waiting)
        online = self._count_workers()
        yield _single("workers_online", "Workers that answer, busy or not", online)

    def _store(self) -> Iterator[Metric]:
        if (room := room_in(self._settings)) is not None:
            # The database part asks; where it hangs, this one goes on without.
            self._named_is_known.wait(_WAITS_FOR_NAME_S)
            if self._named not in {None, store_id_in(self._settings)}:
                # The room below a mount point without its mount is not the store's.
                raise StoreElsewhereError(
                    f"{self._settings.store_dir} is not store {self._named} of this database"
                )
            yield _single("store_room_bytes", "Bytes that the store accepts before it is full", room)
            if (size := self._size.latest(self._waits_for_walk_s)) is not None:
                yield _single(
                    "store_allocated_bytes",
                    "Bytes that the whole store takes on disk, hard links once; asked every ten minutes at most",
                    size,
                )

    def _coverage(self) -> Iterable[Metric]:
        """How much of the store was read when: of a store of millions of files it is asked for seldom."""
        now = time.monotonic()
        if self._covered is None or now - self._covered[0] > _COVERAGE_EVERY_S:
            with self._engine.connect() as conn:
                self._covered = (
                    now,
                    [
                        *_of_store(verifications.coverage(conn)),
                        _single(
                            "unreferenced_datasets",
                            "Datasets of this program that nothing refers to: a gc puts them into quarantine",
                            garbage.count_unreferenced(conn),
                        ),
                        _single(
                            "shared_bytes",
                            "Allocated bytes that migrations stored by sharing the blocks of legacy files",
                            overview.shared_bytes(conn),
                        ),
                    ],
                )
        return self._covered[1]


def _look(look: Look, answer: Future[list[Metric]]) -> None:
    """Let a thread look, and leave what it saw, or the error that it met, in the answer."""
    try:
        answer.set_result(list(look()))
    except Exception as error:  # noqa: BLE001 - raised again where it is waited for
        answer.set_exception(error)


def _answered(part: str, answer: Future[list[Metric]], deadline: float) -> list[Metric] | None:
    """What a part said, if it does so in time."""
    try:
        return answer.result(max(0.0, deadline - time.monotonic()))
    except (MigratorError, SQLAlchemyError) as error:
        reason = str(error).partition("\n")[0]
    except TimeoutError:
        reason = f"no answer within {_WITHIN_S:g} s"
    _log.warning("part_away", part=part, reason=reason)
    return None


def _of_jobs(found: Figures) -> Iterator[Metric]:
    states: Counter[tuple[str, str, str]] = Counter()
    failures: Counter[str] = Counter()
    incidents: Counter[str] = Counter({"lease_ran_out": 0, "attempt_fenced": 0, "retried": 0})
    for row in found.jobs:
        states[row.verb, _text(is_true=row.dry_run), row.state] += row.jobs
        incidents["lease_ran_out"] += row.crashes
        incidents["attempt_fenced"] += row.fenced
        incidents["retried"] += row.retries
    for row in found.failed:
        failures[row.error_class or "unknown"] += row.projects
    yield _counted("jobs", "Jobs in the ledger", ["verb", "dry_run", "state"], states)
    yield _counted(
        "failed_jobs",
        "Projects whose latest job (of each verb, dry runs left out) has failed, by error",
        ["error_class"],
        failures,
    )
    yield _counted("incidents", "Incidents that were recovered from", ["kind"], incidents)


def _of_store(found: Coverage) -> Iterator[Metric]:
    yield _single("stored_datasets", "Datasets that this program stored", found.datasets)
    yield _single("stored_bytes", "Bytes of all stored files, each blob once", found.size_bytes)
    yield _single("stored_bytes_never_read", "Those of them that were never verified", found.never_read_bytes)
    if found.oldest_check is not None:
        yield _single(
            "oldest_check_timestamp_seconds",
            "When the least recently read byte of the store was read; absent while some never was",
            found.oldest_check.timestamp(),
        )


def _counted(name: str, words: str, labels: list[str], counts: Mapping[Any, float]) -> Metric:
    gauge = _gauge(name, words, labels)
    for key, count in sorted(counts.items()):
        gauge.add_metric(list(key) if isinstance(key, tuple) else [key], count)
    return gauge


def _single(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", words, value=value)


def _gauge(name: str, words: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", words, labels=labels)


def _text(*, is_true: bool) -> str:
    return "true" if is_true else "false"


# What the verb does with it ---------------------------------------------------------------------------------


def scrape(settings: Settings, engine: Engine) -> str:
    """One look, in Prometheus' text format."""
    return generate_latest(_registry(settings, engine, waits_for_walk=True)).decode("utf-8")


def as_json(settings: Settings, engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """The same look as a document: the samples of each metric, with labels and value."""
    return {
        metric.name: [{"labels": sample.labels, "value": sample.value} for sample in metric.samples]
        for metric in LedgerCollector(settings, engine, waits_for_walk=True).collect()
    }


@contextmanager
def served(settings: Settings, engine: Engine, address: str, port: int) -> Iterator[str]:
    """Answer scrapes until the block ends; gives the address. Raises `UsageError` when the port cannot be
    had.
    """
    try:
        server, thread = start_http_server(port, address, _registry(settings, engine, waits_for_walk=False))
    except OSError as error:
        raise UsageError(f"Cannot listen at {address}:{port}: {error.strerror or error}") from error
    try:
        yield f"http://{address}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(settings: Settings, engine: Engine, *, waits_for_walk: bool) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(settings, engine, waits_for_walk=waits_for_walk))
    return registry
