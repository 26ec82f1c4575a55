"""`producer` and `python -m producer`: run the command line; errors become one clear line and an exit code."""

import sys

from rich.console import Console
from rich.markup import escape

from producer.cli import Exit, app, exit_code
from worker.errors import MigratorError


def main() -> None:
    """Run a verb. Errors of ours are printed with their remedy; Ctrl-C leaves the run as it is."""
    people = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except MigratorError as error:
        people.print(f"[red]{escape(str(error))}[/]")
        people.print(f"[dim]{escape(error.remedy)}[/]")
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        people.print("Interrupted. The run goes on with its workers; follow it: producer collect")
        sys.exit(Exit.INTERRUPTED)


if __name__ == "__main__":
    main()
