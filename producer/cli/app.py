"""Arguments in, one call per verb, exit code out. Knows no rows, no files and no Celery."""

import enum
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Engine

from producer.cli.terminal import (
    Terminal,
    diagnosis_lines,
    escape,
    left_out_lines,
    plan_table,
    report_lines,
    runs_table,
    status_lines,
)
from producer.doctor import diagnose as doctor_room
from producer.doctor.worker_checks import WORKER_COMMAND
from producer.local.signals import stopped_by_signals
from producer.report import document as report
from producer.report import files as report_files
from producer.report import html as report_html
from producer.report.document import RunFacts
from producer.runs import control, legacy_projects, status
from producer.runs import migrated_projects as converted
from producer.runs.collect import PATIENCE_S, Collected
from producer.runs.collect import collect as collect_outcomes
from producer.runs.open import Opened
from worker import settings as settings_module
from worker.broker import client as broker
from worker.db import column_types, ledger, schema
from worker.db import engine as engine_module
from worker.db.engine import when_there
from worker.db.ledger import Run
from worker.doctor.protocol import edition
from worker.errors import BrokerUnavailableError, SessionsDifferError, StoredBytesMismatchError, UsageError
from worker.messages import RunState, Status, Verb
from worker.runtime import log
from worker.settings import Settings
from worker.units import human_bytes, parse_bytes

_MISMATCHES = {StoredBytesMismatchError.__name__, SessionsDifferError.__name__}


class Exit(enum.IntEnum):
    """Every exit code, as `--help` lists them."""

    WELL = 0
    UNEXPECTED = 1
    USAGE = 2
    SOME_FAILED = 3
    BYTES_MISMATCH = 4
    NOT_READY = 5
    WORK_LEFT = 8
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 all well · 1 unexpected error · 2 usage · 3 the run ended, some projects failed · "
    "4 stored bytes do not match · 5 database, broker, settings or schema not ready · "
    "8 stopped with work left · 130 interrupted"
)

app = typer.Typer(
    name="producer",
    help="Move Label's legacy projects into one shared store of raw datasets, and back.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"producer {edition()}")
        raise typer.Exit


@app.callback()
def program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda asked: _version(asked=asked), is_eager=True, help="Say which it is."
        ),
    ] = False,
) -> None:
    """Move Label's legacy projects into one shared store of raw datasets, and back."""


schema_app = typer.Typer(help="Create or update the tables.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")


def _epilog(example: str) -> str:
    return f"Example: {example}\n\n{EXIT_CODES}"


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError:
        raise typer.BadParameter("expected bytes, such as 500000 or 200M (suffixes K, M and G)") from None


AsJson = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on standard output; words for people on standard error."),
]
ProjectIds = Annotated[
    list[int] | None,
    typer.Option("--project-id", metavar="N", help="Only this project; may be given more than once."),
]
Exclude = Annotated[
    list[int] | None,
    typer.Option("--exclude", metavar="N", help="Leave this project out; may be given more than once."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="K", min=1, help="At most K projects, lowest ids first.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read everything, change nothing, say what would happen.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Answer the question that a terminal is asked.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the run to its end and write its report.")]
