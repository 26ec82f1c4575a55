"""`producer` and `python -m producer`: run the command line; errors become one clear line and an exit code."""

import json
import sys

from rich.console import Console
from typer.exceptions import TyperException
from typer.rich_utils import rich_format_error

from producer.cli.app import Exit, app, exit_code
from producer.cli.terminal import escape
from worker.errors import MigratorError, UnexpectedError, UsageError


def main() -> None:
    """Run a verb; errors of ours are printed with their remedy, and with `--json` as one object on standard output, too."""
    as_json = "--json" in sys.argv[1:]
    people = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        # Otherwise typer ends the program before anything could be said of a call that it does not understand.
        sys.exit(app(standalone_mode=not as_json))
    except MigratorError as error:
        people.print(f"[red]{escape(str(error))}[/]")
        people.print(f"[dim]{escape(error.remedy)}[/]")
        code = exit_code(error)
        if as_json:
            _say(str(error), error.error_class, error.remedy, code)
        sys.exit(code)
    except TyperException as error:
        rich_format_error(error)  # type: ignore[arg-type] # typer raises only those that it can show
        _say(error.format_message(), UsageError.__name__, UsageError.remedy, Exit.USAGE)
        sys.exit(Exit.USAGE)
    except Exception as error:
        if as_json:
            _say(
                f"{type(error).__name__}: {error}",
                UnexpectedError.__name__,
                UnexpectedError.remedy,
                Exit.UNEXPECTED,
            )
        raise


def _say(error: str, error_class: str, remedy: str, code: Exit) -> None:
    """One line, so that it may also end JSON Lines."""
    document = {"error": error, "error_class": error_class, "remedy": remedy, "exit_code": int(code)}
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
