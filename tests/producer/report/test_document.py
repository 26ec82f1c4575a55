"""Reports as JSON: complete, consistent, the same for the same outcomes, and never over another file."""

import errno
import json
import os
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from producer.report import document as report
from tests.deadlines import PATIENCE_S
from tests.producer.report.reports import (
    BEGIN,
    any_outcomes,
    failed,
    migrated,
    run_facts,
    skipped,
)
from tests.worker.trees import as_ordinary_user, passable_folder
from worker.errors import MigratorError, UsageError
from worker.messages import ByteCounts, FileCounts, Outcome, RunState, Status, Verb, Warning_

AT = datetime(2026, 3, 7, 13, 59, 58, tzinfo=UTC)


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    document = report.schema_document()
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document, format_checker=Draft202012Validator.FORMAT_CHECKER)


# What a report says -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(any_outcomes())
def test_any_report_obeys_the_shipped_schema(case):
    run, outcomes = case

    document = json.loads(report.encode(report.build(run, outcomes)))

    validator = Draft202012Validator(report.schema_document())
    assert [error.message for error in validator.iter_errors(document)] == []


@settings(deadline=None)
@given(any_outcomes())
def test_totals_are_the_sums_over_all_outcomes(case):
    run, outcomes = case

    document = report.build(run, outcomes)

    done_key = {"migrate": "migrated", "rollback": "rolled_back", "verify": "verified"}[run.verb]
    assert document["projects_processed"] == len(document["details"]) == len(outcomes)
    assert document[f"projects_{done_key}"] == sum(outcome.status is run.success for outcome in outcomes)
    assert document["projects_failed"] == sum(outcome.status is Status.FAILED for outcome in outcomes)
    assert document["projects_skipped"] == sum(outcome.status is Status.SKIPPED for outcome in outcomes)
    assert document["projects_cancelled"] == sum(outcome.status is Status.CANCELLED for outcome in outcomes)
    stored, reused = (sum(getattr(o.bytes, part) for o in outcomes) for part in ("stored", "reused"))
    assert document["bytes"] == {"read": stored + reused, "stored": stored, "reused": reused, "saved": reused}
    parts = {part: sum(getattr(o.files, part) for o in outcomes) for part in ("stored", "reused", "left")}
    assert document["files"] == {"total": sum(parts.values()), **parts}
    assert len(document["warnings"]) == sum(len(outcome.warnings) for outcome in outcomes)


@settings(deadline=None)
@given(any_outcomes(), st.randoms(use_true_random=False))
def test_same_outcomes_give_the_same_bytes_in_whatever_order_they_came(case, rnd: random.Random):
    run, outcomes = case
    travelled = [Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) for outcome in outcomes]
    rnd.shuffle(travelled)

    assert report.encode(report.build(run, travelled)) == report.encode(report.build(run, outcomes))


@settings(deadline=None)
@given(any_outcomes())
def test_every_selected_project_is_in_the_details_and_every_failed_one_in_the_errors(case):
    run, outcomes = case

    document = report.build(run, outcomes)

    assert [detail["project_id"] for detail in document["details"]] == sorted(o.project_id for o in outcomes)
    expected = {(o.project_id, o.project_name) for o in outcomes if o.status is Status.FAILED}
    assert {(error["project_id"], error["project_name"]) for error in document["errors"]} == expected


def test_migration_has_the_keys_and_types_of_the_reference(schema):
    document = report.build(run_facts(), [migrated(2, stored=70), failed(1), skipped(3)])

    schema.validate(document)
    assert document["start_time"] == "2026-03-07T13:02:11.120000+00:00"
    assert document["end_time"] == "2026-03-07T13:07:11.120000+00:00"
    assert document["dry_run"] is False
    assert (document["projects_processed"], document["projects_migrated"], document["datasets_created"]) == (
        3,
        1,
        1,
    )
    assert document["errors"] == [
        {
            "project_id": 1,
            "project_name": "Project 1",
            "error": "Directory does not exist: /srv/label/project_1",
            "error_class": "DirectoryMissingError",
            "remedy": "Mount it.",
        }
    ]
    assert document["warnings"] == []
    one = document["details"][1]
    reference = {"project_id": 2, "project_name": "Project 2", "status": "migrated", "dataset_id": 1}
    assert one.items() >= {**reference, "dataset_created": True, "sessions_count": 3}.items()
    assert "restored_path" not in one


def test_rollback_has_the_keys_and_types_of_the_reference(schema):
    back = migrated(1, status=Status.ROLLED_BACK)

    document = report.build(run_facts(verb=Verb.ROLLBACK), [back, failed(2)])

    schema.validate(document)
    assert document["projects_rolled_back"] == 1
    assert {"projects_migrated", "datasets_created"}.isdisjoint(document)
    assert [detail["restored_path"] for detail in document["details"]] == ["/srv/label/project_1", None]
    assert document["details"][0]["disposition"] is None


def test_times_are_told_in_utc_wherever_they_come_from():
    elsewhere = BEGIN.astimezone(timezone(timedelta(hours=5, minutes=30)))

    document = report.build(run_facts(started_at=elsewhere), [migrated(1, started_at=elsewhere)])

    assert (
        document["start_time"] == document["details"][0]["started_at"] == "2026-03-07T13:02:11.120000+00:00"
    )


