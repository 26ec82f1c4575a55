"""A worker that runs on this machine, beside the containers, by Celery's own command. Knows no container."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from producer.local.child_process import (
    Child,
    await_ready,
    start,
    stop,
)
from tests.compose.installation import LEASE_S, Installation
from worker.broker.client import workers_online
from worker.settings import Settings

NODE = f"beside@{socket.gethostname()}"
_START_WITHIN_S = 60.0
_STOP_WITHIN_S = 30.0


@contextmanager
def worker_beside(installation: Installation) -> Iterator[Child]:
    """Run it until the block ends; the block begins when it answers."""
    folder = installation.reports.parent
    child = start(
        NODE,
        _command(installation),
        log_file=folder / "beside.log",
        on_parent_death=signal.SIGKILL,
        env=_env(installation),
        cwd=folder,
    )
    try:
        settings = Settings.model_validate(
            {
                "database_url": installation.database_url,
                "redis_url": installation.redis_url,
                "data_dir": installation.data_dir,
            }
        )
        await_ready(child, lambda: NODE in workers_online(settings), within_s=_START_WITHIN_S)
        yield child
    finally:
        stop([child], within_s=_STOP_WITHIN_S)


def _command(installation: Installation) -> list[str]:
    celery = [
        sys.executable,
        "-m",
        "celery",
        "--app=worker.app",
        "worker",
        f"--hostname={NODE}",
        "--concurrency=1",
    ]
    if os.geteuid() != 0:
        return celery
    # As the containers' user, whose the store's files are; but an environment below root's home is closed to
    # that one.
    user = installation.identity
    return [
        "setpriv",
        f"--reuid={user.uid}",
        f"--regid={user.gid}",
        "--clear-groups",
        "--pdeathsig=KILL",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
        *celery,
    ]


def _env(installation: Installation) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    return others | {
        "DATABASE_URL": installation.database_url,
        "REDIS_URL": installation.redis_url,
        "DATA_DIR": str(installation.data_dir),
        # As in the containers: all workers of an installation need the same.
        "LEGACY_ROOTS": f"{installation.legacy_dir}:{installation.data_dir}",
        "LEASE_S": str(LEASE_S),
    }
