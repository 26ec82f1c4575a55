"""Following a run: where its report goes, and what ends the waiting."""

import json
import signal
import subprocess
import sys

import pytest

from tests.producer.cli.calls import Call, lines, runs
from tests.support.rows import project
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S


def test_a_report_directory_that_cannot_be_written_is_named_before_jobs_are_queued(
    site: Site, call: Call, three_projects: list[int]
):
    (site.folder / "a file").touch()

    done = call("enqueue", "--wait", "--report-dir", "a file/reports")

    assert done.returncode == 2
    assert "a file/reports" in lines(done)[0]
    assert runs(site.engine) == []
    assert len(three_projects) == 3


@pytest.mark.usefixtures("three_projects")
def test_options_that_do_nothing_without_wait_are_named(call: Call):
    done = call("enqueue", "--timeout", "5", "--report-dir", "reports")

    assert done.returncode == 0
    assert any(line.startswith("--timeout does nothing without --wait") for line in lines(done))
    assert any(line.startswith("--report-dir is only for a long plan without --wait") for line in lines(done))


@pytest.fixture
def sixty_projects(site: Site) -> list[int]:
    with site.engine.begin() as conn:
        return [project(conn, f"study {n}", path=str(site.legacy_root / f"{n}")) for n in range(60)]


@pytest.mark.parametrize("arguments", [(), ("--report-dir", "reports")])
def test_a_plan_that_is_too_long_for_the_terminal_is_in_a_file(
    site: Site, call: Call, sixty_projects: list[int], arguments: tuple[str, ...]
):
    done = call("enqueue", *arguments)

    assert done.returncode == 0
    folder = site.folder / "reports" if arguments else site.folder
    (plan,) = folder.glob("migration_plan_*.json")
    document = json.loads(plan.read_text())
    assert {one["project_id"] for one in document["plan"]} == set(sixty_projects)
    said = lines(done)
    assert any(" and 10 more" in line for line in said)
    assert f"The whole plan: {plan.relative_to(site.folder)}" in said


@pytest.mark.usefixtures("sixty_projects")
def test_a_plan_that_cannot_be_written_does_not_lose_the_run(site: Site, call: Call):
    (site.folder / "a file").touch()

    done = call("enqueue", "--report-dir", "a file/below")

    assert done.returncode == 0
    assert runs(site.engine) == [("running", 60)]
    assert any(
        line.startswith("The whole plan is in no file: cannot write a report to a file/below: ")
        for line in lines(done)
    )


@pytest.mark.usefixtures("sixty_projects")
def test_with_json_the_plan_is_on_standard_output_and_in_no_file(site: Site, call: Call):
    done = call("enqueue", "--json")

    assert len(json.loads(done.stdout)["plan"]) == 60
    assert "The whole plan" not in done.stderr
    assert not list(site.folder.glob("*_plan_*"))


def test_a_timeout_ends_the_waiting_with_exit_code_8_and_the_run_goes_on(
    site: Site, call: Call, three_projects: list[int]
):
    done = call("enqueue", "--wait", "--timeout", "0.2", "--json")

    assert done.returncode == 8
    document = json.loads(done.stdout)
    assert document["stopped"] == "the time limit of 0.2 s is over"
    assert document["report_path"] is None
    assert document["report"]["interim"] == document["stopped"]
    assert len(document["plan"]) == len(three_projects)
    assert (
        f"Stopped with work left: the time limit of 0.2 s is over. Go on: producer collect {document['run_id'][:8]}"
        in done.stderr
    )
    assert runs(site.engine) == [("running", 3)]
    assert not list(site.folder.glob("migration_report_*"))
    (interim,) = site.folder.glob("interim_migration_report_*.json")
    assert document["interim_report_path"] == interim.name
    assert json.loads(interim.read_text())["details"] == []
    assert (
        "Interim report, because the time limit of 0.2 s is over" in interim.with_suffix(".html").read_text()
    )


def test_ctrl_c_while_waiting_leaves_the_run_and_says_how_to_follow_it(site: Site, three_projects: list[int]):
    with subprocess.Popen(
        [sys.executable, "-m", "producer", "enqueue", "--wait", "--json"],
        cwd=site.folder,
        env=site.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts into the background with the signal ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads run here
    ) as operator:
        assert operator.stderr is not None
        seen = ""
        # The last line before the waiting begins.
        while "No worker is online" not in seen:
            seen += (line := operator.stderr.readline())
            assert line, seen

        operator.send_signal(signal.SIGINT)
        words, rest = operator.communicate(timeout=PATIENCE_S)

    assert operator.returncode == 130
    assert words == ""
    assert rest.splitlines() == ["Interrupted. What is queued goes on; follow it: producer collect"]
    assert runs(site.engine) == [("running", len(three_projects))]
