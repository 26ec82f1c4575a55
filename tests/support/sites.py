"""One installation of the migrator: rows, broker, files, and real processes that use them."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.support.folders import remove_all
from tests.support.forking import Forks, Process
from tests.support.servers import forget_rows
from tests.support.workers import Worker, running_workers
from worker.settings import Settings

LEASE_S = 5
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One installation of the migrator: its own database, broker, store and legacy projects, and processes
    that use them.
    """

    engine: Engine
    redis_url: str
    folder: Path
    data_dir: Path
    legacy_root: Path
    env: dict[str, str]
    settings: Settings
    programs: Forks | None = None
    """What starts producers and workers."""

    def run_producer(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `producer` as an operator does, in a directory of its own; `env` adds to the site's
        environment.

        It is forked from a process that has loaded its libraries. What only an interpreter reads at its
        start, such as PYTHONUTF8, comes too late.
        """
        assert self.programs is not None
        process = self.start_producer(*args, **env)
        code = self.programs.await_end(process, f"producer {' '.join(args)} ends")
        out, err = process.output.read_text(), process.log.read_text()
        process.output.unlink()
        process.log.unlink()
        return subprocess.CompletedProcess(args, code, out, err)

    def start_producer(self, *args: str, terminal: str | None = None, **env: str) -> Process:
        """The same, without waiting for its end; at a terminal, if one is given."""
        assert self.programs is not None
        return self.programs.run(
            f"producer{next(_numbers)}",
            "producer",
            args,
            env={**self.env, **env},
            folder=self.folder,
            terminal=terminal,
        )

    def workers(
        self, count: int = 1, *, concurrency: int = 1, **env: str
    ) -> AbstractContextManager[list[Worker]]:
        """Run real workers that take tasks when the block begins; their logs are in the site's folder. They
        are forked as producers are.
        """
        assert self.programs is not None
        number = next(_numbers)
        return running_workers(
            self.programs,
            [f"{number}-worker{each}" for each in range(1, count + 1)],
            concurrency=concurrency,
            env={**self.env, **env},
            folder=self.folder,
        )

    def empty(self) -> None:
        """Forget all rows and files, but keep tables, running processes and what these log."""
        forget_rows(self.engine)
        for leftover in self.folder.iterdir():
            if leftover.is_file() and leftover.suffix != ".log":
                leftover.unlink()
        for folder in (self.data_dir, self.legacy_root):
            remove_all(folder)
            folder.mkdir()


@contextmanager
def site_in(folder: Path, engine: Engine, redis_url: str, programs: Forks | None = None) -> Iterator[Site]:
    """An installation whose files are in the folder; they are removed when the block ends."""
    data_dir, legacy_root = folder / "label_data", folder / "legacy"
    for each in (data_dir, legacy_root):
        each.mkdir()
    variables = {
        "DATABASE_URL": engine.url.set(drivername="postgresql").render_as_string(hide_password=False),
        "REDIS_URL": redis_url,
        "DATA_DIR": str(data_dir),
        "LEGACY_ROOTS": f"{data_dir}:{legacy_root}",
        "LEASE_S": str(LEASE_S),
        "HASH_THREADS": "2",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }
    # Whatever the caller of pytest has set for an installation of his own is none of ours.
    others = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    try:
        yield Site(
            engine=engine,
            redis_url=redis_url,
            folder=folder,
            data_dir=data_dir,
            legacy_root=legacy_root,
            env=others | variables,
            settings=_settings(variables),
            programs=programs,
        )
    finally:
        for each in (data_dir, legacy_root):
            remove_all(each)


def _settings(variables: dict[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as environment:
        for name in Settings.model_fields:
            environment.delenv(name.upper(), raising=False)
        for name, value in variables.items():
            environment.setenv(name, value)
        return Settings(_env_file=None)  # type: ignore[call-arg]
