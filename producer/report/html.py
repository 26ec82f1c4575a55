"""A report's document as one HTML file that needs no network. Pure: knows neither outcomes nor files.

Python decides what is said and how much of it; the template decides where it stands. Names
and paths in a report were typed by people (`pages`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from producer.report import figures, garbage, pages, plan_words, shown, waves
from producer.report.shown import Detail, Shown
from producer.report.timeline import Lanes
from producer.report.verdict import segments, subjects_of, success_of, tally_of, verdict
from worker.messages import Status, Verb
from worker.wording import STATUS_WORDS, VERB_WORDS

_ROWS = (shown.MOST_ROWS, 500, 100)
"""So many rows the table has at the most, the next number where the page would be too large."""


def render(document: Mapping[str, Any]) -> str:
    """Show a report as one self-contained HTML page. The same document gives the same page.

    Long lists are shown by their beginning: all is in the document. They are read once and may be on disk.
    """
    entries: Sequence[Detail] = document["details"] if document["verb"] == Verb.GC else ()
    # What a gc found are no jobs.
    document = {**document, "details": []} if document["verb"] == Verb.GC else document
    gathered = _Gathered(document)
    return pages.fitting(
        _page(document, entries, gathered, gathered.rows.shown(document["details"], most)) for most in _ROWS
    )


class _Gathered:
    """What a page shows of the jobs, made in one pass over them."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.rows = shown.Rows()
        self.causes, self.passed_over = shown.Causes(), shown.PassedOver()
        self.shared, self.slowest = shown.SharedDatasets(), shown.Slowest()
        self.differences: shown.Beginning[Detail] = shown.Beginning()
        self.left_out = shown.LeftOut(document["selection"])
        self.columns = figures.Columns(document)
        self.lanes = Lanes()
        self.has_datasets = False
        for index, detail in enumerate(document["details"]):
            self._add(index, detail)

    def _add(self, index: int, detail: Detail) -> None:
        for by_place in (self.rows, self.shared, self.lanes):
            by_place.add(index, detail)
        for one in (self.causes, self.passed_over, self.slowest, self.left_out, self.columns):
            one.add(detail)
        if detail["differences"]:
            self.differences.add(detail)
        self.has_datasets = self.has_datasets or bool(detail["dataset_hash"])


def _page(
    document: Mapping[str, Any],
    entries: Sequence[Detail],
    gathered: _Gathered,
    rows: Shown[Detail],
) -> str:
    details = document["details"]
    planned = plan_words.of_page(document.get("plan"))
    damaged, damage_is_left = _damaged(document)
    first_entries = shown.shown(entries)
    return pages.render(
        "report.html.j2",
        report=document,
        act=VERB_WORDS[Verb(document["verb"])].noun.capitalize(),
        success=success_of(document),
        tally=tally_of(document),
        has_kinds=len(subjects_of(document)) > 1,
        verdict=verdict(document),
        segments=segments(document),
        plan_headline=planned.headline,
        plan_rows=planned.rows,
        plan_room=planned.room,
        plan_bars=planned.bars,
        plan_basis=planned.basis,
        plan_open=planned.open,
        gauges=figures.gauges(document, _elapsed_s(document)),
        lists=figures.lists(document),
        columns=gathered.columns.shown(),
        has_read=figures.bytes_read(document) > 0,
        has_datasets=gathered.has_datasets,
        storage=document["verb"] == Verb.MIGRATE and document["bytes"]["read"] > 0,
        causes=gathered.causes.shown(),
        passed_over=gathered.passed_over.shown(),
        shared=gathered.shared.shown(details),
        timeline=gathered.lanes.drawn(details),
        slowest=gathered.slowest.shown(),
        damaged=damaged,
        damage_is_left=damage_is_left,
        warnings=shown.shown(document["warnings"]),
        differences=gathered.differences.shown(),
        statuses=sorted({detail["status"] for detail in rows.items}),
        options=shown.options(document["selection"]),
        left_out=gathered.left_out.shown(),
        rows=rows,
        anchors={shown.anchor(detail) for detail in rows.items},
        entries=first_entries,
        restorable=[entry["id"] for entry in first_entries.items if garbage.is_restorable(document, entry)],
        has_restorable=any(garbage.is_restorable(document, entry) for entry in entries),
        became=partial(garbage.became, dry_run=document["dry_run"]),
        status_words=_status_words,
        read_by=figures.read_by,
        anchor=shown.anchor,
        waves=document.get("waves", ()),
        stands=waves.stands,
        found=waves.found,
    )


def _damaged(document: Mapping[str, Any]) -> tuple[Shown[Mapping[str, Any]], bool]:
    """What is damaged, what is not repaired first; and whether there is any of that."""
    by_repair: dict[bool, shown.Beginning[Mapping[str, Any]]] = {
        repaired: shown.Beginning() for repaired in (False, True)
    }
    for one in document.get("damaged", ()):
        by_repair[one["repaired"]].add(one)
    left, repaired = by_repair[False].shown(), by_repair[True].shown()
    items = (*left.items, *repaired.items)[: shown.MOST_NOTES]
    return Shown(items=items, more=len(document.get("damaged", ())) - len(items)), bool(left.items)


def _elapsed_s(document: Mapping[str, Any]) -> float:
    start, end = (datetime.fromisoformat(document[key]) for key in ("start_time", "end_time"))
    return max(0.0, (end - start).total_seconds())


def _status_words(status: str) -> str:
    return STATUS_WORDS[Status(status)]
