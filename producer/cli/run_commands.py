"""The verbs about projects that open a run or follow one: enqueue, rollback, collect."""

from functools import partial
from typing import Annotated

import typer

from producer.cli.exit_codes import epilog
from producer.cli.follow import Following, follow
from producer.cli.opening import open_and_follow, show_estimate
from producer.cli.options import (
    AsJson,
    BytesPerSecond,
    DryRun,
    Exclude,
    Limit,
    ProjectIds,
    Rehash,
    ReportDir,
    RunArgument,
    Timeout,
    Wait,
    Yes,
)
from producer.cli.session import connected, find_run
from producer.cli.terminal import Terminal, confirm
from producer.report.notation import plural
from producer.runs import legacy_projects, migrated_projects
from producer.runs.waves import asked
from worker.errors import UsageError
from worker.messages import Gate

app = typer.Typer()

_NOTHING_LEFT = "Nothing to do: no legacy project is left to migrate."


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
    rehash: Rehash = False,
    limit_bytes_per_second: BytesPerSecond = None,
    waves: Annotated[
        str | None,
        typer.Option(
            "--waves",
            metavar="W",
            help="Migrate first some projects, then more, then all: as in 1,5%,100%, numbers or parts of them, each with those "
            "before it. Between two waves their gate is passed.",
        ),
    ] = None,
    gate: Annotated[
        Gate | None,
        typer.Option(
            "--gate",
            help="With --waves: what is done with a wave before the next one begins. Without it: verify, its sessions and its "
            "stored bytes; what differs stops the run.",
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Forecast by the sizes of all files and the heads of some; with --dry-run nothing is queued.",
        ),
    ] = False,
    wait: Wait = False,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Open a migration run: show its plan and queue one task for each legacy project."""
    terminal = Terminal(as_json=as_json)
    if estimate and dry_run:
        if wait or rehash or any(one is not None for one in (report_dir, timeout, waves, gate)):
            raise UsageError(
                "--dry-run --estimate queues nothing and hashes nothing: leave --wait, --report-dir, --timeout, --rehash, "
                "--waves and --gate away, or --estimate"
            )
        show_estimate(
            terminal,
            partial(
                legacy_projects.estimate,
                project_ids=project_id or (),
                exclude=exclude or (),
                limit=limit,
                include_failed=include_failed,
                limit_bytes_per_second=limit_bytes_per_second,
            ),
            nothing=_NOTHING_LEFT,
        )
        return
    open_and_follow(
        terminal,
        Following(wait=wait, timeout_s=timeout, report_dir=report_dir),
        partial(
            legacy_projects.enqueue,
            dry_run=dry_run,
            project_ids=project_id or (),
            exclude=exclude or (),
            limit=limit,
            include_failed=include_failed,
            rehash=rehash,
            limit_bytes_per_second=limit_bytes_per_second,
            waves=asked(waves, gate),
            estimate=estimate,
            asks_workers=True,
        ),
        nothing=_NOTHING_LEFT,
    )


@app.command(epilog=epilog("producer rollback --dry-run --project-id 42 --wait"))
def rollback(
    *,
    dry_run: DryRun = False,
    project_id: ProjectIds = None,
    exclude: Exclude = None,
    limit: Limit = None,
    rehash: Rehash = False,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Only what this run migrated: its id, its first characters, or latest.",
        ),
    ] = None,
    wave: Annotated[
        int | None,
        typer.Option("--wave", metavar="N", help="With --run: only what this wave of it migrated."),
    ] = None,
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
    open_and_follow(
        Terminal(as_json=as_json),
        Following(wait=wait, timeout_s=timeout, report_dir=report_dir),
        partial(
            migrated_projects.rollback,
            dry_run=dry_run,
            project_ids=project_id or (),
            exclude=exclude or (),
            limit=limit,
            rehash=rehash,
            restore_files=restore_files,
            of_run=run,
            wave=wave,
            confirm=lambda count: confirm(f"Roll back {count} {plural(count, 'project')}?") if asks else None,
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
