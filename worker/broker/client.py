"""The connection to the broker: condition, messages, workers, results. Knows neither ledger nor settings."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.broker_url import BrokerUrl
from worker.errors import BrokerUnavailableError
from worker.messages import QUEUE, JobRef, Message
from worker.settings import Settings
from worker.units import human_bytes

if TYPE_CHECKING:
    from celery import Celery

_TIMEOUT_S = 5.0
_STATUS_TIMEOUT_S = 2.0
_PING_S = 1.0
_ANSWER_S = 2.0
_BATCH = 500
_SAVES = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
_EPOCH_KEY = "label_migrator:epoch"
_PROBE_KEY = "label_migrator:probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The broker right now: `epoch` changes when it loses what it had, `waiting` messages are in the
    queue.
    """

    epoch: str
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What kind of server the broker is. `eviction`: what it does when `memory_limit_bytes` (0: none) is
    reached. `writes_log`: does it append every command to a file? `cannot_save` names what of its last saving
    to disk failed.
    """

    product: str
    redis_version: str
    eviction: str
    memory_bytes: int
    memory_limit_bytes: int
    writes_log: bool
    cannot_save: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What those of the sentinels answer that answer. `primaries` has more than one only while they do not
    agree; `known` sentinels watch over it, `quorum` of them have to agree that it is down; `replicas` are
    there and follow it.
    """

    primaries: frozenset[str]
    answering: int
    silent: Mapping[str, str]
    known: int
    quorum: int
    replicas: int


def check(settings: Settings, *, within_s: float = _TIMEOUT_S) -> None:
    """Raise `BrokerUnavailableError`, with host and port, unless the broker takes writes within seconds.

    A replica, or a server without memory or disk, answers a ping all the same. Leaves nothing but the epoch.
    """
    with _translated_errors(settings), _client(settings, within_s) as client:
        client.ping()
        client.set(_EPOCH_KEY, str(uuid.uuid4()), nx=True)
        # Pushes nothing, because there is no such list, and is refused whenever a message would be.
        client.lpushx(_PROBE_KEY, "")
        client.publish(f"/{client.get_connection_kwargs().get('db', 0)}.{_PROBE_KEY}", "")


def trouble(settings: Settings) -> str | None:
    """What workers wait for, in the broker's own words; None while it answers and takes messages."""
    try:
        check(settings, within_s=_STATUS_TIMEOUT_S)
    except BrokerUnavailableError as error:
        return str(error)
    return None


def condition(settings: Settings) -> Condition:
    """The broker's epoch, which the first caller writes, and the length of the queue."""
    with _translated_errors(settings), _client(settings) as client:
        client.set(_EPOCH_KEY, str(uuid.uuid4()), nx=True)
        epoch: bytes | None = client.get(_EPOCH_KEY)
        waiting: int = client.llen(QUEUE)
    # Emptied between the two: the next call finds the new epoch.
    return Condition(epoch=_storable(epoch or b""), waiting=waiting)


def send(settings: Settings, messages: Sequence[Message]) -> None:
    """Publish all messages in pipelined batches. Task ids follow from the jobs: sending twice is harmless.

    Raises `BrokerUnavailableError` within seconds when the broker goes away; a part may have been sent then.
    """
    app = _app(settings, with_results=False)
    with _translated_errors(settings), app.producer_or_acquire() as producer, producer.batch(_BATCH):
        for message in messages:
            app.send_task(
                message.task,
                args=(str(message.ref.run_id), message.ref.subject_id),
                task_id=message.ref.task_id,
                producer=producer,
                argsrepr=_shown(message),
                kwargsrepr="",
                retry=False,
            )


def _shown(message: Message) -> str:
    """What Flower shows in place of the run's id: `project 42 · P001_2025_Study · 1.2 GB`."""
    size = f" · {human_bytes(message.size_bytes)}" if message.size_bytes is not None else ""
    name = f" · {message.subject_name}" if message.subject_name else ""
    return f"{message.ref.words}{name}{size}"


def workers_online(settings: Settings) -> list[str]:
    """The names of the workers that answer within a second; empty when none does."""
    app = _app(settings, with_results=False)
    with _translated_errors(settings):
        replies: list[dict[str, Any]] = app.control.ping(timeout=_PING_S) or []
    return sorted(name for reply in replies for name in reply)


def workers_counter(settings: Settings) -> Callable[[], int]:
    """Make a function that counts the workers that answer within a second: for a process that asks for weeks.

    One app for all calls, since each new one would leave some kilobytes behind; and a new connection for
    each, since none outlives the broker.
    """
    app = _app(settings, with_results=False)

    def count() -> int:
        with _translated_errors(settings), app.connection_for_write() as connection:
            return len(app.control.ping(timeout=_PING_S, connection=connection) or [])

    return count


