"""The program: all verbs together, and an error's way to one clear line, a remedy and an exit code."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException
from typer.rich_utils import rich_format_error

from producer.cli import (
    control_commands,
    dataset_commands,
    project_commands,
    run_commands,
    setup_commands,
    store_commands,
    watch_commands,
)
from producer.cli.escaping import escape
from producer.cli.exit_codes import EXIT_CODES, Exit, exit_code
from worker.doctor.protocol import edition
from worker.errors import MigratorError, UnexpectedError, UsageError

app = typer.Typer(
    name="producer",
    help="Move Label's legacy projects into one shared store of raw datasets, and back.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for commands in (
    setup_commands,
    run_commands,
    store_commands,
    dataset_commands,
    project_commands,
    control_commands,
    watch_commands,
):
    app.add_typer(commands.app)


def _version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"producer {edition()}")
        raise typer.Exit


@app.callback()
def program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda asked: _version(asked=asked),
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Move Label's legacy projects into one shared store of raw datasets, and back."""


def main() -> None:
    """Run a verb. An error of ours is printed with its remedy, and with `--json` as one object as well."""
    as_json = "--json" in sys.argv[1:]
    people = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        # Otherwise typer ends the program before JSON could be made of a call that it does not understand.
        sys.exit(app(standalone_mode=not as_json))
    except MigratorError as error:
        people.print(f"[red]{escape(str(error))}[/]")
        people.print(f"[dim]{escape(error.remedy)}[/]")
        code = exit_code(error)
        if as_json:
            _print_json(str(error), error.error_class, error.remedy, code)
        sys.exit(code)
    except TyperException as error:
        rich_format_error(error)  # type: ignore[arg-type] # typer raises only those that it can show
        _print_json(error.format_message(), UsageError.__name__, UsageError.remedy, Exit.USAGE)
        sys.exit(Exit.USAGE)
    except Exception as error:
        if as_json:
            _print_json(
                f"{type(error).__name__}: {error}",
                UnexpectedError.__name__,
                UnexpectedError.remedy,
                Exit.UNEXPECTED,
            )
        raise


def _print_json(error: str, error_class: str, remedy: str, code: Exit) -> None:
    """One line, so that it may also end JSON Lines."""
    document = {"error": error, "error_class": error_class, "remedy": remedy, "exit_code": int(code)}
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
