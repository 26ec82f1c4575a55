"""What most verbs begin with: settings, a database that is ready, and the run that the call names."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy import Engine

from producer.cli.exit_codes import Exit
from producer.cli.terminal import Terminal
from worker import settings as settings_module
from worker.db import ledger, tables
from worker.db.engine import connect
from worker.db.ledger import Run
from worker.errors import RunNotFoundError, UsageError
from worker.runtime import log
from worker.settings import Settings

_A_RUN_GOES_ON = "Interrupted. What is queued goes on; follow it: producer collect"
_NOTHING_GOES_ON = "Interrupted. Nothing goes on without it: give the command again"


@contextmanager
def connected(*, needs_schema: bool = True, has_a_run: bool = True) -> Iterator[tuple[Settings, Engine]]:
    """Settings and an engine, checked; what is not ready says so as an error with exit code 5.

    Ctrl-C anywhere inside ends the program, never the run. Without `has_a_run` there is none: the program
    does what it does by itself.
    """
    settings = settings_module.load()
    log.configure(log_format=settings.log_format, level=settings.log_level)
    engine = connect(settings.sqlalchemy_url, application_name="label-migrator producer")
    try:
        if needs_schema:
            tables.require(engine)
        yield settings, engine
    except KeyboardInterrupt:
        # Typer would end with the same code, but without a word about what goes on, or does not.
        Terminal(as_json=False).say(_A_RUN_GOES_ON if has_a_run else _NOTHING_GOES_ON)
        raise typer.Exit(Exit.INTERRUPTED) from None
    finally:
        engine.dispose()


def find_run(engine: Engine, reference: str) -> Run:
    """The run that an operator means by `latest`, an id, or the beginning of one. Raises `UsageError`."""
    try:
        with engine.connect() as conn:
            return ledger.find_run(conn, reference)
    except RunNotFoundError as error:
        raise UsageError(str(error)) from error
