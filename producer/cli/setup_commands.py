"""The verbs that set up and check what runs need: doctor, schema, up, demo."""

from pathlib import Path
from typing import Annotated, Any

import typer

from producer.cli.escaping import escape
from producer.cli.exit_codes import Exit, epilog
from producer.cli.options import AsJson
from producer.cli.render import diagnosis_lines, schema_lines
from producer.cli.session import connected
from producer.cli.terminal import Terminal
from producer.doctor.diagnose import diagnose
from worker.db import column_types, schema, tables
from worker.db.column_types import Misfit
from worker.db.schema import Step
from worker.runtime import log
from worker.settings import STACK_FILE

app = typer.Typer()
schema_app = typer.Typer(help="Create or check the tables.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")


@schema_app.command("apply", epilog=epilog("producer schema apply"))
def schema_apply(*, as_json: AsJson = False) -> None:
    """Create missing tables and columns; existing ones are left alone."""
    terminal = Terminal(as_json=as_json)
    with connected(needs_schema=False, has_a_run=False) as (_, engine):
        for line in schema.announce(engine):
            terminal.say(line)
        applied = schema.apply(engine)
    for step in applied:
        terminal.say(f"applied {step.name}")
    if not applied:
        terminal.say("Nothing to apply: all tables are there.")
    terminal.document({"applied": [step.name for step in applied]})


@schema_app.command("status", epilog=epilog("producer schema status"))
def schema_status(*, as_json: AsJson = False) -> None:
    """Show which schema steps are applied, missing or damaged, and columns of unusable types (exit 5 if
    any).
    """
    terminal = Terminal(as_json=as_json)
    with connected(needs_schema=False, has_a_run=False) as (_, engine):
        steps = schema.status(engine)
        misfits = column_types.misfits_of(engine)
        refusal = tables.refusal(engine)
    for line in schema_lines(steps, misfits):
        terminal.say(line)
    terminal.document([*map(_step_json, steps), *map(_misfit_json, misfits)])
    if misfits:
        raise typer.Exit(Exit.NOT_READY)
    if any(step.state != "applied" for step in steps):
        terminal.say("Run: producer schema apply" if refusal is None else escape(f"{refusal}."))
        raise typer.Exit(Exit.NOT_READY)


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "state": step.state,
        "applied_at": step.applied_at.isoformat() if step.applied_at else None,
        "gone": list(step.gone),
    }


def _misfit_json(misfit: Misfit) -> dict[str, Any]:
    return {
        "name": misfit.place,
        "state": "unfit",
        "applied_at": None,
        "reason": misfit.reason,
        "remedy": misfit.remedy,
    }


@app.command(epilog=epilog("producer doctor"))
def doctor(*, as_json: AsJson = False) -> None:
    """Check settings, servers, tables, workers and machines (exit 5 if a check fails or cannot run)."""
    terminal = Terminal(as_json=as_json)
    log.configure(log_format="console", level="error")
    diagnosis = diagnose()
    for line in diagnosis_lines(diagnosis, terminal.width):
        terminal.say(line)
    terminal.document(diagnosis.to_json())
    raise typer.Exit(Exit.WELL if diagnosis.is_well else Exit.NOT_READY)


@app.command(epilog=epilog("producer up --workers 2 --flower"))
def up(
    *,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Number of workers.")] = 2,
    flower: Annotated[bool, typer.Option("--flower", help="Start Flower as well.")] = False,
) -> None:
    """Run a local stack in the foreground until Ctrl-C: PostgreSQL, Valkey, workers, with --flower Flower."""
    from producer.local import stack  # noqa: PLC0415 - only this verb needs the servers' binaries

    log.configure(log_format="console", level="info")
    raise typer.Exit(stack.up(STACK_FILE.parent, workers=workers, flower=flower, data_dir=None))


@app.command(epilog=epilog("producer demo --folder demo"))
def demo(
    *,
    folder: Annotated[
        Path,
        typer.Option(
            "--folder", metavar="D", file_okay=False, help="Directory for projects, store and reports."
        ),
    ] = Path("demo"),
    megabytes: Annotated[
        int, typer.Option("--megabytes", min=1, help="Approximate size of the generated recordings.")
    ] = 200,
) -> None:
    """Show every step, from dry run to verification, on generated projects and a local stack."""
    from producer.demo import story  # noqa: PLC0415 - only this verb needs the recordings and the servers

    raise typer.Exit(story.run(folder, megabytes=megabytes))
