"""Opening runs: which projects, what is left out and why, and what a person is asked."""

import json
import re
import subprocess
import sys

import pytest
from sqlalchemy import text

from producer.doctor.worker_checks import WORKER_COMMAND
from producer.runs import legacy_projects
from tests.estate import make_project, record_session
from tests.producer.cli.calls import Call, at_a_terminal, lines, runs
from tests.support.sites import Site
from worker.broker import client as broker
from worker.errors import BrokerUnavailableError


def test_ids_that_cannot_be_migrated_are_each_named_and_no_run_is_opened(
    site: Site, call: Call, three_projects: list[int]
):
    with site.engine.begin() as conn:
        migrated = make_project(
            conn,
            site.legacy_root,
            "migrated",
            path=None,
            legacy_path="/somewhere",
            project_type="dataset_based",
        ).project_id
        based = make_project(
            conn, site.legacy_root, "based", path=None, project_type="dataset_based"
        ).project_id
    wrong = {
        0: "ids begin at 1",
        -7: "ids begin at 1",
        4711: "no such project",
        10**12: "no such project",
        10**30: "no such project",
        migrated: "already migrated",
        based: "dataset-based, never was a legacy project",
    }
    chosen = [f"--project-id={number}" for number in (*three_projects, *wrong)]

    done = call("enqueue", *chosen, "--exclude", "4712", "--exclude", str(three_projects[0]))

    assert done.returncode == 2
    message = lines(done)[0]
    for number, reason in wrong.items():
        assert f" {number} ({reason})" in message
    assert "4712 (to be excluded, but no such project)" in message
    assert f"{three_projects[0]} (both chosen and excluded)" in message
    assert f" {three_projects[1]} (" not in message
    assert runs(site.engine) == []


def test_excluded_projects_and_those_beyond_the_limit_are_left_out_with_the_reason(
    site: Site, call: Call, three_projects: list[int]
):
    first, second, third = three_projects

    done = call("enqueue", "--exclude", str(first), "--limit", "1", "--json")

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (planned,) = document["plan"]
    assert (planned["project_id"], planned["sessions"], planned["files"]) == (second, 1, 1)
    assert {one["project_id"]: one["reason"] for one in document["left_out"]} == {
        first: "excluded",
        third: "beyond --limit",
    }
    assert f"left out: project {first} one: excluded" in done.stderr
    assert runs(site.engine) == [("running", 1)]


def test_with_a_limit_what_failed_last_time_is_not_in_the_way(
    site: Site, call: Call, three_projects: list[int]
):
    first, second, third = three_projects
    call("enqueue", "--limit", "1")
    with site.engine.begin() as conn:
        conn.execute(text("set local session_replication_role = replica"))
        conn.execute(text("update migration_jobs set state = 'failed', outcome = '{}'"))
        conn.execute(text("update migration_runs set state = 'finished'"))

    after = json.loads(call("enqueue", "--limit", "1", "--json").stdout)
    asked = json.loads(call("enqueue", "--limit", "1", "--include-failed", "--json").stdout)
    named = json.loads(call("enqueue", "--limit", "1", "--project-id", str(first), "--json").stdout)
    rehearsed = json.loads(call("enqueue", "--limit", "1", "--dry-run", "--json").stdout)

    assert [one["plan"][0]["project_id"] for one in (after, asked, named, rehearsed)] == [
        second,
        first,
        first,
        first,
    ]
    reasons = {one["project_id"]: one["reason"] for one in after["left_out"]}
    assert re.fullmatch(
        r"failed in run [0-9a-f]{8}; --include-failed or --project-id takes it again", reasons[first]
    )
    assert reasons[third] == "beyond --limit"


def test_the_plan_names_every_project_with_its_whole_path_and_a_missing_worker(
    site: Site, call: Call, three_projects: list[int]
):
    """Also where no terminal gives a width: then nothing is cut off."""
    done = call("enqueue", "--dry-run")

    assert done.returncode == 0
    with site.engine.connect() as conn:
        paths = dict(conn.execute(text("select project_id, path from projects")).all())
    for number in three_projects:
        (line,) = [line for line in lines(done) if str(paths[number]) in line]
        assert re.match(rf" *{number} +1 +1 +\d+ bytes +(one|two|three) +/", line)
    assert f"No worker is online. Start one: {WORKER_COMMAND}" in lines(done)
    (follow,) = [line for line in lines(done) if "Follow them: producer collect" in line]
    assert follow.startswith("Queued 3 projects.")


def test_characters_that_the_terminal_cannot_show_do_not_stop_a_run(site: Site):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "Étude 研究 🚬", directory="study")
        record_session(conn, project, "s")

    done = subprocess.run(
        [sys.executable, "-m", "producer", "enqueue", "--json"],
        env=site.env | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        cwd=site.folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"][0]["project_id"] == project.project_id
    assert "tude" in done.stderr
    assert runs(site.engine) == [("running", 1)]


def test_a_broker_that_goes_away_while_a_run_is_sent_leaves_a_cancelled_run(
    site: Site,
    call: Call,
    three_projects: list[int],
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
):
    def gone(*_: object) -> None:
        raise BrokerUnavailableError(f"Broker connection failed: 127.0.0.1:{closed_port}")

    monkeypatch.setattr(broker, "send", gone)

    with pytest.raises(BrokerUnavailableError):
        legacy_projects.enqueue(site.settings, site.engine, dry_run=False)

    assert runs(site.engine) == [("cancelled", 3)]
    done = call("collect", "--json")
    assert done.returncode == 8, done.stderr
    report = json.loads(done.stdout)["report"]
    assert (report["state"], report["projects_migrated"]) == ("cancelled", 0)
    assert report["projects_cancelled"] == len(three_projects)


def test_a_person_is_asked_before_everything_is_rolled_back(site: Site):
    with site.engine.begin() as conn:
        for name in ("one", "two", "three"):
            record_session(conn, make_project(conn, site.legacy_root, name), "s", rows=20)
    with site.workers():
        assert site.run_producer("enqueue", "--wait").returncode == 0

        declined = at_a_terminal(site, "\n", "rollback", "--exclude", "1")
        rehearsed = at_a_terminal(site, "", "rollback", "--dry-run", "--limit", "1", "--wait")
        one = at_a_terminal(site, "", "rollback", "--exclude", "1", "--limit", "1", "--yes", "--wait")
        verified = site.run_producer("verify", "--sessions", "--exclude", "1", "--json")

    assert declined[0] == 2
    assert "Roll back 2 projects?" in declined[1]
    assert (rehearsed[0], one[0]) == (0, 0), one[1]
    assert "of 1 project rolled back" in one[1]
    assert [project["project_id"] for project in json.loads(verified.stdout)["plan"]] == [3]
    assert json.loads(verified.stdout)["left_out"][0]["reason"] == "excluded"
