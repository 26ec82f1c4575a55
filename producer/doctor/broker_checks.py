"""What the doctor asks Redis: is it there, does it keep what it is given, is what waits in it ours."""

from urllib.parse import urlsplit

from sqlalchemy import Engine

from producer.doctor.database_checks import is_local
from producer.doctor.findings import Chapter, Notes
from worker.broker import client as broker
from worker.broker.client import Server
from worker.db import overview
from worker.errors import BrokerUnavailableError
from worker.findings import Check, failed, passed, warned
from worker.settings import Settings
from worker.units import human_bytes

OLDEST = 6
"""The oldest Redis that the broker's client speaks with as we need it."""

_TOO_MANY = 1000
_REST = ("takes messages", "version", "eviction", "persistence", "memory", "queue")


def look(settings: Settings, engine: Engine) -> Chapter:
    """Everything about the broker; if it cannot be reached, that."""
    notes = Notes("Redis")
    url = urlsplit(settings.redis_url.get_secret_value())
    try:
        server = broker.server(settings)
    except BrokerUnavailableError as error:
        notes.add(failed("reachable", str(error), error.remedy))
        notes.leave_out(_REST, "Redis cannot be asked")
    else:
        notes.add(passed("reachable", f"{url.hostname}:{url.port or 6379}"), _takes_messages(settings))
        notes.add(
            version_check(server), eviction_check(server), persistence_check(server), memory_check(server)
        )
        notes.look("queue", lambda: _queue(settings, engine))
    notes.add(protection_check(url.hostname, encrypted=url.scheme == "rediss", password=bool(url.password)))
    return notes.chapter()


def _takes_messages(settings: Settings) -> Check:
    """Does it do what it is asked? One that answers and refuses holds everything up."""
    try:
        broker.check(settings)
    except BrokerUnavailableError as error:
        return failed("takes messages", str(error), error.remedy)
    return passed("takes messages", "it can be written to")


def version_check(server: Server) -> Check:
    """Is it a version that can do what Celery asks of it?"""
    if int(server.redis_version.split(".")[0]) < OLDEST:
        return failed("version", server.product, f"Use Redis {OLDEST} or newer, or Valkey.")
    return passed("version", server.product)


def eviction_check(server: Server) -> Check:
    """A broker that throws messages away when memory is short is none. Only what expires by itself may go: cached results."""
    name, words = "eviction", f"maxmemory-policy is {server.eviction}"
    remedy = "redis-cli config set maxmemory-policy noeviction; and in redis.conf"
    if server.eviction.startswith("allkeys"):
        return failed(name, f"{words}: it may throw away jobs' messages", remedy)
    if server.eviction != "noeviction":
        return warned(name, f"{words}: it may throw away results", remedy)
    return passed(name, words)


def persistence_check(server: Server) -> Check:
    """What a restart costs. The ledger has every job sent again, so it is time and not work."""
    name = "persistence"
    if server.cannot_save:
        words = f"Redis cannot save: {', '.join(server.cannot_save)}"
        return failed(name, words, "Look at Redis's log and its disk: it may refuse every message.")
    if not server.writes_log:
        words = "appendonly is off: a restart loses what waits, until the workers send it again"
        return warned(name, words, "redis-cli config set appendonly yes; and in redis.conf")
    return passed(name, "appendonly is on")


def memory_check(server: Server) -> Check:
    """Is there room for messages and results?"""
    name = "memory"
    used = human_bytes(server.memory_bytes)
    if not server.memory_limit_bytes:
        return passed(name, f"{used}, without a limit")
    share = server.memory_bytes / server.memory_limit_bytes
    words = f"{used} of {human_bytes(server.memory_limit_bytes)} ({share:.0%})"
    remedy = "Raise maxmemory, or empty what else is in it; the migrator takes about 2 kB for each project."
    if share > 0.95:
        return failed(name, words, remedy)
    return warned(name, words, remedy) if share > 0.8 else passed(name, words)


def protection_check(host: str | None, *, encrypted: bool, password: bool) -> Check:
    """Whoever can write to the broker can have workers do jobs of the ledger, and hold them up."""
    name = "protection"
    if is_local(host):
        return passed(name, "on this machine only")
    lacks = [
        words
        for words, there in (("not encrypted", encrypted), ("without a password", password))
        if not there
    ]
    if lacks:
        return warned(name, f"{host} is used {' and '.join(lacks)}", "Use rediss://:PASSWORD@HOST:PORT/0.")
    return passed(name, "TLS and a password")


def _queue(settings: Settings, engine: Engine) -> Check:
    name = "queue"
    messages = broker.condition(settings).waiting
    with engine.connect() as conn:
        waiting = overview.open_jobs(conn).waiting
    words = f"{messages} messages, {waiting} waiting jobs"
    if messages > waiting + _TOO_MANY:
        return warned(
            name,
            words,
            "Workers drop messages without a job; if they do not get fewer, another program uses this Redis database.",
        )
    return passed(name, words)
