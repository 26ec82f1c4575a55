"""The Celery app that workers are started with. Knows no setting of Celery's and no task."""

from functools import cache, partial
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import heartbeat_sent, setup_logging, worker_shutting_down

from worker import settings as settings_module
from worker.broker.config import create_app
from worker.runtime import log, shutdown


@setup_logging.connect
def _log_as_settings_say(**_arguments: Any) -> None:
    """Celery's own lines go through the same renderer."""
    settings = settings_module.load()
    log.configure(log_format=settings.log_format, level=settings.log_level)


@worker_shutting_down.connect
def _tell_the_children(**_arguments: Any) -> None:
    """Runs in the parent's signal handler, where nothing else may be done."""
    shutdown.begin()


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
