"""The command line as an operator meets it: exit codes, messages and JSON, on real servers.

`call` runs the program's `main` in this process, because a new one spends a second on imports; where a process makes a
difference (signals, encodings, an empty environment) there is one.
"""

import contextlib
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from producer.__main__ import main
from producer.cli.app import app
from producer.cli.exit_codes import EXIT_CODES
from producer.cli.render import plan_table
from producer.cli.terminal import Terminal
from producer.doctor.worker_checks import WORKER_COMMAND
from producer.runs import legacy_projects
from producer.runs import survey as surveys
from producer.runs.open import Opened
from tests.command_list import commands
from tests.conftest import Site
from tests.estate import make_dataset, make_project, record_session
from tests.support.waiting import PATIENCE_S
from worker.broker import client as broker
from worker.db.ledger import NewJob
from worker.errors import BrokerUnavailableError
from worker.messages import Verb

Call = Callable[..., subprocess.CompletedProcess[str]]

PASSWORD = "hunter2secret"  # noqa: S105 - what must not be seen again
DEADLINE_S = PATIENCE_S


@pytest.fixture
def call(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], _logging_as_it_was: None
) -> Call:
    """Call `producer` with the site's settings: `call("enqueue", "--wait", LEASE_S="2")`."""

    def call(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.chdir(site.folder)
            patch.setattr(sys, "argv", ["producer", *args])
            for name, value in {**site.env, **env}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    """Take back that the program sends all logging to its own standard error."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.fixture
def three_projects(site: Site) -> list[int]:
    """Three small legacy projects; their ids."""
    with site.engine.begin() as conn:
        projects = [make_project(conn, site.legacy_root, name) for name in ("one", "two", "three")]
        for number, project in enumerate(projects):
            record_session(conn, project, "s", seed=number, rows=20 + number)
    return [project.project_id for project in projects]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and nobody else can begin to."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def runs(engine: Engine) -> list[Any]:
    """State and number of jobs of every run."""
    with engine.connect() as conn:
        query = text("""
            select state, (select count(*) from migration_jobs j where j.run_id = r.run_id) as jobs
            from migration_runs r order by created_at""")
        return [tuple(row) for row in conn.execute(query)]


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a person reads; nothing may be on standard output but JSON that was asked for."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


# Choosing projects ----------------------------------------------------------------------------------------------


def test_ids_that_cannot_be_migrated_are_a_usage_error_that_names_each_and_opens_no_run(
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
    assert f"left out: {first} one: excluded" in done.stderr
    assert runs(site.engine) == [("running", 1)]


def test_the_plan_names_every_project_with_its_whole_path_and_a_missing_worker_is_told(
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


def test_a_plan_on_a_narrow_terminal_is_shown_whole(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    job = NewJob(project_id=4711, project_name="N" * 60, path="/" + "P" * 80, files=1234, size_bytes=5)
    opened = Opened(run_id=uuid.uuid4(), verb=Verb.MIGRATE, dry_run=False, jobs=(job,))

    Terminal(as_json=False).table(plan_table(opened))

    words = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    for shown in ("4711", "1,234", "5 bytes"):
        assert shown in words
    assert (words.count("N"), words.count("P")) == (60, 80)
    assert max(map(len, words.splitlines())) <= 80


def test_names_cannot_command_the_terminal(capsys: Any):
    job = NewJob(project_id=1, project_name="\x1b[2J\x07[red]x\r\nb", path="/a\x1b[31m\tb")
    opened = Opened(run_id=uuid.uuid4(), verb=Verb.MIGRATE, dry_run=False, jobs=(job,))

    Terminal(as_json=False).table(plan_table(opened))

    words = capsys.readouterr().err
    assert not set(words) & set("\x1b\x07\r\t")
    assert "[red]x" in words
    assert len(words.splitlines()) == 3


def test_words_that_the_terminal_cannot_write_do_not_stop_a_run_that_is_queued(site: Site):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "Étude 研究 🚬", directory="study")
        record_session(conn, project, "s")

    done = site.run_producer("enqueue", "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"][0]["project_id"] == project.project_id
    assert "tude" in done.stderr
    assert runs(site.engine) == [("running", 1)]


# Surroundings that are not ready --------------------------------------------------------------------------------


def test_an_unreachable_database_is_named_without_its_password(site: Site, closed_port: int):
    done = site.run_producer(
        "enqueue", DATABASE_URL=f"postgresql://somebody:{PASSWORD}@127.0.0.1:{closed_port}/label"
    )

    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Database connection failed: 127.0.0.1:{closed_port}: ")
    assert "Check DATABASE_URL" in lines(done)[1]
    assert PASSWORD not in done.stderr


def test_a_refused_password_is_a_connection_that_failed(site: Site, call: Call):
    url = site.engine.url.set(drivername="postgresql", password=PASSWORD)

    done = call("runs", DATABASE_URL=url.render_as_string(hide_password=False))

    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Database connection failed: {url.host}:{url.port}: ")
    assert PASSWORD not in done.stderr


def test_an_unreachable_broker_ends_the_call_in_seconds_before_anything_is_queued(
    site: Site, call: Call, closed_port: int
):
    begin = time.monotonic()

    done = call("enqueue", "--wait", REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:{closed_port}/0")

    assert time.monotonic() - begin < DEADLINE_S, "it is not waited for"
    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Broker connection failed: 127.0.0.1:{closed_port}: ")
    assert PASSWORD not in done.stderr
    assert runs(site.engine) == []


def test_a_broker_that_never_answers_ends_the_call_in_seconds(site: Site, call: Call):
    begin = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = call("enqueue", REDIS_URL=f"redis://127.0.0.1:{port}/0")

    assert time.monotonic() - begin < DEADLINE_S, "it is not waited for"
    assert done.returncode == 5
    assert lines(done)[0].startswith(f"Broker connection failed: 127.0.0.1:{port}: ")
    assert runs(site.engine) == []


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


def test_missing_tables_are_told_with_the_command_that_makes_them(empty_database: Engine, call: Call):
    with empty_database.begin() as conn:
        conn.execute(text("create table projects (project_id integer primary key)"))
        conn.execute(text("create table sessions (session_id integer primary key)"))
    url = empty_database.url.set(drivername="postgresql").render_as_string(hide_password=False)

    done = call("enqueue", DATABASE_URL=url)
    steps = call("schema", "status", "--json", DATABASE_URL=url)

    assert done.returncode == 5
    assert "producer schema apply" in lines(done)[0]
    assert steps.returncode == 5
    assert {step["state"] for step in json.loads(steps.stdout)} == {"missing"}


def test_applying_the_schema_twice_says_that_there_is_nothing_to_apply(call: Call):
    done = call("schema", "apply", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout) == {"applied": []}
    assert "Nothing to apply: all tables are there." in done.stderr


def test_bad_settings_are_named_with_what_was_expected_and_never_shown(call: Call):
    done = call(
        "enqueue",
        DATABASE_URL=f"mysql://u:{PASSWORD}@h/d",
        DATA_DIR="relative/place",
        HASH_THREADS="many",
        BWLIMIT="fast",
        LEASE_S="0",
    )

    assert done.returncode == 5
    for name in ("DATABASE_URL", "DATA_DIR", "HASH_THREADS", "BWLIMIT", "LEASE_S"):
        assert f"{name} is not usable: expected " in lines(done)[0]
    assert PASSWORD not in done.stderr


def test_without_settings_both_ways_out_are_named(site: Site):
    unset = {"DATABASE_URL", "REDIS_URL", "DATA_DIR"}
    env = {name: value for name, value in site.env.items() if name not in unset}

    done = subprocess.run(
        [sys.executable, "-m", "producer", "status"],
        cwd=site.folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert done.returncode == 5
    assert "DATABASE_URL and REDIS_URL are not set" in lines(done)[0]
    assert "producer up" in lines(done)[0]


def test_a_report_directory_that_cannot_be_written_is_found_before_anything_is_queued(
    site: Site, call: Call, three_projects: list[int]
):
    (site.folder / "a file").touch()

    done = call("enqueue", "--wait", "--report-dir", "a file/reports")

    assert done.returncode == 2
    assert "a file/reports" in lines(done)[0]
    assert runs(site.engine) == []
    assert len(three_projects) == 3


# Runs and waiting -----------------------------------------------------------------------------------------------


def test_a_run_that_nobody_knows_is_a_usage_error(site: Site, call: Call):
    none = call("status")
    unknown = call("collect", "no-such-run")
    with site.engine.begin() as conn:
        for number in (1, 2):
            conn.execute(
                text("insert into migration_runs (run_id, verb, dry_run) values (:id, 'migrate', true)"),
                {"id": uuid.UUID(int=number)},
            )
    several = call("collect", "00000000")

    assert [done.returncode for done in (none, unknown, several)] == [2, 2, 2]
    assert lines(none)[0] == "There is no run yet"
    assert lines(unknown)[0] == "No run begins with 'no-such-run'"
    assert lines(several)[0] == "More than one run begins with '00000000'; give more of the id"


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
        words, rest = operator.communicate(timeout=DEADLINE_S)

    assert operator.returncode == 130
    assert words == ""
    assert rest.splitlines() == ["Interrupted. What is queued goes on; follow it: producer collect"]
    assert runs(site.engine) == [("running", len(three_projects))]


# What a script reads --------------------------------------------------------------------------------------------


def test_json_is_exactly_one_document_on_standard_output_and_people_read_standard_error(
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
    assert status["projects"] == {"total": 3, "ended": 0, "failed": 0, "running": 0, "waiting": 3}
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


# What a call says that fails -----------------------------------------------------------------------------------


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


def test_the_version_is_said(call: Call):
    done = call("--version")

    assert done.returncode == 0
    assert re.fullmatch(r"producer \d+\.\d+\.\d+ \([0-9a-f]+\)\n", done.stdout)


@pytest.mark.usefixtures("three_projects")
def test_options_that_do_nothing_without_wait_are_told(call: Call):
    done = call("enqueue", "--timeout", "5", "--report-dir", "reports")

    assert done.returncode == 0
    for name in ("--timeout", "--report-dir"):
        assert any(line.startswith(f"{name} does nothing without --wait") for line in lines(done))


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


@pytest.mark.usefixtures("three_projects")
def test_a_directory_that_does_not_answer_is_named_while_it_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    """A mount that hangs, as seen from the producer: a call that does not return."""
    back = threading.Event()
    survey = surveys.survey

    def hangs(path: str) -> surveys.Survey | None:
        if "two" in path:
            back.wait(DEADLINE_S)
        return survey(path)

    monkeypatch.setattr(surveys, "survey", hangs)
    heard: list[surveys.Listing] = []

    def listen(listing: surveys.Listing) -> None:
        heard.append(listing)
        if listing.done == 2:
            back.set()

    opened = legacy_projects.enqueue(site.settings, site.engine, dry_run=True, on_listing=listen)

    assert len(opened.jobs) == 3
    assert (heard[-1].done, heard[-1].total) == (2, 3)
    assert "two" in heard[-1].waits_for[0][0]


# Questions ------------------------------------------------------------------------------------------------------


def at_a_terminal(site: Site, answer: str, *args: str) -> tuple[int, str]:
    """Call `producer` as a person does who is asked and answers; exit code and what was on the screen."""
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "producer", *args],
        cwd=site.folder,
        env=site.env,
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    ) as operator:
        os.close(terminal)
        os.write(keyboard, answer.encode())
        screen = b""
        # Linux says EIO when the last process has closed the other end.
        with contextlib.suppress(OSError):
            while part := os.read(keyboard, 4096):
                screen += part
        operator.wait(DEADLINE_S)
    os.close(keyboard)
    return operator.returncode, screen.decode()


@pytest.mark.usefixtures("three_projects")
def test_a_person_is_asked_before_a_run_is_cancelled(site: Site, call: Call):
    call("enqueue")

    declined = at_a_terminal(site, "n\n", "cancel")
    still = runs(site.engine)
    confirmed = at_a_terminal(site, "y\n", "cancel")

    assert declined[0] == 2
    assert "Not confirmed: nothing was changed" in declined[1]
    assert still == [("running", 3)]
    assert confirmed[0] == 0, confirmed[1]
    assert runs(site.engine) == [("cancelled", 3)]


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
    assert "of 1 projects rolled back" in one[1]
    assert [project["project_id"] for project in json.loads(verified.stdout)["plan"]] == [3]
    assert json.loads(verified.stdout)["left_out"][0]["reason"] == "excluded"