def ask(
    settings: Settings, workers: Sequence[str], command: str, arguments: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What these workers' parents answer to a remote-control command, by name; those that do not answer
    within two seconds are not in it.
    """
    app = _app(settings, with_results=False)
    with _translated_errors(settings):
        replies: list[dict[str, Any]] = (
            app.control.broadcast(
                command,
                dict(arguments),
                destination=list(workers),
                reply=True,
                timeout=_ANSWER_S,
                limit=len(workers),
            )
            or []
        )
    return {name: answer for reply in replies for name, answer in reply.items()}


def server(settings: Settings) -> Server:
    """What the broker's server reports of itself, by `INFO` alone: a careful operator forbids `CONFIG`."""
    with _translated_errors(settings), _client(settings) as client:
        info: dict[str, Any] = {}
        for section in ("server", "memory", "persistence"):
            info |= client.info(section)
    is_valkey = info.get("server_name") == "valkey"
    return Server(
        product=f"Valkey {info.get('valkey_version')}" if is_valkey else f"Redis {info['redis_version']}",
        redis_version=str(info["redis_version"]),
        eviction=str(info.get("maxmemory_policy", "noeviction")),
        memory_bytes=int(info.get("used_memory", 0)),
        memory_limit_bytes=int(info.get("maxmemory", 0)),
        writes_log=bool(info.get("aof_enabled")),
        cannot_save=tuple(name for name in _SAVES if info.get(name, "ok") != "ok"),
    )


def watch(settings: Settings) -> Watch | None:
    """What each of the sentinels says; None where REDIS_URL names the one server itself. Raises
    `BrokerUnavailableError` when none answers, or none knows the name.
    """
    named = settings.broker.sentinels
    if named is None:
        return None
    with _translated_errors(settings):
        return _watch(settings.broker, named.master_name)


def _watch(url: BrokerUrl, master_name: str) -> Watch:
    import redis  # noqa: PLC0415 - as in _app

    from worker.broker.connecting import asking  # noqa: PLC0415 - likewise

    silent: dict[str, redis.RedisError] = {}
    states: list[Any] = []
    replicas = 0
    with asking(url) as sentinel:
        for (host, port), client in zip(url.addresses, list(sentinel.sentinels), strict=True):
            try:
                states.append(client.sentinel_master(master_name))
                replicas = max(replicas, sum(map(_follows, client.sentinel_slaves(master_name))))
            except redis.RedisError as error:
                silent[f"{host}:{port}"] = error
    if not states:
        raise next(iter(silent.values()))
    return Watch(
        primaries=frozenset(f"{state['ip']}:{state['port']}" for state in states),
        answering=len(states),
        silent={place: str(error).partition("\n")[0] for place, error in silent.items()},
        known=max(int(state["num-other-sentinels"]) + 1 for state in states),
        quorum=max(int(state["quorum"]) for state in states),
        replicas=replicas,
    )


def _follows(replica: Mapping[str, Any]) -> bool:
    return not replica["is_sdown"] and replica.get("master-link-status") == "ok"


@contextmanager
def results(settings: Settings) -> Iterator[Callable[[Sequence[JobRef]], dict[JobRef, dict[str, Any]]]]:
    """Make a function that reads the stored results of jobs that ended: Celery's document with `status` and
    `result`. One connection for all calls, each of which should ask for some hundred.

    Results are a cache: what is missing here is in the ledger.
    """
    backend = _app(settings).backend
    with _client(settings) as client:

        def read(refs: Sequence[JobRef]) -> dict[JobRef, dict[str, Any]]:
            if not refs:
                return {}
            with _translated_errors(settings):
                values: list[bytes | None] = client.mget(
                    [backend.get_key_for_task(ref.task_id) for ref in refs]
                )
            documents = {ref: _document(value) for ref, value in zip(refs, values, strict=True) if value}
            return {ref: document for ref, document in documents.items() if document is not None}

        yield read


def _document(value: bytes) -> dict[str, Any] | None:
    """A stored result, if it is one: another client of the broker may have put something else there."""
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and "result" in document else None


def _storable(epoch: bytes) -> str:
    """The epoch as the ledger can keep it, whatever another client has written in its place."""
    return epoch[:64].decode("ascii", "backslashreplace").replace("\0", "\\0")


def _app(settings: Settings, *, with_results: bool = True) -> "Celery":
    # Celery and the driver take longer to import than most verbs to answer, and most verbs ask nothing of the
    # broker.
    from worker.broker.config import create_app  # noqa: PLC0415

    return create_app(settings, with_results=with_results)


def _client(settings: Settings, within_s: float = _TIMEOUT_S) -> AbstractContextManager[Any]:
    from worker.broker.connecting import client  # noqa: PLC0415 - as in _app

    return client(settings.broker, within_s)


def _translated_errors(settings: Settings) -> AbstractContextManager[None]:
    from worker.broker.failures import translated_errors  # noqa: PLC0415 - as in _app

    return translated_errors(settings.broker)
