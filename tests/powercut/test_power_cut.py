"""The power fails at a commit: whatever rows refer to after it is there, and every byte of it is right."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import product
from pathlib import Path

import pytest
from blake3 import blake3
from sqlalchemy import Engine, text

from tests.powercut import jobs, power
from tests.powercut.jobs import PLACES, Commit, Done, Places, Task
from tests.powercut.power import Disk, Loss
from tests.powercut.stories import STORIES, Content, Story, content_of
from tests.support.lacking import lacking
from tests.support.runs import open_run, tools_of
from tests.support.sites import Site, site_in
from tests.support.waiting import PATIENCE_S
from worker.errors import RowFileError
from worker.messages import Status
from worker.store.row_file import parse

FLUSH_S = 0.15
"""A slow disk: what one job has made and still waits for is seen by the other one for as long."""

_TRIES = 3

Do = Callable[[Sequence[Task], Path, Site], Done]


@pytest.fixture(scope="session", params=["ext4", pytest.param("xfs", marks=pytest.mark.long)])
def file_system(request: pytest.FixtureRequest) -> str:
    """Name the file system, or say in a line why no power can be cut here; in continuous integration that is
    a failure.
    """
    kind: str = request.param
    reason = power.missing(f"mkfs.{kind}", "mount", "gcc")
    if reason is not None:
        lacking(f"no power can be cut here: {reason}")
    return kind


@pytest.mark.parametrize("story", STORIES)
def test_after_a_power_cut_all_that_rows_refer_to_is_there(
    story: str, file_system: str, database: Engine, redis_url: str, tmp_path: Path
):
    found = broken_rows(story, file_system, database, redis_url, tmp_path, here)

    assert found == []


@pytest.mark.long
@pytest.mark.parametrize("story", STORIES)
def test_after_a_power_cut_with_partial_writes_all_that_rows_refer_to_is_there(
    story: str, file_system: str, database: Engine, redis_url: str, tmp_path: Path
):
    assert broken_rows(story, file_system, database, redis_url, tmp_path, here, parts=12) == []


def test_without_syncs_a_power_cut_is_seen_to_break_what_rows_refer_to(
    file_system: str, database: Engine, redis_url: str, tmp_path: Path
):
    """That is a test of the check itself: a library stands before the calls that wait, and returns at
    once.
    """
    library = tmp_path / "deaf.so"
    power.run("gcc", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("deaf.c")))

    def deaf(tasks: Sequence[Task], log: Path, site: Site) -> Done:
        return apart(tasks, log, site, LD_PRELOAD=str(library))

    found = broken_rows("migration", file_system, database, redis_url, tmp_path, deaf)

    assert any(str(Loss.ALL) in one for one in found), found


def here(tasks: Sequence[Task], log: Path, site: Site) -> Done:
    """Do jobs in this process."""
    return jobs.do(tasks, log, site.settings)


def apart(tasks: Sequence[Task], log: Path, site: Site, **environment: str) -> Done:
    """Do jobs in a process of their own."""
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-m", "tests.powercut.jobs", str(log)],
        env=site.env | {"PYTHONPATH": str(root)} | environment,
        input=pickle.dumps(list(tasks)),
        stdout=subprocess.PIPE,
        check=True,
    )
    done: Done = pickle.loads(process.stdout)  # noqa: S301 - from our own child
    return done


def broken_rows(
    story: str, kind: str, database: Engine, redis_url: str, folder: Path, do: Do, *, parts: int = 1
) -> list[str]:
    """Tell a story on a disk that remembers; what would be broken after a power cut at each commit that
    matters, in words.

    Of what was not flushed all is lost, and then all but some part, `parts` times.
    """
    place, image = folder / "disk", folder / "cut.img"
    place.mkdir()
    with site_in(place, database, redis_url) as site, power.remembering(kind, folder, place) as disk:
        for directory in (site.data_dir, site.legacy_root):
            directory.mkdir()
        with tools_of(site) as tools:
            told = STORIES[story](site, tools)
        with database.connect() as conn:
            before = {number: (path, digest) for number, path, digest in conn.execute(text(PLACES))}
        power.run("sync", "--file-system", str(place))
        if told.refused is None:
            disk.slow_down(FLUSH_S)
        else:
            disk.refuse(told.refused)
        commits = list(_new_places(_until_done(site, disk, told, do), before))
    ended = commits[-1].places.keys() if commits else set()
    assert told.fails_with is not None or ended == told.contents.keys(), commits
    found: list[str] = []
    for number, commit in enumerate(commits, 1):
        for seed, loss in [(0, Loss.ALL), *product(range(parts), (Loss.END, Loss.SOME))]:
            disk.after_a_cut(commit.position, loss, seed=seed, image=image)
            with power.mounted(image, place):
                broken = list(_broken(commit.places, told.contents, site.settings.store_dir))
            found += [f"commit {number} of {len(commits)}, {loss} ({seed}): {words}" for words in broken]
    return found


def _until_done(site: Site, disk: Disk, told: Story, do: Do) -> list[Commit]:
    """Do jobs, and those that failed again, as an operator would; every commit."""
    commits: list[Commit] = []
    tasks: Sequence[Task] = told.tasks
    for _ in range(_TRIES):
        with ThreadPoolExecutor(1) as meanwhile:
            doing = meanwhile.submit(do, tasks, disk.log, site)
            if told.fails_with is not None and tasks is told.tasks:
                _wait_for(told.fails_with, doing)
                disk.fail_once()
                wait([doing])
            elif told.refused is not None and tasks is told.tasks:
                _wait_until_heard(site.folder)
            disk.take_all()
        outcomes, noted = doing.result()
        commits += noted
        ends = zip(tasks, outcomes, strict=True)
        done = {Status.MIGRATED, Status.ROLLED_BACK}
        failed = [task for task, end in ends if end is None or end.status not in done]
        if not failed:
            break
        tasks = [_again(site, task) for task in failed]
    assert told.fails_with is not None or not failed, outcomes
    return commits


def _wait_for(path: Path, doing: Future[Done]) -> None:
    while not path.exists() and not wait([doing], timeout=0.001).done:
        pass


def _again(site: Site, task: Task) -> Task:
    (ref,) = open_run(site.engine, task.verb, only=[task.ref.subject_id], restore_files=True)
    return Task(verb=task.verb, ref=ref)


def _wait_until_heard(place: Path) -> None:
    """Ask for the disk until it says that it lost something: the kernel tells that once, and it is not the
    job that asks.
    """
    deadline = time.monotonic() + PATIENCE_S
    sync = ["sync", "--file-system", str(place)]
    while subprocess.run(sync, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        assert time.monotonic() < deadline, "no write was refused"


def _new_places(commits: Sequence[Commit], before: Places) -> Iterator[Commit]:
    """The commits after which rows lead elsewhere than after the one before, each with all that leads
    elsewhere by then.
    """
    last: Places = {}
    for commit in commits:
        moved = {number: place for number, place in commit.places.items() if place != before[number]}
        if moved not in ({}, last):
            yield Commit(position=commit.position, places=moved)
            last = moved


def _broken(places: Places, contents: dict[int, Content], store: Path) -> Iterator[str]:
    """What rows refer to and is not there, or has other bytes."""
    for number, (place, digest) in places.items():
        try:
            found = content_of(Path(place))
            manifest = (store / "manifests" / f"{digest}.json").read_bytes() if digest is not None else b""
        except OSError as error:
            yield f"project {number}: {error}"
            continue
        if digest is not None and blake3(manifest).hexdigest() != digest:
            yield f"project {number}: its manifest has other bytes"
        if digest is not None:
            row_file = store / "manifests" / f"{digest}.row.json"
            try:
                parse(row_file.read_bytes(), digest, "of the dataset")
            except (OSError, RowFileError) as error:
                yield f"project {number}: {error}"
        wanted = contents[number]
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                has = (
                    "is not there" if name not in found else "has other bytes" if name in wanted else "is new"
                )
                yield f"project {number}: {place}: {os.fsdecode(name)} {has}"
