"""The page about all datasets and projects as people see it: found, linked, on every screen and on paper."""

from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from producer.report import sharing
from tests.browser.chromium import complaints, prefer, press, printed, requests, resize
from tests.browser.seen import shown_rows, too_wide, worst_contrast
from tests.support.reports import catalog_document
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

PHONE = (390, 844)
NAMES = "a_name_without_any_place_to_break_it" * 7


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of a lab once."""
    path = tmp_path_factory.mktemp("page") / "datasets.html"
    path.write_text(sharing.render(catalog_document(300, 200, name=NAMES)), encoding="utf-8")
    return path


@pytest.fixture
def page(written: Path, browser: Chrome) -> Chrome:
    """Give the browser with the page open."""
    browser.get(written.as_uri())
    return browser


def test_the_search_finds_both_and_a_link_jumps_to_a_hidden_row(page: Chrome):
    page.execute_script("document.getElementById('find').focus()")
    press(page, f"{77:064x}")
    eventually(lambda: shown_rows(page) == ["d77"], "the dataset is found by its whole digest")

    page.execute_script("document.querySelector('#d77 td.links a').click()")

    eventually(lambda: len(shown_rows(page)) == 500, "the project is shown, and all others")
    assert page.execute_script("return location.hash") == "#p77"
    top = "return document.getElementById('p77').getBoundingClientRect().top"
    eventually(lambda: 0 <= page.execute_script(top) < 900, "the row is scrolled to")
    page.execute_script("document.querySelector('#p77 td.links a').click()")
    assert page.execute_script("return location.hash") == "#d77"


def test_kinds_are_told_apart_and_numbers_sort(page: Chrome):
    page.execute_script(
        """
        const kind = document.getElementById('status');
        kind.value = 'unreferenced';
        kind.dispatchEvent(new Event('change'));
        document.querySelector('#table th.size button').click();
        """
    )

    assert shown_rows(page)[0] == "d198"
    assert len(shown_rows(page)) == 103


def test_the_page_of_a_lab_asks_for_nothing_and_has_no_complaint(page: Chrome):
    assert [url for url in requests(page) if not url.startswith(("file:", "data:"))] == []
    assert complaints(page) == []


def test_the_page_of_a_lab_can_be_read_at_any_width_light_and_dark(page: Chrome):
    for width in (PHONE[0], 820, 1280):
        resize(page, width, PHONE[1], is_phone=width == PHONE[0])
        for scheme in ("light", "dark"):
            prefer(page, scheme)
            assert not too_wide(page), (width, scheme)
            assert worst_contrast(page) >= 4.5, (width, scheme)


def test_the_page_of_a_lab_prints_whole(page: Chrome):
    prefer(page, "light", media="print")

    pdf = printed(page)

    resize(page, 794, 1123)
    assert pdf.count(b"/Type /Page\n") > 500 / 40
    assert not too_wide(page)
