"""The list of commands in docs/commands.md is what the program says of itself."""

import pytest

from tests import command_list
from tests.command_list import BEGIN, END, commands, renewed, section


def test_the_page_lists_the_commands_as_the_program_does(capsys: pytest.CaptureFixture[str]):
    assert command_list.main() == 0, capsys.readouterr().err


def test_every_verb_is_in_the_section_with_its_options_and_first_sentence():
    rows = section().splitlines()

    assert len(rows) == len(commands(command_list.app)) + 4
    (collect,) = [row for row in rows if "`producer collect " in row]
    assert "[RUN] [--timeout S] [--report-dir D] [--json]`" in collect
    assert collect.endswith("| Follow a run to its end and write its report, as JSON and as HTML. |")


def test_a_section_is_renewed_in_its_place_and_added_where_there_is_none():
    outdated = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"

    assert renewed(outdated) == f"# Title\n\n{section()}\n\nafter\n"
    assert renewed("# Title\n").startswith("# Title\n\n## Commands\n\n")
    assert renewed(renewed("# Title\n")) == renewed("# Title\n")
