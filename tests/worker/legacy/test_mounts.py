"""A machine without the legacy mount gives its jobs to others: it fails no project, and the queue does not
spin.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from producer.runs import status
from tests.support.disks import mount, remove, unmount
from tests.support.ledger_rows import its_time_comes, job_of
from tests.support.runs import do, open_run, run, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.db import ledger
from worker.jobs.reaper import reap
from worker.jobs.tools import Tools
from worker.messages import JobRef, Status, Verb


def run_of(site: Site, ref: JobRef) -> ledger.Run:
    with site.engine.connect() as conn:
        return ledger.find_run(conn, str(ref.run_id))


@pytest.mark.parametrize("harm", [unmount, remove])
@pytest.mark.parametrize("verb", [Verb.MIGRATE, Verb.ROLLBACK, Verb.VERIFY])
def test_a_missing_legacy_root_fails_no_project(site: Site, tools: Tools, harm: Any, verb: Verb):
    plain_study(site, "one", 1)
    if verb is not Verb.MIGRATE:
        run(tools, Verb.MIGRATE)
    (ref,) = open_run(site.engine, verb)
    harm(site.legacy_root)

    assert do(tools, verb, [ref], worker="w1@host") == {}

    job = job_of(site.engine, ref.run_id, ref.subject_id)
    assert (job["state"], job["retries"], job["crashes"], job["attempt"]) == ("queued", 0, 0, 1)
    (waiting,) = status.describe(site.engine, run_of(site, ref)).retrying
    assert waiting.reason.startswith(f"w1@host: {site.legacy_root} of LEGACY_ROOTS ")
    its_time_comes(site.engine)
    assert do(tools, verb, [ref], worker="w1@host") == {}
    assert job_of(site.engine, ref.run_id, ref.subject_id)["attempt"] == 1, "it is not even taken"
    its_time_comes(site.engine)
    if harm is remove:
        site.legacy_root.mkdir()
    mount(site.legacy_root)
    (outcome,) = do(tools, verb, [ref]).values()
    assert outcome.status in {Status.MIGRATED, Status.ROLLED_BACK, Status.VERIFIED}


def test_a_missing_directory_below_a_root_that_is_there_fails_its_project(site: Site, tools: Tools):
    plain_study(site, "one", 1)
    plain_study(site, "two", 2).rename(site.legacy_root / "moved away")

    one, two = run(tools, Verb.MIGRATE).values()

    assert (one.status, two.error_class) == (Status.MIGRATED, "DirectoryMissingError")


def lose_mounts_in_this_thread(root: Path, empty: Path) -> None:
    """Give the calling thread mounts of its own, in which `root` is an empty directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, bind, recursive, new_mounts = 1 << 18, 1 << 12, 1 << 14, 0x00020000
    for failed in (
        libc.unshare(new_mounts),
        libc.mount(b"none", b"/", None, recursive | private, None),
        libc.mount(os.fsencode(empty), os.fsencode(root), None, bind, None),
    ):
        if failed:
            raise PermissionError(ctypes.get_errno(), "mounts of its own")


@pytest.fixture
def blind_machine(site: Site, tmp_path: Path) -> Iterator[ThreadPoolExecutor]:
    """A thread for which the legacy root is an empty mount point."""
    empty = tmp_path / "mount point"
    empty.mkdir()
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(lose_mounts_in_this_thread, site.legacy_root, empty).result()
        except PermissionError:
            pytest.skip("only root may have mounts of its own")
        yield thread


def test_the_worker_that_has_the_root_does_all_the_work(site: Site, blind_machine: ThreadPoolExecutor):
    for number in range(6):
        plain_study(site, f"study {number}", number, rows=3)
    refs = open_run(site.engine, Verb.MIGRATE)

    with tools_of(site) as seeing, tools_of(site) as blind:
        begin = time.monotonic()
        refused = blind_machine.submit(do, blind, Verb.MIGRATE, refs[:3])
        done = do(seeing, Verb.MIGRATE, refs[3:])
        assert refused.result(60) == {}
        took_s = time.monotonic() - begin
        its_time_comes(site.engine)
        reap(site.settings, site.engine)
        done |= do(seeing, Verb.MIGRATE, refs[:3])

    assert {one.status for one in done.values()} == {Status.MIGRATED}
    assert took_s > 2, "after each job that it leaves it leaves the queue to others for a moment"
    assert run_of(site, refs[0]).state.value == "finished"


def test_a_run_whose_root_no_worker_has_is_paused_with_the_reason_and_resumes(site: Site, tools: Tools):
    plain_study(site, "one", 1)
    (ref,) = open_run(site.engine, Verb.MIGRATE)
    unmount(site.legacy_root)
    assert do(tools, Verb.MIGRATE, [ref], worker="w1@host") == {}
    reap(site.settings, site.engine)
    assert run_of(site, ref).state.value == "running"
    with site.engine.begin() as conn:
        conn.execute(text("update migration_jobs set waits_since = waits_since - interval '1 hour'"))

    reap(site.settings, site.engine)

    paused = run_of(site, ref)
    assert paused.state.value == "paused"
    assert f"{site.legacy_root} of LEGACY_ROOTS is empty there" in (paused.paused_because or "")
    mount(site.legacy_root)
    with site.engine.begin() as conn:
        ledger.resume_run(conn, ref.run_id)
    assert [one.status for one in do(tools, Verb.MIGRATE, [ref]).values()] == [Status.MIGRATED]
