"""The verbs that steer a run: pause, resume, cancel, retry, throttle."""

from typing import Annotated

import typer

from producer.cli.exit_codes import epilog
from producer.cli.options import AsJson, BytesPerSecond, ProjectIds, RunArgument, Yes
from producer.cli.render import cancelled_words, jobs_words, paused_words
from producer.cli.session import connected, find_run
from producer.cli.terminal import Terminal, confirm
from producer.runs import control
from worker.messages import RunState
from worker.units import human_bytes
from worker.wording import VERB_WORDS

app = typer.Typer()


@app.command(epilog=epilog("producer pause latest"))
def pause(run: RunArgument = "latest", *, as_json: AsJson = False) -> None:
    """Pause a run: its workers stop within seconds and requeue their jobs; what is stored is kept."""
    terminal = Terminal(as_json=as_json)
    with connected() as (_, engine):
        found = find_run(engine, run)
        still = control.pause(engine, found)
        progress = control.progress_of(engine, found)
    short = str(found.run_id)[:8]
    terminal.say(f"{paused_words(progress)} {_still_working(still)}Resume: producer resume {short}")
    terminal.document({"run_id": str(found.run_id), "state": "paused", "still_running": still})


@app.command(epilog=epilog("producer resume latest"))
def resume(
    run: RunArgument = "latest",
    *,
    skip_gate: Annotated[
        bool,
        typer.Option(
            "--skip-gate",
            help="Go on with the next wave, whatever the gate found; without it the gate looks again.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Resume a paused run, or one whose producer died, and send its waiting jobs again."""
    terminal = Terminal(as_json=as_json)
    with connected() as (settings, engine):
        found = find_run(engine, run)
        sent = control.resume(settings, engine, found, skip_gate=skip_gate)
        waiting = jobs_words(control.progress_of(engine, found), sent)
        wave = None if sent else control.at_gate(engine, found)
    short = str(found.run_id)[:8]
    if wave is not None:
        terminal.say(f"The gate of wave {wave} looks again. Follow it: producer collect {short}")
    else:
        terminal.say(f"Sent again: {waiting}. Follow them: producer collect {short}")
    terminal.document({"run_id": str(found.run_id), "sent": sent, "gate_looks_again": wave})


@app.command(epilog=epilog("producer cancel latest"))
def cancel(run: RunArgument = "latest", *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Cancel a run for good. What it has done stays done: migrated projects, see: producer rollback."""
    terminal = Terminal(as_json=as_json)
    with connected() as (_, engine):
        found = find_run(engine, run)
        if not yes:
            confirm(f"Cancel {VERB_WORDS[found.verb].noun} run {str(found.run_id)[:8]} for good?")
        still = control.cancel(engine, found)
        progress = control.progress_of(engine, found)
    terminal.say(
        f"{cancelled_words(progress)} {_still_working(still)}Its report: producer collect {str(found.run_id)[:8]}"
    )
    terminal.document({"run_id": str(found.run_id), "state": "cancelled", "still_running": still})


@app.command(epilog=epilog("producer retry latest --error-class SourceChangedError"))
def retry(
    run: RunArgument = "latest",
    *,
    error_class: Annotated[
        str | None,
        typer.Option(
            "--error-class",
            metavar="C",
            help="Only jobs that failed with this error class, as status and report name it.",
        ),
    ] = None,
    project_id: ProjectIds = None,
    as_json: AsJson = False,
) -> None:
    """Queue the failed jobs of a run again, all or the selected ones."""
    terminal = Terminal(as_json=as_json)
    with connected() as (settings, engine):
        found = find_run(engine, run)
        count = control.retry(settings, engine, found, error_class=error_class, project_ids=project_id or ())
        queued = jobs_words(control.progress_of(engine, found), count)
    verb = "resume" if found.state is RunState.PAUSED else "collect"
    terminal.say(f"Queued again: {queued}. Go on: producer {verb} {str(found.run_id)[:8]}")
    terminal.document({"run_id": str(found.run_id), "queued": count})


@app.command(epilog=epilog("producer throttle latest --limit-bytes-per-second 100M"))
def throttle(
    run: RunArgument = "latest",
    *,
    limit_bytes_per_second: BytesPerSecond = None,
    as_json: AsJson = False,
) -> None:
    """Change the read limit of a run while it runs; without the option: no limit."""
    terminal = Terminal(as_json=as_json)
    with connected() as (_, engine):
        found = find_run(engine, run)
        control.throttle(engine, found, limit_bytes_per_second)
    limit = limit_bytes_per_second
    terminal.say("No limit." if limit is None else f"Limited to {human_bytes(limit)}/s, within seconds.")
    terminal.document({"run_id": str(found.run_id), "limit_bytes_per_second": limit})


def _still_working(count: int) -> str:
    """What to say of workers that have not stopped within the time that they are waited for."""
    return (
        f"{count} workers have not stopped yet; their jobs return to the queue when their leases expire. "
        if count
        else ""
    )
