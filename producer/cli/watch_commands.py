"""The verbs that show how runs are: status, runs, metrics. They change nothing."""

import sys
import threading
import uuid
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Annotated

import typer
from sqlalchemy import Engine

from producer.cli.exit_codes import epilog
from producer.cli.options import AsJson, RunArgument
from producer.cli.render import runs_table, status_lines
from producer.cli.session import connected, find_run
from producer.cli.terminal import Terminal
from producer.local.signals import stopped_by_signals
from producer.runs import status
from producer.runs.collect import PATIENCE_S
from worker.db.retry import when_there
from worker.settings import Settings

app = typer.Typer()


@app.command("status", epilog=epilog("producer status latest"))
def status_command(
    run: RunArgument = "latest",
    *,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Follow the status until the run has ended or is paused; JSON Lines with --json."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a run, which worker runs which job, and what failed."""
    terminal = Terminal(as_json=as_json)
    with connected() as (settings, engine):
        found = find_run(engine, run)
        if watch:
            look = partial(_latest_status, settings, engine, found.run_id)
            terminal.watch(lambda: when_there(look, PATIENCE_S))
            return
        described = status.describe(engine, found, settings)
    for line in status_lines(described):
        terminal.say(line)
    terminal.document(described.to_json())


@app.command(epilog=epilog("producer runs --limit 5"))
def runs(
    *,
    limit: Annotated[int, typer.Option(metavar="K", min=1, help="At most K runs.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs, newest first."""
    terminal = Terminal(as_json=as_json)
    with connected() as (_, engine):
        found = status.all_runs(engine, limit)
    terminal.table(runs_table(found))
    terminal.document([listed.to_json() for listed in found])


@app.command(epilog=epilog("producer metrics --port 9187"))
def metrics(
    *,
    address: Annotated[
        str,
        typer.Option("--address", metavar="A", help="Address to listen on; requests are not authenticated."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", metavar="P", min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    ] = 9187,
    once: Annotated[bool, typer.Option("--once", help="Print one scrape and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve metrics of ledger, broker and store to Prometheus until Ctrl-C; --once and --json print and
    exit.
    """
    from producer import metrics  # noqa: PLC0415 - only this verb needs Prometheus' client

    terminal = Terminal(as_json=as_json)
    with connected(needs_schema=False) as (settings, engine):
        if as_json:
            terminal.document(metrics.as_json(settings, engine))
        elif once:
            sys.stdout.write(metrics.scrape(settings, engine))
        else:
            _serve_metrics(terminal, metrics.served(settings, engine, address, port))


def _serve_metrics(terminal: Terminal, served: AbstractContextManager[str]) -> None:
    """Serve until Ctrl-C or SIGTERM, which is a good end."""
    with stopped_by_signals(), suppress(KeyboardInterrupt), served as url:
        terminal.say(f"Serving {url} until Ctrl-C")
        threading.Event().wait()


def _latest_status(settings: Settings, engine: Engine, run_id: uuid.UUID) -> status.RunStatus:
    return status.describe(engine, find_run(engine, str(run_id)), settings)