ReportDir = Annotated[
    Path | None, typer.Option("--report-dir", metavar="D", file_okay=False, help="Where the report goes.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="S", min=0, help="Stop following after S seconds; the run itself goes on."
    ),
]
BytesPerSecond = Annotated[
    int | None,
    typer.Option(
        "--limit-bytes-per-second",
        metavar="B",
        parser=_bytes,
        help="How fast all workers of the run together may read, such as 200M (suffixes K, M and G).",
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id, the beginning of one, or latest.")]


@schema_app.command("apply", epilog=_epilog("producer schema apply"))
def schema_apply(*, as_json: AsJson = False) -> None:
    """Create or update the tables; what is there already is left alone."""
    terminal = Terminal(as_json=as_json)
    with _surroundings(needs_schema=False) as (_, engine):
        applied = schema.apply(engine)
    for step in applied:
        terminal.say(f"applied {step.name}")
    if not applied:
        terminal.say("Nothing to apply: all tables are there.")
    terminal.document({"applied": [step.name for step in applied]})


@schema_app.command("status", epilog=_epilog("producer schema status"))
def schema_status(*, as_json: AsJson = False) -> None:
    """Show which schema steps are applied, missing, or damaged since, and which columns do not fit (exit 5 if any)."""
    terminal = Terminal(as_json=as_json)
    with _surroundings(needs_schema=False) as (_, engine):
        steps = schema.status(engine)
        misfits = column_types.misfits_of(engine)
    for step in steps:
        when = f" at {step.applied_at:%Y-%m-%d %H:%M:%S} UTC" if step.applied_at else ""
        gone = f"; gone since: {', '.join(step.gone)}" if step.gone else ""
        terminal.say(f"{step.state:8} {step.name}{when}{gone}")
    terminal.document(
        [
            {
                "name": step.name,
                "state": step.state,
                "applied_at": step.applied_at.isoformat() if step.applied_at else None,
                "gone": list(step.gone),
            }
            for step in steps
        ]
        + [
            {
                "name": one.place,
                "state": "unfit",
                "applied_at": None,
                "reason": one.reason,
                "remedy": one.remedy,
            }
            for one in misfits
        ]
    )
    for misfit in misfits:
        terminal.say(f"unfit    {escape(str(misfit))}")
    if misfits:
        raise typer.Exit(Exit.NOT_READY)
    if any(step.state != "applied" for step in steps):
        terminal.say("Run: producer schema apply")
        raise typer.Exit(Exit.NOT_READY)


@app.command(epilog=_epilog("producer doctor"))
def doctor(*, as_json: AsJson = False) -> None:
    """Check settings, servers, tables, workers and their machines, and say what to do (exit 5 if a check fails or cannot run)."""
    terminal = Terminal(as_json=as_json)
    log.configure(log_format="console", level="error")
    diagnosis = doctor_room.diagnose()
    for line in diagnosis_lines(diagnosis, terminal.width):
        terminal.say(line)
    terminal.document(diagnosis.to_json())
    raise typer.Exit(Exit.WELL if diagnosis.is_well else Exit.NOT_READY)


@app.command(epilog=_epilog("producer enqueue --dry-run --project-id 42 --wait"))
def enqueue(
    *,
    dry_run: DryRun = False,
    project_id: ProjectIds = None,
    exclude: Exclude = None,
    limit: Limit = None,
    include_failed: Annotated[
        bool,
        typer.Option(
            "--include-failed", help="With --limit: also projects that failed when they were last tried."
        ),
    ] = False,
    limit_bytes_per_second: BytesPerSecond = None,
    wait: Wait = False,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Queue one task for each legacy project and show the plan."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (settings, engine):
        _check_waiting(terminal, wait=wait, report_dir=report_dir, timeout=timeout)
        with terminal.listing() as on_listing:
            opened = legacy_projects.enqueue(
                settings,
                engine,
                dry_run=dry_run,
                project_ids=project_id or (),
                exclude=exclude or (),
                limit=limit,
                include_failed=include_failed,
                limit_bytes_per_second=limit_bytes_per_second,
                on_listing=on_listing,
            )
        _show_plan(terminal, settings, opened, nothing="Nothing to do: no legacy project is left to migrate.")
        _finish_enqueue(terminal, settings, engine, opened, wait=wait, report_dir=report_dir, timeout=timeout)


@app.command(epilog=_epilog("producer rollback --dry-run --project-id 42 --wait"))
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
        bool, typer.Option("--restore-files", help="Rebuild a legacy directory that is gone from the store.")
    ] = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Queue one task for each migrated project that takes it back to its legacy directory."""
    terminal = Terminal(as_json=as_json)
    asks = not (dry_run or project_id or yes)
    with _surroundings() as (settings, engine):
        _check_waiting(terminal, wait=wait, report_dir=report_dir, timeout=timeout)
        with terminal.listing() as on_listing:
            opened = converted.rollback(
                settings,
                engine,
                dry_run=dry_run,
                project_ids=project_id or (),
                exclude=exclude or (),
                limit=limit,
                restore_files=restore_files,
                confirm=lambda count: _confirm(f"Roll back {count} projects?") if asks else None,
                on_listing=on_listing,
            )
        _show_plan(terminal, settings, opened, nothing="Nothing to do: no project is migrated.")
        _finish_enqueue(terminal, settings, engine, opened, wait=wait, report_dir=report_dir, timeout=timeout)


@app.command(epilog=_epilog("producer verify --sessions --sample 10"))
def verify(
    *,
    sessions: Annotated[
        bool,
        typer.Option("--sessions", help="Read sessions through pandas the old and the new way and compare."),
    ] = False,
    project_id: ProjectIds = None,
    exclude: Exclude = None,
    limit: Limit = None,
    sample: Annotated[
        float | None,
        typer.Option("--sample", metavar="P", min=0, max=100, help="Only P percent of the sessions."),
    ] = None,
    report_dir: ReportDir = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Prove on the workers that migrated projects read as before; follow the run and write its report (exit 4 if not)."""
    if not sessions:
        raise UsageError("Say what to verify: --sessions")
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (settings, engine):
        report_files.check_directory(report_dir or Path())
        with terminal.listing() as on_listing:
            opened = converted.verify_sessions(
                settings,
                engine,
                project_ids=project_id or (),
                exclude=exclude or (),
                limit=limit,
                sample=sample,
                on_listing=on_listing,
            )
        _show_plan(terminal, settings, opened, nothing="Nothing to do: no project is migrated.")
        _finish_enqueue(terminal, settings, engine, opened, wait=True, report_dir=report_dir, timeout=timeout)


@app.command(epilog=_epilog("producer collect latest --report-dir reports"))
def collect(
    run: RunArgument = "latest",
    *,
    timeout: Timeout = None,
    report_dir: ReportDir = None,
    as_json: AsJson = False,
) -> None:
    """Follow a run to its end and write its report, as JSON and as HTML."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (settings, engine):
        report_files.check_directory(report_dir or Path())
        found = _find(engine, run)
        code, document = _collect(terminal, settings, engine, found, report_dir, timeout)
    terminal.document(document)
    raise typer.Exit(code)


@app.command(epilog=_epilog("producer pause latest"))
def pause(run: RunArgument = "latest", *, as_json: AsJson = False) -> None:
    """Pause a run: its workers stop within seconds, in the middle of a file, and hand their jobs back; what is stored is kept."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (_, engine):
        found = _find(engine, run)
        still = control.pause(engine, found)
    short = str(found.run_id)[:8]
    terminal.say(f"Paused. {_still_working(still)}Resume: producer resume {short}")
    terminal.document({"run_id": str(found.run_id), "state": "paused", "still_running": still})


@app.command(epilog=_epilog("producer resume latest"))
def resume(run: RunArgument = "latest", *, as_json: AsJson = False) -> None:
    """Resume a paused run, or one whose producer died, and send again what waits."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (settings, engine):
        found = _find(engine, run)
        sent = control.resume(settings, engine, found)
    terminal.say(f"Sent {sent} waiting jobs. Follow them: producer collect {str(found.run_id)[:8]}")
    terminal.document({"run_id": str(found.run_id), "sent": sent})


@app.command(epilog=_epilog("producer cancel latest"))
def cancel(run: RunArgument = "latest", *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Stop a run for good. Projects that are converted stay so; to take them back: producer rollback."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (_, engine):
        found = _find(engine, run)
        if not yes:
            _confirm(f"Cancel {found.verb.value} run {str(found.run_id)[:8]} for good?")
        still = control.cancel(engine, found)
    terminal.say(f"Cancelled. {_still_working(still)}Its report: producer collect {str(found.run_id)[:8]}")
    terminal.document({"run_id": str(found.run_id), "state": "cancelled", "still_running": still})


@app.command(epilog=_epilog("producer retry latest --error-class SourceChangedError"))
def retry(
    run: RunArgument = "latest",
    *,
    error_class: Annotated[
        str | None,
        typer.Option(
            "--error-class", metavar="C", help="Only those that failed so, as status and report say."
        ),
    ] = None,
    project_id: ProjectIds = None,
    as_json: AsJson = False,
) -> None:
    """Queue the failed jobs of a run again, all or those chosen."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (settings, engine):
        found = _find(engine, run)
        count = control.retry(settings, engine, found, error_class=error_class, project_ids=project_id or ())
    verb = "resume" if found.state is RunState.PAUSED else "collect"
    terminal.say(f"Queued {count} failed jobs again. Go on: producer {verb} {str(found.run_id)[:8]}")
    terminal.document({"run_id": str(found.run_id), "queued": count})


@app.command(epilog=_epilog("producer throttle latest --limit-bytes-per-second 100M"))
def throttle(
    run: RunArgument = "latest",
    *,
    limit_bytes_per_second: BytesPerSecond = None,
    as_json: AsJson = False,
) -> None:
    """Change how fast the workers of a run may read together, while it runs; without the option: no limit."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (_, engine):
        found = _find(engine, run)
        control.throttle(engine, found, limit_bytes_per_second)
    limit = limit_bytes_per_second
    terminal.say("No limit." if limit is None else f"Limited to {human_bytes(limit)}/s, within seconds.")
    terminal.document({"run_id": str(found.run_id), "limit_bytes_per_second": limit})


def _still_working(count: int) -> str:
    """What to say of workers that have not heard yet."""
    return (
        f"{count} workers have not stopped yet; their jobs wait again at the end of their leases. "
        if count
        else ""
    )


@app.command("status", epilog=_epilog("producer status latest"))
def status_command(
    run: RunArgument = "latest",
    *,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Stay until the run has ended or is paused; JSON Lines with --json."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, which worker runs which job, and what failed."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (settings, engine):
        found = _find(engine, run)
        if watch:
            look = partial(_look_at, settings, engine, found.run_id)
            terminal.watch(lambda: when_there(look, PATIENCE_S))
            return
        described = status.describe(engine, found, settings)
    for line in status_lines(described):
        terminal.say(line)
    terminal.document(described)


@app.command(epilog=_epilog("producer runs --limit 5"))
def runs(
    *, limit: Annotated[int, typer.Option(metavar="K", min=1, help="How many.")] = 20, as_json: AsJson = False
) -> None:
    """List the runs, newest first."""
    terminal = Terminal(as_json=as_json)
    with _surroundings() as (_, engine):
        found = status.all_runs(engine, limit)
    terminal.table(runs_table(found))
    terminal.document(found)


@app.command(epilog=_epilog("producer metrics --port 9187"))
def metrics(
    *,
    address: Annotated[
        str, typer.Option("--address", metavar="A", help="Where to listen; anybody who reaches it may look.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="P", min=0, max=65535, help="0 takes any free one.")
    ] = 9187,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve figures of ledger, broker and store to Prometheus until Ctrl-C; --once and --json print them and end."""
    from producer import metrics as metrics_room  # noqa: PLC0415 - only this verb needs Prometheus' client

    terminal = Terminal(as_json=as_json)
    with _surroundings(needs_schema=False) as (settings, engine):
        if as_json:
            terminal.document(metrics_room.as_json(settings, engine))
        elif once:
            sys.stdout.write(metrics_room.scrape(settings, engine))
        else:
            _serve_metrics(terminal, metrics_room.served(settings, engine, address, port))


def _serve_metrics(terminal: Terminal, served: AbstractContextManager[str]) -> None:
    """Serve until somebody ends it, which is a good end."""
    with stopped_by_signals(), suppress(KeyboardInterrupt), served as url:
        terminal.say(f"Serving {url} until Ctrl-C")
        threading.Event().wait()


@app.command(epilog=_epilog("producer up --workers 2 --flower"))
def up(
    *,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=0, help="How many workers.")] = 2,
    flower: Annotated[bool, typer.Option("--flower", help="Start Flower, too.")] = False,
) -> None:
    """Run a local stack in the foreground: PostgreSQL, Valkey, workers, perhaps Flower. Ctrl-C stops it."""
    from producer.local import stack as local_stack  # noqa: PLC0415 - only this verb needs the servers' binaries

    log.configure(log_format="console", level="info")
    raise typer.Exit(
        local_stack.up(settings_module.STACK_FILE.parent, workers=workers, flower=flower, data_dir=None)
    )


