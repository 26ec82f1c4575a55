"""Figures of ledger, broker and store in Prometheus' text format. Asks anew at each scrape; changes nothing."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.enqueue import room_in
from worker import broker, log
from worker.db import figures
from worker.db.figures import Figures
from worker.errors import MigratorError, UsageError
from worker.settings import Settings

_log = log.get(__name__)

_PREFIX = "label_migrator"


class LedgerCollector(Collector):
    """What Flower cannot know: jobs and runs by state, bytes, failures, the queue's length, the store's room. And how many
    workers answer now, which Flower only hears by and by.

    A part that does not answer is `up 0`, never an error. No label names a project: each would be a series of its own.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._count_workers = broker.workers_counter(settings)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that to register this asks no server."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One look at everything."""
        up = _gauge("up", "Whether a part answered this scrape", ["part"])
        for part, look in (("database", self._ledger), ("broker", self._broker)):
            try:
                found = list(look())
            except (MigratorError, SQLAlchemyError) as error:
                _log.warning("part_away", part=part, reason=str(error).partition("\n")[0])
                found = []
            up.add_metric([part], float(bool(found)))
            yield from found
        yield up
        if (room := room_in(self._settings)) is not None:
            yield _single("store_room_bytes", "What the store takes before it calls itself full", room)

    def _ledger(self) -> Iterator[Metric]:
        with self._engine.connect() as conn:
            found = figures.figures(conn)
        yield from _of_jobs(found)
        runs = _gauge("runs", "Runs in the ledger", ["verb", "dry_run", "state"])
        for row in found.runs:
            runs.add_metric([row.verb, _text(is_true=row.dry_run), row.state], row.runs)
        yield runs
        now = found.open
        yield _single("open_bytes_total", "Bytes of all projects of open runs", now.bytes_total)
        yield _single("open_bytes_done", "Those of them that are dealt with", now.bytes_done)
        yield _single("workers_busy", "Workers that hold a job", now.workers)
        yield _single(
            "oldest_waiting_seconds", "How long the job has waited that waits longest", now.oldest_waiting_s
        )

    def _broker(self) -> Iterator[Metric]:
        waiting = broker.condition(self._settings).waiting
        yield _single("queue_messages", "Messages that no worker has taken yet", waiting)
        online = self._count_workers()
        yield _single("workers_online", "Workers that answer, busy or not", online)


def _of_jobs(found: Figures) -> Iterator[Metric]:
    states: Counter[tuple[str, str, str]] = Counter()
    failures: Counter[str] = Counter()
    incidents: Counter[str] = Counter({"lease_ran_out": 0, "attempt_fenced": 0, "retried": 0})
    for row in found.jobs:
        states[row.verb, _text(is_true=row.dry_run), row.state] += row.jobs
        if row.state == "failed":
            failures[row.error_class or "unknown"] += row.jobs
        incidents["lease_ran_out"] += row.crashes
        incidents["attempt_fenced"] += row.fenced
        incidents["retried"] += row.retries
    yield _counted("jobs", "Jobs in the ledger", ["verb", "dry_run", "state"], states)
    yield _counted("failed_jobs", "Failed jobs by their error", ["error_class"], failures)
    yield _counted("incidents", "What went wrong and was dealt with", ["kind"], incidents)


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


# What the verb does with it -------------------------------------------------------------------------------------


def scrape(settings: Settings, engine: Engine) -> str:
    """One look, in Prometheus' text format."""
    return generate_latest(_registry(settings, engine)).decode("utf-8")


def as_json(settings: Settings, engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """The same look as a document: the samples of each metric, with labels and value."""
    return {
        metric.name: [{"labels": sample.labels, "value": sample.value} for sample in metric.samples]
        for metric in LedgerCollector(settings, engine).collect()
    }


@contextmanager
def served(settings: Settings, engine: Engine, address: str, port: int) -> Iterator[str]:
    """Answer scrapes until the block ends; gives the address. Raises `UsageError` when the port cannot be had."""
    try:
        server, thread = start_http_server(port, address, _registry(settings, engine))
    except OSError as error:
        raise UsageError(f"Cannot listen at {address}:{port}: {error.strerror or error}") from error
    try:
        yield f"http://{address}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(settings: Settings, engine: Engine) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(settings, engine))
    return registry
