"""The program as a whole: help, JSON, usage errors, and what a call says that fails."""

import json
import re

import pytest
from click.testing import Result
from typer.testing import CliRunner

from producer.cli.app import app
from producer.cli.exit_codes import EXIT_CODES
from tests.command_list import commands
from tests.estate import make_dataset
from tests.producer.cli.calls import Call, lines
from tests.support.sites import Site


def test_json_is_one_document_on_standard_output_and_people_read_standard_error(
    site: Site, call: Call, three_projects: list[int]
):
    with site.engine.begin() as conn:
        make_dataset(conn, site.legacy_root, "ab" * 32)
    calls = [
        call("enqueue", "--json"),
        call("status", "--json"),
        call("runs", "--json"),
    ]

    queued, status, listed = (json.loads(done.stdout) for done in calls)

    assert [done.returncode for done in calls] == [0, 0, 0], [done.stderr for done in calls]
    assert status["projects"] == {"total": 3, "ended": 0, "failed": 0, "running": 0, "waiting": 3, "held": 0}
    assert [run["run_id"] for run in listed] == [queued["run_id"]] == [status["run_id"]]
    assert [one["project_id"] for one in queued["plan"]] == sorted(three_projects, reverse=True)
    assert all(queued["run_id"] in done.stderr for done in calls)


@pytest.mark.parametrize("name", [" ".join(words) for words, _ in commands(app)])
def test_help_of_every_verb_shows_an_example_and_its_exit_codes(name: str):
    shown: Result = CliRunner().invoke(app, [*name.split(), "--help"], terminal_width=200)

    assert shown.exit_code == 0
    assert f"Example: producer {name}" in " ".join(shown.output.split())
    assert EXIT_CODES in " ".join(shown.output.split())


def test_a_misspelt_option_is_a_usage_error(call: Call):
    done = call("enqueue", "--dryrun")

    assert done.returncode == 2
    assert "--dryrun" in " ".join(lines(done))


@pytest.mark.parametrize(
    ("args", "env", "error_class", "exit_code"),
    [
        (["status", "--json"], {}, "UsageError", 2),
        (["enqueue", "--dryrun", "--json"], {}, "UsageError", 2),
        (["enqueue", "--limit", "many", "--json"], {}, "UsageError", 2),
        (["colect", "--json"], {}, "UsageError", 2),
        (["runs", "--json"], {"DATABASE_URL": "postgresql://u@127.0.0.1:1/d"}, "DatabaseUnavailableError", 5),
        (["enqueue", "--json"], {"REDIS_URL": "redis://127.0.0.1:1/0"}, "BrokerUnavailableError", 5),
        (["enqueue", "--json"], {"LEASE_S": "0"}, "SettingsError", 5),
    ],
)
def test_a_call_that_fails_is_one_object_with_json(
    args: list[str], env: dict[str, str], error_class: str, exit_code: int, call: Call
):
    done = call(*args, **env)

    document = json.loads(done.stdout)
    assert done.returncode == exit_code
    assert document.keys() == {"error", "error_class", "remedy", "exit_code"}
    assert (document["error_class"], document["exit_code"]) == (error_class, exit_code)
    assert document["error"].split()[0] in done.stderr
    assert document["remedy"]


def test_a_defect_is_one_object_with_json_too(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("producer.runs.status.all_runs", fails)

    with pytest.raises(RuntimeError):
        call("runs", "--json")

    document = json.loads(capsys.readouterr().out)
    assert document["error"] == "RuntimeError: no such thing"
    assert document["exit_code"] == 1


def test_the_version_option_prints_the_version(call: Call):
    done = call("--version")

    assert done.returncode == 0
    assert re.fullmatch(r"producer \d+\.\d+\.\d+ \([0-9a-f]+\)\n", done.stdout)
