"""`producer datasets adopt` as an operator calls it: refusals, reports, words, exit codes, with a worker."""

import json

import jsonschema
import pytest
from sqlalchemy import text

from producer.report import document as report
from tests.acceptance.story import Call, call
from tests.support.registered import Registered, register
from tests.support.sites import Site
from tests.support.slow_jobs import await_end, await_work, jobs, staged
from tests.support.waiting import eventually


@pytest.fixture
def lab(shared_site: Site) -> dict[str, Registered]:
    """Two datasets that Label registered, a third that is equal to the first, and a fourth with a link."""
    digests = {"walk": None, "ride": None, "twin": "of bytes that Label rewrote", "linked": None}
    seeds = {"walk": (1, 2), "ride": (3,), "twin": (1, 2), "linked": (4,)}
    made = {
        name: register(shared_site, name, *seeds[name], digest=digest) for name, digest in digests.items()
    }
    (made["linked"].tree / "day 4" / "link").symlink_to(made["walk"].tree)
    return made


def check_report(made: Call) -> None:
    """It obeys the schema, adds up, has its name, and stands beside a page."""
    assert made.report_path.name.startswith("adoption_report_")
    jsonschema.validate(made.report, report.schema_document(), format_checker=jsonschema.FormatChecker())
    report.check_totals(made.report)


def statuses(made: Call) -> list[tuple[str, str]]:
    return [(one["dataset_name"], one["status"]) for one in made.report["details"]]


def refused(site: Site, *words: str) -> str:
    done = site.run_producer("datasets", "adopt", *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    with site.engine.connect() as conn:
        assert conn.scalar(text("select count(*) from migration_runs where verb = 'adopt'")) == 0
    return " ".join(done.stderr.split())


def test_calls_that_make_no_sense_change_nothing(lab: dict[str, Registered]):
    site, walk = lab["walk"].site, str(lab["walk"].dataset_id)

    assert "or say --all" in refused(site)
    assert "or say --all" in refused(site, walk, "--all", "--yes")
    assert "say --yes" in refused(site, walk)
    said = refused(site, walk, "0", "9999", "--yes")
    assert said.startswith("These dataset ids cannot be adopted: 0 (ids begin at 1), 9999 (no such dataset)")
    assert f"{walk} (not adopted, or what Label had is gone)" in refused(site, walk, "--undo")
    lab["walk"].check_untouched()


def test_datasets_are_rehearsed_adopted_shown_and_given_back(lab: dict[str, Registered]):
    site, walk = lab["walk"].site, lab["walk"]

    rehearsed = call(site, "datasets", "adopt", "--all", "--dry-run", "--wait")
    for one in lab.values():
        assert one.rows_now() == one.rows
    adopted = call(site, "datasets", "adopt", "--all", "--yes", "--wait")

    for made, status in ((rehearsed, "would_adopt"), (adopted, "adopted")):
        check_report(made)
        assert made.exit_code == 3
        ends = dict(statuses(made))
        assert (ends["ride"], ends["linked"]) == (status, "failed")
        assert (ends["walk"], ends["twin"]) == (status, "skipped")
        assert "it is a link: day 4/link" in made.words
    assert adopted.report["datasets_adopted"] == 2
    assert "what Label had is in quarantine" in adopted.words
    assert "what Label had is in quarantine" not in rehearsed.words
    for key in ("bytes", "files", "datasets_skipped", "datasets_failed"):
        assert rehearsed.report[key] == adopted.report[key]
    assert adopted.report["bytes"]["stored"] > 0
    page = adopted.report_path.with_suffix(".html").read_text()
    assert "2 of 4 datasets were adopted; 1 failed, 1 was skipped." in page
    walk.check_adopted()
    lab["twin"].check_untouched()
    named = call(site, "datasets", "adopt", str(lab["twin"].dataset_id), "--yes", "--wait")
    assert named.exit_code == 3
    assert f"dataset {walk.dataset_id} walk has the same content" in " ".join(named.words.split())

    number = str(walk.dataset_id)
    shown = json.loads(site.run_producer("datasets", "show", number, "--json").stdout)
    assert shown["adoption"]["registered_hash"] == walk.rows["raw_datasets"][0]["dataset_hash"]
    assert shown["gc"]["is_ours"] is False
    words = site.run_producer("datasets", "show", number).stderr
    assert f"what Label had: quarantine/adopted-{number}-" in words
    told = site.run_producer("explain", str(walk.project.project_id)).stderr
    assert "adopt dataset " in told
    verified = call(site, "verify", "--store", "--dataset", number)
    assert (verified.exit_code, verified.report["datasets_verified"]) == (0, 1)

    undone = call(site, "datasets", "adopt", "--all", "--undo", "--wait")
    check_report(undone)
    assert (undone.exit_code, undone.report["datasets_adopted"]) == (0, 2)
    walk.check_untouched()
    lab["ride"].check_untouched()
    nothing = call(site, "datasets", "adopt", "--all", "--undo", "--wait")
    assert (nothing.exit_code, nothing.report["details"]) == (0, [])
    assert "no dataset is adopted" in nothing.words


@pytest.mark.slow
def test_a_run_is_paused_in_the_middle_resumed_and_tried_again(site: Site):
    datasets = [register(site, f"walk {number}", number, rows=6_000) for number in range(1, 5)]
    link = datasets[0].tree / "link"
    link.symlink_to("elsewhere")
    with site.workers(1, LEASE_S="60", BWLIMIT="100K"):
        opened = site.run_producer("datasets", "adopt", "--all", "--yes", "--json")
        assert opened.returncode == 0, opened.stderr
        await_work(site)
        paused = site.run_producer("pause")
        eventually(lambda: "running" not in {job["state"] for job in jobs(site)}, "it stops within a file")
    assert paused.returncode == 0, paused.stderr
    waiting = [one for one in datasets if one.state() is None]
    assert len(waiting) >= 2
    assert staged(site) == []

    with site.workers(1):
        assert site.run_producer("resume").returncode == 0
        states = [job["state"] for job in await_end(site)]
        link.unlink()
        assert site.run_producer("retry").returncode == 0
        again = [job["state"] for job in await_end(site)]

    assert sorted(states) == ["done", "done", "done", "failed"]
    assert again == ["done"] * 4
    for one in datasets[1:]:
        one.check_adopted()
    datasets[0].check_read()
    assert datasets[0].state() == "adopted"