@app.command(epilog=_epilog("producer demo --folder demo"))
def demo(
    *,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="D", file_okay=False, help="Where everything goes.")
    ] = Path("demo"),
    megabytes: Annotated[int, typer.Option("--megabytes", min=1, help="About how much to record.")] = 200,
) -> None:
    """Tell the whole story on made-up projects and a local stack."""
    from producer.demo import story as demo_room  # noqa: PLC0415 - only this verb needs the recordings and the servers

    raise typer.Exit(demo_room.run(folder, megabytes=megabytes))


# What several verbs share ---------------------------------------------------------------------------------------------


@contextmanager
def _surroundings(*, needs_schema: bool = True) -> Iterator[tuple[Settings, Engine]]:
    """Settings and an engine, checked; whatever is not ready says so as an error with exit code 5.

    Ctrl-C anywhere inside ends the program, never the run.
    """
    settings = settings_module.load()
    log.configure(log_format=settings.log_format, level=settings.log_level)
    engine = engine_module.connect(settings.sqlalchemy_url, application_name="label-migrator producer")
    try:
        if needs_schema:
            schema.require(engine)
        yield settings, engine
    except KeyboardInterrupt:
        # Typer would end with the same code, but without a word about the run.
        Terminal(as_json=False).say("Interrupted. What is queued goes on; follow it: producer collect")
        raise typer.Exit(Exit.INTERRUPTED) from None
    finally:
        engine.dispose()


