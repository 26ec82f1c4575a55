"""The report as people see it: its figures are those of the JSON, and it serves every screen, keyboard and
printer.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, Keys

from producer.report import document as report
from producer.report import html as report_html
from producer.report.shown import MOST_ROWS
from tests.browser.chromium import complaints, prefer, press, printed, requests, resize
from tests.browser.seen import shown_rows, too_wide, worst_contrast
from tests.support.reports import (
    HOSTILE,
    failed,
    migrated,
    run_facts,
    skipped,
)
from tests.support.waiting import eventually
from worker.messages import Outcome, Warning_

pytestmark = pytest.mark.slow

PROJECTS = 1_200
PHONE = (390, 844)
A4_PIXELS = 794
MEDIA_BOX = rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]"
"""The size of a page of a PDF, as Chromium writes it."""


def outcomes() -> Iterator[Outcome]:
    """Projects with every fate, some sharing data, with names that people give and names that attack."""
    for number in range(1, PROJECTS + 1):
        name = f"Study {number}"
        if number <= len(HOSTILE):
            name = HOSTILE[number - 1]
        elif number % 50 == 0:
            name = f"{'a_name_without_any_place_to_break_it' * 7} {number}"
        if number % 29 == 0:
            yield failed(number, project_name=name)
        elif number % 31 == 0:
            yield skipped(number, project_name=name)
        else:
            warnings = (Warning_(session="day 1", message=f"left alone {name}"),) if number % 100 == 1 else ()
            yield migrated(
                number,
                digest=f"{number // 3:064x}",
                stored=1_234_567 * number if number % 3 == 0 else 0,
                reused=0 if number % 3 == 0 else 7_654 * number,
                project_name=name,
                worker=f"celery@machine{number % 4}",
                duration_s=0.37 * (number % 17),
                warnings=warnings,
            )


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Give a report that has something in every section."""
    built: dict[str, Any] = json.loads(json.dumps(report.build(run_facts(), list(outcomes()))))
    return built


