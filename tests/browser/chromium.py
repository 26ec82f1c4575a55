"""A headless Chromium, driven by Selenium. Knows no page of ours.

Browser and driver are given by their paths, so that Selenium's manager has nothing to look for on the
network.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService

BROWSER = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"

_ARGUMENTS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    # Nothing beyond the pages that are asked for.
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing() -> str | None:
    """What is not installed of browser and driver; None when both are."""
    absent = [path for path in (BROWSER, DRIVER) if shutil.which(path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@contextmanager
def browser() -> Iterator[Chrome]:
    """Run a browser with a profile of its own."""
    options = ChromeOptions()
    options.binary_location = BROWSER
    # As root the browser refuses to start with its sandbox.
    for argument in (*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as environment:
        # What is said to the driver goes through no proxy of the machine's.
        environment.setenv("no_proxy", "localhost")
        with Chrome(options=options, service=ChromeService(executable_path=DRIVER)) as running:
            yield running


def press(page: Chrome, *keys: str) -> None:
    """Press keys one after the other."""
    ActionChains(page, duration=0).send_keys(*keys).perform()


def resize(page: Chrome, width: int, height: int, *, is_phone: bool = False) -> None:
    """Be a screen of this size."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def prefer(page: Chrome, scheme: str, *, media: str = "screen") -> None:
    """Prefer `light` or `dark`, on `screen` or in `print`."""
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": wanted})


def printed(page: Chrome) -> bytes:
    """The page as PDF. Not by the driver's own command, which gives up after ten seconds on a busy
    machine.
    """
    return base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])


def complaints(page: Chrome) -> list[str]:
    """Errors and warnings of the page since the last call."""
    return [entry["message"] for entry in page.get_log("browser")]


def requests(page: Chrome) -> list[str]:
    """The addresses that the page has asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
