"""The plan of a night by the command line: estimated, rehearsed, pressed, and compared with the real run."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from tests.estate import make_project, record_session, snapshot_tree
from tests.producer.cli.calls import Call, lines, runs
from tests.support.runs import tools_of
from tests.support.sites import Site
from worker.jobs.migrate import migrate
from worker.messages import JobRef


def done_by_a_worker(site: Site) -> None:
    """Do what waits, as workers do."""
    with site.engine.connect() as conn:
        jobs = conn.execute(
            text(
                "select run_id, subject, subject_id from migration_jobs where state = 'queued' order by subject_id"
            )
        ).all()
    with tools_of(site) as tools:
        for job in jobs:
            migrate(tools, JobRef.from_row(job), "worker@here")
    with site.engine.begin() as conn:
        conn.execute(
            text("update migration_runs set state = 'finished', finished_at = now() where state = 'running'")
        )


def report_of(site: Site, call: Call) -> dict[str, Any]:
    """The report of the latest run, read from its file."""
    path = json.loads(call("collect", "--json").stdout)["report_path"]
    report: dict[str, Any] = json.loads((site.folder / path).read_text())
    return report


@pytest.fixture
def copies(site: Site) -> list[int]:
    """Two equal projects, one of its own content, and one whose directory is gone; their ids."""
    with site.engine.begin() as conn:
        made = [make_project(conn, site.legacy_root, name) for name in ("one", "copy of one", "other")]
        for project, seed in zip(made, (1, 1, 2), strict=True):
            record_session(conn, project, "day", seed=seed, rows=200)
        gone = make_project(conn, site.legacy_root, "gone", path=str(site.legacy_root / "gone"))
    return [project.project_id for project in (*made, gone)]


def test_an_estimate_opens_no_run_needs_no_worker_and_reads_no_more_than_heads(
    site: Site, call: Call, copies: list[int]
):
    before = snapshot_tree(site.legacy_root)

    shown = call("enqueue", "--dry-run", "--estimate", "--exclude", str(copies[3]))
    as_json = json.loads(call("enqueue", "--dry-run", "--estimate", "--json").stdout)

    assert shown.returncode == 0
    words = lines(shown)
    assert words[1].startswith("Estimate for 3 projects, ")
    assert "about" in words[2]
    assert "an estimate" in words[2]
    assert words[-2].split(maxsplit=1) == ["press", "producer enqueue --dry-run --wait"]
    assert runs(site.engine) == []
    assert snapshot_tree(site.legacy_root) == before
    forecast = as_json["forecast"]
    assert forecast["basis"] == "sample"
    assert forecast["projects"] == {"ready": 0, "blocked": 0, "unknown": 4}
    assert any("not to be seen from here, and not in it: 1 of 4" in note for note in forecast["notes"])
    assert forecast["seconds"] is None


@pytest.mark.parametrize("option", [["--wait"], ["--report-dir", "x"], ["--rehash"], ["--waves", "1,100%"]])
def test_what_an_estimate_cannot_do_is_refused_by_name(
    site: Site, call: Call, three_projects: list[int], option: list[str]
):
    done = call("enqueue", "--dry-run", "--estimate", *option)

    assert done.returncode == 2
    assert "--dry-run --estimate queues nothing" in done.stderr
    assert three_projects
    assert runs(site.engine) == []


def test_an_estimate_of_nothing_is_a_plain_sentence(site: Site, call: Call):
    done = call("enqueue", "--dry-run", "--estimate", "--json")

    assert done.returncode == 0
    assert "Nothing to do: no legacy project is left to migrate." in done.stderr
    assert json.loads(done.stdout)["forecast"] is None
    assert runs(site.engine) == []


def test_a_dry_run_leads_to_a_plan_and_the_real_run_says_how_far_off_it_was(
    site: Site, call: Call, copies: list[int]
):
    first, copy, other, gone = copies
    call("enqueue", "--dry-run", "--json")
    done_by_a_worker(site)
    plan = report_of(site, call)["plan"]
    assert plan["decision"] == "partly"
    assert plan["command"] == f"producer enqueue --exclude {gone} --wait"
    assert plan["duplicates"]["groups"][0]["of"]["id"] == first
    assert plan["duplicates"]["groups"][0]["project_ids"] == [copy]

    opened = call(*plan["command"].split()[1:-1])
    done_by_a_worker(site)
    real = call("collect")
    report = report_of(site, call)

    stored = plan["forecast"]["bytes"]["stored"]["likely"]
    assert any(line.startswith("Forecast by dry run ") for line in lines(opened))
    assert report["plan"]["forecast"]["projects"] == {"ready": 3, "blocked": 0, "unknown": 0}
    assert report["plan"]["became"]["stored"] == report["bytes"]["stored"] == stored
    assert report["plan"]["off"]["stored"] == report["plan"]["off"]["projects"] == 0
    assert any("bytes stored" in line and line.endswith("as forecast") for line in lines(real))
    assert other in {one["project_id"] for one in report["details"]}


def test_projects_that_the_dry_run_did_not_see_widen_the_band(site: Site, call: Call, copies: list[int]):
    call("enqueue", "--dry-run", "--project-id", str(copies[0]), "--json")
    done_by_a_worker(site)

    document = json.loads(call("enqueue", "--exclude", str(copies[3]), "--json").stdout)

    forecast = document["forecast"]
    assert forecast["projects"] == {"ready": 1, "blocked": 0, "unknown": 2}
    stored = forecast["bytes"]["stored"]
    seen = {one["project_id"]: one["bytes"] for one in document["plan"]}
    assert (stored["low"], stored["high"]) == (seen[copies[0]], sum(seen.values()))


def test_what_was_migrated_since_the_dry_run_is_stored_already(site: Site, call: Call, copies: list[int]):
    call("enqueue", "--dry-run", "--json")
    done_by_a_worker(site)
    call("enqueue", "--project-id", str(copies[0]), "--json")
    done_by_a_worker(site)

    forecast = json.loads(call("enqueue", "--project-id", str(copies[1]), "--json").stdout)["forecast"]

    assert forecast["bytes"]["stored"] == {"low": 0, "likely": 0, "high": 0}
    assert forecast["seconds_from"] == "migrations"


def test_a_gc_since_the_dry_run_may_have_taken_what_was_counted_on(site: Site, call: Call, copies: list[int]):
    call("enqueue", "--dry-run", "--json")
    done_by_a_worker(site)
    with site.engine.begin() as conn:
        conn.execute(
            text("insert into migration_runs (run_id, verb, dry_run) values (gen_random_uuid(), 'gc', false)")
        )

    forecast = json.loads(call("enqueue", "--exclude", str(copies[3]), "--json").stdout)["forecast"]

    assert forecast["bytes"]["stored"]["high"] == forecast["bytes"]["read"]
    assert forecast["bytes"]["stored"]["low"] < forecast["bytes"]["read"]
    assert "a gc ran since the dry run" in forecast["notes"][0]


def test_a_dry_run_whose_content_is_forgotten_forecasts_nothing(site: Site, call: Call, copies: list[int]):
    call("enqueue", "--dry-run", "--json")
    done_by_a_worker(site)
    with site.engine.begin() as conn:
        conn.execute(text("delete from migration_dry_run_blobs"))

    document = json.loads(call("enqueue", "--exclude", str(copies[3]), "--json").stdout)
    done_by_a_worker(site)

    assert document["forecast"] is None
    assert report_of(site, call)["plan"] is None


def test_an_estimate_is_kept_with_the_run_and_knows_what_the_store_has(
    site: Site, call: Call, copies: list[int]
):
    first, copy, other, _ = copies
    call("enqueue", "--project-id", str(first), "--json")
    done_by_a_worker(site)

    opened = call("enqueue", "--estimate", "--project-id", str(copy), "--project-id", str(other), "--json")
    done_by_a_worker(site)
    report = report_of(site, call)

    forecast = json.loads(opened.stdout)["forecast"]
    assert forecast == report["plan"]["forecast"]
    assert forecast["basis"] == "sample"
    assert forecast["bytes"]["stored"]["likely"] == report["bytes"]["stored"] < report["bytes"]["read"]
    assert report["plan"]["off"]["stored"] == 0
    assert "Forecast by a sample of heads, an estimate" in opened.stderr
