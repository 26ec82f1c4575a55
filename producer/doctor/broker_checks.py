"""What the doctor asks Redis: can it be reached, does it keep its messages, are they ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from producer.doctor.database_checks import is_local
from producer.doctor.findings import Chapter
from worker.broker import client as broker
from worker.broker.client import Server, Watch
from worker.db import overview
from worker.errors import BrokerUnavailableError
from worker.findings import Check, failed, passed, warned
from worker.settings import Settings
from worker.units import human_bytes

OLDEST = 6
"""The oldest Redis that the broker's client speaks with as we need it."""

_TOO_MANY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Broker:
    settings: Settings
    engine: Engine
    server: Server


CHECKS: Mapping[str, Callable[[_Broker], Check]] = {
    "takes messages": lambda it: _takes_messages(it.settings),
    "version": lambda it: version_check(it.server),
    "eviction": lambda it: eviction_check(it.server),
    "persistence": lambda it: persistence_check(it.server),
    "memory": lambda it: memory_check(it.server),
    "queue": lambda it: _queue(it.settings, it.engine),
    "failover": lambda it: failover_check(broker.watch(it.settings)),
}


def check_broker(settings: Settings, engine: Engine) -> Chapter:
    """Everything about the broker; if it cannot be reached, that."""
    chapter = Chapter("Redis")
    url = settings.broker
    try:
        server = broker.server(settings)
    except BrokerUnavailableError as error:
        chapter.checks["reachable"] = failed(str(error), error.remedy)
        chapter.leave_out(CHECKS, "Redis cannot be asked")
    else:
        chapter.checks["reachable"] = passed(url.place)
        chapter.carry_out(CHECKS, _Broker(settings=settings, engine=engine, server=server))
    chapter.checks["protection"] = protection_check(
        [host for host, _port in url.addresses], encrypted=bool(url.tls), password=url.password is not None
    )
    return chapter


def _takes_messages(settings: Settings) -> Check:
    """Does it do what it is asked? A server that answers and refuses holds everything up."""
    try:
        broker.check(settings)
    except BrokerUnavailableError as error:
        return failed(str(error), error.remedy)
    return passed("it can be written to")


def version_check(server: Server) -> Check:
    """Is it a version that can do what Celery asks of it?"""
    if int(server.redis_version.split(".")[0]) < OLDEST:
        return failed(server.product, f"Use Redis {OLDEST} or newer, or Valkey.")
    return passed(server.product)


def eviction_check(server: Server) -> Check:
    """A broker that throws messages away when memory is short is none; cached results may go."""
    finding = f"maxmemory-policy is {server.eviction}"
    remedy = "redis-cli config set maxmemory-policy noeviction; and in redis.conf"
    if server.eviction.startswith("allkeys"):
        return failed(f"{finding}: it may throw away jobs' messages", remedy)
    if server.eviction != "noeviction":
        return warned(f"{finding}: it may throw away results", remedy)
    return passed(finding)


def persistence_check(server: Server) -> Check:
    """What a restart costs. The ledger has every job sent again, so it is time and not work."""
    if server.cannot_save:
        finding = f"Redis cannot save: {', '.join(server.cannot_save)}"
        return failed(finding, "Look at Redis's log and its disk: it may refuse every message.")
    if not server.writes_log:
        finding = "appendonly is off: a restart loses what waits, until the workers send it again"
        return warned(finding, "redis-cli config set appendonly yes; and in redis.conf")
    return passed("appendonly is on")


def memory_check(server: Server) -> Check:
    """Is there room for messages and results?"""
    used = human_bytes(server.memory_bytes)
    if not server.memory_limit_bytes:
        return passed(f"{used}, without a limit")
    share = server.memory_bytes / server.memory_limit_bytes
    finding = f"{used} of {human_bytes(server.memory_limit_bytes)} ({share:.0%})"
    remedy = "Raise maxmemory, or empty what else is in it; the migrator takes about 2 kB for each project."
    if share > 0.95:
        return failed(finding, remedy)
    return warned(finding, remedy) if share > 0.8 else passed(finding)


def failover_check(watch: Watch | None) -> Check:
    """Which server is primary, and would another take its place? Jobs stand in the ledger, so it is about
    waiting, never about work.
    """
    if watch is None:
        return passed("one server, none takes its place")
    finding = f"primary is {' or '.join(sorted(watch.primaries))}, {watch.replicas} replicas, "
    finding += (
        f"{watch.answering} of {watch.answering + len(watch.silent)} sentinels answer, quorum {watch.quorum}"
    )
    if watch.silent:
        finding += f"; silent: {', '.join(f'{one} ({why})' for one, why in sorted(watch.silent.items()))}"
    needed = max(watch.quorum, watch.known // 2 + 1)
    if watch.answering < needed:
        return warned(
            f"{finding}: a failover needs {needed}",
            "Start the sentinels, or name those that run in REDIS_URL.",
        )
    if not watch.replicas:
        return warned(f"{finding}: nothing can take its place", "Start a replica: replicaof HOST PORT")
    if len(watch.primaries) > 1:
        return warned(f"{finding}: they do not agree", "Nothing, if it passes: a failover is under way.")
    return warned(finding, "Start them again.") if watch.silent else passed(finding)


def protection_check(hosts: Sequence[str], *, encrypted: bool, password: bool) -> Check:
    """A client that can write to the broker can have workers do jobs of the ledger, and hold them up."""
    if all(map(is_local, hosts)):
        return passed("on this machine only")
    lacks = [
        lack for lack, there in (("not encrypted", encrypted), ("without a password", password)) if not there
    ]
    if lacks:
        remedy = "Use rediss://:PASSWORD@HOST:PORT/0, or with sentinels ?ssl_cert_reqs=required."
        return warned(f"{', '.join(hosts)} is used {' and '.join(lacks)}", remedy)
    return passed("TLS and a password")


def _queue(settings: Settings, engine: Engine) -> Check:
    messages = broker.condition(settings).waiting
    with engine.connect() as conn:
        waiting = overview.open_jobs(conn).waiting
    finding = f"{messages} messages, {waiting} waiting jobs"
    if messages > waiting + _TOO_MANY:
        return warned(
            finding,
            "Workers drop messages without a job; if they do not get fewer, another program uses this Redis database.",
        )
    return passed(finding)
