"""A lab whose files are on the file server: its rows, its projects, what must be true after a step."""

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tests.estate import Project, dump, make_project, record_session
from tests.estate.compare import LABEL_TABLES
from tests.nfs.clients import Client
from tests.nfs.file_server import USER_ID
from tests.support.model import POINTERS, by_key
from tests.support.sites import Site
from tests.support.studies import folder_of, plain_study, study_with_everything
from worker.store.digest import BIG_BYTES

LEASE_S = "45"
"""Seconds: on one processor a heartbeat may be late."""

_OF_A_CONVERSION = ("path", "legacy_path", "project_type", "analysis_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Projects, clients and how everything was at first."""

    site: Site
    clients: list[Client]
    folders: dict[int, Path]
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)

    def on(self, client: Client) -> Site:
        """The same site, where processes run on this client."""
        return replace(self.site, programs=client.programs, folder=self.site.folder / client.name)

    def producer(self, *words: str, exit_code: int = 0) -> dict[str, Any]:
        """What a call of the producer on the first client prints as JSON."""
        done = self.on(self.clients[0]).run_producer(*words, "--json")
        assert done.returncode == exit_code, f"producer {' '.join(words)}: {done.returncode}\n{done.stderr}"
        return dict(json.loads(done.stdout))

    def report(self, *words: str, exit_code: int = 0) -> dict[str, Any]:
        """The report that a call writes."""
        said = self.producer(*words, exit_code=exit_code)
        return dict(json.loads((self.on(self.clients[0]).folder / said["report_path"]).read_text()))

    def jobs(self, *numbers: int) -> list[dict[str, Any]]:
        """The latest run's jobs of these projects."""
        with self.site.engine.connect() as conn:
            rows = conn.execute(
                text("""
                    select project_id, state, attempt, worker, outcome, error from migration_jobs
                    where run_id = (select run_id from migration_runs order by created_at desc limit 1)
                    and project_id = any(:numbers) order by project_id"""),
                {"numbers": list(numbers)},
            )
            return [dict(row) for row in rows.mappings()]

    def paused_because(self) -> str | None:
        """Why the latest run stands still; None if it does not."""
        with self.site.engine.connect() as conn:
            reason: str | None = conn.exec_driver_sql(
                "select paused_because from migration_runs order by created_at desc limit 1"
            ).scalar_one()
        return reason

    def look(self, client: Client) -> dict[str, Any]:
        """What this client sees of every project, session and stored file."""
        folders = {f"project {number}": str(folder) for number, folder in self.folders.items()}
        folders |= {f"dataset of {number}": path for number, path in self.trees().items()}
        order = {"folders": folders, "data_dir": str(self.site.data_dir)}
        return dict(json.loads(self.call(client, "everything", order)()))

    def call(self, client: Client, function: str, order: Mapping[str, Any]) -> Callable[[], str]:
        """Start a function of `tests.nfs.views` on a client; what it prints, once it has ended."""
        site = self.on(client)
        process = client.programs.call(
            function, f"tests.nfs.views:{function}", order, env=site.env, folder=site.folder
        )

        def printed() -> str:
            code = client.programs.await_end(process, f"{function} on {client.name} ends")
            assert code == 0, process.log.read_text()
            return process.output.read_text()

        return printed

    def check(self, *, migrated: Iterable[int], away: Iterable[int] = ()) -> str:
        """These projects are migrated, these legacy directories are not in place, and everything else is as
        it was: on each client every file and every session, and every row. What was checked, in words.
        """
        migrated, away = set(migrated), set(away)
        self._check_rows(migrated)
        for client in self.clients:
            self._check_files(client, self.look(client), migrated, away)
        sessions = len(self.rows["sessions"])
        return f"{sessions} sessions, {len(self.folders)} directories, {len(migrated)} in the store"

    def _check_rows(self, migrated: set[int]) -> None:
        with self.site.engine.connect() as conn:
            now = dump(conn, LABEL_TABLES)
        assert {
            row["project_id"] for row in now["projects"] if row["project_type"] == "dataset_based"
        } == migrated
        for table, key in (("projects", "project_id"), ("sessions", "session_id")):
            changed = _OF_A_CONVERSION if table == "projects" else POINTERS
            before = by_key(self.rows[table], key)
            for row in now[table]:
                free = changed if row["project_id"] in migrated else ()
                former = before.pop(row[key])
                differing = [name for name in former if name not in free and row[name] != former[name]]
                assert not differing, f"{table} {row[key]}: {differing}"
            assert not before, f"{table} has lost {list(before)}"
        for table in ("participants", "session_lineage", "models"):
            assert now[table] == self.rows[table], table

    def _check_files(self, client: Client, now: dict[str, Any], migrated: set[int], away: set[int]) -> None:
        for number in self.folders:
            name = f"project {number}"
            expected = None if number in away else self.seen[name]
            assert now[name] == expected, f"{client.name} sees {name} otherwise: {now[name]}"
        for number in migrated:
            tree = now[f"dataset of {number}"]
            assert tree is not None, f"{client.name} does not see the dataset of project {number}"
            content = self.seen[f"project {number}"]["content"]
            assert tree["content"] == content, f"{client.name} sees other bytes in the dataset of {number}"
        assert now["sessions"] == self.seen["sessions"], f"{client.name} reads sessions otherwise"
        store = now["store"]
        for leftovers in ("bad", "staging", "hidden"):
            assert store[leftovers] == [], f"{client.name} sees {leftovers} in the store: {store[leftovers]}"

    def trees(self) -> dict[int, str]:
        """Where the dataset of each migrated project is."""
        with self.site.engine.connect() as conn:
            rows = conn.exec_driver_sql("""
                select project_id, file_path from project_dataset_refs join raw_datasets using (dataset_id)""")
            return {row.project_id: row.file_path for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projects:
    """The projects by what is to happen while they are migrated."""

    twins: tuple[int, int]
    restarted: int
    frozen: int
    killed: int
    full: int
    small: list[int]
    odd: int
    folders: dict[int, Path]

    @property
    def everyone(self) -> list[int]:
        """All of their ids."""
        return sorted(self.folders)


def make_projects(site: Site) -> Projects:
    """Some small projects, of which two have one recording in common and one has all that a directory can
    hold, and some with a file that takes a while.
    """
    big = [_with_a_big_file(site, name, seed) for name, seed in _BIG.items()]
    for name, sessions in (("pilot", (1, 2)), ("pilot again", (1, 2)), ("follow-up", (2, 3))):
        plain_study(site, name, *sessions)
    odd_folder = str(study_with_everything(site))
    with site.engine.connect() as conn:
        rows = conn.exec_driver_sql("select project_id, path from projects")
        folders = {row.project_id: Path(row.path) for row in rows}
    first, second, restarted, frozen, killed, full = (project.project_id for project in big)
    (odd,) = (number for number, folder in folders.items() if str(folder) == odd_folder)
    for above, folders_there, files in os.walk(os.fsencode(site.legacy_root)):
        for entry in (*folders_there, *files):
            os.chown(os.path.join(above, entry), USER_ID, USER_ID, follow_symlinks=False)
    return Projects(
        twins=(first, second),
        restarted=restarted,
        frozen=frozen,
        killed=killed,
        full=full,
        small=sorted(folders.keys() - {project.project_id for project in big} - {odd}),
        odd=odd,
        folders=folders,
    )


_BIG = {"twin": 1, "other twin": 1, "restarted": 2, "frozen": 3, "killed": 4, "full": 5}
"""Projects with a file that takes a while, by the seed of its content."""


def _with_a_big_file(site: Site, name: str, seed: int) -> Project:
    """Label reads nothing of it, so it costs no reader's time."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        record_session(conn, project, "day", rows=40, seed=100 + seed)
    video = folder_of(project) / "day" / "video.bin"
    video.write_bytes(random.Random(seed).randbytes(BIG_BYTES + (512 << 10)))
    return project


@contextmanager
def lab(site: Site, clients: list[Client], projects: Projects) -> Iterator[Lab]:
    """A lab in which nothing has been done, as its clients see it."""
    made = Lab(site=site, clients=clients, folders=projects.folders)
    with site.engine.connect() as conn:
        made.rows.update(dump(conn, LABEL_TABLES))
    made.seen.update(made.look(clients[0]))
    yield made
