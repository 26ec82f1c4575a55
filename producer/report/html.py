"""A report's document as one HTML file that needs no network. Pure: knows neither outcomes nor files.

Python decides what is said and how much of it; the template decides where it stands. Names
and paths in a report were typed by people: the template escapes all of them, and a content
security policy lets nothing run but our own script.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from producer.report import figures, garbage, shown
from producer.report.notation import clock, human_duration, moment, percent, plural, rate
from producer.report.shown import Detail
from producer.report.timeline import timeline
from producer.report.verdict import segments, subjects_of, success_of, tally_of, verdict
from worker.messages import Status, Verb
from worker.units import human_bytes
from worker.wording import STATUS_WORDS, VERB_WORDS


def render(document: Mapping[str, Any]) -> str:
    """Show a report as one self-contained HTML page. The same document gives the same page."""
    entries: Sequence[Detail] = document["details"] if document["verb"] == Verb.GC else ()
    restorable = garbage.restorable(document) if entries else []
    # What a gc found are no jobs.
    document = {**document, "details": []} if document["verb"] == Verb.GC else document
    details: Sequence[Detail] = document["details"]
    tally, elapsed_s = tally_of(document), _elapsed_s(document)
    return _template().render(
        report=document,
        act=VERB_WORDS[Verb(document["verb"])].noun.capitalize(),
        success=success_of(document),
        tally=tally,
        has_kinds=len(subjects_of(document)) > 1,
        verdict=verdict(document),
        segments=segments(document),
        gauges=figures.gauges(document, elapsed_s),
        lists=figures.lists(document),
        columns=figures.columns(document),
        has_read=figures.bytes_read(document) > 0,
        has_datasets=any(detail["dataset_hash"] for detail in details),
        storage=document["verb"] == Verb.MIGRATE and document["bytes"]["read"] > 0,
        causes=shown.causes(details),
        passed_over=shown.passed_over(details),
        shared=shown.shared(details),
        timeline=timeline(details),
        slowest=shown.slowest(details),
        damaged=shown.shown(sorted(document.get("damaged", ()), key=lambda one: one["repaired"])),
        warnings=shown.shown(document["warnings"]),
        differences=shown.shown([detail for detail in details if detail["differences"]]),
        statuses=sorted({detail["status"] for detail in details}),
        options=shown.options(document["selection"]),
        left_out=shown.left_out(document),
        entries=shown.shown(entries),
        restorable=[entry["id"] for entry in restorable],
        became=partial(garbage.became, dry_run=document["dry_run"]),
        style=_asset("report.css"),
        script=_asset("report.js"),
        policy=_policy(),
    )


def _elapsed_s(document: Mapping[str, Any]) -> float:
    start, end = (datetime.fromisoformat(document[key]) for key in ("start_time", "end_time"))
    return max(0.0, (end - start).total_seconds())


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("producer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=human_bytes,
        number=lambda value: f"{value:,}",
        duration=human_duration,
        clock=clock,
        moment=moment,
        plural=plural,
        status_words=lambda status: STATUS_WORDS[Status(status)],
    )
    environment.globals.update(percent=percent, rate=rate, read_by=figures.read_by)
    return environment.get_template("report.html.j2")


@cache
def _asset(name: str) -> Markup:
    """Read our own style sheet or script, which is the only text that goes into the page unescaped."""
    return Markup(resources.files("producer.report").joinpath("templates", name).read_text(encoding="utf-8"))  # noqa: S704


@cache
def _policy() -> str:
    """Allow the page its own style and script by their digests: no request, no injected script."""
    style, script = (
        base64.b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode()
        for name in ("report.css", "report.js")
    )
    return f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; base-uri 'none'; form-action 'none'"
