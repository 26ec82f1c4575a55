"""Keeps the README's list of commands equal to what the program says of itself.

`python -m tests.readme_commands` compares them (exit 1 if they differ), `--write` rewrites the README's section.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from producer.cli.app import app

README = Path(__file__).parents[1] / "README.md"
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


def renewed(readme: str) -> str:
    """The README with a section that is up to date, at its end if it has none."""
    if BEGIN not in readme:
        return f"{readme.rstrip()}\n\n## Commands\n\n{section()}\n"
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section() + after


def main() -> int:
    """Compare, or with `--write` rewrite; the exit code."""
    readme = README.read_text(encoding="utf-8")
    if "--write" in sys.argv[1:]:
        README.write_text(renewed(readme), encoding="utf-8")
        return 0
    if renewed(readme) == readme:
        return 0
    sys.stderr.write(
        "README.md does not list the commands as --help does: python -m tests.readme_commands --write\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
