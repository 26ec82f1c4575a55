"""The verbs about the store as the only copy: verify."""

from functools import partial
from typing import Annotated

import typer

from producer.cli.exit_codes import epilog
from producer.cli.follow import Following
from producer.cli.opening import open_and_follow
from producer.cli.options import AsJson, Exclude, Limit, ProjectIds, ReportDir, Timeout
from producer.cli.terminal import Terminal
from producer.runs import migrated_projects
from worker.errors import UsageError

app = typer.Typer()


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
    open_and_follow(
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
