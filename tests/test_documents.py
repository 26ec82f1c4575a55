"""The documents link to what is there, and name what the program has: modules, settings, exit codes,
messages, its version.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.cli.exit_codes import Exit
from worker.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_BRACES = re.compile(r"\{([a-z_,]+)\}(\w*)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _broken_links(document: Path) -> Iterator[str]:
    prose = _CODE.sub("", _FENCED.sub("", document.read_text(encoding="utf-8")))
    for link in _LINK.findall(prose):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                yield link


def _anchors(document: Path) -> set[str]:
    """What a link may name in a page, as GitHub makes it from headings."""
    headings = _HEADING.findall(_FENCED.sub("", document.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", ["DESIGN.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md"])
def test_every_path_in_the_code_that_is_named_is_there(document: str):
    named = re.findall(r"`([a-z_]{2,}(?:/[a-z_]+)+(?:\.[a-z]+)?)/?`", _text(document))

    assert named
    assert [path for path in named if not _is_there(path)] == []


def _is_there(path: str) -> bool:
    """In the project, or in one of its three parts, with or without the ending of a module."""
    rooms = (ROOT, ROOT / "worker", ROOT / "producer", ROOT / "tests")
    return any((room / f"{path}{ending}").exists() for room in rooms for ending in ("", ".py"))


def test_the_rooms_of_the_design_are_those_of_the_code():
    named = set(re.findall(r"\w+", _BRACES.sub(_expanded, _between(_text("DESIGN.md"), "## Rooms", "## "))))
    modules = {path.stem for room in ("worker", "producer") for path in (ROOT / room).rglob("*.py")}

    assert modules - named - {"__init__", "__main__"} == set()


def _expanded(braces: re.Match[str]) -> str:
    """`{run,watch}_commands` as a shell writes it out."""
    return " ".join(f"{beginning}{braces[2]}" for beginning in braces[1].split(","))


def test_every_exit_code_is_explained():
    explained = re.findall(
        r"^\| (\d+) \|", _between(_text("docs/commands.md"), "## Exit codes", "## "), re.MULTILINE
    )

    assert [int(code) for code in explained] == list(Exit)


def _between(page: str, heading: str, end: str) -> str:
    return page.partition(f"{heading}\n")[2].partition(f"\n{end}")[0]


def _first_cells(page: str) -> list[str]:
    """What stands as code at the beginning of each row of the page's tables."""
    return re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(document: Path):
    assert not list(_broken_links(document))


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `heading`, two\n[a](#one-heading-two) [b](gone.md) [c](#gone) `[d](x)`\n```\n# e\n```\n[f](#e)\n"
    )

    assert list(_broken_links(page)) == ["gone.md", "#gone", "#e"]


def test_the_page_of_settings_has_every_setting_and_no_other():
    assert sorted(_first_cells(_text("docs/settings.md"))) == sorted(map(str.upper, Settings.model_fields))


def test_messages_that_are_explained_are_messages_of_the_program():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for room in ("worker", "producer")
        for path in (ROOT / room).rglob("*.py")
    )

    explained = _first_cells(_text("docs/troubleshooting.md"))

    assert explained
    assert [message for message in explained if _constant_part(message) not in sources] == []


def _constant_part(message: str) -> str:
    """The longest part of a message in which nothing is filled in."""
    return max(re.split(r"…|\bN\b|\d+", message), key=len).strip()


def test_the_newest_version_in_the_changelog_is_the_program_s():
    headings = re.findall(r"^## (.+)$", _text("CHANGELOG.md"), re.MULTILINE)

    assert headings[0] == "Unreleased"
    version = tomllib.loads(_text("pyproject.toml"))["project"]["version"]
    assert re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", headings[1])
