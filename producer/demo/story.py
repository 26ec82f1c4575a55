"""The demo: every step of a migration on generated projects, by the program's own commands on a local
stack.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console
from sqlalchemy import Connection, Engine, text

from producer.demo import projects
from producer.local.stack import Stack, stack
from worker.allocation import allocated_below
from worker.db import schema
from worker.db.engine import connect
from worker.errors import UsageError
from worker.legacy.mount_table import current_mounts, mount_of
from worker.messages import MOVED_AWAY
from worker.sessions_csv import Reader, SessionRow, read
from worker.settings import Settings
from worker.units import human_bytes

_MARK = "made-by-producer-demo"
_REPORT = ("--report-dir", "reports")
_SHARES_BLOCKS = {"xfs", "btrfs"}


def run(folder: Path, *, megabytes: int) -> int:
    """Run the demo; 0 when it ended as it should, 1 otherwise. Everything stays in `folder`.

    A folder of an earlier demo is replaced; any other that is not empty is refused with `UsageError`.
    """
    console = Console(soft_wrap=True, highlight=False)
    folder = folder.resolve()
    _prepare(folder)
    with stack(folder / ".state", data_dir=folder / "label", workers=2) as running:
        settings = _settings(running)
        engine = connect(settings.sqlalchemy_url, application_name="label-migrator demo")
        try:
            as_expected = _Demo(console, folder, running, settings, engine).play(megabytes)
        finally:
            engine.dispose()
    console.print(
        f"\nEverything is in [bold]{folder}[/]: reports/, label/ (Label's data directory) and .state/ (the servers')."
    )
    console.print(
        f"To explore it: cd {folder} && DATA_DIR=$PWD/label {Path(sys.executable).parent / 'producer'} up"
    )
    return 0 if as_expected else 1


class _Demo:
    """The chapters, in order; each command is run as an operator would run it, and shown."""

    def __init__(
        self, console: Console, folder: Path, running: Stack, settings: Settings, engine: Engine
    ) -> None:
        self.console = console
        self.folder = folder
        self.running = running
        self.settings = settings
        self.engine = engine

    def play(self, megabytes: int) -> bool:
        """All chapters; False when one did not end as it should."""
        self._record(megabytes)
        self._space()
        before = self._frames()
        as_expected = [
            self._ends_with(0, "The tables", "schema", "apply"),
            self._ends_with(3, "A dry run: what would happen?", "enqueue", "--dry-run", "--wait", *_REPORT),
            self._ends_with(3, "The migration, by two workers", "enqueue", "--wait", *_REPORT),
        ]
        self.console.print(
            "  (Exit code 3: the run ended, and three projects could not be migrated; they were generated so.)"
        )
        self._space()
        as_expected += [
            self._reads_as(before),
            self._ends_with(0, "All sessions and all stored bytes, verified", "verify", *_REPORT),
            self._share(),
        ]
        as_expected += self._reclaim()
        return all(as_expected)

    def _share(self) -> bool:
        """Where blocks can be shared: the space back without moving anything, and the same after that by
        moving.
        """
        kind = _file_system(self.settings.data_dir)
        if kind not in _SHARES_BLOCKS:
            self.console.print(
                f"\n(producer reclaim --share would free the space without moving anything; it needs XFS or btrfs, this is {kind}.)"
            )
            return True
        self._chapter("Space back without moving: legacy files share the store's blocks")
        before = _in_use(self.settings.data_dir)
        as_expected = self._ends_with(0, "", "reclaim", "--share", "--wait", *_REPORT)
        after = _in_use(self.settings.data_dir)
        # `st_blocks` counts shared blocks for each file that has them: only the file system knows.
        self.console.print(
            f"  in use on this file system: {human_bytes(before)} before, {human_bytes(after)} after"
        )
        return as_expected

    def _reclaim(self) -> list[bool]:
        """The store becomes the only copy: in steps, each of which can be taken back until the purge."""
        now = ("--older-than", "0", "--yes", "--wait", *_REPORT)
        purge = ("reclaim", "--purge", "--grace", "0", "--yes", "--wait", *_REPORT)
        back = ("rollback", "--project-id")
        first = str(self._a_migrated_project())
        steps = (
            ("Space back, first step: the directories move away", ("reclaim", *now)),
            ("It can be taken back: a rollback", (*back, first, "--wait", *_REPORT)),
            ("… and once more", ("enqueue", "--project-id", first, "--wait", *_REPORT)),
            ("", ("reclaim", "--project-id", first, *now)),
            ("Second step, usually a month later: they are removed", purge),
            (
                "Even then: a rollback that rebuilds the directory from the store",
                (*back, first, "--restore-files", "--wait", *_REPORT),
            ),
            (
                "What nothing refers to, a gc would find",
                ("gc", "--dry-run", "--grace", "0", "--wait", *_REPORT),
            ),
        )
        as_expected = []
        for title, command in steps:
            as_expected.append(self._ends_with(0, title, *command))
            self._space()
        return as_expected

    def _a_migrated_project(self) -> int:
        with self.engine.connect() as conn:
            number: int = conn.execute(
                text("select min(project_id) from projects where project_type = 'dataset_based'")
            ).scalar_one()
        return number

    def _record(self, megabytes: int) -> None:
        self._chapter(f"A lab with about {megabytes} MB of recordings")
        schema.apply(self.engine, with_baseline=True)
        projects.build(
            self.engine,
            self.settings.data_dir,
            megabytes=megabytes,
            say=lambda line: self.console.print(f"  {line}"),
        )

    def _ends_with(self, expected: int, title: str, *arguments: str) -> bool:
        """A chapter of one command: does it end with this exit code?"""
        if title:
            self._chapter(title)
        return self._producer(*arguments) == expected

    def _reads_as(self, before: Mapping[str, pd.DataFrame]) -> bool:
        """Show some sessions as they read now; are they equal to what they were?"""
        self._chapter("Two sessions, read as Label does, before and after")
        after = self._frames()
        for name, frame in before.items():
            word = "equal" if frame.equals(after[name]) else "DIFFERENT"
            self.console.print(f"  {name}: {len(frame)} rows before, {len(after[name])} after, {word}")
        return all(frame.equals(after[name]) for name, frame in before.items())

    def _chapter(self, title: str) -> None:
        self.console.print(f"\n[bold]{title}[/]")

    def _producer(self, *arguments: str) -> int:
        """Run one command of the program against the demo's stack."""
        self.console.print(f"[dim]$[/] producer {' '.join(arguments)}")
        sys.stdout.flush()
        finished = subprocess.run(
            [sys.executable, "-m", "producer", *arguments],
            env=_environment(self.running),
            cwd=self.folder,
            # One stream, so that a saved session reads in the order in which things happened.
            stderr=subprocess.STDOUT,
            check=False,
        )
        return finished.returncode

    def _frames(self) -> dict[str, pd.DataFrame]:
        """What Label would plot of one ordinary session and of one split child, by the rows as they stand."""
        with self.engine.connect() as conn:
            rows = _session_rows(conn, ["2025-03-03_08_00_00", "2025-06-01_22_00_00.2"])
        return {row.session_name: read(row, Reader.PLOT, self.settings.data_dir) for row in rows}

    def _space(self) -> None:
        """What is on disk now, in allocated blocks."""
        data = self.settings.data_dir
        store = [self.settings.datasets_dir, self.settings.store_dir]
        away = data / MOVED_AWAY
        legacy = [path for path in data.iterdir() if path not in {*store, away}]
        self.console.print(
            f"  on disk: {human_bytes(allocated_below(legacy))} in legacy directories, "
            f"{human_bytes(allocated_below([away]))} moved away, {human_bytes(allocated_below(store))} in the store"
        )