def test_dry_run_counts_what_the_real_run_will():
    real = [migrated(1, stored=10), migrated(2, reused=10), failed(3)]
    foretold = [
        o.with_changes(status=Status.WOULD_MIGRATE) if o.status is Status.MIGRATED else o for o in real
    ]

    planned = report.build(run_facts(dry_run=True), foretold)
    came = report.build(run_facts(), real)

    counts = [key for key in came if key.startswith("projects_")] + ["datasets_created", "bytes", "files"]
    assert {key: planned[key] for key in counts} == {key: came[key] for key in counts}
    assert [detail["status"] for detail in planned["details"]] == ["would_migrate", "would_migrate", "failed"]


def test_what_a_failed_project_left_behind_is_reported():
    """Reference defect 37: a dataset and bytes on disk exist, whatever became of their project."""
    half_done = failed(1, dataset_created=True, dataset_hash="b" * 64, bytes=ByteCounts(stored=500))

    document = report.build(run_facts(), [half_done])

    assert document["datasets_created"] == 1
    assert document["bytes"]["stored"] == 500
    assert document["details"][0]["disposition"] == "stored"


def test_disposition_tells_new_datasets_from_known_ones():
    outcomes = [migrated(1, stored=9), migrated(2, reused=9), failed(3), skipped(4)]

    document = report.build(run_facts(), outcomes)

    assert [detail["disposition"] for detail in document["details"]] == ["stored", "reused", None, None]


def test_a_failure_without_a_message_is_reported_with_its_reason():
    document = report.build(run_facts(), [failed(1, error=None)])

    assert document["errors"][0]["error"] == document["details"][0]["error"] == "its directory is missing"


def test_warnings_name_project_and_session():
    warned = migrated(
        4, warnings=(Warning_(message="row unchanged", session="s.1"), Warning_(message="3 links"))
    )

    document = report.build(run_facts(), [warned])

    assert [
        (w["project_id"], w["project_name"], w["session"], w["message"]) for w in document["warnings"]
    ] == [
        (4, "Project 4", "s.1", "row unchanged"),
        (4, "Project 4", None, "3 links"),
    ]


def test_an_empty_run_is_all_zeros(schema):
    document = report.build(run_facts(finished_at=BEGIN), [])

    schema.validate(document)
    assert {value for key, value in document.items() if key.startswith("projects_")} == {0}
    assert set(document["bytes"].values()) | set(document["files"].values()) == {0}
    assert document["errors"] == document["details"] == []


def test_selection_is_kept_with_its_keys_in_order():
    left_out = [{"project_id": 7, "project_name": "Seven", "reason": "excluded"}]
    selection = {"options": {"limit": 3, "exclude": (7,)}, "left_out": left_out}

    document = report.build(run_facts(selection=selection), [])

    assert document["selection"] == {"left_out": left_out, "options": {"exclude": [7], "limit": 3}}
    assert list(document["selection"]["options"]) == ["exclude", "limit"]


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ([migrated(1), migrated(1)], "more than one outcome"),
        ([migrated(1, status=Status.ROLLED_BACK)], "cannot come from this run"),
        ([migrated(1, status=Status.WOULD_MIGRATE)], "cannot come from this run"),
        ([migrated(1, started_at=datetime(2026, 1, 1))], "without a zone"),  # noqa: DTZ001
        ([migrated(1, duration_s=float("nan"))], "not a number"),
    ],
)
def test_outcomes_that_contradict_their_run_are_an_internal_error(outcomes, why):
    with pytest.raises(report.ReportInconsistentError, match=why):
        report.build(run_facts(), outcomes)


def _spoil_processed(document: dict[str, Any]) -> None:
    document["projects_processed"] += 1


def _spoil_done(document: dict[str, Any]) -> None:
    document["projects_migrated"] -= 1


def _spoil_read(document: dict[str, Any]) -> None:
    document["bytes"]["read"] += 1


def _spoil_saved(document: dict[str, Any]) -> None:
    document["bytes"]["saved"] += 1


def _spoil_files(document: dict[str, Any]) -> None:
    document["details"][0]["files"]["stored"] += 1


def _spoil_errors(document: dict[str, Any]) -> None:
    document["errors"].clear()


@pytest.mark.parametrize(
    "spoil", [_spoil_processed, _spoil_done, _spoil_read, _spoil_saved, _spoil_files, _spoil_errors]
)
def test_totals_that_do_not_add_up_are_an_internal_error(spoil):
    document = report.build(run_facts(), [migrated(1, stored=5), migrated(2, reused=5), failed(3)])
    report.check_totals(document)

    spoil(document)

    with pytest.raises(report.ReportInconsistentError, match="do not add up") as caught:
        report.check_totals(document)
    assert not isinstance(caught.value, UsageError)
    assert isinstance(caught.value, MigratorError)


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"start_time": "2026-03-07T13:02:11.120000"},
        {"projects_failed": -1},
        {"projects_rolled_back": 0},
        {"schema": 2},
    ],
)
def test_schema_refuses_what_a_report_must_not_say(schema, change):
    document = report.build(run_facts(), [migrated(1)])
    assert schema.is_valid(document)

    assert not schema.is_valid({**document, **change})


