"""Opening a run for a call: its plan on the terminal, then followed or left to `producer collect`."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from producer.cli.escaping import escape
from producer.cli.exit_codes import Exit
from producer.cli.follow import Following, follow
from producer.cli.plan_lines import estimate_lines, forecast_line
from producer.cli.render import is_long, left_out_lines, listing_words, plan_table
from producer.cli.session import connected, find_run
from producer.cli.terminal import Terminal
from producer.cli.wave_lines import plan_lines
from producer.doctor.worker_checks import WORKER_COMMAND
from producer.report import files
from producer.report.files import ReportDirectoryError
from producer.runs.legacy_projects import Estimated
from producer.runs.open import Opened
from worker.broker import client as broker
from worker.db.waves import NewWave
from worker.errors import BrokerUnavailableError
from worker.messages import Verb
from worker.settings import Settings
from worker.wording import counted_as


def open_and_follow(
    terminal: Terminal, following: Following, open_run: Callable[..., Opened], *, nothing: str
) -> None:
    """Open a run, show its plan, and follow it or say how to; ends the program with the run's exit code.

    `nothing` is what a person reads when nothing is left to do.
    """
    code = Exit.WELL
    with connected() as (settings, engine):
        following.check(terminal)
        with terminal.line(listing_words) as on_listing:
            opened = open_run(settings, engine, on_listing=on_listing)
        document = _plan(opened)
        _show_plan(terminal, settings, opened, nothing=nothing)
        if is_long(opened) and not terminal.as_json:
            _write_plan(terminal, document, opened.verb, following.directory)
        if following.wait:
            run = find_run(engine, str(opened.run_id))
            code, outcome = follow(terminal, settings, engine, run, following)
            document |= outcome
        elif document["plan"]:
            short = str(opened.run_id)[:8]
            queued = counted_as({job.subject for job in opened.jobs}, len(document["plan"]))
            terminal.say(f"Queued {len(document['plan'])} {queued}. Follow them: producer collect {short}")
    terminal.document(document)
    raise typer.Exit(code)


def show_estimate(terminal: Terminal, make: Callable[..., Estimated], *, nothing: str) -> None:
    """Show what a sample of heads says of a migration; opens no run. `nothing` as in `open_and_follow`."""
    with connected() as (settings, engine):
        with terminal.line(listing_words) as on_listing:
            found = make(settings, engine, on_listing=on_listing)
        for line in left_out_lines(found.left_out, found.of_other_type):
            terminal.say(line)
        if found.forecast is None:
            terminal.say(nothing)
        else:
            for line in estimate_lines(found.forecast.to_json(), found.conditions.to_json(), terminal.width):
                terminal.say(line)
    terminal.document(
        {
            "forecast": found.forecast.to_json() if found.forecast is not None else None,
            "conditions": found.conditions.to_json(),
            "left_out": [one.to_json() for one in found.left_out],
        }
    )


def _show_plan(terminal: Terminal, settings: Settings, opened: Opened, *, nothing: str) -> None:
    has_work = any(not job.skipped for job in opened.jobs)
    if has_work and opened.verb is Verb.GC:
        terminal.say(f"Run {opened.run_id}")
    elif has_work:
        terminal.table(plan_table(opened))
    else:
        terminal.say(nothing)
    for line in plan_lines(opened):
        terminal.say(line)
    for line in left_out_lines(opened.left_out, opened.of_other_type):
        terminal.say(line)
    for warning in opened.warnings:
        terminal.say(f"[yellow]{escape(warning)}.[/]")
    if opened.forecast is not None:
        terminal.say(forecast_line(opened.forecast))
    if has_work and (opened.workers == 0 or (opened.workers is None and _no_worker_is_online(settings))):
        terminal.say(f"[yellow]No worker is online.[/] Start one: {WORKER_COMMAND}")


def _write_plan(terminal: Terminal, document: Mapping[str, Any], verb: Verb, directory: Path) -> None:
    """Write a plan that is too long for the terminal to a file."""
    try:
        path = files.write_plan(document, directory, verb, datetime.now(UTC))
    except ReportDirectoryError as error:
        # The run is open by now, and nothing else depends on this file.
        terminal.say(f"[yellow]The whole plan is in no file:[/] {escape(str(error))}")
    else:
        terminal.say(f"The whole plan: {escape(str(path))}")


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
                **({"wave": job.wave} if opened.waves else {}),
            }
            for job in opened.jobs
            if not job.skipped
        ],
        "left_out": [one.to_json() for one in opened.left_out],
        "warnings": list(opened.warnings),
        **({"forecast": opened.forecast} if opened.verb is Verb.MIGRATE else {}),
        **({"waves": [_wave(one) for one in opened.waves]} if opened.waves else {}),
    }


def _wave(one: NewWave) -> dict[str, Any]:
    return {
        "wave": one.wave,
        "asked_for": one.asked_for,
        "projects": one.projects,
        "bytes": one.size_bytes,
        "gate": one.gate.value,
    }
