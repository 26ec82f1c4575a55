"""A browser for a module's tests. Where none is installed they are skipped at a desk, and fail in continuous integration."""

import os
from collections.abc import Iterator

import pytest

from tests.browser import webdriver
from tests.browser.webdriver import Browser


@pytest.fixture(scope="module")
def _running_browser() -> Iterator[Browser]:
    reason = webdriver.missing()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(f"{reason}; on Debian: apt-get install chromium chromium-driver")
    with webdriver.browser() as running:
        yield running


@pytest.fixture
def browser(_running_browser: Browser) -> Browser:
    """Give a browser with an empty page, a desktop's size, light, and nothing in its logs."""
    _running_browser.open("about:blank")
    _running_browser.size(1280, 900)
    _running_browser.prefer("light")
    _running_browser.console()
    _running_browser.requests()
    return _running_browser
