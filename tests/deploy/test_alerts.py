"""The alert rules: each speaks when it should, and is quiet when it should be, as `promtool` plays it."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.lacking import program

_FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = _FOLDER / "label-migrator.rules.yml"
PLAYED = sorted(_FOLDER.glob("*.test.yml"))


def promtool(*arguments: str) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES.read_text())


def test_the_rules_are_sound():
    promtool("check", "rules", str(RULES))


@pytest.mark.parametrize("played", PLAYED, ids=lambda path: path.name)
def test_alerts_speak_when_they_should_and_only_then(played: Path):
    promtool("test", "rules", str(played))


def test_each_alert_is_played():
    texts = "".join(path.read_text() for path in PLAYED)

    assert len(alerts()) > 8
    assert [name for name in alerts() if name not in texts] == []


@pytest.mark.parametrize("name", alerts())
def test_each_alert_says_what_to_do(name: str):
    (rule,) = [part for part in RULES.read_text().split("- alert: ") if part.startswith(f"{name}\n")]

    assert re.search(r"severity: (critical|warning)", rule)
    assert "summary:" in rule
    assert "action:" in rule
