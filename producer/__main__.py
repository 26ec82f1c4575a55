"""`producer` and `python -m producer`: run the command line; errors become one clear line and an exit code."""

import sys

from rich.console import Console

from producer.cli import app, exit_code
from producer.terminal import escape
from worker.errors import MigratorError


def main() -> None:
    """Run a verb; errors of ours are printed with their remedy."""
    people = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except MigratorError as error:
        people.print(f"[red]{escape(str(error))}[/]")
        people.print(f"[dim]{escape(error.remedy)}[/]")
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
