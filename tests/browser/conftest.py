"""A browser for the tests that need one. Where none is installed one line says so for all: skipped at a desk, failed in
continuous integration.
"""

import os
from collections.abc import Iterator

import pytest

from tests.browser import webdriver
from tests.browser.webdriver import Browser


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests that need a browser which is not there, keep one to say it."""
    if (reason := webdriver.missing()) is None:
        return
    needing = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
    if needing and os.environ.get("CI") != "true":
        words = f"{len(needing)} tests need a browser, {reason}; on Debian: apt-get install chromium chromium-driver"
        needing[0].add_marker(pytest.mark.skip(reason=words))
    config.hook.pytest_deselected(items=needing[1:])
    items[:] = [item for item in items if item not in needing[1:]]


@pytest.fixture(scope="session")
def _running_browser(_starts_servers: None) -> Iterator[Browser]:
    if (reason := webdriver.missing()) is not None:
        pytest.fail(reason, pytrace=False)
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
