"""Keeps the list of commands in docs/commands.md equal to what the program says of itself.

`python -m tests.command_list` compares them (exit 1 if they differ), `--write` rewrites the page's section.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from producer.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
BEGIN, END = "<!-- commands -->", "<!-- /commands -->"


def commands(of: typer.Typer) -> list[tuple[list[str], TyperCommand]]:
    """Every verb with the words it is called by, in the order of `--help`."""
    return list(_commands(typer.main.get_command(of), []))


def _commands(command: object, words: list[str]) -> Iterator[tuple[list[str], TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, part in command.commands.items():
            yield from _commands(part, [*words, name])
    elif isinstance(command, TyperCommand) and not command.hidden:
        yield words, command


def section() -> str:
    """The section as it should be, from marker to marker: how each verb is called, and its first sentence."""
    rows = [
        f"| `{_usage(words, command)}` | {_first_sentence(command.help or '')} |"
        for words, command in commands(app)
    ]
    return "\n".join([BEGIN, "| command | does |", "|---|---|", *rows, END])


def _usage(words: list[str], command: TyperCommand) -> str:
    parts = [_part(param) for param in command.params if isinstance(param, TyperOption | TyperArgument)]
    return " ".join(["producer", *words, *parts])


def _part(param: TyperOption | TyperArgument) -> str:
    if isinstance(param, TyperArgument):
        return param.metavar or "" if param.required else f"[{param.metavar}]"
    value = "" if param.is_flag else f" {param.metavar or (param.name or '').upper()}"
    return f"[{param.opts[0]}{value}]{'…' if param.multiple else ''}"


def _first_sentence(text: str) -> str:
    sentence, dot, _ = " ".join(text.split()).partition(". ")
    return sentence + dot.rstrip()


def renewed(page: str) -> str:
    """The page with a section that is up to date, at its end if it has none."""
    if BEGIN not in page:
        return f"{page.rstrip()}\n\n## Commands\n\n{section()}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section() + after


def main() -> int:
    """Compare, or with `--write` rewrite; the exit code."""
    page = PAGE.read_text(encoding="utf-8")
    if "--write" in sys.argv[1:]:
        PAGE.write_text(renewed(page), encoding="utf-8")
        return 0
    if renewed(page) == page:
        return 0
    sys.stderr.write(
        "docs/commands.md does not list the commands as --help does: python -m tests.command_list --write\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
