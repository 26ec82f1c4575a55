"""What Celery's events, and so Flower, show of a run: one task for each project, with arguments that a person
can read.

The workers are started without `-E`: events are a setting of ours, and these tests fail when it is off.
"""

import itertools
import threading
from collections import defaultdict
from typing import Any, Self

from sqlalchemy import text

from tests.estate import make_project, record_session
from tests.support.sites import Site
from tests.support.slow_jobs import big_study, enqueue, small_studies
from tests.support.waiting import PATIENCE_S
from worker.broker.config import create_app
from worker.messages import JobRef

Event = dict[str, Any]


class Watcher:
    """Listens to a broker's events in a thread, as Flower does, from when the block begins until it ends."""

    def __init__(self, site: Site) -> None:
        self.events: list[Event] = []
        self._app = create_app(site.settings)
        self._stopped = threading.Event()
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        # Workers send one every other second; only when it comes is it sure that no later event is missed.
        self.await_events({"worker-heartbeat"}, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # The next heartbeat ends the listening.
        self._thread.join(PATIENCE_S)

    def await_events(self, kinds: set[str], count: int) -> None:
        """Wait until so many events of these kinds have come."""
        with self._came:
            assert self._came.wait_for(
                lambda: sum(event["type"] in kinds for event in self.events) >= count, PATIENCE_S
            ), [event["type"] for event in self.events]

    def of_tasks(self) -> dict[str, list[Event]]:
        """The events of each task by its id, in the order of their times."""
        found: dict[str, list[Event]] = defaultdict(list)
        for event in sorted(self.events, key=lambda event: event["timestamp"]):
            if event["type"].startswith("task-"):
                found[event["uuid"]].append(event)
        return found

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._take})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=False):
                if self._stopped.is_set():
                    return

    def _take(self, event: Event) -> None:
        with self._came:
            self.events.append(event)
            self._came.notify_all()


def test_each_project_is_one_task_with_readable_arguments(shared_site: Site):
    site = shared_site
    with site.engine.begin() as conn:
        names = ("Wrist study", "Étude 研究 🚬", "quotes ' \" and (brackets)")
        projects = [make_project(conn, site.legacy_root, name) for name in names]
        for number, project in enumerate(projects):
            record_session(conn, project, "s", rows=20, seed=number)
        gone = make_project(conn, site.legacy_root, "gone", path=f"{site.legacy_root}/gone")
        projects.append(gone)

    with Watcher(site) as watcher:
        done = site.run_producer("enqueue", "--wait")
        watcher.await_events({"task-succeeded", "task-failed"}, len(projects))

    assert done.returncode == 3, done.stderr
    with site.engine.connect() as conn:
        run_id = conn.execute(text("select run_id from migration_runs")).scalar_one()
        sizes = dict(conn.execute(text("select project_id, bytes_total from migration_jobs")).all())
    tasks = watcher.of_tasks()
    expected = {JobRef(run_id=run_id, subject_id=project.project_id).task_id: project for project in projects}
    assert tasks.keys() == expected.keys()
    for task_id, project in expected.items():
        kinds = {event["type"]: event for event in tasks[task_id]}
        ending = "task-failed" if project is gone else "task-succeeded"
        assert kinds.keys() == {"task-sent", "task-received", "task-started", ending}
        assert len(tasks[task_id]) == 4
        size = "" if project is gone else f" · {sizes[project.project_id]} bytes"
        for kind in ("task-sent", "task-received"):
            assert kinds[kind]["name"] == "worker.tasks.migrate_project"
            assert kinds[kind]["args"] == f"project {project.project_id} · {project.name}{size}"
            assert kinds[kind]["kwargs"] == ""
        if project is not gone:
            assert kinds[ending]["result"].startswith(
                f"migrated: 1 session, {sizes[project.project_id]} bytes stored ("
            )
        if project is gone:
            why = f"Directory does not exist: {gone.path}"
            begin, end = kinds[ending]["exception"].split("…")
            assert why.startswith(begin)
            assert why.endswith(end)
            assert len(begin + end) < len(why)
            assert kinds[ending]["traceback"].rstrip().endswith(why)


def test_a_long_task_says_how_far_it_is(site: Site):
    """Flower makes a state of it; a task that is over within a moment says nothing."""
    number = big_study(site, "slow", 1, 2, 3)
    (small,) = small_studies(site, 1)
    with site.workers(1, BWLIMIT="5M"), Watcher(site) as watcher:
        enqueue(site)
        watcher.await_events({"task-succeeded"}, 2)

    told = [event for event in watcher.events if event["type"] == "task-progress"]
    with site.engine.connect() as conn:
        run_id = conn.execute(text("select run_id from migration_runs")).scalar_one()
    assert {event["uuid"] for event in told} == {JobRef(run_id=run_id, subject_id=number).task_id}
    assert small.exists()
    assert {event["hostname"] for event in told} == {watcher.of_tasks()[told[0]["uuid"]][-1]["hostname"]}
    done = [event["bytes_done"] for event in told]
    assert done == sorted(done)
    assert len(told) >= 2
    assert all(after["timestamp"] - before["timestamp"] > 1.5 for before, after in itertools.pairwise(told))
    assert told[-1]["files_total"] == 3
    assert told[-1]["phase"]
