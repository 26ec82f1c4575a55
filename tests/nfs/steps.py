"""What is done to a lab on NFS, step by step, and what must be true after each of them."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nfs import file_server
from tests.nfs.clients import Client
from tests.nfs.lab import LEASE_S, Lab, Projects
from tests.support.slow_jobs import signal_all
from tests.support.waiting import eventually
from tests.support.workers import Worker

_FREEZE_S = 90.0
_SLOW = ("--limit-bytes-per-second", "50K")
"""At which a big file is being copied for three minutes, unless the limit is lifted."""

_DATASETS = 8
"""Different contents."""

Told = Callable[[str, float, str], None]
"""Is told of each step: its name, the seconds that it took, what was checked."""


@dataclass(slots=True, kw_only=True)
class Story:
    """A lab, the worker of each of its clients, and where its projects are by now."""

    lab: Lab
    projects: Projects
    workers: dict[str, tuple[Worker, ExitStack]]
    migrated: set[int]
    away: set[int]

    def start_worker(self, client: Client) -> None:
        """Run one on this client."""
        running = ExitStack()
        (worker,) = running.enter_context(self.lab.on(client).workers(LEASE_S=LEASE_S))
        self.workers[client.name] = (worker, running)

    def stop_worker(self, client: Client) -> None:
        """End it, if it has not ended."""
        _, running = self.workers.pop(client.name)
        running.close()

    def enqueue(self, *numbers: int, limit: tuple[str, ...] = ()) -> None:
        """Open a run over these projects."""
        self.lab.producer(
            "enqueue", *(word for each in numbers for word in ("--project-id", str(each))), *limit
        )

    def lift_the_limit(self) -> None:
        """Let the latest run go on as fast as it can."""
        self.lab.producer("throttle")

    def await_end(self, *numbers: int) -> list[dict[str, Any]]:
        """Wait until the latest run's jobs of these projects have ended; all of them."""
        jobs = self.lab.jobs
        eventually(
            lambda: not {job["state"] for job in jobs(*numbers)} & {"queued", "running"},
            "the jobs end",
        )
        return jobs(*numbers)

    def await_migrated(self, *numbers: int) -> list[dict[str, Any]]:
        """The same, and each of them must be migrated."""
        ended = self.await_end(*numbers)
        assert {job["state"] for job in ended} == {"done"}, ended
        self.migrated |= set(numbers)
        return ended

    def checked(self) -> str:
        """Compare everything; what was compared."""
        return self.lab.check(migrated=self.migrated, away=self.away)


def tell(lab: Lab, projects: Projects, told: Told) -> None:
    """All steps; `AssertionError` if anything is not as it should be."""
    story = Story(lab=lab, projects=projects, workers={}, migrated=set(), away=set())
    with ExitStack() as workers:
        for client in lab.clients:
            story.start_worker(client)
            workers.callback(story.stop_worker, client)
        for name, step in _STEPS.items():
            begin = time.monotonic()
            checked = step(story)
            told(name, time.monotonic() - begin, f"{checked}; {story.checked()}")


# The steps --------------------------------------------------------------------------------------------------


def _rehearse(story: Story) -> str:
    report = story.lab.report("enqueue", "--dry-run", "--wait")
    assert report["projects_migrated"] == len(story.projects.folders), report["errors"]
    assert os.listdir(file_server.DATA) == [], "a dry run writes nothing"
    return f"{report['projects_migrated']} would be migrated, nothing is written"


def _store_equal_content(story: Story) -> str:
    twins = story.projects.twins
    story.enqueue(*twins, limit=_SLOW)
    eventually(
        lambda: len({job["worker"] for job in story.lab.jobs(*twins) if job["state"] == "running"}) == 2,
        "each worker has one of the twins",
    )
    story.lift_the_limit()
    outcomes = [job["outcome"] for job in story.await_migrated(*twins)]
    assert sorted(outcome["dataset_created"] for outcome in outcomes) == [False, True], outcomes
    assert len({outcome["dataset_path"] for outcome in outcomes}) == 1, outcomes
    return "two workers at once: one stored, the other one reused"


def _restart_the_server(story: Story) -> str:
    number = story.projects.restarted
    with _in_a_copy(story, number):
        file_server.restart()
    (job,) = story.await_migrated(number)
    return f"migrated in attempt {job['attempt']}"


def _freeze_the_server(story: Story) -> str:
    number = story.projects.frozen
    with _in_a_copy(story, number), file_server.frozen(_FREEZE_S):
        pass
    (job,) = story.await_migrated(number)
    return f"migrated in attempt {job['attempt']}"


def _kill_a_worker(story: Story) -> str:
    number = story.projects.killed
    with _in_a_copy(story, number) as job:
        (lost,) = (each for each in story.lab.clients if story.workers[each.name][0].name == job["worker"])
        signal_all(story.workers[lost.name][0], signal.SIGKILL)
    (after,) = story.await_migrated(number)
    assert after["worker"] != job["worker"], "a dead worker cannot have done it"
    story.stop_worker(lost)
    story.start_worker(lost)
    return f"migrated in attempt {after['attempt']}, on the other client"