def _check_waiting(terminal: Terminal, *, wait: bool, report_dir: Path | None, timeout: float | None) -> None:
    """Find out now whether the report can be written, and say what does nothing in a call that does not wait."""
    if wait:
        report_files.check_directory(report_dir or Path())
        return
    given = [
        name for name, value in (("--timeout", timeout), ("--report-dir", report_dir)) if value is not None
    ]
    for name in given:
        terminal.say(
            f"[yellow]{name} does nothing without --wait;[/] it belongs to: producer collect {name} …"
        )


def _confirm(question: str) -> None:
    """Ask the person at the terminal; a call without one goes on. Raises `UsageError` for anything but yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    try:
        confirmed = typer.confirm(question, err=True)
    except typer.Abort:
        confirmed = False
    if not confirmed:
        raise UsageError("Not confirmed: nothing was changed")


def _find(engine: Engine, reference: str) -> Run:
    with engine.connect() as conn:
        return ledger.find_run(conn, reference)


def _look_at(settings: Settings, engine: Engine, run_id: uuid.UUID) -> dict[str, Any]:
    return status.describe(engine, _find(engine, str(run_id)), settings)


def _show_plan(terminal: Terminal, settings: Settings, opened: Opened, *, nothing: str) -> None:
    if any(not job.skipped for job in opened.jobs):
        terminal.table(plan_table(opened))
    else:
        terminal.say(nothing)
    for line in left_out_lines(opened):
        terminal.say(line)
    for warning in opened.warnings:
        terminal.say(f"[yellow]{escape(warning)}.[/]")
    if any(not job.skipped for job in opened.jobs) and not _somebody_works(settings):
        terminal.say(f"[yellow]No worker is online.[/] Start one: {WORKER_COMMAND}")


def _somebody_works(settings: Settings) -> bool:
    """Is a worker online? If the broker cannot say so now, there is nothing to warn of: the run is queued already."""
    try:
        return bool(broker.workers_online(settings))
    except BrokerUnavailableError:
        return True


def _finish_enqueue(
    terminal: Terminal,
    settings: Settings,
    engine: Engine,
    opened: Opened,
    *,
    wait: bool,
    report_dir: Path | None,
    timeout: float | None,
) -> None:
    """Say where the run can be followed, or follow it; ends the program with the run's exit code."""
    document: dict[str, Any] = {
        "run_id": str(opened.run_id),
        "verb": opened.verb.value,
        "dry_run": opened.dry_run,
        "plan": [
            {
                "project_id": job.project_id,
                "project_name": job.project_name,
                "path": job.path,
                "sessions": job.sessions,
                "files": job.files,
                "bytes": job.size_bytes,
            }
            for job in opened.jobs
            if not job.skipped
        ],
        "left_out": [
            {"project_id": one.project_id, "project_name": one.project_name, "reason": one.reason}
            for one in opened.left_out
        ],
        "warnings": list(opened.warnings),
    }
    code = Exit.WELL
    if wait:
        code, outcome = _collect(
            terminal, settings, engine, _find(engine, str(opened.run_id)), report_dir, timeout
        )
        document |= outcome
    elif document["plan"]:
        terminal.say(
            f"Queued {len(document['plan'])} projects. Follow them: producer collect {str(opened.run_id)[:8]}"
        )
    terminal.document(document)
    raise typer.Exit(code)


