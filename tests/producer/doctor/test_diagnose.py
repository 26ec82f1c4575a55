"""`producer doctor` as a whole: its settings, its output, and an installation where all is well."""

import json
from contextlib import suppress
from typing import Any

import pytest

from producer.cli.render import diagnosis_lines
from producer.doctor import database_checks, diagnose, label_checks
from producer.doctor.findings import Chapter, Diagnosis
from tests.estate import make_project, record_session
from tests.producer.doctor.chapters import PASSWORD, configured
from tests.support.sites import Site
from tests.support.waiting import eventually
from worker.findings import Verdict, passed


@pytest.mark.parametrize(("python", "celery"), [((3, 10, 12), "5.7.0"), ((3, 11, 0), "5.6.3")])
def test_versions_that_the_program_was_not_made_for_fail(python: tuple[int, ...], celery: str):
    assert diagnose.program_check((3, 13, 1), "5.7.1").verdict is Verdict.PASS
    assert diagnose.program_check(python, celery).verdict is Verdict.FAIL


def test_settings_that_cannot_be_used_are_named_and_end_the_examination(site: Site):
    done = site.run_producer(
        "doctor", "--json", LEASE_S="soon", DATABASE_URL=f"mysql://u:{PASSWORD}@127.0.0.1/label"
    )

    assert done.returncode == 5
    document = json.loads(done.stdout)
    assert document["verdict"] == "fail"
    (settings,) = [check for check in document["checks"] if check["name"] == "settings"]
    assert settings["verdict"] == "fail"
    assert "LEASE_S is not usable: expected seconds" in settings["finding"]
    assert "DATABASE_URL" in settings["finding"]
    assert {check["chapter"] for check in document["checks"]} == {"Here"}
    assert "✗ settings" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o600, Verdict.PASS), (0o640, Verdict.WARN), (0o644, Verdict.WARN)]
)
def test_a_file_of_passwords_that_others_may_read_is_a_warning(site: Site, mode: int, verdict: Verdict):
    file = site.folder / ".env"
    file.write_text(f"REDIS_URL=redis://:{PASSWORD}@127.0.0.1/0\n")
    file.chmod(mode)

    document = json.loads(site.run_producer("doctor", "--json").stdout)

    (settings,) = [check for check in document["checks"] if check["name"] == "settings"]
    assert settings["verdict"] == verdict
    assert settings["remedy"] == (None if verdict is Verdict.PASS else "chmod 600 .env")


def test_without_workers_everything_else_is_checked(site: Site):
    done = site.run_producer("doctor", "--json", COLUMNS="80")

    assert done.returncode == 5
    document = json.loads(done.stdout)
    assert [check["name"] for check in document["checks"] if check["verdict"] == "fail"] == ["online"]
    assert len(document["checks"]) >= 20
    assert document["counts"]["fail"] == 1
    assert {one["name"] for one in document["not_checked"]} >= {"same settings", "legacy projects"}
    assert "✗ online" in done.stderr
    assert "→ Start one: celery -A worker.app worker" in done.stderr
    assert all(check["remedy"] for check in document["checks"] if check["verdict"] != "pass")


def test_the_diagnosis_fits_a_terminal_of_eighty_columns(site: Site, monkeypatch: pytest.MonkeyPatch):
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(site.folder)

    lines = list(diagnosis_lines(diagnose.diagnose(), 80))

    from rich.text import Text

    plain = [Text.from_markup(line).plain for line in lines]
    assert max(map(len, plain)) <= 80
    marked = [line for line in plain if line[2:3] and line[2] in "✓!✗"]
    summary = [line for line in marked if "all failures:" in line or "all warnings:" in line]
    assert plain[-1].startswith(f"{len(marked) - len(summary)} checks: ")
    assert any(line.split() == ["✗", "all", "failures:", "Workers:", "online"] for line in summary)
    assert plain[0] == "Here"


def test_on_a_sound_installation_every_check_passes(shared_site: Site, monkeypatch: pytest.MonkeyPatch):
    """But for what a test's surroundings are: a superuser's database, perhaps a worker that is root's."""
    with shared_site.engine.begin() as conn:
        project = make_project(conn, shared_site.legacy_root, "study")
        record_session(conn, project, "day")
    for name, value in shared_site.env.items():
        monkeypatch.setenv(name, value)

    with configured(shared_site, appendonly="yes"):
        said: list[dict[str, Any]] = []

        def is_well() -> bool:
            """On a busy machine a worker may not have the time to say all."""
            said[:] = [diagnose.diagnose().to_json()]
            return bool(said[0]["verdict"] == "pass")

        with suppress(AssertionError):  # what is not well is said below
            eventually(is_well, "all is well")

    (document,) = said
    not_well = {check["name"] for check in document["checks"] if check["verdict"] != "pass"}
    assert not_well <= {"role", "user"}, document
    assert document["not_checked"] == []
    assert document["verdict"] == "pass"
    assert len(document["checks"]) == sum(document["counts"].values()) >= 40
    (visible,) = [check for check in document["checks"] if check["name"] == "legacy projects"]
    assert visible["finding"] == "all 1 that were looked at can be read"
    eventually(lambda: not any(shared_site.data_dir.iterdir()), "nothing is left behind")


def test_with_postgresql_away_everything_else_is_checked(shared_site: Site, closed_port: int):
    url = shared_site.engine.url.set(drivername="postgresql", port=closed_port, password=PASSWORD)

    done = shared_site.run_producer(
        "doctor", "--json", DATABASE_URL=url.render_as_string(hide_password=False)
    )

    assert done.returncode == 5
    document = json.loads(done.stdout)
    failing = [(one["chapter"], one["name"]) for one in document["checks"] if one["verdict"] == "fail"]
    assert failing == [("PostgreSQL", "reachable")]
    asked = {one["name"] for one in document["checks"] if one["chapter"] == "Workers"}
    assert asked >= {"same settings", "same database", "data directory", "legacy projects", "reaper"}
    assert {one["name"] for one in document["not_checked"]} == {
        *database_checks.CHECKS,
        *label_checks.CHECKS,
        "queue",
        "staging",
        "restores",
        "database connections",
        "held runs",
        "dead holders",
    }
    assert done.stderr.splitlines()[-1].endswith(f"1 failed, {len(document['not_checked'])} not checked")
    assert PASSWORD not in done.stdout + done.stderr


def test_a_check_that_did_not_run_has_not_passed():
    ran = Chapter("Here", {"settings": passed("good")})
    not_run = Chapter("Runs")
    not_run.leave_out(["held runs"], "PostgreSQL cannot be asked")

    assert Diagnosis(chapters=(ran,)).is_well
    assert not Diagnosis(chapters=(ran, not_run)).is_well
    assert Diagnosis(chapters=(ran, not_run)).to_json()["verdict"] == "fail"
