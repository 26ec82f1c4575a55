"""A report whose long lists are on disk: the same as one in memory, and nothing of it stays when it is not
finished.
"""

import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator

from producer.report import document as report
from producer.report import files, html, shown
from producer.report.facts import ReportInconsistentError
from producer.report.files import ReportDirectoryError
from tests.support.big_runs import dataset_outcomes, project_outcomes
from tests.support.reports import BEGIN, any_outcomes, failed, migrated, run_facts
from worker.messages import Outcome, Verb

AT = datetime(2026, 3, 7, 13, 59, 58, tzinfo=UTC)
COVERAGE = {
    "bytes_total": 6_000_000_000,
    "bytes_elsewhere": 0,
    "oldest_check": BEGIN.isoformat(),
    "oldest_check_elsewhere": None,
}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_outcomes())
def test_any_report_with_its_lists_on_disk_has_the_same_bytes_and_page(tmp_path: Path, case: Any):
    run, outcomes = case
    at_once = report.build(run, outcomes)

    with files.spools(tmp_path) as new_spool:
        document = report.compose(run, sorted(outcomes, key=lambda one: one.key), new_spool)

        assert files.encode(document) == files.encode(at_once)
        assert files.encode(document) == (json.dumps(at_once, ensure_ascii=False, indent=2) + "\n").encode(
            "utf-8", "backslashreplace"
        )
        assert html.render(document) == html.render(at_once)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [Verb.MIGRATE, Verb.VERIFY])
def test_a_big_report_is_written_whole_and_obeys_the_schema(tmp_path: Path, verb: Verb):
    run = run_facts(verb=verb, selection={"coverage": COVERAGE} if verb is Verb.VERIFY else {})
    outcomes = list(project_outcomes(3_000) if verb is Verb.MIGRATE else dataset_outcomes(3_000))

    with files.spools(tmp_path) as new_spool:
        path = files.write(report.compose(run, outcomes, new_spool), tmp_path, verb, AT)

    assert path.read_bytes() == files.encode(report.build(run, outcomes))
    assert list(tmp_path.iterdir()) == [path]
    document = json.loads(path.read_bytes())
    assert len(document["details"]) == 3_000
    Draft202012Validator(report.schema_document()).validate(document)


def test_entries_on_disk_are_read_as_those_of_any_list(tmp_path: Path):
    entries = [{"number": number, "text": "grüß\n\udcff\u2028"} for number in range(1_000)]

    with files.spools(tmp_path) as new_spool:
        spool = new_spool()
        assert (len(spool), list(spool), bool(spool), spool[:3]) == (0, [], False, [])
        spool.extend(entries[:600])
        assert list(spool) == entries[:600]
        spool.extend(entries[600:])

        assert (len(spool), list(spool), spool[-1], spool[7]) == (1_000, entries, entries[-1], entries[7])
        assert spool[250:270] == entries[250:270]
        with pytest.raises(IndexError):
            spool[1_000]


def _peak_of(count: int, folder: Path) -> int:
    """How much memory a report of so many projects takes at the most, from its outcomes to its files."""
    tracemalloc.start()
    try:
        with files.spools(folder) as new_spool:
            document = report.compose(run_facts(), project_outcomes(count), new_spool)
            page = html.render(document)
            files.write(document, folder, Verb.MIGRATE, AT, html=page)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_times_as_many_outcomes_take_no_more_than_some_numbers_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The rows of a page would be most of it, but they do not grow.
    monkeypatch.setattr(shown, "MOST_ROWS", 20)
    monkeypatch.setattr(html, "_ROWS", (20,))
    _peak_of(10, tmp_path)

    few, many = _peak_of(500, tmp_path), _peak_of(5_000, tmp_path)

    # Its path, its digest and times: an outcome itself and its entry take some thousand.
    assert (many - few) / 4_500 < 600


def test_outcomes_out_of_order_are_an_internal_error(tmp_path: Path):
    with (
        files.spools(tmp_path) as new_spool,
        pytest.raises(ReportInconsistentError, match="not in the order"),
    ):
        report.compose(run_facts(), [migrated(2), migrated(1)], new_spool)


def test_an_error_in_the_middle_leaves_no_file(tmp_path: Path):
    def outcomes() -> Iterator[Outcome]:
        yield from project_outcomes(500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.spools(tmp_path) as new_spool:
        report.compose(run_facts(), outcomes(), new_spool)

    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_files_are_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)

    with pytest.raises(KeyboardInterrupt):
        files.write(report.build(run_facts(), [failed(1)]), tmp_path, Verb.MIGRATE, AT, html="<p>")

    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_in_the_middle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b"))  # noqa: SIM115

    with (
        pytest.raises(ReportDirectoryError, match=f"{tmp_path}: No space left"),
        files.spools(tmp_path) as new_spool,
    ):
        report.compose(run_facts(), project_outcomes(500), new_spool)
