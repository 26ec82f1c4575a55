"""The Celery app that workers are started with. Knows no setting of Celery's and no task."""

import os
import signal
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

from celery import Celery
from celery.signals import heartbeat_sent, setup_logging, worker_ready

from worker import settings as settings_module
from worker.broker.config import create_app
from worker.runtime import log, shutdown


@setup_logging.connect
def _log_as_settings_say(**_arguments: Any) -> None:
    """Celery's own lines go through the same renderer."""
    settings = settings_module.load()
    log.configure(log_format=settings.log_format, level=settings.log_level)


@worker_ready.connect
def _tell_the_children(**_arguments: Any) -> None:
    """At a signal to stop, in the parent's handler, where nothing else may be done.

    Not by `worker_shutting_down`: at a cold shutdown (SIGQUIT) Celery first waits for the tasks,
    as long as `worker_soft_shutdown_timeout` says, and for its processes, and only then says so. Before the
    worker is ready it has no task.
    """
    parent = os.getpid()
    for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT):
        _before(number, lambda: shutdown.begin() if os.getpid() == parent else None)


def _before(number: signal.Signals, act: Callable[[], None]) -> None:
    """Do something at a signal, and then what was done at it so far."""
    usual = signal.getsignal(number)

    def handle(received: int, frame: FrameType | None) -> None:
        act()
        if callable(usual):
            usual(received, frame)

    if callable(usual):
        signal.signal(number, handle)


@cache
def _worker_app() -> Celery:
    settings = settings_module.load()
    log.configure(log_format=settings.log_format, level=settings.log_level)
    app = create_app(settings)
    app.steps["worker"].add("worker.bootsteps:Reaping")
    if settings.alive_file is not None:
        heartbeat_sent.connect(partial(_say_alive, settings.alive_file), weak=False)
    return app


def _say_alive(alive_file: Path, **_arguments: Any) -> None:
    """Runs in the parent's event loop, every two seconds while it is connected to the broker. Where the file
    cannot be written Celery logs that, and the worker works on.
    """
    alive_file.touch()


def __getattr__(name: str) -> Any:
    """`app` for `celery -A worker.app worker`, made on demand: importing this module needs no settings."""
    if name == "app":
        return _worker_app()
    raise AttributeError(name)