def _prepare(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise UsageError(f"{folder} is not empty and not of an earlier demo; name another --folder")
        for directory, _, _ in os.walk(folder / "label" / "raw_datasets"):
            os.chmod(directory, 0o755)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def _settings(running: Stack) -> Settings:
    return Settings(
        database_url=running.addresses.database_url,  # type: ignore[arg-type]
        redis_url=running.addresses.redis_url,  # type: ignore[arg-type]
        data_dir=running.data_dir,
    )


def _environment(running: Stack) -> dict[str, str]:
    return os.environ | {
        "DATABASE_URL": running.addresses.database_url,
        "REDIS_URL": running.addresses.redis_url,
        "DATA_DIR": str(running.data_dir),
        "LEGACY_ROOTS": str(running.data_dir),
        "LOG_LEVEL": "warning",
    }


def _session_rows(conn: Connection, names: list[str]) -> list[SessionRow]:
    """The first session of each name, with what Label's readers look at."""
    found = conn.execute(
        text("""
            select distinct on (s.session_name) s.session_id, s.session_name, p.path as project_path,
                   s.parent_session_data_path, s.data_start_offset, s.data_end_offset, s.start_ns, s.stop_ns, s.dataset_id,
                   s.raw_session_name, d.file_path as dataset_file_path
            from sessions s join projects p using (project_id) left join raw_datasets d on d.dataset_id = s.dataset_id
            where s.session_name = any(:names) order by s.session_name, s.session_id"""),
        {"names": names},
    )
    return [SessionRow(**row._mapping) for row in found]  # noqa: SLF001 - the public name of a row as a mapping


def _file_system(directory: Path) -> str:
    """The type of file system that a directory lies on."""
    mount = mount_of(os.path.realpath(directory), current_mounts())
    return mount.kind if mount is not None else "unknown"


def _in_use(directory: Path) -> int:
    """How much of a directory's file system is in use, by all that is on it."""
    os.sync()
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
