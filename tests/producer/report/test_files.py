"""A report's files: named by verb and second, whole, and never over another file."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from producer.report import document as report
from producer.report import files
from tests.support.folders import passable_folder
from tests.support.reports import failed, migrated, run_facts
from tests.support.trees import as_ordinary_user
from tests.support.waiting import PATIENCE_S
from worker.errors import UsageError
from worker.messages import FileCounts, Verb

AT = datetime(2026, 3, 7, 13, 59, 58, tzinfo=UTC)


@pytest.fixture
def document() -> dict[str, Any]:
    return report.build(run_facts(), [migrated(1, stored=5), failed(2, files=FileCounts(left=2))])


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        (Verb.MIGRATE, "migration_report_20260307_135958.json"),
        (Verb.ROLLBACK, "rollback_report_20260307_135958.json"),
        (Verb.VERIFY, "verification_report_20260307_135958.json"),
    ],
)
def test_a_reports_file_name_has_its_verb_and_second_in_utc(tmp_path, document, verb, name):
    path = files.write(
        document, tmp_path / "new" / "deep", verb, AT.astimezone(timezone(timedelta(hours=-7)))
    )

    assert path == tmp_path / "new" / "deep" / name
    assert json.loads(path.read_bytes()) == document
    assert path.read_bytes() == files.encode(document)


def test_the_html_has_the_jsons_stem_and_nothing_else_is_left_behind(tmp_path, document):
    path = files.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>grüß\udcff</p>")

    assert path.with_suffix(".html").read_text(encoding="utf-8") == "<p>grüß\\udcff</p>"
    assert sorted(tmp_path.iterdir()) == [path.with_suffix(".html"), path]


def test_reports_of_one_second_take_the_next_free_seconds(tmp_path, document):
    paths = [files.write(document, tmp_path, Verb.MIGRATE, AT) for _ in range(3)]

    seconds = ["135958", "135959", "140000"]
    assert [path.name for path in paths] == [f"migration_report_20260307_{second}.json" for second in seconds]


@pytest.mark.parametrize("suffix", [".json", ".html"])
@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_a_file_that_has_the_reports_name_already_stays_as_it_is(tmp_path, document, suffix, kind):
    taken = tmp_path / f"migration_report_20260307_135958{suffix}"
    match kind:
        case "file":
            taken.write_text("mine")
        case "directory":
            taken.mkdir()
        case _:
            taken.symlink_to(tmp_path / "nowhere")

    path = files.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>")

    assert path.name == "migration_report_20260307_135959.json"
    assert kind != "file" or taken.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_report_never_stands_beside_the_html_of_another(tmp_path, document):
    (tmp_path / "migration_report_20260307_135958.html").write_text("another run's")

    path = files.write(document, tmp_path, Verb.MIGRATE, AT)

    assert path.name == "migration_report_20260307_135959.json"


def _write_at_once(directory: Path, *, writers: int) -> dict[int, Path]:
    """Let writers start together; each writes a report of its own and an HTML file that names it."""
    barrier = threading.Barrier(writers)
    written: dict[int, Path] = {}

    def write(number: int) -> None:
        document = report.build(run_facts(), [migrated(number)])
        barrier.wait(timeout=PATIENCE_S)
        written[number] = files.write(document, directory, Verb.MIGRATE, AT, html=f"report {number}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, writers + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE_S)
    return written


def _assert_each_has_its_own(written: dict[int, Path], directory: Path, *, writers: int) -> None:
    assert len(set(written.values())) == writers
    for number, path in written.items():
        assert json.loads(path.read_bytes())["details"][0]["project_id"] == number
        assert path.with_suffix(".html").read_text() == f"report {number}"
    assert len(list(directory.iterdir())) == 2 * writers


def test_reports_written_at_once_each_get_their_own_file(tmp_path):
    written = _write_at_once(tmp_path, writers=16)

    _assert_each_has_its_own(written, tmp_path, writers=16)


def test_without_hard_links_names_are_still_never_shared(tmp_path, monkeypatch):
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    written = _write_at_once(tmp_path, writers=16)

    _assert_each_has_its_own(written, tmp_path, writers=16)


def test_a_writer_that_loses_the_json_takes_its_html_back(tmp_path, document, monkeypatch):
    """Between the look and the link, another process may take the JSON's name; the HTML must not stay beside
    it.
    """
    link = os.link
    rival = tmp_path / "migration_report_20260307_135958.json"

    def link_after_rival(source: Path, target: Path) -> None:
        if target == rival and not rival.exists():
            rival.write_text("rival")
        link(source, target)

    monkeypatch.setattr(os, "link", link_after_rival)

    path = files.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>")

    assert path.name == "migration_report_20260307_135959.json"
    assert rival.read_text() == "rival"
    assert sorted(tmp_path.iterdir()) == sorted([rival, path, path.with_suffix(".html")])


def _unwritable(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file").write_text("not a directory")
    yield tmp_path / "file"
    yield tmp_path / "file" / "below"
    yield Path("/proc/reports")


def test_unwritable_directory_is_named_with_a_remedy_before_and_after_the_work(tmp_path, document):
    for directory in _unwritable(tmp_path):
        for attempt in (
            lambda directory=directory: files.check_directory(directory),
            lambda directory=directory: files.write(document, directory, Verb.MIGRATE, AT),
        ):
            with pytest.raises(files.ReportDirectoryError, match=str(directory)) as caught:
                attempt()
            assert isinstance(caught.value, UsageError)
            assert "--report-dir" in caught.value.remedy


def test_directory_without_write_permission_is_refused():
    with passable_folder() as folder:
        folder.chmod(0o555)

        with pytest.raises(files.ReportDirectoryError, match="Permission denied"):
            as_ordinary_user(lambda: files.check_directory(folder))


def test_a_full_disk_leaves_no_report_behind(tmp_path, document, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(files.ReportDirectoryError, match="No space left"):
        files.check_directory(tmp_path)
    with pytest.raises(files.ReportDirectoryError, match="No space left"):
        files.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>")
    assert list(tmp_path.iterdir()) == []


def test_checking_a_report_directory_creates_it_and_leaves_it_empty(tmp_path):
    files.check_directory(tmp_path / "a" / "b")

    assert list((tmp_path / "a" / "b").iterdir()) == []
