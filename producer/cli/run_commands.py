"""The verbs that open a run or follow one: enqueue, rollback, verify, collect."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from producer.cli.exit_codes import Exit, epilog
from producer.cli.follow import Following, follow
from producer.cli.options import (
    AsJson,
    BytesPerSecond,
    DryRun,
    Exclude,
    Limit,
    ProjectIds,
    ReportDir,
    RunArgument,
    Timeout,
    Wait,
    Yes,
)
from producer.cli.render import escape, left_out_lines, plan_table
from producer.cli.session import connected, find_run
from producer.cli.terminal import Terminal, confirm
from producer.doctor.worker_checks import WORKER_COMMAND
from producer.runs import legacy_projects, migrated_projects
from producer.runs.open import Opened
from worker.broker import client as broker
from worker.errors import BrokerUnavailableError, UsageError
from worker.settings import Settings

app = typer.Typer()


@app.command(epilog=epilog("producer enqueue --dry-run --project-id 42 --wait"))
def enqueue(
    *,
    dry_run: DryRun = False,
    project_id: ProjectIds = None,
    exclude: Exclude = None,
    limit: Limit = None,
    include_failed: Annotated[
        bool,
        typer.Option("--include-failed", help="With --limit: also projects whose last job failed."),
    ] = False,
    limit_bytes_per_second: BytesPerSecond = None,
    wait: Wait = False,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Open a migration run: show its plan and queue one task for each legacy project."""
    _run(
        Terminal(as_json=as_json),
        Following(wait=wait, timeout_s=timeout, report_dir=report_dir),
        partial(
            legacy_projects.enqueue,
            dry_run=dry_run,
            project_ids=project_id or (),
            exclude=exclude or (),
            limit=limit,
            include_failed=include_failed,
            limit_bytes_per_second=limit_bytes_per_second,
        ),
        nothing="Nothing to do: no legacy project is left to migrate.",
    )


@app.command(epilog=epilog("producer rollback --dry-run --project-id 42 --wait"))
def rollback(
    *,
    dry_run: DryRun = False,
    project_id: ProjectIds = None,
    exclude: Exclude = None,
    limit: Limit = None,
    yes: Yes = False,
    wait: Wait = False,
    report_dir: ReportDir = None,
    restore_files: Annotated[
        bool, typer.Option("--restore-files", help="Rebuild missing legacy directories from the store.")
    ] = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Open a rollback run: queue one task for each migrated project, to return it to its legacy directory."""
    asks = not (dry_run or project_id or yes)
    _run(
        Terminal(as_json=as_json),
        Following(wait=wait, timeout_s=timeout, report_dir=report_dir),
        partial(
            migrated_projects.rollback,
            dry_run=dry_run,
            project_ids=project_id or (),
            exclude=exclude or (),
            limit=limit,
            restore_files=restore_files,
            confirm=lambda count: confirm(f"Roll back {count} projects?") if asks else None,
        ),
        nothing="Nothing to do: no project is migrated.",
    )


@app.command(epilog=epilog("producer verify --sessions --sample 10"))
def verify(
    *,
    sessions: Annotated[
        bool,
        typer.Option(
            "--sessions",
            help="Compare what pandas reads of each session from its legacy directory and from its dataset.",
        ),
    ] = False,
    project_id: ProjectIds = None,
    exclude: Exclude = None,
    limit: Limit = None,
    sample: Annotated[
        float | None,
        typer.Option(
            "--sample", metavar="P", min=0, max=100, help="Read only P percent of each project's sessions."
        ),
    ] = None,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Verify that migrated projects read as before, follow the run and write its report (exit 4 if not)."""
    if not sessions:
        raise UsageError("Say what to verify: --sessions")
    _run(
        Terminal(as_json=as_json),
        Following(timeout_s=timeout, report_dir=report_dir),
        partial(
            migrated_projects.verify_sessions,
            project_ids=project_id or (),
            exclude=exclude or (),
            limit=limit,
            sample=sample,
        ),
        nothing="Nothing to do: no project is migrated.",
    )


@app.command(epilog=epilog("producer collect latest --report-dir reports"))
def collect(
    run: RunArgument = "latest",
    *,
    timeout: Timeout = None,
    report_dir: ReportDir = None,
    as_json: AsJson = False,
) -> None:
    """Follow a run to its end and write its report, as JSON and as HTML."""
    terminal = Terminal(as_json=as_json)
    following = Following(timeout_s=timeout, report_dir=report_dir)
    with connected() as (settings, engine):
        following.check(terminal)
        code, document = follow(terminal, settings, engine, find_run(engine, run), following)
    terminal.document(document)
    raise typer.Exit(code)


def _run(terminal: Terminal, following: Following, open_run: Callable[..., Opened], *, nothing: str) -> None:
    """Open a run, show its plan, and follow it or say how to; ends the program with the run's exit code.

    `nothing` is what a person reads when no project is left to do.
    """
    code = Exit.WELL
    with connected() as (settings, engine):
        following.check(terminal)
        with terminal.listing() as on_listing:
            opened = open_run(settings, engine, on_listing=on_listing)
        _show_plan(terminal, settings, opened, nothing=nothing)
        document = _plan(opened)
        if following.wait:
            run = find_run(engine, str(opened.run_id))
            code, outcome = follow(terminal, settings, engine, run, following)
            document |= outcome
        elif document["plan"]:
            short = str(opened.run_id)[:8]
            terminal.say(f"Queued {len(document['plan'])} projects. Follow them: producer collect {short}")
    terminal.document(document)
    raise typer.Exit(code)


def _show_plan(terminal: Terminal, settings: Settings, opened: Opened, *, nothing: str) -> None:
    has_work = any(not job.skipped for job in opened.jobs)
    if has_work:
        terminal.table(plan_table(opened))
    else:
        terminal.say(nothing)
    for line in left_out_lines(opened):
        terminal.say(line)
    for warning in opened.warnings:
        terminal.say(f"[yellow]{escape(warning)}.[/]")
    if has_work and _no_worker_is_online(settings):
        terminal.say(f"[yellow]No worker is online.[/] Start one: {WORKER_COMMAND}")


def _no_worker_is_online(settings: Settings) -> bool:
    """Whether the broker says so. Where it does not answer there is nothing to warn of: the run is queued."""
    try:
        return not broker.workers_online(settings)
    except BrokerUnavailableError:
        return False


def _plan(opened: Opened) -> dict[str, Any]:
    """A run that was opened, as JSON."""
    return {
        "run_id": str(opened.run_id),
        "verb": opened.verb.value,
        "dry_run": opened.dry_run,
        "plan": [
            {
                "subject": job.subject.value,
                f"{job.subject}_id": job.subject_id,
                f"{job.subject}_name": job.subject_name,
                "path": job.path,
                "sessions": job.sessions,
                "files": job.files,
                "bytes": job.size_bytes,
            }
            for job in opened.jobs
            if not job.skipped
        ],
        "left_out": [one.to_json() for one in opened.left_out],
        "warnings": list(opened.warnings),
    }