@pytest.fixture(scope="module")
def written(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report's page once."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html.render(document), encoding="utf-8")
    return path


@pytest.fixture
def page(written: Path, browser: Chrome) -> Chrome:
    """Give the browser with the report open."""
    browser.get(written.as_uri())
    return browser


def named(document: dict[str, Any], key: str) -> Any:
    value: Any = document
    for part in key.split("."):
        value = value[part]
    return value


def test_every_figure_of_the_page_is_that_of_the_json(page: Chrome, document: dict[str, Any]):
    figures = page.execute_script(
        "return [...document.querySelectorAll('data[data-figure]')].map(e => [e.dataset.figure, e.value, e.textContent])"
    )
    rows = page.execute_script(
        """
        return [...document.querySelectorAll('#table tbody tr')].map(row => [
          row.id, row.dataset.status, ...[...row.querySelectorAll('data')].map(e => Number(e.value))]);
        """
    )

    assert {"projects_migrated", "projects_failed", "bytes.saved", "bytes.read", "files.total"} <= {
        key for key, _, _ in figures
    }
    for key, value, _ in figures:
        assert int(value) == named(document, key), key
    assert {text for key, _, text in figures if key == "projects_processed"} == {f"{PROJECTS:,}"}
    assert rows == [
        [
            f"p{detail['project_id']}",
            detail["status"],
            detail["bytes_read"],
            detail["bytes_stored"],
            detail["bytes_reused"],
            detail["files"]["total"],
            detail["sessions_count"],
            detail["duration_s"],
        ]
        for detail in document["details"]
    ]


def test_the_page_asks_for_nothing_and_has_no_complaint(page: Chrome):
    """Names that are scripts stay names: the policy would complain, and an alert would stand in the way."""
    assert [url for url in requests(page) if not url.startswith(("file:", "data:"))] == []
    assert complaints(page) == []
    assert (
        page.execute_script(
            "return document.querySelectorAll('img, iframe, link[rel=stylesheet], script[src]').length"
        )
        == 0
    )
    names = page.execute_script(
        "return [...document.querySelectorAll('#table tbody th > bdi')].slice(0, 6).map(e => e.textContent)"
    )
    assert [" ".join(name.split()) for name in names] == [" ".join(name.split()) for name in HOSTILE]


def test_the_search_finds_projects_and_a_link_shows_a_hidden_row(page: Chrome, document: dict[str, Any]):
    page.execute_script("document.getElementById('find').focus()")
    press(page, "study 17")
    eventually(lambda: len(shown_rows(page)) < PROJECTS, "the table is filtered")
    wanted = [
        f"p{detail['project_id']}"
        for detail in document["details"]
        if "study" in str(detail).lower() and "17" in (detail["project_name"] or "")
    ]
    assert set(wanted) <= set(shown_rows(page))
    assert (
        page.execute_script("return document.getElementById('found').value")
        == f"{len(shown_rows(page)):,} of {PROJECTS:,} projects"
    )

    page.execute_script("document.querySelector('#failures a').click()")
    eventually(lambda: len(shown_rows(page)) == PROJECTS, "the linked project is shown")


def test_the_keyboard_alone_sorts_the_table(page: Chrome, document: dict[str, Any]):
    press(page, Keys.TAB, Keys.ENTER)  # the first stop skips to the table
    assert page.execute_script("return location.hash") == "#projects"
    for _ in range(20):
        press(page, Keys.TAB)
        if page.execute_script("return document.activeElement.textContent") == "Time":
            break
    press(page, Keys.ENTER)

    slowest = page.execute_script("return document.querySelector('#table tbody tr:last-child').id")
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert (
        page.execute_script("return document.activeElement.closest('th').getAttribute('aria-sort')")
        == "ascending"
    )
    longest = max(detail["duration_s"] for detail in document["details"])
    assert slowest in {f"p{one['project_id']}" for one in document["details"] if one["duration_s"] == longest}
    assert outline != "none", "whoever uses the keyboard sees where they are"


def test_nothing_is_cut_off_at_any_width(page: Chrome):
    for width in (PHONE[0], 820, 1280):
        resize(page, width, PHONE[1], is_phone=width == PHONE[0])
        for scheme in ("light", "dark"):
            prefer(page, scheme)
            assert not too_wide(page), (width, scheme)


def test_text_can_be_read_in_light_and_dark(page: Chrome):
    """At least 4.5 to 1 against the page, as WCAG 2.2 asks (1.4.3)."""
    for scheme in ("light", "dark"):
        prefer(page, scheme)
        assert worst_contrast(page) >= 4.5, scheme


def test_print_takes_the_whole_table_and_nothing_is_cut_off(page: Chrome):
    prefer(page, "light", media="print")
    pdf = printed(page)

    resize(page, A4_PIXELS, 1123)
    assert pdf.startswith(b"%PDF")
    sizes = [(float(width), float(height)) for width, height in re.findall(MEDIA_BOX, pdf)]
    on_the_side = [width > height for width, height in sizes]
    # First what is read, upright; then the table, on its side, a dozen projects or more on each page.
    assert on_the_side == sorted(on_the_side)
    assert 3 <= on_the_side.count(False) <= 12
    assert PROJECTS / 40 < on_the_side.count(True) < PROJECTS / 12
    assert not too_wide(page)
    assert (
        page.execute_script("return getComputedStyle(document.querySelector('form.find')).display") == "none"
    )


def test_a_page_of_more_projects_than_it_has_rows_can_be_used(tmp_path: Path, browser: Chrome):
    many = [
        failed(number) if number % 1000 == 0 else migrated(number) for number in range(1, MOST_ROWS + 501)
    ]
    path = tmp_path / "report.html"
    path.write_text(report_html.render(report.build(run_facts(), many)), encoding="utf-8")

    browser.get(path.as_uri())

    assert shown_rows(browser)[:3] == ["p1000", "p2000", "p1"]
    found = "return document.getElementById('found').value"
    assert browser.execute_script(found) == f"{MOST_ROWS:,} projects in this table"
    assert browser.execute_script("return document.querySelectorAll('[aria-sort]').length") == 0
    browser.execute_script("document.querySelector('#table th.id button').click()")
    assert shown_rows(browser)[:3] == ["p1", "p2", "p3"]
    assert complaints(browser) == []
