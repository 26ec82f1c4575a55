"""Reports as HTML: the JSON's figures, nothing from outside, and no name can break out of its place."""

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings

from producer.report import document as report
from producer.report import files
from producer.report import html as report_html
from producer.report.pages import MOST_BYTES
from producer.report.shown import MOST_ROWS
from producer.report.verdict import Verdict, verdict
from tests.support.reports import (
    BEGIN,
    HOSTILE,
    any_outcomes,
    failed,
    migrated,
    run_facts,
    skipped,
)
from worker.messages import (
    ByteCounts,
    Damage,
    DiskBytes,
    FileCounts,
    GarbageEntry,
    Outcome,
    RunState,
    Status,
    Subject,
    Verb,
    VerifiedCounts,
    Warning_,
)

_VOID = {"meta", "link", "input"}


class Page(HTMLParser):
    """The parts of a page that tests ask for: elements with their attributes, and text by element name."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = defaultdict(list)
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)
            self.texts[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def figures(self) -> dict[str, set[str]]:
        """Values of the figures that say which key of the JSON they show."""
        found: dict[str, set[str]] = defaultdict(set)
        for attributes in self.all("data"):
            if "data-figure" in attributes:
                found[attributes["data-figure"]].add(attributes["value"])
        return found


def _page(outcomes: list[Outcome], **facts: Any) -> tuple[dict[str, Any], Page]:
    document = report.build(run_facts(**facts), outcomes)
    return document, Page(report_html.render(document))


def _rich_outcomes() -> list[Outcome]:
    """Something for every section of the page."""
    return [
        migrated(1, stored=5_000_000_000, warnings=(Warning_(message="row unchanged", session="s.1"),)),
        migrated(2, reused=5_000_000_000, worker="celery@two", differences=("one more file",)),
        migrated(3, digest="b" * 64, reused=77, finished_at=BEGIN + timedelta(minutes=3), duration_s=180),
        failed(4, bytes=ByteCounts(stored=10), files=FileCounts(left=12)),
        failed(5, error_class=None, remedy=None),
        skipped(6),
        skipped(7, status=Status.CANCELLED, reason="the run was cancelled"),
    ]


def _look_up(document: dict[str, Any], key: str) -> int:
    first, _, second = key.partition(".")
    return document[first][second] if second else document[first]


# Figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcomes", [[], _rich_outcomes()], ids=["empty", "rich"])
def test_figures_of_the_page_are_those_of_the_json(outcomes):
    document, page = _page(outcomes)

    assert page.figures == {key: {str(_look_up(document, key))} for key in page.figures}
    counts = {key for key in document if key.startswith("projects_")}
    parts = {f"{whole}.{part}" for whole in ("bytes", "files") for part in document[whole]}
    assert set(page.figures) == counts | parts | {"datasets_created"}


def test_table_has_a_row_for_every_project_with_its_exact_figures():
    document, page = _page(_rich_outcomes())

    rows = [row for row in page.all("tr") if "data-status" in row]
    assert [(row["id"], row["data-status"]) for row in rows] == [
        (f"p{detail['project_id']}", detail["status"]) for detail in document["details"]
    ]
    exact = [
        (data["value"], data["title"])
        for data in page.all("data")
        if data.get("title", "").endswith(" bytes")
    ]
    for detail in document["details"]:
        for key in ("bytes_read", "bytes_stored", "bytes_reused"):
            assert (str(detail[key]), f"{detail[key]:,} bytes") in exact


def test_every_failure_and_warning_is_on_the_page():
    _, page = _page(_rich_outcomes())

    text = page.texts["main"][0]
    assert "Directory missing" in text
    assert "Cause unknown" in text
    assert "Mount it." in text
    assert "Directory does not exist: /srv/label/project_4" in text
    assert "row unchanged" in text
    assert "one more file" in text
    assert "the project has no path" in text
    assert "the run was cancelled" in text


@pytest.mark.parametrize(
    ("outcomes", "facts", "tone", "headline"),
    [
        ([], {}, "open", "Nothing to do: no project was selected."),
        ([migrated(1)], {}, "good", "The project was migrated."),
        ([migrated(1), migrated(2)], {}, "good", "All 2 projects were migrated."),
        ([migrated(1), failed(2)], {}, "bad", "1 of 2 projects was migrated; 1 failed."),
        (
            [failed(1), skipped(2), skipped(3)],
            {},
            "bad",
            "0 of 3 projects were migrated; 1 failed, 2 were skipped.",
        ),
        ([migrated(1), skipped(2)], {}, "good", "1 of 2 projects was migrated; 1 was skipped."),
        (
            [migrated(1, status=Status.WOULD_MIGRATE), failed(2), skipped(3)],
            {"dry_run": True},
            "bad",
            "1 of 3 projects would be migrated; 1 would fail, 1 would be skipped.",
        ),
        (
            [migrated(1, status=Status.ROLLED_BACK), skipped(2, status=Status.CANCELLED)],
            {"verb": Verb.ROLLBACK, "state": RunState.CANCELLED},
            "open",
            "Cancelled: 1 of 2 projects was rolled back; 1 was cancelled.",
        ),
        (
            [migrated(1)],
            {"state": RunState.PAUSED},
            "open",
            "Not finished (paused): the project was migrated.",
        ),
        ([migrated(1, status=Status.VERIFIED)], {"verb": Verb.VERIFY}, "good", "The project was verified."),
        (
            [migrated(number, status=Status.VERIFIED) for number in (1, 2, 3)]
            + [
                replace(
                    migrated(number, status=Status.VERIFIED),
                    subject=Subject.DATASET,
                    project_id=None,
                    dataset_id=number,
                )
                for number in (4, 5)
            ],
            {"verb": Verb.VERIFY},
            "good",
            "All 2 datasets and 3 projects were verified.",
        ),
    ],
)
def test_the_verdict_on_a_run_is_one_sentence(outcomes, facts, tone, headline):
    document, page = _page(outcomes, **facts)

    assert verdict(document) == Verdict(tone=tone, headline=headline)
    assert page.texts["h1"] == [headline]


def test_projects_with_one_digest_are_shown_together():
    _, page = _page([migrated(1, stored=10), migrated(2, reused=10), migrated(3, digest="c" * 64, stored=4)])

    shared = next(caption for caption in page.texts["caption"] if caption.startswith("Datasets that several"))
    assert shared
    assert page.texts["main"][0].count("2 projects") >= 1
    titles = [code.get("title") for code in page.all("code")]
    assert titles.count("a" * 64) == 3  # the group, and a row for each of its projects
    assert titles.count("c" * 64) == 1  # its row alone: no project shares it


def test_options_and_projects_left_out_are_on_the_page():
    selection = {
        "options": {"exclude": [7], "restore_files": True, "limit": None, "sample": {"a": 1}},
        "left_out": [{"project_id": 7, "project_name": "Seven & co", "reason": "excluded by --exclude"}],
    }

    _, page = _page([], selection=selection)

    header, main = page.texts["header"][0], page.texts["main"][0]
    assert "Restore files" in header
    assert "Limit" not in header
    assert "Seven & co" in main
    assert "excluded by --exclude" in main


def test_a_skipped_project_is_listed_once_even_if_the_selection_names_it_too():
    left_out = [{"project_id": 6, "project_name": "Project 6", "reason": "the project has no path"}]

    _, page = _page([skipped(6)], selection={"left_out": left_out})

    assert "Left out when the run was opened" not in page.texts["caption"]
    assert "Skipped: the project has no path" in page.texts["main"][0]


@pytest.mark.parametrize(
    "selection", [{"left_out": "none"}, {"options": 3}, {"left_out": [1]}, {"options": ["x"]}]
)
def test_a_selection_of_another_shape_does_not_lose_the_report(selection):
    _, page = _page([], selection=selection)

    assert page.texts["h1"] == ["Nothing to do: no project was selected."]


# One file, no network ---------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere():
    html = report_html.render(report.build(run_facts(), _rich_outcomes()))
    page = Page(html)

    assert not re.search(r"https?:|//[a-z]|url\(|@import|xmlns", html, re.IGNORECASE)
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert {a["href"][0] for a in page.all("a")} == {"#"}
    assert all("src" not in attributes and "srcset" not in attributes for _, attributes in page.elements)
    assert {"img", "iframe", "object", "embed", "base", "image", "use"}.isdisjoint(
        tag for tag, _ in page.elements
    )


def test_the_content_policy_allows_only_our_own_style_and_script():
    _, page = _page(_rich_outcomes())

    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    # The policy would refuse these, so that they would silently do nothing.
    assert not [a for _, a in page.elements if "style" in a or any(name.startswith("on") for name in a)]


def test_equal_documents_give_equal_pages():
    document = report.build(run_facts(), _rich_outcomes())

    assert report_html.render(document) == report_html.render(json.loads(files.encode(document)))


# Readable by everybody --------------------------------------------------------------------------------------


def test_the_page_has_the_structure_that_screen_readers_need():
    html = report_html.render(report.build(run_facts(), _rich_outcomes()))
    page = Page(html)

    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in th for th in page.all("th"))
    assert all("aria-label" in svg or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    assert {
        section["aria-labelledby"] for section in page.all("section") if "aria-labelledby" in section
    } <= set(ids)


def test_sorting_is_by_buttons_that_only_the_script_enables():
    _, page = _page(_rich_outcomes())

    assert len(page.all("button")) == 11
    assert all("disabled" in button and button["type"] == "button" for button in page.all("button"))
    assert "hidden" in page.all("form")[0]


# Names and paths are typed by people ------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_a_name_everywhere(name):
    def fields(number: int) -> dict[str, Any]:
        return {
            "project_name": f"{name}{number}",
            "original_path": f"/x/{name}",
            "worker": name,
            "started_at": BEGIN,
            "finished_at": BEGIN + timedelta(seconds=3),
        }

    plain = _page([migrated(1, stored=1), migrated(2, reused=1), failed(3)])[1]
    outcomes = [
        migrated(1, stored=1, dataset_path=name, **fields(1)),
        migrated(
            2, reused=1, warnings=(Warning_(message=name, session=name),), differences=(name,), **fields(2)
        ),
        failed(3, error=name, reason=name, remedy=name, error_class=name, **fields(3)),
        skipped(4, reason=name, project_name=name),
    ]

    _, page = _page(outcomes, selection={name: name, "left_out": [{"project_name": name, "reason": name}]})

    assert {"script", "img", "b"} & {tag for tag, _ in page.elements} == {"script", "b"}
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert page.texts["script"] == plain.texts["script"]
    assert f"{name}1" in page.texts["bdi"]
    assert f"/x/{name}" in page.texts["bdi"]
    assert name in page.texts["bdi"]


@settings(max_examples=50, deadline=None)  # a deadline would test the machine
@given(any_outcomes())
def test_any_report_can_be_shown_and_shows_every_name(case):
    document = report.build(*case)

    page = Page(report_html.render(document))

    names = {detail["project_name"] for detail in document["details"] if detail["project_name"]}
    assert names <= set(page.texts["bdi"])
    assert page.figures == {key: {str(_look_up(document, key))} for key in page.figures}


# Big runs ---------------------------------------------------------------------------------------------------


def test_a_big_run_s_table_has_failures_and_warnings_first_and_counts_the_rest():
    outcomes = [
        (failed if number % 9 == 0 else migrated)(
            number,
            worker=f"celery@{number % 7}",
            started_at=BEGIN + timedelta(seconds=number),
            finished_at=BEGIN + timedelta(seconds=number + 3),
            warnings=(Warning_(message="row unchanged", session="s"),) * (number % 25 == 0),
        )
        for number in range(1, 10_001)
    ]

    html = report_html.render(report.build(run_facts(), outcomes))

    page = Page(html)
    rows = [(row["id"], row["data-status"]) for row in page.all("tr") if "data-status" in row]
    fails = [number for number in range(1, 10_001) if number % 9 == 0]
    warned = [number for number in range(1, 10_001) if number % 25 == 0 and number % 9]
    assert [row for row, _ in rows[: len(fails)]] == [f"p{number}" for number in fails]
    assert [row for row, _ in rows[len(fails) : len(fails) + len(warned)]] == [f"p{n}" for n in warned]
    assert len(rows) == MOST_ROWS
    assert html.count("<rect") < 8_000
    assert html.count("<tr") < MOST_ROWS + 200
    assert "and 8,000 more projects, in the JSON file of the same name" in html
    assert "and 1,096 more projects, in the JSON file of the same name" in html
    assert "and 300 more warnings, in the JSON file of the same name" in html
    assert "2,000 of 10,000 projects" in " ".join(page.texts["h2"])
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a")} <= ids


def _many_kinds(count: int) -> Iterator[Outcome]:
    """Jobs that differ in all that a page has groups, lanes or lists of."""
    for number in range(1, count + 1):
        times = {
            "worker": f"celery@{number % 40}",
            "started_at": BEGIN + timedelta(seconds=37 * number % 5000),
            "finished_at": BEGIN + timedelta(seconds=37 * number % 5000 + 60),
        }
        match number % 5:
            case 0:
                yield failed(number, remedy=f"Mount {number}.", **times)
            case 1:
                yield skipped(number, reason=f"shares files with dataset {number}", **times)
            case 2:
                yield migrated(number, differences=tuple(f"file {n} differs" for n in range(30)), **times)
            case _:
                yield migrated(
                    number,
                    digest=f"{number // 10:064x}",
                    reused=number,
                    warnings=tuple(Warning_(message=f"row {n} is unchanged") for n in range(3)),
                    **times,
                )


def test_no_page_is_above_its_limit_whatever_its_jobs_have():
    left_out = [
        {"project_id": n, "project_name": f"P {n}", "reason": "excluded"} for n in range(9**6, 9**6 + 999)
    ]
    selection = {"options": {"project_ids": list(range(1, 20_001))}, "left_out": left_out}

    html = report_html.render(report.build(run_facts(selection=selection), _many_kinds(20_000)))

    assert len(html.encode()) < MOST_BYTES / 2
    page = Page(html)
    text = " ".join(page.texts["main"])
    assert "and 980 more causes" not in text
    assert "and 981 more causes, in the JSON file of the same name" in text
    assert "Other causes" in text
    assert "and 19,950 more" in page.texts["header"][0]
    assert html.count("<rect") < 15_000


def test_long_texts_make_fewer_rows_of_a_page_not_a_larger_one():
    outcomes = [
        migrated(number, project_name=f"{'n' * 2_000}{number}", original_path=f"/{'p' * 4_000}")
        for number in range(1, 2_501)
    ]

    html = report_html.render(report.build(run_facts(), outcomes))

    assert len(html.encode()) <= MOST_BYTES
    assert html.count("<tr id=") == 500
    assert "and 2,000 more projects, in the JSON file of the same name" in html


def test_a_verification_of_the_store_shows_coverage_and_damage():
    damage = Damage(
        digest="a" * 64,
        what="wrong_bytes",
        path="/srv/blobs/<b>",
        dataset_ids=(17, 18),
        project_ids=(4,),
        sessions=("4: day 1",),
    )
    healed = replace(damage, path="/srv/blobs/healed", repaired=True, source="/backup/<i>")
    outcomes = [
        Outcome(
            subject=Subject.DATASET,
            project_id=None,
            project_name=None,
            dataset_id=17 + number,
            dataset_name=f"Week <{number}>",
            status=status,
            reason="read",
            duration_s=1.0,
            damaged=(one,),
            verified=VerifiedCounts(files=2, bytes_total=10, bytes_verified=10, oldest_check=BEGIN),
        )
        for number, (status, one) in enumerate(((Status.FAILED, damage), (Status.REPAIRED, healed)))
    ]
    held = {"bytes_total": 20, "oldest_check": None, "bytes_elsewhere": 0, "oldest_check_elsewhere": None}

    document, page = _page(outcomes, verb=Verb.VERIFY, selection={"coverage": held})

    assert document["coverage"]["oldest_check"] == "2026-03-07T13:02:11.120000+00:00"
    text = " ".join(page.texts["html"])
    assert page.texts["h1"] == ["1 of 2 datasets was verified (1 was repaired); 1 failed."]
    assert [button.strip() for button in page.texts["button"]] == [
        *("Id", "Dataset", "Status", "Read", "Files", "Time", "Worker")
    ]
    assert {detail["bytes_verified"] for detail in document["details"]} == {10}
    for words in ("/srv/blobs/<b>", "datasets 17, 18", "4: day 1", "/backup/<i>", "Week <0>", "not repaired"):
        assert words in text
    for key in ("coverage.bytes_total", "coverage.bytes_verified", "coverage.files"):
        assert page.figures[key] == {str(_look_up(document, key))}


# Each verb in its own words ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("option", "status", "headline", "predicted"),
    [
        ({}, Status.RECLAIMED, "The project was reclaimed.", "The project would be reclaimed."),
        ({"undo": True}, Status.UNDONE, "The project was moved back.", "The project would be moved back."),
        ({"purge": True}, Status.PURGED, "The project was purged.", "The project would be purged."),
        (
            {"share": True},
            Status.SHARED,
            "The project shares blocks with the store now.",
            "The project would share blocks with the store.",
        ),
    ],
)
def test_a_reclaim_s_page_says_what_it_was_asked_to_do(
    option: dict[str, bool], status: Status, headline: str, predicted: str, dry_run: Any
):
    predictions = {
        Status.RECLAIMED: Status.WOULD_RECLAIM,
        Status.UNDONE: Status.WOULD_UNDO,
        Status.PURGED: Status.WOULD_PURGE,
        Status.SHARED: Status.WOULD_SHARE,
    }
    disk = DiskBytes(legacy=4096, freed=4096 * (status in {Status.PURGED, Status.SHARED}))
    ended = predictions[status] if dry_run else status
    outcome = Outcome(project_id=1, project_name="Day", status=ended, reason="done", disk=disk)

    document, page = _page([outcome], verb=Verb.RECLAIM, dry_run=dry_run, selection={"options": option})

    assert page.texts["h1"] == [predicted if dry_run else headline]
    columns = [button.strip() for button in page.texts["button"]]
    assert columns == [
        *("Id", "Project", "Status", "On disk"),
        *(["Freed"] if disk.freed else []),
        *("Time", "Worker"),
    ]
    assert page.figures == {key: {str(_look_up(document, key))} for key in page.figures}
    assert ("Would be given back" in page.texts["main"][0]) is dry_run


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_gc_s_page_has_its_entries_and_the_commands_that_bring_them_back(dry_run: Any):
    found = [
        GarbageEntry(
            action=action,
            entry_id=f"6f3c1d9e-1-{number}",
            kind="dataset",
            dataset_id=number,
            name=f"Day <{number}>",
            reason="nothing refers to it",
            since=BEGIN,
            files=3,
            size_bytes=4096,
        )
        for number, action in enumerate(("quarantined", "removed"), 1)
    ]
    outcome = Outcome(
        subject=Subject.STORE,
        project_id=None,
        project_name=None,
        status=Status.WOULD_COLLECT if dry_run else Status.COLLECTED,
        reason="found",
        garbage=tuple(found),
        warnings=(Warning_(message="left alone"),),
    )

    document, page = _page([outcome], verb=Verb.GC, dry_run=dry_run)

    would = "would be " if dry_run else ""
    assert page.texts["h1"] == [f"1 entry {would}put into quarantine; 1 entry {would}removed for good."]
    commands = {code.strip() for code in page.texts["code"] if "restore" in code} - {"producer gc --restore"}
    assert commands == (set() if dry_run else {"producer gc --restore 6f3c1d9e-1-1"})
    assert {"Day <1>", "Day <2>", "left alone"} <= {text.strip() for text in page.texts["bdi"]}
    assert page.figures == {key: {str(_look_up(document, key))} for key in page.figures}
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a")} <= ids
    assert "Sessions" not in page.texts["main"][0]
