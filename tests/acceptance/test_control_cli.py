"""The operator's reins, with workers at work: hold, go on, stop for good, try again, slow down."""

import json
import shutil
import time
from typing import Any

import pytest

from tests.support.sites import Site
from tests.support.slow_jobs import (
    VERY_SLOW,
    await_end,
    await_work,
    big_study,
    conversions,
    enqueue,
    jobs,
    small_studies,
    staged,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


def say(site: Site, *words: str, exit_code: int = 0) -> dict[str, Any]:
    """Call a verb; its document."""
    done = site.run_producer(*words, "--json")
    assert done.returncode == exit_code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_paused_run_stands_still_within_seconds_and_resumes_where_it_was(site: Site):
    number = big_study(site, "study", 1, 2, 3, 4, 5)
    small_studies(site, 3)
    with site.workers(1, LEASE_S="60"):
        enqueue(site, *VERY_SLOW)
        await_work(site)
        held = say(site, "pause")

        assert held["state"] == "paused"
        eventually(
            lambda: {job["state"] for job in jobs(site)} == {"queued"}, "it stops in the middle of a file"
        )
        assert staged(site) == []
        assert say(site, "collect", exit_code=8)["stopped"] == "the run is paused: paused by the operator"
        assert say(site, "status")["paused_because"] == "paused by the operator"

        say(site, "throttle")
        assert say(site, "resume")["sent"] == 4
        ended = await_end(site)

    assert {job["state"] for job in ended} == {"done"}
    assert {job["crashes"] for job in ended} == {0}
    assert number in conversions(site)


def test_a_cancelled_run_leaves_nothing_behind_and_says_what_became_of_each_project(site: Site):
    big_study(site, "study", 1, 2, 3, 4, 5)
    small_studies(site, 3)
    with site.workers(1, LEASE_S="60"):
        enqueue(site, *VERY_SLOW)
        await_work(site)

        cancelled = say(site, "cancel")
        eventually(
            lambda: {job["state"] for job in jobs(site)} == {"cancelled"}, "it stops in the middle of a file"
        )
        collected = say(site, "collect", exit_code=8)

    assert cancelled["state"] in {"cancelling", "cancelled"}
    assert collected["report"]["projects_cancelled"] == 4
    assert conversions(site) == []
    assert staged(site) == []
    for verb in ("pause", "resume", "cancel", "retry", "throttle"):
        assert site.run_producer(verb).returncode == 2, "a run that has ended cannot be driven"


def test_failed_projects_are_retried_when_the_operator_has_repaired_them(site: Site):
    _, missing, refused = small_studies(site, 3)
    away = site.folder / "away"
    shutil.move(missing, away)
    (refused / "day" / "dangling").symlink_to("nowhere")
    with site.workers(1):
        enqueue(site)
        await_end(site)
        failed = say(site, "status")["failures"]
        assert {one["error_class"]: one["count"] for one in failed} == {
            "DirectoryMissingError": 1,
            "EntryRefusedError": 1,
        }
        shutil.move(away, missing)

        assert say(site, "retry", "--error-class", "DirectoryMissingError")["queued"] == 1
        collected = say(site, "collect", exit_code=3)
        assert collected["report"]["projects_migrated"] == 2
        assert site.run_producer("retry", "--error-class", "DirectoryMissingError").returncode == 2

        (refused / "day" / "dangling").unlink()
        assert say(site, "retry")["queued"] == 1
        collected = say(site, "collect")

    assert collected["report"]["projects_migrated"] == 3
    assert len(conversions(site)) == 3


def test_a_limit_holds_for_all_workers_together_and_can_be_changed_on_the_way(site: Site):
    big_study(site, "study 1", 1)
    big_study(site, "study 2", 2)
    with site.workers(2):
        enqueue(site, *VERY_SLOW)
        eventually(lambda: sum(job["state"] == "running" for job in jobs(site)) == 2, "both work")
        time.sleep(5)
        status = say(site, "status")
        assert status["bytes"]["limit_per_second"] == 50 << 10
        assert status["projects"]["running"] == 2

        say(site, "throttle")
        await_end(site)

    assert site.run_producer("enqueue", "--limit-bytes-per-second", "a lot").returncode == 2
