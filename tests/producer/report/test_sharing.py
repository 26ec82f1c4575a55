"""The page about all datasets and projects: its figures are the document's, and a big lab's can be used."""

import re
from html.parser import HTMLParser

from producer.report import sharing
from producer.report.pages import MOST_BYTES
from producer.report.shown import MOST_ROWS
from tests.support.reports import HOSTILE, catalog_document


class Figures(HTMLParser):
    """The figures of a page that say which key of the document they show, and how many scripts there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.scripts += tag == "script"
        if "data-figure" in named:
            self.found[named["data-figure"] or ""] = int(named["value"] or "")


def test_every_figure_is_the_document_s_and_no_name_breaks_out():
    document = catalog_document(20, 12)

    seen = Figures(page := sharing.render(document))

    assert {"content.saved", "space.reclaimable", "space.store", "gc.bytes", "datasets"} <= seen.found.keys()
    for key, value in seen.found.items():
        first, _, second = key.partition(".")
        assert value == (document[first][second] if second else document[first]), key
    assert seen.scripts == 1
    assert HOSTILE[0] not in page
    assert page == sharing.render(document)


def test_rows_are_linked_both_ways_and_the_most_saving_is_first():
    page = sharing.render(catalog_document(20, 12))

    rows = re.findall(r'<tr id="([dp]\d+)"', page)
    assert rows[:2] == ["d1", "d20"]
    assert len(rows) == 32
    (first,) = re.findall(r'<tr id="d1".*?</tr>', page, re.DOTALL)
    assert re.findall(r'href="#(\w+)"', first) == ["p1", "p10", "p11", "p12"]
    (last,) = re.findall(r'<tr id="p12".*?</tr>', page, re.DOTALL)
    assert re.findall(r'href="#(\w+)"', last) == ["d1"]


def test_a_big_lab_s_page_stays_small_and_says_what_is_left_out():
    usual = sharing.render(catalog_document(10_000, 2_000))
    worst = sharing.render(catalog_document(10_000, 2_000, name="&" * 240))

    for page in (usual, worst):
        assert len(page.encode()) <= MOST_BYTES
    assert usual.count("<tr id=") == 2 * MOST_ROWS
    assert "and 8,000 more datasets, in the JSON" in usual
    assert "more projects" not in usual
    assert f"{2 * MOST_ROWS:,} of 12,000 datasets and projects" in usual
    anchors = set(re.findall(r'<tr id="(\w+)"', worst))
    assert set(re.findall(r'href="#([dp]\d+)"', worst)) <= anchors


def test_a_lab_without_datasets_has_a_page():
    document = catalog_document(1, 4)
    document |= {"datasets": 0, "projects": 0, "dataset_list": [], "project_list": []}

    assert "There is no dataset and no project." in sharing.render(document)
