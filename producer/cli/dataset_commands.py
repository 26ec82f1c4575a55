"""The verbs that ask about datasets and projects, adopt datasets, carry them, and make lost rows again."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from producer.cli import dataset_lines, new_file
from producer.cli.exit_codes import Exit, epilog
from producer.cli.follow import Following
from producer.cli.opening import open_and_follow
from producer.cli.options import AsJson, DryRun, ReadLimit, ReportDir, Timeout, Wait, Yes
from producer.cli.session import connected
from producer.cli.terminal import Terminal, confirm
from producer.datasets import listed, shown, whereis
from producer.datasets.listed import Asked, Order
from producer.report.notation import plural
from producer.runs import adoptions
from worker.errors import UsageError
from worker.messages import RunOptions

app = typer.Typer()
datasets_app = typer.Typer(
    help="See which datasets are stored and who refers to them; adopt those of Label; make lost rows again.",
    no_args_is_help=True,
)
app.add_typer(datasets_app, name="datasets")


@datasets_app.command("list", epilog=epilog("producer datasets list --not-verified 30 --sort size"))
def datasets_list(
    *,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="Only those that nothing refers to.")
    ] = False,
    not_verified: Annotated[
        float | None,
        typer.Option(
            "--not-verified",
            metavar="DAYS",
            min=0,
            help="Only those of which something was last read longer ago.",
        ),
    ] = None,
    project_id: Annotated[
        list[int] | None,
        typer.Option("--project-id", metavar="N", help="Only those of this project; repeat it for more."),
    ] = None,
    sort: Annotated[
        Order,
        typer.Option(
            "--sort",
            metavar="KEY",
            help=f"By what to sort: {', '.join(Order)}; numbers the largest first, times the earliest.",
        ),
    ] = Order.ID,
    reverse: Annotated[bool, typer.Option("--reverse", help="In the opposite order.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="K", min=1, help="At most K datasets; without it people see 50."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the stored datasets: size, sessions, projects, when verified, where legacy directories are."""
    terminal = Terminal(as_json=as_json)
    asked = Asked(
        unreferenced=unreferenced,
        not_verified_days=not_verified,
        project_ids=tuple(project_id or ()),
        order=sort,
        reverse=reverse,
    )
    with connected(has_a_run=False) as (_, engine):
        listing = listed.find(engine, asked)
    if as_json:
        terminal.document([one.to_json() for one in listing.found[:limit]])
        return
    rows = limit or dataset_lines.ROWS
    if listing.found:
        terminal.table(dataset_lines.listing_table(listing, rows))
    for line in dataset_lines.listing_summary(listing, rows):
        terminal.say(line)


