"""What Prometheus is told: the ledger's counts and the broker's queue, whichever of them is there to
answer.
"""

import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event, text

from producer import metrics
from producer.local.servers import free_port
from producer.runs.control import PAUSED
from tests.estate import make_project, record_session
from tests.support.exporter import serving
from tests.support.ledger_rows import end, make_run, must_take, outcome
from tests.support.runs import migrate_all, run_one, verify_datasets
from tests.support.sites import Site
from tests.support.slow_jobs import signal_all
from tests.support.waiting import PATIENCE_S, eventually
from worker.allocation import allocated_below
from worker.db import ledger
from worker.errors import DirectoryMissingError
from worker.jobs.tools import Tools
from worker.messages import Status, Verb

ROOT = Path(__file__).parents[2]

Samples = dict[str, dict[tuple[str, ...], float]]


def parsed(text: str) -> Samples:
    """Each metric's values by their labels, in the order of the labels' names."""
    return {
        family.name: {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for sample in family.samples
        }
        for family in text_string_to_metric_families(text)
    }


def fail(engine: Engine, run_id: uuid.UUID, number: int) -> None:
    lost = outcome(
        number, Status.FAILED, error_class=DirectoryMissingError.__name__, error="gone", remedy="mend"
    )
    end(engine, must_take(engine, run_id, number), lost)


