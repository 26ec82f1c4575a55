"""The systemd units: systemd reads them without a word, they can do little harm, and what they start is a
call that the program understands.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from producer.cli.app import app
from producer.cli.exit_codes import Exit, exit_code
from tests.support.lacking import program
from worker.errors import SettingsError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
TIMERS = sorted(FOLDER.glob("*.timer"))
OURS = [unit for unit in SERVICES if unit.name != "label-failed@.service"]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
INSTALLED = "/opt/label-migrator/bin/"


def started(unit: Path) -> str:
    """The command line of a service."""
    (line,) = re.findall(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)
    return line


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        [program("systemd-analyze"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def test_systemd_reads_every_unit_without_a_word(tmp_path: Path):
    """With the programs where this test has them."""
    (tmp_path / "on-failure").write_text("#!/bin/sh\n")
    (tmp_path / "on-failure").chmod(0o755)
    for unit in [*SERVICES, *TIMERS]:
        text = unit.read_text().replace(INSTALLED, f"{Path(sys.executable).parent}/")
        text = text.replace("/etc/label-migrator/on-failure", f"{tmp_path}/on-failure")
        (tmp_path / unit.name).write_text(text)

    said = analyze("verify", *(f"{tmp_path}/{unit.name.replace('@', '@1')}" for unit in [*SERVICES, *TIMERS]))

    assert said == ""
    assert len(SERVICES) >= 5
    assert {unit.stem for unit in TIMERS} == {"label-verify", "label-gc"}


@pytest.mark.parametrize("unit", OURS, ids=lambda unit: unit.stem)
def test_a_service_is_exposed_to_little(unit: Path):
    """By systemd's own count: 0 is nothing at all, a service without any setting has 9.6."""
    analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(unit))


@pytest.mark.parametrize(
    "unit", [unit for unit in OURS if "producer" in started(unit)], ids=lambda unit: unit.stem
)
def test_a_unit_calls_the_producer_as_it_is_called(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a setting that is refused each call ends there, and not before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    monkeypatch.setenv("LEASE_S", "0")
    words = started(unit).removeprefix(INSTALLED).split()
    assert words.pop(0) == "producer"

    try:
        code = app(words, standalone_mode=False)
    except SettingsError as error:
        code = exit_code(error)

    assert code == Exit.NOT_READY


def test_a_worker_is_started_as_compose_starts_it():
    _, _, command = COMPOSE.partition("\n    command:\n      - celery\n")
    by_compose = re.findall(r"^      - (.+)$", command.partition("\n    user:")[0], re.MULTILINE)

    words = started(FOLDER / "label-worker@.service").removeprefix(INSTALLED).split()

    expected = [word.replace("${WORKER_CONCURRENCY:-2}", "2") for word in by_compose]
    assert words == ["celery", *expected, "--hostname=worker%i@%H"]


def test_the_clock_of_compose_calls_what_the_timers_call():
    _, _, clock = COMPOSE.partition("\n  clock:\n")
    calls = re.findall(r"producer (\w+ --[^|]*?) \|\|", clock.partition("\n    user:")[0])

    by_timers = [started(FOLDER / f"label-{verb}.service") for verb in ("gc", "verify")]
    assert [f"{INSTALLED}producer {call} --report-dir reports" for call in calls] == by_timers
