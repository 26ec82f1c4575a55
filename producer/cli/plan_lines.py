"""The plan of a migration and its forecast as lines for people. Pure: prints nothing."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from producer.cli.escaping import CONTROLS, escape
from producer.report.notation import human_duration, moment, plural
from producer.report.plan_words import Row, comparison_lines, estimate_rows, headline, rows
from worker.units import human_bytes

_STYLES = {"good": "green", "bad": "yellow", "": "bold"}
_WIDTH = 11


def plan_lines(plan: Mapping[str, Any], width: int) -> Iterator[str]:
    """Of a dry run the decision it leads to, of a real run what was forecast beside what became of it;
    within so many columns.
    """
    yield ""
    if "decision" in plan:
        yield f"[bold]{headline(plan)}[/]"
        yield from _lines(rows(plan), width)
    else:
        # Nothing in it was typed by people.
        yield from comparison_lines(plan)


def estimate_lines(forecast: Mapping[str, Any], conditions: Mapping[str, Any], width: int) -> Iterator[str]:
    """A forecast by a sample of heads."""
    projects = forecast["projects"]["unknown"]
    size = human_bytes(forecast["bytes"]["read"])
    yield f"[bold]Estimate for {projects:,} {plural(projects, 'project')}, {size} in {plural(projects, 'its directory', 'their directories')}[/]"
    yield from _lines(estimate_rows(forecast, conditions), width)


def _lines(found: Sequence[Row], width: int) -> Iterator[str]:
    room = max(30, width - _WIDTH - 3)
    for row in found:
        label = f"  [{_STYLES[row.tone]}]{row.label:<{_WIDTH}}[/]"
        # A command is copied: it stays on one line.
        for line in [row.text] if row.is_command else _wrapped(row.text, room):
            yield f"{label}[bold]{escape(line)}[/]" if row.is_command else f"{label}{escape(line)}"
            label = f"  {'':<{_WIDTH}}"
        for more in row.more:
            for line in _wrapped(more, room):
                yield f"  {'':<{_WIDTH}}[dim]{escape(line)}[/]"


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text.translate(CONTROLS), room, break_on_hyphens=False) or [""]


def forecast_line(forecast: Mapping[str, Any]) -> str:
    """What a real run is expected to do, when it is opened."""
    size, seconds = forecast["bytes"]["stored"], forecast["seconds"]
    by = (
        f"dry run {forecast['run_id'][:8]} of {moment(forecast['made_at'])}"
        if forecast["basis"] == "dry_run"
        else "a sample of heads, an estimate"
    )
    span = human_bytes(size["likely"])
    if size["low"] != size["high"]:
        span = f"about {span} ({human_bytes(size['low'])} to {human_bytes(size['high'])})"
    time = "time not known"
    if seconds is not None:
        band = f"{human_duration(seconds['low'])} to {human_duration(seconds['high'])}"
        time = f"about {human_duration(seconds['likely'])} ({band})"
    unknown = forecast["projects"]["unknown"] if forecast["basis"] == "dry_run" else 0
    more = f"; {unknown:,} projects were not in that dry run" if unknown else ""
    return f"Forecast by {by}: {span} to store, {time}{more}"
