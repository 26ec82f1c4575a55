"""Reports as JSON: complete, consistent, and the same for the same outcomes."""

import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from producer.report import document as report
from producer.report import files
from producer.report.facts import ReportInconsistentError
from tests.support.reports import (
    BEGIN,
    any_outcomes,
    failed,
    migrated,
    run_facts,
    skipped,
)
from worker.errors import MigratorError, UsageError
from worker.messages import ByteCounts, Outcome, RunState, Status, Verb, Warning_
from worker.wording import VERB_WORDS

AT = datetime(2026, 3, 7, 13, 59, 58, tzinfo=UTC)


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    document = report.schema_document()
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document, format_checker=Draft202012Validator.FORMAT_CHECKER)


@settings(deadline=None)
@given(any_outcomes())
def test_any_report_obeys_the_shipped_schema(case):
    run, outcomes = case

    document = json.loads(files.encode(report.build(run, outcomes)))

    validator = Draft202012Validator(report.schema_document())
    assert [error.message for error in validator.iter_errors(document)] == []


@settings(deadline=None)
@given(any_outcomes())
def test_totals_are_the_sums_over_all_outcomes(case):
    run, outcomes = case

    document = report.build(run, outcomes)

    done_key = VERB_WORDS[run.verb].done
    assert document["projects_processed"] == len(document["details"]) == len(outcomes)
    assert document[f"projects_{done_key}"] == sum(run.succeeded(outcome) for outcome in outcomes)
    assert document["projects_failed"] == sum(outcome.status is Status.FAILED for outcome in outcomes)
    assert document["projects_skipped"] == sum(outcome.status is Status.SKIPPED for outcome in outcomes)
    assert document["projects_cancelled"] == sum(outcome.status is Status.CANCELLED for outcome in outcomes)
    stored, reused = (sum(getattr(o.bytes, part) for o in outcomes) for part in ("stored", "reused"))
    sums = {"read": stored + reused, "stored": stored, "reused": reused, "saved": reused, "remembered": 0}
    assert {key: document["bytes"][key] for key in sums} == sums
    parts = {part: sum(getattr(o.files, part) for o in outcomes) for part in ("stored", "reused", "left")}
    assert document["files"] == {"total": sum(parts.values()), **parts}
    assert len(document["warnings"]) == sum(len(outcome.warnings) for outcome in outcomes)


@settings(deadline=None)
@given(any_outcomes(), st.randoms(use_true_random=False))
def test_same_outcomes_give_the_same_bytes_in_whatever_order_they_came(case, rnd: random.Random):
    run, outcomes = case
    travelled = [Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) for outcome in outcomes]
    rnd.shuffle(travelled)

    assert files.encode(report.build(run, travelled)) == files.encode(report.build(run, outcomes))


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
            "subject": "project",
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


def test_report_times_are_in_utc_wherever_they_come_from():
    elsewhere = BEGIN.astimezone(timezone(timedelta(hours=5, minutes=30)))

    document = report.build(run_facts(started_at=elsewhere), [migrated(1, started_at=elsewhere)])

    assert (
        document["start_time"] == document["details"][0]["started_at"] == "2026-03-07T13:02:11.120000+00:00"
    )


def test_the_report_of_a_dry_run_counts_what_the_real_run_will_do():
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


def test_the_disposition_distinguishes_new_datasets_from_known_ones():
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


def test_the_selection_is_kept_in_the_report_with_its_keys_in_order():
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
    with pytest.raises(ReportInconsistentError, match=why):
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

    with pytest.raises(ReportInconsistentError, match="do not add up") as caught:
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
def test_the_schema_refuses_what_a_report_must_not_contain(schema, change):
    document = report.build(run_facts(), [migrated(1)])
    assert schema.is_valid(document)

    assert not schema.is_valid({**document, **change})


def test_a_lone_surrogate_does_not_lose_the_report():
    document = report.build(run_facts(), [migrated(1, project_name="bad \udcff name")])

    assert json.loads(files.encode(document))["details"][0]["project_name"] == "bad \udcff name"


def test_the_state_of_the_run_is_in_the_report():
    assert report.build(run_facts(state=RunState.CANCELLED), [])["state"] == "cancelled"