def test_a_lone_surrogate_does_not_lose_the_report():
    document = report.build(run_facts(), [migrated(1, project_name="bad \udcff name")])

    assert json.loads(report.encode(document))["details"][0]["project_name"] == "bad \udcff name"


# Where a report goes ------------------------------------------------------------------------------------------------


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
def test_name_says_verb_and_second_in_utc(tmp_path, document, verb, name):
    path = report.write(
        document, tmp_path / "new" / "deep", verb, AT.astimezone(timezone(timedelta(hours=-7)))
    )

    assert path == tmp_path / "new" / "deep" / name
    assert json.loads(path.read_bytes()) == document
    assert path.read_bytes() == report.encode(document)


def test_html_has_the_same_stem_and_nothing_else_is_left_behind(tmp_path, document):
    path = report.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>grüß\udcff</p>")

    assert path.with_suffix(".html").read_text(encoding="utf-8") == "<p>grüß\\udcff</p>"
    assert sorted(tmp_path.iterdir()) == [path.with_suffix(".html"), path]


def test_reports_of_one_second_take_the_next_free_seconds(tmp_path, document):
    paths = [report.write(document, tmp_path, Verb.MIGRATE, AT) for _ in range(3)]

    seconds = ["135958", "135959", "140000"]
    assert [path.name for path in paths] == [f"migration_report_20260307_{second}.json" for second in seconds]


@pytest.mark.parametrize("suffix", [".json", ".html"])
@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_whatever_has_the_name_already_stays_as_it_is(tmp_path, document, suffix, kind):
    taken = tmp_path / f"migration_report_20260307_135958{suffix}"
    match kind:
        case "file":
            taken.write_text("mine")
        case "directory":
            taken.mkdir()
        case _:
            taken.symlink_to(tmp_path / "nowhere")

    path = report.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>")

    assert path.name == "migration_report_20260307_135959.json"
    assert kind != "file" or taken.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_report_never_stands_beside_the_html_of_another(tmp_path, document):
    (tmp_path / "migration_report_20260307_135958.html").write_text("another run's")

    path = report.write(document, tmp_path, Verb.MIGRATE, AT)

    assert path.name == "migration_report_20260307_135959.json"


def _write_at_once(directory: Path, *, writers: int) -> dict[int, Path]:
    """Let writers start together; each writes a report of its own and an HTML file that names it."""
    barrier = threading.Barrier(writers)
    written: dict[int, Path] = {}

    def write(number: int) -> None:
        document = report.build(run_facts(), [migrated(number)])
        barrier.wait(timeout=PATIENCE_S)
        written[number] = report.write(document, directory, Verb.MIGRATE, AT, html=f"report {number}")

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


def test_writers_at_once_each_get_their_own_file(tmp_path):
    written = _write_at_once(tmp_path, writers=16)

    _assert_each_has_its_own(written, tmp_path, writers=16)


def test_without_hard_links_names_are_still_never_shared(tmp_path, monkeypatch):
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    written = _write_at_once(tmp_path, writers=16)

    _assert_each_has_its_own(written, tmp_path, writers=16)


def test_a_writer_that_loses_the_json_takes_its_html_back(tmp_path, document, monkeypatch):
    """Between the look and the link, another process may take the JSON's name; the HTML must not stay beside it."""
    link = os.link
    rival = tmp_path / "migration_report_20260307_135958.json"

    def link_after_rival(source: Path, target: Path) -> None:
        if target == rival and not rival.exists():
            rival.write_text("rival")
        link(source, target)

    monkeypatch.setattr(os, "link", link_after_rival)

    path = report.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>")

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
            lambda directory=directory: report.check_directory(directory),
            lambda directory=directory: report.write(document, directory, Verb.MIGRATE, AT),
        ):
            with pytest.raises(report.ReportDirectoryError, match=str(directory)) as caught:
                attempt()
            assert isinstance(caught.value, UsageError)
            assert "--report-dir" in caught.value.remedy


def test_directory_without_write_permission_is_refused():
    with passable_folder() as folder:
        folder.chmod(0o555)

        with pytest.raises(report.ReportDirectoryError, match="Permission denied"):
            as_ordinary_user(lambda: report.check_directory(folder))


def test_full_disk_leaves_nothing_behind(tmp_path, document, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(report.ReportDirectoryError, match="No space left"):
        report.check_directory(tmp_path)
    with pytest.raises(report.ReportDirectoryError, match="No space left"):
        report.write(document, tmp_path, Verb.MIGRATE, AT, html="<p>")
    assert list(tmp_path.iterdir()) == []


def test_checking_creates_the_directory_and_leaves_it_empty(tmp_path):
    report.check_directory(tmp_path / "a" / "b")

    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_state_of_the_run_is_told():
    assert report.build(run_facts(state=RunState.CANCELLED), [])["state"] == "cancelled"
