"""Whatever dies, sleeps or is told to go: real workers end the run, each project once, without an
operator.
"""

import os
import signal

import pytest
import redis

from tests.support.sites import Site
from tests.support.slow_jobs import (
    LEASE_S,
    VERY_SLOW,
    await_end,
    await_work,
    big_study,
    child_of,
    conversions,
    enqueue,
    holder,
    jobs,
    lift_the_limit,
    signal_all,
    small_studies,
    staged,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


def test_another_worker_takes_the_job_of_a_worker_that_was_killed(site: Site):
    number = big_study(site, "study", 1, 2)
    with site.workers(2, LEASE_S=LEASE_S) as workers:
        enqueue(site, *VERY_SLOW)
        job = await_work(site)
        victim = holder(job, workers)
        signal_all(victim, signal.SIGKILL)
        lift_the_limit(site)

        (ended,) = await_end(site)

    assert (ended["state"], ended["attempt"], ended["crashes"]) == ("done", 2, 1)
    assert ended["worker"] != victim.name
    assert conversions(site) == [number]
    assert staged(site) == []


def test_a_killed_child_costs_its_job_one_attempt(site: Site):
    number = big_study(site, "study", 1, 2)
    with site.workers(1, LEASE_S=LEASE_S) as (worker,):
        enqueue(site, *VERY_SLOW)
        await_work(site)
        os.kill(child_of(worker), signal.SIGKILL)
        lift_the_limit(site)

        (ended,) = await_end(site)

    assert (ended["state"], ended["attempt"], ended["crashes"]) == ("done", 2, 1)
    assert conversions(site) == [number]


def test_a_worker_that_gets_sigterm_hands_its_job_back_and_ends(site: Site):
    number = big_study(site, "study", 1, 2)
    with site.workers(2, LEASE_S="60") as workers:
        enqueue(site, *VERY_SLOW)
        leaving = holder(await_work(site), workers)
        leaving.signal(signal.SIGTERM)
        leaving.await_end()
        lift_the_limit(site)

        (ended,) = await_end(site)

    assert (ended["state"], ended["crashes"], ended["fenced"]) == ("done", 0, 0)
    assert ended["worker"] != leaving.name
    assert conversions(site) == [number]
    assert staged(site) == []


def test_a_worker_that_gets_sigquit_hands_its_job_back_too(site: Site):
    """Its job would last longer than any test waits, and its end is waited for before the job may go on."""
    big_study(site, "study", 1, 2)
    with site.workers(2, LEASE_S="60") as workers:
        enqueue(site, *VERY_SLOW)
        leaving = holder(await_work(site), workers)
        leaving.signal(signal.SIGQUIT)
        leaving.await_end()
        lift_the_limit(site)
        (ended,) = await_end(site)

    assert (ended["state"], ended["crashes"]) == ("done", 0)
    assert ended["worker"] != leaving.name


def test_a_worker_that_slept_beyond_its_lease_finds_its_job_done_and_changes_nothing(site: Site):
    number = big_study(site, "study", 1, 2)
    with site.workers(2, LEASE_S=LEASE_S) as workers:
        enqueue(site, *VERY_SLOW)
        sleeper = holder(await_work(site), workers)
        signal_all(sleeper, signal.SIGSTOP)
        try:
            eventually(lambda: jobs(site)[0]["worker"] != sleeper.name, "another has the job")
            lift_the_limit(site)
            (ended,) = await_end(site)
        finally:
            signal_all(sleeper, signal.SIGCONT)
        eventually(lambda: jobs(site)[0]["fenced"] == 1, "the sleeper has noticed")

    assert (ended["state"], ended["attempt"]) == ("done", 2)
    assert jobs(site)[0]["crashes"] == 0, "to sleep is not to die of the job"
    assert conversions(site) == [number]
    assert staged(site) == []


def test_an_emptied_broker_costs_no_job(site: Site):
    small_studies(site, 40)
    with site.workers(2, LEASE_S=LEASE_S):
        enqueue(site, "--limit-bytes-per-second", "40K")
        eventually(lambda: sum(job["state"] == "done" for job in jobs(site)) >= 4, "some are done")
        with redis.Redis.from_url(site.redis_url) as client:
            client.flushdb()
        lift_the_limit(site)

        ended = await_end(site)

    assert {job["state"] for job in ended} == {"done"}
    assert len(conversions(site)) == 40