def _fill_the_disk(story: Story) -> str:
    number = story.projects.full
    with file_server.full(but_for_bytes=4 << 20):
        story.enqueue(number)
        eventually(lambda: story.lab.paused_because() is not None, "the run is paused: there is no room")
        reason = story.lab.paused_because()
        story.checked()
    story.lab.producer("resume")
    story.await_migrated(number)
    return f"\u201c{reason}\u201d; migrated once there was room"


def _migrate(story: Story) -> str:
    rest = {*story.projects.small, story.projects.odd}
    report = story.lab.report("enqueue", "--wait")
    assert report["projects_migrated"] == len(rest), report["errors"]
    story.migrated |= rest
    return f"{len(rest)} migrated"


def _verify(story: Story) -> str:
    report = story.lab.report("verify")
    assert (report["projects_verified"], report["damaged"]) == (len(story.migrated), [])
    assert report["coverage"]["datasets"] == _DATASETS
    return f"{_DATASETS} datasets, {report['projects_verified']} projects"


def _repair(story: Story) -> str:
    """A worker on one client repairs a blob while a program on the other one has it open."""
    lab, reads = story.lab, story.lab.clients[1]
    story.stop_worker(reads)
    number = story.projects.restarted
    inside = Path(lab.trees()[number], "day", "video.bin")
    good = _digest((story.projects.folders[number] / "day" / "video.bin").read_bytes())
    _flip_a_bit(inside)
    signs = {name: lab.on(reads).folder / name for name in ("opened", "repaired")}
    for sign in signs.values():
        sign.unlink(missing_ok=True)
    order = {"path": str(inside), "good": good} | {name: str(path) for name, path in signs.items()}
    seen = lab.call(reads, "held_open", order)
    eventually(signs["opened"].exists, "a program has the damaged file open")
    report = lab.report("verify", "--store", "--repair")
    assert [damage["repaired"] for damage in report["damaged"]] == [True], report["damaged"]
    signs["repaired"].touch()
    found = json.loads(seen())
    story.start_worker(reads)
    return f"the other client's program saw {found['descriptor']}, and by its name the right bytes {found['after']}"


def _roll_back(story: Story) -> str:
    small = story.projects.small
    report = story.lab.report(
        "rollback", "--yes", "--wait", *(word for each in small for word in ("--project-id", str(each)))
    )
    assert report["projects_rolled_back"] == len(small), report["errors"]
    story.migrated -= set(small)
    return f"{len(small)} rolled back"


def _reclaim(story: Story) -> str:
    report = story.lab.report("reclaim", "--older-than", "0", "--yes", "--wait")
    assert report["projects_reclaimed"] == len(story.migrated), report["details"]
    story.away = set(story.migrated)
    story.checked()
    purged = story.lab.report("reclaim", "--purge", "--grace", "0", "--yes", "--wait")
    assert {one["status"] for one in purged["details"]} == {"purged"}, purged["details"]
    return f"{len(story.away)} moved away, then removed"


def _restore_files(story: Story) -> str:
    report = story.lab.report("rollback", "--restore-files", "--yes", "--wait")
    assert report["projects_rolled_back"] == len(story.away), report["errors"]
    restored, story.away, story.migrated = len(story.away), set(), set()
    return f"{restored} directories rebuilt from the store"


def _collect_garbage(story: Story) -> str:
    gc = ("gc", "--grace", "0", "--yes", "--wait")
    assert story.lab.report(*gc)["quarantined"]["count"] == _DATASETS
    assert story.lab.report(*gc)["removed"]["count"] == _DATASETS
    for client in story.lab.clients:
        assert story.lab.look(client)["store"]["blobs"] == 0
    assert os.listdir(file_server.DATA / "raw_datasets") == []
    return f"{_DATASETS} datasets put into quarantine, then removed; no blob is left"


_STEPS: dict[str, Callable[[Story], str]] = {
    "dry run": _rehearse,
    "equal content": _store_equal_content,
    "server restarted in a copy": _restart_the_server,
    f"server frozen for {_FREEZE_S:g} s in a copy": _freeze_the_server,
    "worker killed in a copy": _kill_a_worker,
    "full file system": _fill_the_disk,
    "migrate": _migrate,
    "verify": _verify,
    "repair under a reader": _repair,
    "rollback": _roll_back,
    "reclaim and purge": _reclaim,
    "rollback --restore-files": _restore_files,
    "gc": _collect_garbage,
}

# In the middle ----------------------------------------------------------------------------------------------


@contextmanager
def _in_a_copy(story: Story, number: int) -> Iterator[dict[str, Any]]:
    """Let the block run while the project's big file is copied; its job. The copy must outlast the block."""
    story.enqueue(number, limit=_SLOW)

    staging = file_server.DATA / "dataset_store" / "staging"
    eventually(lambda: any(path.is_file() for path in staging.rglob("*")), "a worker is in a copy")
    (job,) = story.lab.jobs(number)
    assert job["state"] == "running", job
    yield job
    (after,) = story.lab.jobs(number)
    assert after["state"] == "running", f"still in the copy afterwards, not {after['state']}"
    story.lift_the_limit()


def _flip_a_bit(path: Path) -> None:
    """As a bad disk does: on the server, and the file's time stays."""
    times = path.stat()
    with path.open("r+b", buffering=0) as file:
        first = os.pread(file.fileno(), 1, 0)
        os.pwrite(file.fileno(), bytes([first[0] ^ 1]), 0)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
