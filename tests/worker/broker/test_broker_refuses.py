"""A server that answers and refuses is an outage: verbs say its own word, workers wait, and go on when it
takes messages.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from producer.doctor.broker_checks import check_broker
from producer.local.servers import servers_folder, valkey
from tests.estate import make_project, record_session
from tests.support.sites import Site
from tests.support.waiting import eventually
from tests.support.workers import Worker
from worker.broker import client as broker
from worker.errors import BrokerRefusesError
from worker.findings import Verdict
from worker.settings import Settings

Call = Callable[[redis.Redis], object]


@pytest.fixture
def refusing_url(tmp_path: Path) -> Iterator[str]:
    """Give the address of a server of this test's own, whose ways it may change."""
    with valkey(servers_folder(tmp_path), durable=False) as server:
        yield server.url


REFUSALS: dict[str, tuple[Call, Call]] = {
    "READONLY": (
        lambda client: client.execute_command("REPLICAOF", "127.0.0.1", "1"),
        lambda client: client.execute_command("REPLICAOF", "NO", "ONE"),
    ),
    "MASTERDOWN": (
        lambda client: (
            client.config_set("replica-serve-stale-data", "no"),
            client.execute_command("REPLICAOF", "127.0.0.1", "1"),
        ),
        lambda client: (
            client.execute_command("REPLICAOF", "NO", "ONE"),
            client.config_set("replica-serve-stale-data", "yes"),
        ),
    ),
    "NOREPLICAS": (
        lambda client: client.config_set("min-replicas-to-write", 1),
        lambda client: client.config_set("min-replicas-to-write", 0),
    ),
    "OOM": (
        lambda client: client.config_set("maxmemory", 1),
        lambda client: client.config_set("maxmemory", 0),
    ),
    "NOPERM": (
        lambda client: client.execute_command("ACL", "SETUSER", "default", "-@write"),
        lambda client: client.execute_command("ACL", "SETUSER", "default", "+@write"),
    ),
}


def log_of(worker: Worker) -> str:
    """What the worker has logged by now."""
    return worker.log_file.read_text(encoding="utf-8")


@pytest.mark.parametrize("word", REFUSALS)
def test_the_doctor_and_every_command_say_why_the_server_refuses(word: str, site: Site, refusing_url: str):
    settings = Settings(**site.settings.model_dump() | {"redis_url": refusing_url})
    refuse, _ = REFUSALS[word]
    with redis.Redis.from_url(refusing_url) as client:
        refuse(client)

    with pytest.raises(BrokerRefusesError, match=rf"^Broker refuses: 127\.0\.0\.1:\d+: {word} "):
        broker.check(settings)
    checks = check_broker(settings, site.engine).checks

    assert checks["takes messages"].verdict is Verdict.FAIL
    assert word in checks["takes messages"].finding
    assert word in (broker.trouble(settings) or "")


@pytest.mark.slow
def test_a_refusing_broker_ends_no_worker_and_status_says_what_they_wait_for(site: Site, refusing_url: str):
    """A worker with a job and room for another, through every refusal; then the run ends as if nothing had
    been.
    """
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        for number in range(60):
            # At the run's limit more than a slow machine needs for all the refusals; the limit is lifted at
            # the end.
            record_session(conn, project, f"day {number}", rows=200)
    with (
        redis.Redis.from_url(refusing_url) as client,
        site.workers(concurrency=2, REDIS_URL=refusing_url) as (worker,),
    ):
        slow = ("enqueue", "--limit-bytes-per-second", "1K")
        assert site.run_producer(*slow, REDIS_URL=refusing_url).returncode == 0
        for word in ("READONLY", "NOREPLICAS", "OOM", "NOPERM"):
            refuse, relent = REFUSALS[word]
            before = log_of(worker).count("broker_refuses")
            refuse(client)
            # A full memory is not noticed by a worker that only takes messages out.
            if word != "OOM":
                eventually(
                    lambda before=before: log_of(worker).count("broker_refuses") > before,
                    "the worker says so again",
                )
            status = site.run_producer("status", "--json", REDIS_URL=refusing_url)
            refused = site.run_producer("resume", REDIS_URL=refusing_url)
            relent(client)

            assert word in json.loads(status.stdout)["waiting_because"]
            assert "workers wait" in status.stderr
            assert (refused.returncode, worker.has_ended()) == (5, False)
            assert refused.stderr.startswith("Broker refuses: ")
            assert word in refused.stderr
        assert site.run_producer("throttle", REDIS_URL=refusing_url).returncode == 0

        done = site.run_producer("collect", "--timeout", "90", REDIS_URL=refusing_url)
        again = site.run_producer("rollback", "--wait", "--timeout", "90", REDIS_URL=refusing_url)

    assert (done.returncode, again.returncode) == (0, 0), done.stderr + again.stderr
