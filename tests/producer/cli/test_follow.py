"""Following a run: where its report goes, and what ends the waiting."""

import json
import signal
import subprocess
import sys

import pytest

from tests.producer.cli.calls import Call, lines, runs
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
    for name in ("--timeout", "--report-dir"):
        assert any(line.startswith(f"{name} does nothing without --wait") for line in lines(done))


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