def _collect(
    terminal: Terminal,
    settings: Settings,
    engine: Engine,
    run: Run,
    report_dir: Path | None,
    timeout: float | None,
) -> tuple[Exit, dict[str, Any]]:
    """Follow a run and write its report; the exit code, and what JSON says of it."""
    what = f"{run.verb.value}{' (dry run)' if run.dry_run else ''}"
    with terminal.follow(what) as on_progress:
        collected = collect_outcomes(settings, engine, run, timeout_s=timeout, on_progress=on_progress)
    if collected.stopped is not None:
        return Exit.WORK_LEFT, _stopped(terminal, collected, report_dir or Path())
    document, path = _write_report(terminal, collected, report_dir or Path())
    terminal.say(f"Report: {escape(str(path))}")
    return _verdict(document, collected), {"report_path": str(path), "report": _counts(document)}


def _stopped(terminal: Terminal, collected: Collected, report_dir: Path) -> dict[str, Any]:
    """Say why a run is not followed any more, and write what there is by now under a name that no final report has."""
    short = str(collected.run.run_id)[:8]
    paused = collected.run.state is RunState.PAUSED
    stopped = f"the run is paused: {collected.run.paused_because}" if paused else str(collected.stopped)
    document, path = _write_report(terminal, collected, report_dir, interim=stopped)
    go_on = f"producer {'resume' if paused else 'collect'} {short}"
    terminal.say(f"Interim report: {escape(str(path))}")
    terminal.say(f"[yellow]Stopped with work left:[/] {escape(stopped)}. Go on: {go_on}")
    return {
        "run_id": str(collected.run.run_id),
        "stopped": stopped,
        "report_path": None,
        "interim_report_path": str(path),
        "report": _counts(document),
    }


