"""Workers that differ from each other are found, and what several say becomes one line."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Engine

import worker
from producer.doctor import worker_checks
from producer.doctor.ask_workers import Asked
from producer.doctor.findings import Chapter
from producer.doctor.worker_checks import check_workers
from producer.local.child_process import Child, start, stop
from tests.estate import make_project
from tests.producer.doctor.chapters import PASSWORD, bad
from tests.support.ledger_rows import end, make_run, must_take
from tests.support.sites import Site
from tests.support.waiting import eventually
from worker.broker import client as broker
from worker.findings import Verdict, failed, passed, warned
from worker.settings import Settings
from worker.store.store import Store


def workers_chapter(settings: Settings, engine: Engine, expected: AbstractSet[str]) -> Chapter:
    """What workers say once each had the time to: on a busy machine one may be silent, or not be counted, for
    once.
    """
    seen: list[Chapter] = []

    def is_said() -> bool:
        seen[:] = [check_workers(settings, engine)]
        return bad(seen[0]).keys() - {"user"} == expected

    with suppress(AssertionError):  # the test says more exactly what differs
        eventually(is_said, "workers say what is expected")
    return seen[0]


@contextmanager
def running(site: Site, workers: Mapping[str, Mapping[str, str]], cwd: Mapping[str, Path]) -> Iterator[None]:
    """Run workers that differ from the site's in their environment and their working directory, until all of
    them answer.
    """
    started: list[Child] = []
    try:
        for name, env in workers.items():
            node = f"{name}@here"
            options = ["--concurrency", "1", "--without-mingle", "--without-gossip", "--hostname", node]
            command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", *options]
            started.append(
                start(
                    node,
                    command,
                    log_file=site.folder / f"{name}.log",
                    on_parent_death=signal.SIGKILL,
                    env={**site.env, **env},
                    cwd=cwd.get(name, site.folder),
                )
            )
        names = {child.name for child in started}
        eventually(lambda: names <= set(broker.workers_online(site.settings)), "all workers answer")
        yield
    finally:
        stop(started, politely=signal.SIGKILL)


def test_a_worker_with_other_settings_or_another_database_is_found(
    shared_site: Site, empty_database: Engine, closed_port: int, tmp_path: Path
):
    other = empty_database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    nowhere = empty_database.url.set(drivername="postgresql", port=closed_port, password=PASSWORD)
    odd = {
        "odd": {"DATA_DIR": str(tmp_path / "not there"), "LEASE_S": "7", "DATABASE_URL": other},
        "lost": {"DATABASE_URL": nowhere.render_as_string(hide_password=False)},
    }
    (shared_site.data_dir / "projects").mkdir()
    with shared_site.engine.begin() as conn:
        make_project(conn, shared_site.legacy_root, "study")
    with running(shared_site, odd, {}):
        eventually(
            lambda: "not_reaped" in (shared_site.folder / "odd.log").read_text(), "its reaper has looked"
        )

        expected = {
            "same settings": "fail",
            "same database": "fail",
            "same data directory": "warn",
            "database from workers": "fail",
            "reaper": "warn",
            "data directory": "fail",
            "free space": "fail",
        }
        chapter = workers_chapter(shared_site.settings, shared_site.engine, expected.keys())

    found = bad(chapter)
    found.pop("user", None)
    assert found == expected
    settings = chapter.checks["same settings"].finding
    assert f"odd@here has DATA_DIR={tmp_path}/not there, here it is {shared_site.data_dir}" in settings
    assert "odd@here has LEASE_S=7, here it is 5" in settings
    assert chapter.checks["same database"].finding == "odd@here uses another database"
    assert chapter.checks["database from workers"].finding.startswith(
        f"lost@here: Database connection failed: 127.0.0.1:{closed_port}"
    )
    assert chapter.checks["data directory"].finding == f"odd@here: {tmp_path}/not there is not a directory"
    assert PASSWORD not in repr(chapter)


def test_a_worker_without_the_mount_and_with_another_version_is_found(site: Site, tmp_path: Path):
    """Two working directories stand for two machines: all paths are the same below `/proc/self/cwd`, and lead
    elsewhere.
    """
    here, there = tmp_path / "here", tmp_path / "there"
    for machine in (here, there):
        (machine / "data").mkdir(parents=True)
        (machine / "legacy").mkdir()
    shutil.copytree(
        Path(worker.__file__).parent, there / "worker", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (there / "worker/units.py").open("a") as source:
        source.write("# another version\n")
    Store.open(here / "data/dataset_store", here / "data/raw_datasets", "blake3", create=True)
    (here / "legacy/study").mkdir()
    with site.engine.begin() as conn:
        make_project(conn, Path("/"), "study", path="/proc/self/cwd/legacy/study")
    env = {"DATA_DIR": "/proc/self/cwd/data", "LEGACY_ROOTS": "/proc/self/cwd/legacy"}
    settings = Settings(
        **{**site.settings.model_dump(), **{key.lower(): value for key, value in env.items()}}
    )

    with running(site, {"first": env, "second": env}, {"first": here, "second": there}):
        expected = {
            "same program": "fail",
            "same data directory": "fail",
            "same store": "fail",
            "legacy roots": "warn",
            "legacy projects": "fail",
        }
        chapter = workers_chapter(settings, site.engine, expected.keys())

    found = bad(chapter)
    found.pop("user", None)
    assert found == expected
    assert chapter.checks["same program"].finding.startswith(f"second@here runs {worker.__version__} (")
    assert "first@here does not see what second@here wrote" in chapter.checks["same data directory"].finding
    assert "second@here finds none" in chapter.checks["same store"].finding
    assert (
        chapter.checks["legacy roots"].finding
        == "second@here: /proc/self/cwd/legacy is empty; is it mounted?"
    )
    lost = chapter.checks["legacy projects"].finding
    assert lost.startswith("1 of 1 cannot be read (project 1); second@here: project 1 does not exist")


def test_leftovers_and_projects_that_no_worker_sees_are_warnings(shared_site: Site):
    run_id = make_run(shared_site.engine, [1])
    lease = must_take(shared_site.engine, run_id)
    staging = shared_site.settings.store_dir / "staging"
    for name in (f"{lease.ref.task_id}-1", "unknown-3"):
        (staging / name).mkdir(parents=True)
        os.utime(staging / name, (1, 1))
    (staging / "unknown-4").mkdir()
    for name in (f".restoring-{lease.ref.task_id}-1", ".restoring-unknown-3"):
        (shared_site.legacy_root / name).mkdir()
        os.utime(shared_site.legacy_root / name, (1, 1))
    with shared_site.engine.begin() as conn:
        make_project(conn, shared_site.legacy_root, "fine")
        for number in range(6):
            make_project(conn, shared_site.legacy_root, f"lost {number}", path=f"/nowhere/{number}")

    chapter = check_workers(shared_site.settings, shared_site.engine)

    end(shared_site.engine, lease)
    assert bad(chapter).items() >= {"staging": "warn", "restores": "warn", "legacy projects": "warn"}.items()
    leftovers = chapter.checks["staging"].finding
    assert leftovers.startswith("1 leftovers")
    assert leftovers.endswith(": unknown-3")
    assert chapter.checks["restores"].finding.endswith(
        f"over: {shared_site.legacy_root}/.restoring-unknown-3"
    )
    lost = chapter.checks["legacy projects"]
    assert lost.finding.startswith("6 of 7 cannot be read (projects 2, 3, 4, 5, 6 and 1 more); ")
    assert "project 2 Project path is outside LEGACY_ROOTS" in lost.finding
    assert "--exclude" in (lost.remedy or "")


def test_of_several_workers_the_worst_verdict_counts_and_they_are_named():
    checks = {
        "a": passed("fine"),
        "b": failed("broken", "mend it"),
        "c": warned("old", "-"),
    }

    one = worker_checks.together(checks)
    all_of_them = worker_checks.together(dict.fromkeys("abcdefgh", failed("away", "mount it")))
    differing = worker_checks.together({name: failed(name * 2, "x") for name in "abcdefgh"})

    alike = worker_checks.together({name: passed(f"{ord(name) - 96} s") for name in "abc"})

    assert (one.verdict, one.finding, one.remedy) == (Verdict.FAIL, "b: broken", "mend it")
    assert all_of_them.finding == "away"
    assert alike.finding == "a: 1 s; 2 more are well"
    assert differing.finding == "a: aa; b: bb; c: cc; d: dd; e: ee; and 3 more"


def test_two_workers_of_one_name_are_warned_of():
    check = worker_checks.online_check(["a@x", "b@x", "a@x"], {})

    assert (check.verdict, check.finding) == (Verdict.WARN, "several workers are called a@x")
    assert worker_checks.online_check(["a@x", "b@x"], {}).verdict is Verdict.PASS


def test_workers_that_do_not_answer_are_named():
    asked = Asked(
        evidence={}, marks={}, silent={"w@b": "it did not get beyond looking at its machine's files"}
    )

    check = worker_checks.answers_check(asked)

    assert check.verdict is Verdict.FAIL
    assert check.finding == "w@b it did not get beyond looking at its machine's files"


def test_all_connections_that_workers_may_need_are_counted():
    assert worker_checks.connections_check(10, parents=1, processes=1).verdict is Verdict.PASS
    assert worker_checks.connections_check(9, parents=1, processes=1).verdict is Verdict.WARN