@contextmanager
def hanging(pids: Sequence[int]) -> Iterator[None]:
    """Let processes answer nothing until the block ends."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - an address of our own
        text: str = answer.read().decode()
    return text


def test_jobs_are_counted_by_what_became_of_them(site: Site):
    run_id = make_run(site.engine, range(1, 6), size_bytes=100)
    end(site.engine, must_take(site.engine, run_id, 1))
    fail(site.engine, run_id, 2)
    must_take(site.engine, run_id, 3)

    seen = parsed(metrics.scrape(site.settings, site.engine))

    assert seen["label_migrator_up"] == {("database",): 1, ("broker",): 1, ("store",): 1}
    assert seen["label_migrator_jobs"] == {
        ("false", "done", "migrate"): 1,
        ("false", "failed", "migrate"): 1,
        ("false", "running", "migrate"): 1,
        ("false", "queued", "migrate"): 2,
    }
    assert seen["label_migrator_failed_jobs"] == {("DirectoryMissingError",): 1}
    assert seen["label_migrator_runs"] == {("false", "running", "migrate"): 1}
    assert seen["label_migrator_open_bytes_total"] == {(): 500}
    assert seen["label_migrator_open_bytes_done"] == {(): 200}
    assert seen["label_migrator_workers_busy"] == {(): 1}
    assert seen["label_migrator_oldest_waiting_seconds"][()] > 0
    assert seen["label_migrator_queue_messages"] == {(): 0}
    assert seen["label_migrator_workers_online"] == {(): 0}
    assert seen["label_migrator_incidents"] == {
        ("attempt_fenced",): 0,
        ("lease_ran_out",): 0,
        ("retried",): 0,
    }
    assert seen["label_migrator_store_room_bytes"][()] > 0
    assert seen["label_migrator_reclaimed_bytes"] == {("reclaimed",): 0, ("purged",): 0}


def test_a_project_that_failed_counts_until_its_next_real_run_says_otherwise(site: Site):
    for number in (1, 2):
        run_id = make_run(site.engine, [number], size_bytes=1)
        fail(site.engine, run_id, number)
    again = make_run(site.engine, [1], size_bytes=1)
    end(site.engine, must_take(site.engine, again, 1))
    rehearsal = make_run(site.engine, [3], size_bytes=1, dry_run=True)
    fail(site.engine, rehearsal, 3)

    seen = parsed(metrics.scrape(site.settings, site.engine))

    assert seen["label_migrator_failed_jobs"] == {("DirectoryMissingError",): 1}


def test_the_guide_s_queries_ask_for_what_is_there(site: Site, tools: Tools):
    with site.engine.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "study"), "day", rows=10, seed=1)
    migrate_all(site, tools)
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}
    fail(site.engine, make_run(site.engine, [1, 2], size_bytes=100), 1)

    named = [ROOT / "docs/monitoring.md", ROOT / "deploy/prometheus/label-migrator.rules.yml"]
    asked = {one for page in named for one in re.findall(r"label_migrator_\w+", page.read_text())}

    assert len(asked) >= 15
    assert asked <= parsed(metrics.scrape(site.settings, site.engine)).keys()


def test_a_run_that_paused_itself_is_told_from_one_that_the_operator_paused(site: Site):
    for reason in (PAUSED, "No room in the store"):
        run_id = make_run(site.engine, [1], size_bytes=1)
        with site.engine.begin() as conn:
            ledger.pause_run(conn, run_id, reason)

    seen = parsed(metrics.scrape(site.settings, site.engine))

    assert seen["label_migrator_paused_runs"] == {("operator",): 1, ("itself",): 1}


def test_an_empty_ledger_has_metrics_too(site: Site):
    seen = parsed(metrics.scrape(site.settings, site.engine))

    assert seen["label_migrator_up"] == {("database",): 1, ("broker",): 1, ("store",): 1}
    assert seen["label_migrator_open_bytes_total"] == {(): 0}
    assert seen["label_migrator_oldest_waiting_seconds"] == {(): 0}


def test_a_scrape_asks_the_same_few_statements_however_many_jobs_there_are(site: Site):
    asked: list[str] = []
    event.listen(site.engine, "before_cursor_execute", lambda *about: asked.append(about[2]))
    counts = []
    for number in (1, 2):
        make_run(site.engine, range(number * 1000, number * 1000 + 200 * number))
        asked.clear()
        metrics.scrape(site.settings, site.engine)
        counts.append(len(asked))

    assert counts == [10, 10]


def test_queued_messages_are_counted(site: Site):
    with site.engine.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "study"), "day", rows=10, seed=1)
    assert site.run_producer("enqueue").returncode == 0

    assert parsed(metrics.scrape(site.settings, site.engine))["label_migrator_queue_messages"] == {(): 1}


def test_workers_are_counted_also_when_redis_was_emptied_and_when_one_is_dead(site: Site):
    def online() -> float:
        return parsed(metrics.scrape(site.settings, site.engine))["label_migrator_workers_online"][()]

    # Whoever has not answered within a second is not counted, and on a busy machine that may be anybody.
    with site.workers(2) as workers:
        eventually(lambda: online() == 2, "both are counted")
        with redis.Redis.from_url(site.redis_url) as client:
            client.flushdb()
        eventually(lambda: online() == 2, "both are counted again")
        signal_all(workers[0], signal.SIGKILL)
        workers[0].await_end()
        eventually(lambda: online() == 1, "the other one is counted")


def test_an_unreachable_server_is_reported_and_all_other_metrics_are_there(site: Site):
    away = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    no_database = {"DATABASE_URL": f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/none"}

    without_broker = site.run_producer("metrics", "--once", **away)
    without_database = site.run_producer("metrics", "--json", **no_database)

    assert without_broker.returncode == 0, without_broker.stderr
    seen = parsed(without_broker.stdout)
    assert seen["label_migrator_up"] == {("database",): 1, ("broker",): 0, ("store",): 1}
    assert "label_migrator_queue_messages" not in seen
    assert "label_migrator_workers_online" not in seen
    assert seen["label_migrator_open_bytes_total"] == {(): 0}
    assert without_database.returncode == 0, without_database.stderr
    document = json.loads(without_database.stdout)
    assert {"labels": {"part": "database"}, "value": 0.0} in document["label_migrator_up"]
    assert document["label_migrator_queue_messages"] == [{"labels": {}, "value": 0}]


def test_prometheus_gets_fresh_figures_at_each_scrape_until_the_exporter_stops(site: Site):
    with serving(site) as exporter:
        before = parsed(fetch(exporter.url))
        make_run(site.engine, range(1, 4))
        after = parsed(fetch(exporter.url))

        assert exporter.stop() == 0

    assert "label_migrator_jobs" not in before or before["label_migrator_jobs"] == {}
    assert after["label_migrator_jobs"] == {("false", "queued", "migrate"): 3}


def test_a_port_that_is_taken_is_a_usage_error(site: Site):
    with serving(site) as exporter:
        port = exporter.url.split(":")[2].split("/")[0]

        refused = site.run_producer("metrics", "--port", port)

    assert refused.returncode == 2
    assert f"Cannot listen at 127.0.0.1:{port}: Address already in use" in refused.stderr


def test_a_database_that_hangs_is_reported_as_away_until_it_answers(site: Site):
    with serving(site) as exporter:
        fetch(exporter.url)
        # The connections that lie in the pool, and a server that still takes bytes but never answers.
        with site.engine.connect() as conn:
            its_servers = conn.scalars(
                text(
                    "select pid from pg_stat_activity where datname = current_database() and application_name = :name"
                ),
                {"name": "label-migrator producer"},
            ).all()
        with hanging(its_servers):
            meanwhile = parsed(fetch(exporter.url))
        again = parsed(fetch(exporter.url))
        with hanging(its_servers):
            ended = exporter.stop()

    assert its_servers
    assert meanwhile["label_migrator_up"] == {("database",): 0, ("broker",): 1, ("store",): 1}
    assert "label_migrator_jobs" not in meanwhile
    assert meanwhile["label_migrator_queue_messages"] == {(): 0}
    assert again["label_migrator_up"] == {("database",): 1, ("broker",): 1, ("store",): 1}
    assert ended == 0


def test_room_that_reclaims_and_gc_could_give_back_is_told_until_it_is(site: Site, tools: Tools):
    def look() -> tuple[float, float, float]:
        seen = parsed(metrics.scrape(site.settings, site.engine))
        away = seen["label_migrator_reclaimed_bytes"]
        return away["reclaimed",], away["purged",], seen["label_migrator_unreferenced_datasets"][()]

    with site.engine.begin() as conn:
        homes = [make_project(conn, site.legacy_root, name) for name in ("reclaimed", "rolled back")]
        for seed, home in enumerate(homes):
            record_session(conn, home, "day", rows=10, seed=seed)
    migrate_all(site, tools)
    (first, second), room = [home.project_id for home in homes], du(Path(str(homes[0].path)))

    assert look() == (0, 0, 0)
    assert run_one(tools, Verb.RECLAIM, first).status is Status.RECLAIMED
    assert run_one(tools, Verb.ROLLBACK, second).status is Status.ROLLED_BACK
    assert look() == (room, 0, 1)
    assert run_one(tools, Verb.RECLAIM, first, purge=True, grace_days=0).status is Status.PURGED
    assert look() == (0, room, 1)


def test_the_whole_store_s_room_is_told_as_du_counts_it(site: Site, tools: Tools):
    with site.engine.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "study"), "day", rows=1000, seed=1)
    migrate_all(site, tools)

    seen = parsed(metrics.scrape(site.settings, site.engine))

    settings = site.settings
    assert seen["label_migrator_store_allocated_bytes"] == {(): du(settings.store_dir, settings.datasets_dir)}


def test_a_store_that_takes_long_to_walk_holds_up_no_scrape_and_is_walked_seldom(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    with site.engine.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "study"), "day", rows=10, seed=1)
    migrate_all(site, tools)
    goes_on, walks = threading.Event(), []

    def slow_walk(roots: Iterable[Path]) -> int:
        walks.append(roots)
        goes_on.wait(PATIENCE_S)
        return allocated_below(roots)

    monkeypatch.setattr("producer.store_size.allocated_below", slow_walk)
    with metrics.served(site.settings, site.engine, "127.0.0.1", 0) as url:
        first, second = parsed(fetch(url)), parsed(fetch(url))
        goes_on.set()
        eventually(lambda: "store_allocated_bytes" in fetch(url), "the walk's figure is there")
        fetch(url)

    for meanwhile in (first, second):
        assert meanwhile["label_migrator_up"][("store",)] == 1
        assert "label_migrator_store_allocated_bytes" not in meanwhile
    assert len(walks) == 1


def du(*roots: Path) -> int:
    """Allocated bytes by a program that is not ours."""
    said = subprocess.run(
        ["du", "--summarize", "--total", "--block-size=1", *roots], capture_output=True, text=True, check=True
    )
    return int(said.stdout.splitlines()[-1].split()[0])
