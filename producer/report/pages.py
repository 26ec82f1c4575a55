"""What all pages have: the template engine, one style sheet, one script, a policy that lets nothing else in.

Pure: knows neither runs nor datasets. Names and paths were typed by people: every value is escaped, and no
page asks for anything from a network.
"""

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from producer.report.notation import clock, human_duration, moment, percent, plural, rate
from worker.units import human_bytes

MOST_BYTES = 5_000_000
"""No page is larger, however much it is about."""


def render(template: str, **values: Any) -> str:
    """Fill in a page's template. The same values give the same page."""
    page = _environment().get_template(template)
    return page.render(**values, style=_asset("report.css"), script=_asset("report.js"), policy=_policy())


def fitting(pages: Iterable[str]) -> str:
    """The first of these pages that is not too large, else the last one."""
    for page in pages:
        if len(page.encode("utf-8", "backslashreplace")) <= MOST_BYTES:
            break
    return page


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("producer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=human_bytes,
        number=lambda value: f"{value:,}",
        duration=human_duration,
        clock=clock,
        moment=moment,
        plural=plural,
    )
    environment.globals.update(percent=percent, rate=rate)
    return environment


@cache
def _asset(name: str) -> Markup:
    """Read our own style sheet or script, which is the only text that goes into the page unescaped."""
    return Markup(resources.files("producer.report").joinpath("templates", name).read_text(encoding="utf-8"))  # noqa: S704


@cache
def _policy() -> str:
    """Allow the page its own style and script by their digests: no request, no injected script."""
    style, script = (
        base64.b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode()
        for name in ("report.css", "report.js")
    )
    return f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; base-uri 'none'; form-action 'none'"
