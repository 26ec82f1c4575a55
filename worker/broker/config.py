"""Every Celery setting, each with its reason, and an app made of them. Knows no task, opens no connection."""

import os
from typing import Any

import click
from celery import Celery

from worker.broker.connecting import of_sentinels
from worker.broker.transport import FilteredAmqp
from worker.broker_url import BrokerUrl
from worker.errors import SettingsError
from worker.messages import QUEUE
from worker.runtime import log
from worker.settings import Settings, variables_of_other_applications

_log = log.get(__name__)

_WEEK_S = 7 * 86_400
_WORKER_TIMEOUT_S = 30
"""A worker waits for Redis rather than losing its connection."""

_PRODUCER_TIMEOUT_S = 8
"""An operator waits in front of the producer."""


def create_app(settings: Settings, *, with_results: bool = True) -> Celery:
    """An app for these settings. The producer sends with one that has no result backend: each kept result
    would be a subscription of its own in Redis.

    Raises `SettingsError` for an option of `celery` that names another broker, backend or configuration.
    """
    _ignore_other_applications()
    app = Celery(
        "label_dataset_migrator", include=["worker.tasks"], set_as_current=with_results, amqp=FilteredAmqp
    )
    broker = settings.broker
    app.conf.update(
        broker_url=broker.url,
        result_backend=broker.url if with_results else None,
        **_tls(broker),
        broker_transport_options=_transport(_WORKER_TIMEOUT_S if with_results else _PRODUCER_TIMEOUT_S)
        | _by_sentinels(broker),
        result_backend_transport_options=_by_sentinels(broker),
        **_MESSAGES,
        **_DELIVERY,
        **_CONNECTIONS,
        **_VISIBILITY,
    )
    return app


def _ignore_other_applications() -> None:
    """Take their variables out of this process's environment, and so out of its children's, with a warning.
    An option on the command line was meant for this very process and is refused instead: it must not be
    ignored.
    """
    for name, option in variables_of_other_applications().items():
        if option is not None and _is_on_the_command_line(option):
            raise SettingsError(
                f"celery --{option.replace('_', '-')} is not understood here: REDIS_URL alone says where the broker and "
                "the results are"
            )
        del os.environ[name]
        _log.warning(
            "celery_variable_ignored", variable=name, reason="REDIS_URL alone says where the broker is"
        )


def _is_on_the_command_line(option: str) -> bool:
    """Was it typed? A variable that `celery` reads as an option is another application's."""
    context = click.get_current_context(silent=True)
    source = click.core.ParameterSource.COMMANDLINE
    return context is not None and context.find_root().get_parameter_source(option) is source


def _tls(broker: BrokerUrl) -> dict[str, Any]:
    """TLS as settings of Celery, not in the URL: Flower and the result backend do not look for it there, and
    kombu would take silence for "do not verify the certificate". Nothing at all for plain text: `celery
    report` fails at empty ones.
    """
    if not broker.tls:
        return {}
    return {"broker_use_ssl": dict(broker.tls), "redis_backend_use_ssl": dict(broker.tls)}


def _by_sentinels(broker: BrokerUrl) -> dict[str, Any]:
    """Whom kombu, the result backend and Flower ask the sentinels for, and how: a URL has no place for it."""
    if broker.sentinels is None:
        return {}
    return {
        "master_name": broker.sentinels.master_name,
        "sentinel_kwargs": of_sentinels(broker, broker.sentinels),
    }


def _transport(socket_timeout_s: int) -> dict[str, Any]:
    """Options of the connection to Redis."""
    return {
        # Longer than any job: a message that Redis gives out again while its job still runs would only be
        # dropped by the ledger. Recovery is the ledger's, not Redis's.
        "visibility_timeout": _WEEK_S,
        # A Redis that does not answer is an error within seconds, never a hang.
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }


_MESSAGES: dict[str, Any] = {
    # Ids in JSON and nothing else: another client of the broker must not be able to make a worker run code.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_default_queue": QUEUE,
    # Results are a cache of the ledger's outcomes; a week covers a long run and a late collector.
    "result_expires": _WEEK_S,
    "result_extended": True,
}

_DELIVERY: dict[str, Any] = {
    # A message is acknowledged when its job has ended: a second safety net below the ledger's lease.
    "task_acks_late": True,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": True,
    # The ledger is the only way to a retry: it counts attempts, Celery's requeue does not.
    "task_reject_on_worker_lost": False,
    "task_retry_on_worker_lost": False,
    # One message a process: a big project must not hold small ones that another worker could do.
    "worker_prefetch_multiplier": 1,
    # A lost connection to Redis does not cost hours of copying; the second delivery finds the lease taken.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # A process that has hashed for days is replaced, in case a library leaks.
    "worker_max_tasks_per_child": 5_000,
}

_CONNECTIONS: dict[str, Any] = {
    # A broker that is killed while a task runs must not take its workers along.
    "worker_consumer": "worker.broker.consumer:LastingConsumer",
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "redis_socket_timeout": 10,
    "redis_socket_connect_timeout": 5,
    "redis_retry_on_timeout": True,
    # SIGTERM is a warm stop: jobs hand themselves back within seconds (worker.runtime.shutdown). After
    # SIGQUIT they have so much time for that before their processes are made to exit.
    "worker_soft_shutdown_timeout": 10,
}

_VISIBILITY: dict[str, Any] = {
    # What Flower shows: which worker runs what since when.
    "task_track_started": True,
    "worker_send_task_events": True,
    "task_send_sent_event": True,
}
