"""The verbs that carry projects without their data."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from producer.cli import new_file
from producer.cli.escaping import escape
from producer.cli.exit_codes import Exit, epilog
from producer.cli.options import AsJson
from producer.cli.session import connected
from producer.cli.terminal import Terminal
from producer.projects import project_file
from producer.projects.exported import export
from producer.projects.imported import Imported, import_project
from producer.report.notation import plural

app = typer.Typer()
project_app = typer.Typer(
    help="Carry a project's sessions and labels to another server that has its datasets.",
    no_args_is_help=True,
)
app.add_typer(project_app, name="project")

_SHOWN = 50


@project_app.command("export", epilog=epilog("producer project export 7 --output study.json"))
def project_export(
    project: Annotated[int, typer.Argument(metavar="ID", help="A project's id.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="F", help="The file to write, which must not be there; else standard output."
        ),
    ] = None,
) -> None:
    """Write a project as Label's configuration format 2.0, with what that loses beside it; no recordings."""
    terminal = Terminal(as_json=False)
    if output is not None:
        new_file.check(output)
    with connected(has_a_run=False) as (_, engine):
        found = export(engine, project)
    for warning in found.warnings:
        terminal.say(f"[yellow]Warning: {escape(warning)}[/]")
    # In ASCII, so that no encoding can refuse it.
    text = json.dumps(found.document, indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    new_file.write(output, text)
    terminal.say(
        f"{_counted(len(found.document['migrator']['sessions']), 'session')} of project {project} "
        f"and {_counted(len(found.document['datasets']), 'dataset')} named: {escape(str(output))}"
    )


@project_app.command("import", epilog=epilog("producer project import study.json --dry-run"))
def project_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A project's configuration, format 2.0.")],
    *,
    name: Annotated[
        str | None, typer.Option("--name", metavar="N", help="What the project is to be called.")
    ] = None,
    participant: Annotated[
        str | None,
        typer.Option("--participant", metavar="CODE", help="Whose it is to be, instead of the file's."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do the same, and take it back: nothing is written.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a project of a file; its datasets are found here by their hashes. All of it or nothing."""
    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (settings, engine):
        made = import_project(
            settings, engine, project_file.load(file), name=name, participant=participant, dry_run=dry_run
        )
    _tell(terminal, made, dry_run=dry_run)
    terminal.document(
        {
            "dry_run": dry_run,
            "project_id": None if dry_run else made.project_id,
            "project_name": made.project_name,
            "participant_code": made.participant_code,
            "datasets": [{"of_file": there, "dataset_id": here} for there, here in made.datasets.items()],
            "sessions": made.sessions,
            "lineage": made.lineage,
            "left_out": [{"session_name": one.session_name, "reason": one.reason} for one in made.left_out],
            "warnings": list(made.warnings),
            "unknown": list(made.unknown),
        }
    )
    if made.left_out:
        raise typer.Exit(Exit.SOME_FAILED)


def _tell(terminal: Terminal, made: Imported, *, dry_run: bool) -> None:
    begin = "Would import" if dry_run else f"Imported project {made.project_id}:"
    terminal.say(
        f"{begin} {escape(made.project_name)} of {escape(made.participant_code)}, {_counted(made.sessions, 'session')}, "
        f"{_counted(len(made.datasets), 'dataset')}"
    )
    lines = [
        *(f"Left out: session {one.session_name}: {one.reason}" for one in made.left_out),
        *(f"Warning: {warning}" for warning in made.warnings),
        *(
            f"Warning: this program does not know {key}; it is kept in analysis_config"
            for key in made.unknown
        ),
    ]
    for line in lines[:_SHOWN]:
        terminal.say(f"[yellow]{escape(line)}[/]")
    if len(lines) > _SHOWN:
        terminal.say(f"and {len(lines) - _SHOWN} more lines like these; --json has all")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {plural(count, what)}"
