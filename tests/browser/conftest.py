"""A browser for the tests that need one. Where none is installed one line says so for all: skipped locally,
failed in continuous integration.
"""

import os
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests that need a browser which is not there, keep one to say it."""
    if (reason := chromium.missing()) is None:
        return
    needing = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
    if needing and os.environ.get("CI") != "true":
        words = f"{len(needing)} tests need a browser, {reason}; on Debian: apt-get install chromium chromium-driver"
        needing[0].add_marker(pytest.mark.skip(reason=words))
    config.hook.pytest_deselected(items=needing[1:])
    items[:] = [item for item in items if item not in needing[1:]]


@pytest.fixture(scope="session")
def _running_browser(_starts_servers: None) -> Iterator[Chrome]:
    if (reason := chromium.missing()) is not None:
        pytest.fail(reason, pytrace=False)
    with chromium.browser() as running:
        yield running


@pytest.fixture
def browser(_running_browser: Chrome) -> Chrome:
    """Give a browser with an empty page, a desktop's size, light, and nothing in its logs."""
    _running_browser.get("about:blank")
    chromium.resize(_running_browser, 1280, 900)
    chromium.prefer(_running_browser, "light")
    chromium.complaints(_running_browser)
    chromium.requests(_running_browser)
    return _running_browser
