"""The verbs about the store as the only copy: verify, reclaim, gc."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from producer.cli.exit_codes import epilog
from producer.cli.follow import Following
from producer.cli.opening import open_and_follow
from producer.cli.options import AsJson, DryRun, Exclude, Limit, ProjectIds, ReportDir, Timeout, Wait, Yes
from producer.cli.terminal import Terminal, confirm
from producer.report.notation import plural
from producer.runs import garbage, reclaims, verification
from producer.runs.open import Opened
from producer.runs.verification import Wanted
from worker.errors import UsageError
from worker.messages import RunOptions

app = typer.Typer()


@app.command(epilog=epilog("producer verify --store --sample 10 --repair"))
def verify(
    *,
    store: Annotated[
        bool,
        typer.Option("--store", help="Read stored datasets and compare their bytes with their digests."),
    ] = False,
    sessions: Annotated[
        bool,
        typer.Option(
            "--sessions",
            help="Compare what pandas reads of each session from its legacy directory and from its dataset.",
        ),
    ] = False,
    project_id: ProjectIds = None,
    dataset: Annotated[
        list[int] | None,
        typer.Option("--dataset", metavar="ID", help="Only this dataset; repeat it for more."),
    ] = None,
    exclude: Exclude = None,
    limit: Limit = None,
    sample: Annotated[
        float | None,
        typer.Option(
            "--sample",
            metavar="P",
            min=0,
            max=100,
            help="Only P percent: of the store's bytes the least recently read ones, of each project's sessions any.",
        ),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than", metavar="DAYS", min=0, help="Only stored bytes that were last read longer ago."
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Replace what is damaged by bytes that have the digest, if any are found."
        ),
    ] = False,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="With --repair: a backup that may have good copies; repeat it for more.",
        ),
    ] = None,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Verify stored datasets and that migrated projects read as before; exit 4 while anything is damaged.

    Without --store and --sessions both are verified. Follows the run and writes its report.
    """
    wanted = Wanted(
        store=store,
        sessions=sessions,
        project_ids=tuple(project_id or ()),
        dataset_ids=tuple(dataset or ()),
        exclude=tuple(exclude or ()),
        limit=limit,
        sample=sample,
        older_than_days=older_than,
        repair=repair,
        repair_from=tuple(from_ or ()),
    )
    open_and_follow(
        Terminal(as_json=as_json),
        Following(timeout_s=timeout, report_dir=report_dir),
        partial(verification.verify, wanted=wanted),
        nothing="Nothing to do: nothing that is stored or migrated is due.",
    )


@app.command(epilog=epilog("producer reclaim --dry-run --wait"))
def reclaim(
    *,
    dry_run: DryRun = False,
    project_id: ProjectIds = None,
    exclude: Exclude = None,
    limit: Limit = None,
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Leave what was migrated more recently."),
    ] = reclaims.OLDER_THAN_DAYS,
    undo: Annotated[
        bool, typer.Option("--undo", help="Move the directories of these projects back (--project-id).")
    ] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove what was moved away long enough ago.")
    ] = False,
    grace: Annotated[
        float | None,
        typer.Option("--grace", metavar="DAYS", min=0, help="With --purge: how long ago; 30 if not given."),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Move nothing; share blocks with the store (XFS and Btrfs).")
    ] = False,
    yes: Yes = False,
    wait: Wait = False,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Move the legacy directories of migrated projects away, so that the store is the only copy."""
    if undo + purge + share > 1:
        raise UsageError("Only one of --undo, --purge and --share at a time")
    if undo and not project_id:
        raise UsageError("--undo needs to know of which projects: --project-id N")
    if grace is not None and not purge:
        raise UsageError("--grace belongs to --purge")
    options = RunOptions(project_ids=tuple(project_id or ()), exclude=tuple(exclude or ()), limit=limit)
    act = {name: True for name, wanted in (("undo", undo), ("purge", purge), ("share", share)) if wanted}
    days = {"grace_days": 30 if grace is None else grace} if purge else {}
    days |= {} if act else {"older_than_days": older_than}
    asks = not (dry_run or undo or share or yes)
    question = "Remove what was moved away for {}?" if purge else "Move the directories of {} away?"
    open_and_follow(
        Terminal(as_json=as_json),
        Following(wait=wait, timeout_s=timeout, report_dir=report_dir),
        partial(
            reclaims.reclaim,
            dry_run=dry_run,
            options=options.model_copy(update=act | days),
            confirm=lambda count: (
                confirm(question.format(f"{count} {plural(count, 'project')}"), needs_yes=True)
                if asks
                else None
            ),
        ),
        nothing="Nothing to do: no directory of a migrated project is left for that.",
    )


@app.command(epilog=epilog("producer gc --dry-run"))
def gc(
    *,
    dry_run: DryRun = False,
    grace: Annotated[
        float,
        typer.Option("--grace", metavar="HOURS", min=0, help="Leave alone what is younger than this."),
    ] = garbage.GRACE_H,
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect", metavar="N", min=0, help="So many datasets may go, even if that is more than a tenth."
        ),
    ] = None,
    restore: Annotated[
        str | None,
        typer.Option("--restore", metavar="ID", help="Bring this entry of the quarantine back instead."),
    ] = None,
    yes: Yes = False,
    wait: Wait = False,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Put what nothing refers to into quarantine, and remove what has been there for the grace time."""
    if restore is not None:
        if dry_run or expect is not None:
            raise UsageError("--restore goes with neither --dry-run nor --expect")
        open_run: Callable[..., Opened] = partial(garbage.restore, entry_id=restore)
    else:
        open_run = partial(
            garbage.collect,
            dry_run=dry_run,
            grace_hours=grace,
            expect=expect,
            confirm=lambda count: None if yes else confirm(_gc_question(count), needs_yes=True),
        )
    open_and_follow(
        Terminal(as_json=as_json),
        Following(wait=wait, timeout_s=timeout, report_dir=report_dir),
        open_run,
        nothing="Nothing to do.",
    )


def _gc_question(count: int) -> str:
    return (
        f"Put {count} {plural(count, 'dataset')} and everything else that nothing refers to into quarantine?"
    )
