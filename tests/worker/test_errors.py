"""Remedies: a next step that can be taken. A command that one names is a call that the program
understands.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.cli.app import app
from producer.cli.exit_codes import Exit, exit_code
from worker import errors
from worker.errors import MigratorError, SettingsError, UsageError


def kinds(of: type[MigratorError] = MigratorError) -> Iterator[type[MigratorError]]:
    """Every kind of error, from the root down."""
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


COMMANDS = sorted(
    {
        re.sub(r"\b[A-Z]+\b", "1", command).strip()
        for kind in kinds()
        if kind.__module__ == errors.__name__
        for command in re.findall(r"producer ((?:(?:(?:--)?[a-z][a-z-]*|[A-Z]+)\b ?)+)", kind.remedy + " ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_a_remedy_names_is_no_usage_error(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a setting that is refused each ends there, and not before; doctor says so by its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEASE_S", "0")

    try:
        code = app(command.split(), standalone_mode=False)
    except SettingsError as error:
        code = exit_code(error)

    assert code == Exit.NOT_READY


def test_every_command_that_a_remedy_names_exists():
    assert {"retry", "resume", "schema apply", "verify --sessions"} <= set(COMMANDS)
    assert issubclass(UsageError, MigratorError)
