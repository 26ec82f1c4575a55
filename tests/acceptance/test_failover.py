"""Servers that fail over in the middle of a run: another one takes the place, and the run goes on."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flower.utils.broker import Broker
from sqlalchemy import Engine

from producer.doctor.broker_checks import check_broker
from producer.doctor.database_checks import check_database
from producer.local.servers import LOOPBACK
from tests.support import certificates, encrypted_servers
from tests.support.failover import MASTER_NAME, PostgresPair, ValkeyGroup, postgres_pair, valkey_group
from tests.support.folders import passable_folder
from tests.support.forking import Forks
from tests.support.sites import Site, site_in
from tests.support.slow_jobs import (
    VERY_SLOW,
    await_end,
    await_work,
    big_study,
    conversions,
    enqueue,
    lift_the_limit,
    small_studies,
)
from worker.broker import client as broker
from worker.broker.config import create_app
from worker.db import schema
from worker.db.engine import connect
from worker.findings import Verdict
from worker.messages import QUEUE

pytestmark = pytest.mark.slow


@pytest.fixture(params=["Redis over TLS", pytest.param("Valkey", marks=pytest.mark.long)])
def group(_starts_servers: None, request: pytest.FixtureRequest) -> Iterator[ValkeyGroup]:
    with passable_folder() as folder:
        if request.param == "Valkey":
            options = {}
        else:
            _, server = encrypted_servers.programs()
            options = {"program": Path(server), "certificates": certificates.make(folder, LOOPBACK)}
        with valkey_group(folder, **options) as running:
            yield running


@pytest.fixture
def pair(_starts_servers: None) -> Iterator[PostgresPair]:
    with passable_folder() as folder, postgres_pair(folder, synchronous=True) as running:
        yield running


def begin_four_jobs(site: Site) -> None:
    """Open a run whose first job keeps a worker busy until the limit is lifted."""
    big_study(site, "study", 1)
    small_studies(site, 3)
    enqueue(site, *VERY_SLOW)
    await_work(site)


def finding_of_the_broker(site: Site) -> tuple[Verdict, str]:
    check = check_broker(site.settings, site.engine).checks["failover"]
    return check.verdict, check.finding


async def length_by_flower(site: Site) -> int:
    """How long Flower says that the queue is: it asks with the app's own options."""
    app = create_app(site.settings)
    address = app.connection().as_uri(include_password=True)
    flower = Broker(
        address,
        broker_options=app.conf.broker_transport_options,
        broker_use_ssl=app.conf.broker_use_ssl,
    )
    (queue,) = await flower.queues([QUEUE])
    await flower.redis.aclose()
    await flower.redis.connection_pool.disconnect()
    for sentinel in flower.redis.connection_pool.sentinel_manager.sentinels:
        await sentinel.aclose()
    return int(queue["messages"])


def test_a_run_goes_on_when_redis_fails_over(
    group: ValkeyGroup, database: Engine, tmp_path: Path, programs: Forks
):
    first, second = group.ports
    with site_in(tmp_path, database, group.url, programs) as site, site.workers():
        verdict, finding = finding_of_the_broker(site)
        assert (verdict, f"primary is 127.0.0.1:{first}, 1 replicas, 3 of 3" in finding) == (
            Verdict.PASS,
            True,
        ), finding
        begin_four_jobs(site)

        group.kill(first)
        group.await_failover(first)
        lift_the_limit(site)
        ended = await_end(site)

        assert [job["state"] for job in ended] == ["done"] * 4
        assert [(job["attempt"], job["crashes"]) for job in ended] == [(1, 0)] * 4
        verdict, finding = finding_of_the_broker(site)
        assert verdict is Verdict.WARN
        assert f"primary is 127.0.0.1:{second}, 0 replicas" in finding
        assert broker.workers_counter(site.settings)() == 1
        assert asyncio.run(length_by_flower(site)) == 0

        for port in group.sentinel_ports[1:]:
            group.sentinels[port].process.kill()
            group.sentinels[port].process.wait()

        assert "1 of 3 sentinels answer, quorum 2" in finding_of_the_broker(site)[1]
        assert "a failover needs 2" in finding_of_the_broker(site)[1]
        broker.check(site.settings)


@pytest.mark.long
@pytest.mark.parametrize("group", ["Valkey", "Redis over TLS"], indirect=True)
def test_a_run_goes_on_over_a_planned_failover(
    group: ValkeyGroup, database: Engine, tmp_path: Path, programs: Forks
):
    """By the command that the guide has for it."""
    first, _ = group.ports
    with site_in(tmp_path, database, group.url, programs) as site, site.workers():
        begin_four_jobs(site)

        with group.sentinel(group.sentinel_ports[0]) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER", MASTER_NAME)
        group.await_failover(first)
        lift_the_limit(site)

        assert [(job["state"], job["attempt"], job["crashes"]) for job in await_end(site)] == [
            ("done", 1, 0)
        ] * 4


@pytest.mark.long
@pytest.mark.parametrize("group", ["Valkey"], indirect=True)
def test_a_run_goes_on_when_a_replica_is_promoted_by_hand_and_named(
    group: ValkeyGroup, database: Engine, tmp_path: Path, programs: Forks
):
    """Without sentinels: REDIS_URL names one server, then the other; workers are started again."""
    first, second = group.ports
    for sentinel in group.sentinels.values():
        sentinel.process.kill()
        sentinel.process.wait()
    with site_in(tmp_path, database, group.plain_url(first), programs) as site:
        with site.workers():
            begin_four_jobs(site)
            group.kill(first)
            with group.server(second) as replica:
                replica.execute_command("REPLICAOF", "NO", "ONE")
        with site.workers(REDIS_URL=group.plain_url(second)):
            done = site.run_producer("throttle", REDIS_URL=group.plain_url(second))
            assert done.returncode == 0, done.stderr

            assert [(job["state"], job["crashes"]) for job in await_end(site)] == [("done", 0)] * 4


def test_a_run_goes_on_when_the_databases_replica_is_promoted(
    pair: PostgresPair, redis_url: str, tmp_path: Path, programs: Forks
):
    pair.say(pair.primary, "create database label")
    pair.await_replica()
    former = pair.primary
    with ExitStack() as parts:
        engine = connect(pair.url("label"), application_name="tests")
        parts.callback(engine.dispose)
        schema.apply(engine, with_baseline=True)
        site = parts.enter_context(site_in(tmp_path, engine, redis_url, programs))
        parts.enter_context(site.workers())
        big = big_study(site, "study", 1)
        small = len(small_studies(site, 2))
        reached = check_database(engine).checks
        assert f"127.0.0.1:{former} of " in reached["reachable"].finding
        assert "1 replica, synchronous" in reached["failover"].finding
        enqueue(site, *VERY_SLOW)
        await_work(site)

        pair.crash(former)
        pair.promote()
        lift_the_limit(site)
        ended = await_end(site)

        assert [job["state"] for job in ended] == ["done"] * (small + 1)
        assert [job["crashes"] for job in ended] == [0] * (small + 1)
        assert big in conversions(site)
        reached = check_database(engine).checks
        assert f"127.0.0.1:{pair.primary} of " in reached["reachable"].finding
        assert reached["failover"].verdict is Verdict.WARN
