"""A headless Chromium, driven through chromedriver by the WebDriver protocol (W3C). Knows no page of ours.

Small on purpose: the client libraries bring managers that look for browsers on the network.
"""

import base64
import http.client
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from producer.local.child_process import await_ready, start, stop
from producer.local.servers import LOOPBACK, free_port
from tests.support.waiting import PATIENCE_S

BROWSER = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"

_ANSWER_WITHIN_S = PATIENCE_S
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
KEYS = {"tab": "\ue004", "enter": "\ue007", "space": " ", "down": "\ue015"}


def missing() -> str | None:
    """What is not installed of browser and driver; None when both are."""
    absent = [path for path in (BROWSER, DRIVER) if shutil.which(path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Browser:
    """One window of a running browser."""

    def __init__(self, port: int, session: str) -> None:
        self._port = port
        self._session = session

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self._post("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns that is run in the page."""
        return self._post("execute/sync", script=script, args=list(arguments))

    def press(self, *keys: str) -> None:
        """Press keys one after the other, as named in `KEYS` or letter by letter."""
        pressed = [KEYS.get(key, key) for key in keys]
        letters = [letter for key in pressed for letter in key]
        steps = [{"type": kind, "value": letter} for letter in letters for kind in ("keyDown", "keyUp")]
        self._post("actions", actions=[{"type": "key", "id": "keyboard", "actions": steps}])

    def size(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Be a screen of this size."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )

    def prefer(self, scheme: str, *, media: str = "screen") -> None:
        """Prefer `light` or `dark`, on `screen` or in `print`."""
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media=media, features=wanted)

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._get("screenshot"))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        # Not by the driver's own command, which gives up after ten seconds on a busy machine.
        return base64.b64decode(self.devtools("Page.printToPDF")["data"])

    def console(self) -> list[str]:
        """Errors and warnings of the page since the last call."""
        return [entry["message"] for entry in self._post("se/log", type="browser")]

    def requests(self) -> list[str]:
        """The addresses that the page has asked for since the last call."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self._post("se/log", type="performance")
        ]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._post("goog/cdp/execute", cmd=command, params=parameters)

    def _get(self, path: str) -> Any:
        return _ask(self._port, "GET", f"/session/{self._session}/{path}")

    def _post(self, path: str, **body: Any) -> Any:
        return _ask(self._port, "POST", f"/session/{self._session}/{path}", body)


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser with a profile of its own."""
    folder = Path(tempfile.mkdtemp(prefix="label-browser-"))
    port = free_port()
    driver = start(
        "chromedriver",
        [DRIVER, f"--port={port}"],
        log_file=folder / "driver.log",
        on_parent_death=signal.SIGKILL,
    )
    try:
        await_ready(driver, lambda: _is_ready(port))
        session = _ask(port, "POST", "/session", {"capabilities": {"alwaysMatch": _wanted(folder)}})[
            "sessionId"
        ]
        try:
            yield Browser(port, session)
        finally:
            _ask(port, "DELETE", f"/session/{session}")
    finally:
        stop([driver], within_s=10)
        shutil.rmtree(folder, ignore_errors=True)


def _wanted(folder: Path) -> dict[str, Any]:
    # As root the browser refuses to start with its sandbox.
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    arguments = [*_ARGUMENTS, *as_root, f"--user-data-dir={folder / 'profile'}"]
    return {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": BROWSER, "args": arguments},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }


def _is_ready(port: int) -> bool:
    try:
        return bool(_ask(port, "GET", "/status")["ready"])
    except OSError:
        return False


def _ask(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The value that the driver answers; raises `WebDriverError` with its reason."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_ANSWER_WITHIN_S)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        value = json.loads(answer.read())["value"]
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise WebDriverError(f"{method} {path}: {value['error']}: {value['message']}")
    return value


class WebDriverError(Exception):
    """The browser did not do what it was told."""
