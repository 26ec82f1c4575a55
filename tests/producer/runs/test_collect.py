"""Collecting big runs that have ended: some hundred jobs are read at a time, and no half report stays."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from jsonschema import Draft202012Validator
from sqlalchemy import Engine, event, text

from producer.cli.follow import report_of
from producer.report.document import schema_document
from producer.runs.collect import Collected, collect
from tests.support.big_runs import dataset_outcomes, ended_run, project_outcomes
from tests.support.reports import BEGIN
from tests.support.sites import Site
from tests.support.waiting import eventually
from worker.db import ledger
from worker.messages import JobRef, Outcome, Status, Verb

JOBS = 2_500


@pytest.fixture
def results(site: Site) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(site.redis_url) as client:
        yield client


def collected(site: Site, run_id: object) -> Collected:
    with site.engine.connect() as conn:
        run = ledger.find_run(conn, str(run_id))
    return collect(site.settings, site.engine, run, timeout_s=10)


def test_outcomes_come_in_order_and_few_are_in_memory_at_once(site: Site, results: "redis.Redis"):
    run_id = ended_run(site.engine, project_outcomes(JOBS), results=results)
    statements = _statements_of(site.engine)

    left_by_other_tests = outcomes_alive()
    most, ids = 0, []
    for outcome in collected(site, run_id).outcomes:
        ids.append(outcome.project_id)
        if len(ids) % 500 == 0:
            most = max(most, outcomes_alive())

    assert ids == list(range(1, JOBS + 1))
    assert most - left_by_other_tests < 20
    assert len([one for one in statements if "outcome from migration_jobs" in one]) == JOBS // 500 + 1


def outcomes_alive() -> int:
    gc.collect()
    return sum(type(one) is Outcome for one in gc.get_objects())


def _statements_of(engine: Engine) -> list[str]:
    found: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: found.append(statement))
    return found


def test_of_equal_projects_of_a_dry_run_the_first_would_store(site: Site, results: "redis.Redis"):
    run_id = ended_run(site.engine, project_outcomes(300, dry_run=True), dry_run=True, results=results)

    document = report_of(collected(site, run_id))

    found = {detail["project_id"]: detail for detail in document["details"]}
    assert found[2]["dataset_created"] is True
    assert found[2]["files"] == {"total": 6, "stored": 6, "reused": 0, "left": 0}
    assert found[3]["dataset_created"] is False
    assert found[3]["reason"] == "would reuse the dataset of project 2: equal content"
    assert found[3]["dataset_path"] == found[2]["dataset_path"]
    assert found[3]["files"] == {"total": 6, "stored": 0, "reused": 6, "left": 0}
    created = [detail for detail in document["details"] if detail["dataset_created"]]
    assert len({detail["dataset_hash"] for detail in created}) == len(created) == document["datasets_created"]


def test_damage_that_a_later_job_found_settles_an_earlier_dataset(site: Site, results: "redis.Redis"):
    outcomes = list(dataset_outcomes(600))
    # The file of dataset 550 that is damaged belongs to the first one, too: the other end of the run.
    late = outcomes[549]
    outcomes[549] = late.with_changes(damaged=(replace(late.damaged[0], dataset_ids=(1, 550)),))
    coverage = {
        "bytes_total": 1,
        "bytes_elsewhere": 0,
        "oldest_check": BEGIN.isoformat(),
        "oldest_check_elsewhere": None,
    }
    run_id = ended_run(
        site.engine, outcomes, verb=Verb.VERIFY, selection={"coverage": coverage}, results=results
    )

    document = report_of(collected(site, run_id))

    failed = {detail["dataset_id"] for detail in document["details"] if detail["status"] == "failed"}
    assert failed == {1, 50, 51, 150, 151, 250, 251, 350, 351, 450, 451, 550}
    assert "dataset 550, which shares it, found that" in document["details"][0]["reason"]


def test_a_task_s_result_that_differs_is_named_and_the_ledger_is_right(site: Site, results: "redis.Redis"):
    run_id = ended_run(site.engine, project_outcomes(3), results=results)
    key = f"celery-task-meta-{JobRef(run_id=run_id, subject_id=2).task_id}"
    kept = json.loads(results.get(key) or b"")
    kept["result"] |= {"reason": "forged"}
    results.set(key, json.dumps(kept))
    # Written otherwise, the same outcome: what is at its default is not there.
    key = f"celery-task-meta-{JobRef(run_id=run_id, subject_id=1).task_id}"
    kept = json.loads(results.get(key) or b"")
    del kept["result"]["error"]
    results.set(key, json.dumps(kept))

    done = site.run_producer("collect", str(run_id))

    (report,) = site.folder.glob("migration_report_*.json")
    assert "forged" not in report.read_text()
    assert done.stderr.count("result_differs_from_ledger") == 1
    assert "project 2" in next(line for line in done.stderr.splitlines() if "result_differs" in line)


@pytest.mark.usefixtures("every_connection_is_pinged")
def test_a_database_that_goes_away_while_outcomes_are_read_costs_nothing(site: Site):
    run_id = ended_run(site.engine, project_outcomes(1_200))

    ids = []
    for outcome in collected(site, run_id).outcomes:
        ids.append(outcome.project_id)
        if len(ids) == 600:
            with closing(site.engine.raw_connection()) as conn, closing(conn.cursor()) as cursor:
                cursor.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )

    assert ids == list(range(1, 1_201))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_collector_that_is_stopped_in_the_middle_leaves_no_report(site: Site, stop: signal.Signals):
    run_id = ended_run(site.engine, project_outcomes(8_000))
    reports = site.folder / "reports"
    with subprocess.Popen(
        [sys.executable, "-m", "producer", "collect", str(run_id), "--report-dir", str(reports)],
        cwd=site.folder,
        env=site.env,
        stderr=subprocess.PIPE,
        # A shell starts what it puts into the background with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads run here
    ) as collector:
        eventually(lambda: _has_begun(collector.pid, reports), "details are written")

        collector.send_signal(stop)
        _, words = collector.communicate()

    assert collector.returncode == (130 if stop is signal.SIGINT else -signal.SIGKILL), words
    assert list(reports.iterdir()) == []
    done = site.run_producer("collect", str(run_id), "--report-dir", str(reports))
    assert done.returncode == 3
    (report,) = reports.glob("*.json")
    document = json.loads(report.read_text())
    assert document["projects_processed"] == len(document["details"]) == 8_000
    Draft202012Validator(schema_document()).validate(document | {"details": document["details"][:50]})


def _has_begun(pid: int, reports: Path) -> bool:
    """Is there a file without a name in the directory, with something in it?"""
    try:
        open_files = list(Path(f"/proc/{pid}/fd").iterdir())
        names = [(one, os.readlink(one)) for one in open_files]
    except OSError:
        return False
    ours = [one for one, name in names if name.startswith(str(reports)) and name.endswith("(deleted)")]
    return any(one.stat().st_size for one in ours)


def test_a_job_of_an_ended_run_without_outcome_has_its_place_in_the_report(site: Site):
    run_id = ended_run(site.engine, project_outcomes(5))
    with site.engine.begin() as conn:
        conn.execute(text("set local session_replication_role = replica"))
        conn.execute(text("update migration_jobs set state = 'queued', outcome = null where subject_id = 3"))

    found = list(collected(site, run_id).outcomes)

    assert [outcome.project_id for outcome in found] == [1, 2, 3, 4, 5]
    assert (found[2].status, found[2].error_class) == (Status.FAILED, "OutcomeMissingError")