def _write_report(
    terminal: Terminal, collected: Collected, report_dir: Path, *, interim: str | None = None
) -> tuple[dict[str, Any], Path]:
    document = report.build(_facts(collected, interim), collected.outcomes)
    page = report_html.render(document)
    path = report_files.write(document, report_dir, collected.run.verb, datetime.now(UTC), html=page)
    for line in report_lines(document):
        terminal.say(line)
    return document, path


def _counts(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a script decides by; the whole report is in its file."""
    return {key: value for key, value in document.items() if key not in {"details", "selection", "warnings"}}


def _facts(collected: Collected, interim: str | None) -> RunFacts:
    run = collected.run
    ends = [outcome.finished_at for outcome in collected.outcomes if outcome.finished_at is not None]
    return RunFacts(
        run_id=run.run_id,
        verb=run.verb,
        dry_run=run.dry_run,
        state=run.state,
        started_at=run.created_at,
        finished_at=max(ends, default=run.created_at),
        selection=run.selection,
        interim=interim,
    )


def _verdict(document: dict[str, Any], collected: Collected) -> Exit:
    if collected.run.state is RunState.CANCELLED:
        return Exit.WORK_LEFT
    if any(error["error_class"] in _MISMATCHES for error in document["errors"]):
        return Exit.BYTES_MISMATCH
    if document["projects_failed"] or (
        collected.run.verb is Verb.VERIFY and _left_unverified(document, collected)
    ):
        return Exit.SOME_FAILED
    return Exit.WELL


def _left_unverified(document: dict[str, Any], collected: Collected) -> bool:
    """Was nothing verified of what was due, or not all of what was named? That is no proof, so it is not well."""
    due = {detail["project_id"] for detail in document["details"]}
    verified = {
        detail["project_id"] for detail in document["details"] if detail["status"] == Status.VERIFIED.value
    }
    named = set(collected.run.options.project_ids)
    return bool(named - verified) or bool(due and not verified)


def exit_code(error: Exception) -> Exit:
    """The one place where an error becomes an exit code."""
    from worker import errors  # noqa: PLC0415 - kept beside the table it serves

    table: dict[type[Exception], Exit] = {
        UsageError: Exit.USAGE,
        errors.SettingsError: Exit.NOT_READY,
        errors.SchemaMissingError: Exit.NOT_READY,
        errors.RowsHiddenError: Exit.NOT_READY,
        errors.SequenceBehindError: Exit.NOT_READY,
        errors.DatabaseRefusedError: Exit.NOT_READY,
        errors.ColumnTypesError: Exit.NOT_READY,
        errors.DatabaseUnavailableError: Exit.NOT_READY,
        errors.DatabaseBusyError: Exit.NOT_READY,
        errors.BrokerUnavailableError: Exit.NOT_READY,
        errors.StoreUnusableError: Exit.NOT_READY,
        errors.StoredBytesMismatchError: Exit.BYTES_MISMATCH,
    }
    return next((code for kind, code in table.items() if isinstance(error, kind)), Exit.UNEXPECTED)
