"""Room is counted when nobody else brings the same bytes, and one project without room does not hold all
others.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.claims import waiting_for_claims
from tests.support.ledger_rows import job_of
from tests.support.runs import do, open_run, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from tests.support.waiting import eventually
from worker.db import ledger
from worker.jobs.tools import Tools
from worker.messages import JobRef, Status, Verb
from worker.store import store as store_module

BLOCK = 4096
Disk = Callable[..., None]


@pytest.fixture
def disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Let the store's file system have so many bytes, of which some are free beside the reserve and what the
    store takes.
    """

    def set_to(*, total: int, free: int) -> None:
        def statvfs(_path: object) -> SimpleNamespace:
            files = (
                path for name in ("blobs", "staging") for path in (site.settings.store_dir / name).rglob("*")
            )
            used = sum(
                {(s := path.stat()).st_ino: s.st_blocks * 512 for path in files if path.is_file()}.values()
            )
            left = max(0, total // 50 + free - used)
            return SimpleNamespace(f_bavail=left // BLOCK, f_frsize=BLOCK, f_blocks=total // BLOCK)

        monkeypatch.setattr(store_module.os, "statvfs", statvfs)

    return set_to


def with_file(site: Site, name: str, seed: int, content: bytes) -> None:
    (plain_study(site, name, seed) / f"day {seed}/big.bin").write_bytes(content)


def run_of(site: Site, ref: JobRef) -> tuple[str, str | None]:
    with site.engine.connect() as conn:
        run = ledger.find_run(conn, str(ref.run_id))
    return run.state.value, run.paused_because


def test_what_another_job_is_storing_is_not_counted_twice(site: Site, tools: Tools, disk: Disk):
    content = os.urandom(24 << 20)
    for seed, name in enumerate(("first", "second")):
        with_file(site, name, seed, content)
    refs = open_run(site.engine, Verb.MIGRATE)
    disk(total=8 << 30, free=30 << 20)
    half, go_on = threading.Event(), threading.Event()
    seen = 0

    def slow(size_bytes: int) -> None:
        nonlocal seen
        seen += size_bytes
        if seen > 12 << 20:
            half.set()
            go_on.wait(60)

    with tools_of(site) as other, ThreadPoolExecutor(2) as workers:
        first = workers.submit(do, replace(other, pace=slow), Verb.MIGRATE, refs[:1])
        assert half.wait(60)
        second = workers.submit(do, tools, Verb.MIGRATE, refs[1:])
        eventually(
            lambda: waiting_for_claims(site.engine) or second.done(), "the second one waits for the first"
        )
        go_on.set()
        done = first.result(60) | second.result(60)

    assert {one.status for one in done.values()} == {Status.MIGRATED}
    assert run_of(site, refs[0]) == ("finished", None)


def test_a_project_that_can_never_fit_fails_alone_with_figures(site: Site, tools: Tools, disk: Disk):
    with_file(site, "huge", 1, os.urandom(20 << 20))
    plain_study(site, "small", 2)
    disk(total=16 << 20, free=8 << 20)

    huge, small = do(tools, Verb.MIGRATE, open_run(site.engine, Verb.MIGRATE)).values()

    assert (huge.status, huge.error_class) == (Status.FAILED, "TooLargeForStoreError")
    assert f"{20 << 20} bytes are to be stored" in str(huge.error)
    assert small.status is Status.MIGRATED


def test_a_project_that_does_not_fit_now_waits_and_the_others_go_on(site: Site, tools: Tools, disk: Disk):
    with_file(site, "large", 1, os.urandom(20 << 20))
    plain_study(site, "small", 2)
    large, small = refs = open_run(site.engine, Verb.MIGRATE)
    disk(total=8 << 30, free=10 << 20)

    assert do(tools, Verb.MIGRATE, [large]) == {}
    assert run_of(site, large) == ("running", None)
    assert [one.status for one in do(tools, Verb.MIGRATE, [small]).values()] == [Status.MIGRATED]
    with site.engine.begin() as conn:
        ledger.pause_runs_that_only_wait(conn, site.settings.root_patience_s)

    state, why = run_of(site, large)
    assert (state, f"{20 << 20} bytes are to be stored" in str(why)) == ("paused", True)
    assert job_of(site.engine, large.run_id, large.subject_id)["retries"] == 0
    disk(total=8 << 30, free=1 << 30)
    with site.engine.begin() as conn:
        ledger.resume_run(conn, large.run_id)
    assert [one.status for one in do(tools, Verb.MIGRATE, refs).values()] == [Status.MIGRATED]


def test_holes_of_sparse_files_take_no_room_and_stay_holes(site: Site, tools: Tools, disk: Disk):
    path = plain_study(site, "sparse", 1) / "day 1/sparse.bin"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(32 << 20)
        file.write(b"middle")
        file.truncate(64 << 20)
    disk(total=8 << 30, free=10 << 20)

    (outcome,) = do(tools, Verb.MIGRATE, open_run(site.engine, Verb.MIGRATE)).values()

    assert outcome.status is Status.MIGRATED
    stored = Path(str(outcome.dataset_path)) / "day 1/sparse.bin"
    assert stored.read_bytes() == path.read_bytes()
    assert stored.stat().st_blocks * 512 < 8 << 20
