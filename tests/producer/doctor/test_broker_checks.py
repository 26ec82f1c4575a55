"""Each check of Redis is made to warn or fail for real, on a real server."""

from dataclasses import replace

import pytest
import redis

from producer.doctor import broker_checks
from producer.doctor.broker_checks import check_broker
from producer.doctor.findings import Chapter
from producer.doctor.worker_checks import check_workers
from tests.producer.doctor.chapters import PASSWORD, bad, configured
from tests.support.sites import Site
from worker.broker import client as broker
from worker.broker.client import Server as BrokerServer
from worker.broker.client import Watch
from worker.findings import Verdict
from worker.messages import QUEUE
from worker.settings import Settings


def broker_chapter(site: Site) -> Chapter:
    return check_broker(site.settings, site.engine)


def test_redis_with_appendonly_and_without_eviction_passes(site: Site):
    with configured(site, appendonly="yes"):
        chapter = broker_chapter(site)

    assert bad(chapter) == {}
    assert len(chapter.checks) == 9


@pytest.mark.parametrize(
    ("policy", "verdict"), [("allkeys-lru", Verdict.FAIL), ("volatile-ttl", Verdict.WARN)]
)
def test_a_broker_that_may_throw_messages_away_is_found(site: Site, policy: str, verdict: Verdict):
    with configured(site, **{"maxmemory-policy": policy}):
        eviction = broker_chapter(site).checks["eviction"]

    assert eviction.verdict is verdict
    assert policy in eviction.finding
    assert eviction.remedy is not None
    assert "noeviction" in eviction.remedy


def test_a_broker_that_keeps_nothing_over_a_restart_is_warned_of(site: Site):
    with configured(site, appendonly="no"):
        assert broker_chapter(site).checks["persistence"].verdict is Verdict.WARN


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, Verdict.WARN), (1.01, Verdict.FAIL)])
def test_a_broker_with_little_memory_left_is_found(site: Site, factor: float, verdict: Verdict):
    used = broker.server(site.settings).memory_bytes
    with configured(site, maxmemory=int(used * factor)):
        assert broker_chapter(site).checks["memory"].verdict is verdict


def test_messages_of_another_program_are_found(site: Site):
    with redis.Redis.from_url(site.redis_url) as client:
        client.lpush(QUEUE, *range(1001))

        queue = broker_chapter(site).checks["queue"]

    assert (queue.verdict, queue.finding) == (Verdict.WARN, "1001 messages, 0 waiting jobs")


def test_a_broker_that_is_away_is_one_finding_and_the_rest_is_not_checked(site: Site, closed_port: int):
    settings = with_redis(site, f"redis://:{PASSWORD}@127.0.0.1:{closed_port}/0")

    chapter = check_broker(settings, site.engine)
    workers = check_workers(settings, site.engine)

    assert bad(chapter) == {"reachable": "fail"}
    assert set(chapter.not_checked) == {
        "takes messages",
        "version",
        "eviction",
        "persistence",
        "memory",
        "queue",
        "failover",
    }
    assert set(workers.not_checked) >= {"online", "same settings", "staging"}
    assert workers.checks == {}
    assert PASSWORD not in repr(chapter)


def with_redis(site: Site, url: str) -> Settings:
    return Settings(**{**site.settings.model_dump(), "redis_url": url}, _env_file=None)


def test_an_old_redis_that_cannot_save_or_is_unprotected_is_found():
    server = BrokerServer(
        product="Redis 5.0.14",
        redis_version="5.0.14",
        eviction="noeviction",
        memory_bytes=1,
        memory_limit_bytes=0,
        writes_log=True,
        cannot_save=("aof_last_write_status",),
    )

    assert broker_checks.version_check(server).verdict is Verdict.FAIL
    assert broker_checks.persistence_check(server).verdict is Verdict.FAIL
    bare = broker_checks.protection_check(["127.0.0.1", "queue.example"], encrypted=False, password=False)
    assert (bare.verdict, bare.finding) == (
        Verdict.WARN,
        "127.0.0.1, queue.example is used not encrypted and without a password",
    )
    safe = broker_checks.protection_check(["queue.example"], encrypted=True, password=True)
    assert safe.verdict is Verdict.PASS


WATCH = Watch(primaries=frozenset({"a:6379"}), answering=3, silent={}, known=3, quorum=2, replicas=1)


@pytest.mark.parametrize(
    ("watch", "verdict", "words"),
    [
        (None, Verdict.PASS, "one server"),
        (WATCH, Verdict.PASS, "primary is a:6379, 1 replicas, 3 of 3 sentinels answer, quorum 2"),
        (replace(WATCH, replicas=0), Verdict.WARN, "nothing can take its place"),
        (replace(WATCH, answering=1), Verdict.WARN, "a failover needs 2"),
        (replace(WATCH, answering=2, known=5), Verdict.WARN, "a failover needs 3"),
        (replace(WATCH, answering=2, quorum=3), Verdict.WARN, "a failover needs 3"),
        (replace(WATCH, answering=2, silent={"c:1": "refused"}), Verdict.WARN, "silent: c:1 (refused)"),
        (replace(WATCH, primaries=frozenset({"a:1", "b:1"})), Verdict.WARN, "a:1 or b:1"),
    ],
)
def test_what_keeps_another_server_from_taking_the_place_is_found(
    watch: Watch | None, verdict: Verdict, words: str
):
    check = broker_checks.failover_check(watch)

    assert (check.verdict, words in check.finding) == (verdict, True), check.finding