@datasets_app.command("show", epilog=epilog("producer datasets show 3"))
def datasets_show(
    dataset: Annotated[int, typer.Argument(metavar="ID", help="A dataset's id.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one dataset: its content, the projects that have it, its sessions, what a gc would do to it."""
    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (_, engine):
        found = shown.show(engine, dataset)
    for line in dataset_lines.shown_lines(found):
        terminal.say(line)
    for table, count, what in (
        (dataset_lines.sharers_table(found), len(found.sharers), "projects"),
        (dataset_lines.sessions_table(found.sessions), len(found.sessions), "sessions"),
    ):
        if count:
            terminal.say("")
            terminal.table(table)
        for line in dataset_lines.more(count, what):
            terminal.say(line)
    terminal.document(found.to_json())


@datasets_app.command("export", epilog=epilog("producer datasets export 3 --output /mnt/disk/study"))
def datasets_export(
    dataset: Annotated[int, typer.Argument(metavar="ID", help="A dataset's id.")],
    *,
    output: Annotated[
        Path,
        typer.Option("--output", metavar="DIR", help="The directory to make, which must not be there."),
    ],
    as_json: AsJson = False,
) -> None:
    """Write a dataset, its manifest and its rows as a BagIt bag: for a disk that goes to another lab."""
    from producer.cli import bag_lines  # noqa: PLC0415 - only these verbs need what jobs need
    from producer.datasets import bags  # noqa: PLC0415 - likewise

    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (settings, engine):
        found = bags.export(settings, engine, dataset, str(output), terminal.say)
    for line in bag_lines.exported_lines(dataset, found):
        terminal.say(line)
    terminal.document(bags.exported_json(dataset, found))


@datasets_app.command("import", epilog=epilog("producer datasets import /mnt/disk/study"))
def datasets_import(
    bag: Annotated[Path, typer.Argument(metavar="DIR", help="A bag that producer datasets export wrote.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Verify a bag and take its dataset into the store, with its rows; one that is here already stays."""
    from producer.cli import bag_lines  # noqa: PLC0415 - only these verbs need what jobs need
    from producer.datasets import bags  # noqa: PLC0415 - likewise

    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (settings, engine):
        found = bags.take_in(settings, engine, str(bag), terminal.say)
    terminal.say(bag_lines.imported_line(found))
    terminal.document(bags.imported_json(found))


@datasets_app.command("near-duplicates", epilog=epilog("producer datasets near-duplicates 3 7"))
def datasets_near_duplicates(
    datasets: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID…", help="Only pairs of which one is in these.", show_default=False),
    ] = None,
    *,
    limit_bytes_per_second: ReadLimit = None,
    as_json: AsJson = False,
) -> None:
    """Find recordings that are the same but for their form: digits, an end cut off, 50 Hz. Only reports."""
    from producer.cli import near_lines  # noqa: PLC0415 - only this verb needs what jobs need
    from producer.datasets import near_duplicates  # noqa: PLC0415 - likewise

    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (settings, engine), terminal.line(near_lines.how_far_words) as listen:
        try:
            found = near_duplicates.find(
                settings,
                engine,
                list(dict.fromkeys(datasets or ())),
                bytes_per_second=limit_bytes_per_second,
                listen=listen,
            )
        except KeyboardInterrupt:
            terminal.say("Interrupted before all was compared; nothing was changed")
            raise typer.Exit(Exit.INTERRUPTED) from None
    if found.pairs:
        terminal.table(near_lines.pairs_table(found.pairs, dataset_lines.ROWS))
    for line in (
        *near_lines.found_lines(found, dataset_lines.ROWS),
        *near_lines.not_compared_lines(found),
    ):
        terminal.say(line)
    terminal.document(near_duplicates.to_json(found))
    if any(one.is_damaged for one in found.not_compared):
        raise typer.Exit(Exit.BYTES_MISMATCH)
    if found.not_compared or (datasets and found.not_stored):
        raise typer.Exit(Exit.SOME_FAILED)


@datasets_app.command("report", epilog=epilog("producer datasets report --html datasets.html"))
def datasets_report(
    *,
    html: Annotated[
        Path, typer.Option("--html", metavar="F", help="The page to write, which must not be there.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write one page of all datasets and projects: who shares what, when verified, room on disk."""
    from producer.datasets import reported  # noqa: PLC0415 - only this verb needs it
    from producer.report import sharing  # noqa: PLC0415 - likewise, and the template engine

    terminal = Terminal(as_json=as_json)
    new_file.check(html)
    with connected(has_a_run=False) as (_, engine):
        document = reported.report(engine)
    new_file.write(html, sharing.render(document))
    for line in dataset_lines.report_lines(document, str(html)):
        terminal.say(line)
    terminal.document(document)


@datasets_app.command("rebuild", epilog=epilog("producer datasets rebuild --dry-run"))
def datasets_rebuild(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do the same, and take it back: nothing is written.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make rows of datasets again that the store has and the database lost; name what fits neither."""
    from producer.cli.rebuild_lines import rebuild_lines  # noqa: PLC0415 - only this verb needs what jobs need
    from producer.datasets import rebuilt  # noqa: PLC0415 - likewise

    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (settings, engine):
        done = rebuilt.rebuild(
            settings, engine, dry_run=dry_run, listen=lambda what: terminal.say(f"Waiting for {what} …")
        )
    for line in rebuild_lines(done, dry_run=dry_run):
        terminal.say(line)
    terminal.document(rebuilt.to_json(done, dry_run=dry_run))
    if done.drift:
        raise typer.Exit(Exit.SOME_FAILED)


@datasets_app.command("adopt", epilog=epilog("producer datasets adopt 7 --dry-run --wait"))
def datasets_adopt(
    datasets: Annotated[
        list[int] | None, typer.Argument(metavar="ID…", help="Ids of datasets.", show_default=False)
    ] = None,
    *,
    all_: Annotated[
        bool,
        typer.Option("--all", help="All that Label registered itself; with --undo all that were adopted."),
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Give adopted datasets back as they were.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Make datasets that Label registered itself the store's own, in their places, or give them back."""
    if bool(datasets) == all_:
        raise UsageError("Name datasets by their ids, or say --all")
    options = RunOptions(dataset_ids=tuple(dict.fromkeys(datasets or ())))
    if undo:
        options = options.model_copy(update={"undo": True})
    asks = not (dry_run or undo or yes)
    question = "Store the files of {} once more, and set the directories that Label has aside?"
    open_and_follow(
        Terminal(as_json=as_json),
        Following(wait=wait, timeout_s=timeout, report_dir=report_dir),
        partial(
            adoptions.adopt,
            dry_run=dry_run,
            options=options,
            confirm=lambda count: (
                confirm(question.format(f"{count} {plural(count, 'dataset')}"), needs_yes=True)
                if asks
                else None
            ),
        ),
        nothing="Nothing to do: no dataset is adopted."
        if undo
        else "Nothing to do: no dataset is one that Label registered itself.",
    )


@app.command("whereis", epilog=epilog("producer whereis 797c0803b7a6"))
def whereis_command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="DIGEST",
            help="A digest of a file or dataset, its beginning if that is unique, or a path of any file.",
        ),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Say where a content is: its blob, trees, datasets, projects, sessions, and when it was last read."""
    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (settings, engine):
        found = whereis.find(engine, settings, what)
    for line in dataset_lines.whereis_lines(found):
        terminal.say(line)
    if found.blob is not None and found.blob.uses:
        terminal.table(dataset_lines.uses_table(found.blob))
        for line in dataset_lines.more(len(found.blob.uses), "datasets"):
            terminal.say(line)
    terminal.document(found.to_json())


@app.command("explain", epilog=epilog("producer explain 42"))
def explain_command(
    project: Annotated[int, typer.Argument(metavar="PROJECT", help="A project's id.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Tell a project's story, what it shares, and what a rollback, a reclaim and a gc would do to it now."""
    from producer.cli.explain_lines import explain_lines  # noqa: PLC0415 - only this verb needs what jobs need
    from producer.datasets import explained  # noqa: PLC0415 - likewise

    terminal = Terminal(as_json=as_json)
    with connected(has_a_run=False) as (settings, engine):
        found = explained.explain(engine, settings, project)
    for line in explain_lines(found):
        terminal.say(line)
    terminal.document(found.to_json())
