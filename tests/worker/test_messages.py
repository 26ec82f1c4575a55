"""The words that travel: what is sent is what comes back, and nothing else is taken for it."""

import dataclasses
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.messages import (
    ByteCounts,
    FileCounts,
    JobRef,
    JobState,
    LinkCounts,
    Outcome,
    RunOptions,
    Status,
    Warning_,
)

COUNTS = st.integers(0, 2**53)
TEXTS = st.text(max_size=20)
TIMES = st.none() | st.datetimes(timezones=st.just(UTC))
OUTCOMES = st.builds(
    Outcome,
    project_id=st.integers(1, 2**31),
    project_name=st.none() | TEXTS,
    status=st.sampled_from(Status),
    reason=TEXTS,
    original_path=st.none() | TEXTS,
    dataset_id=st.none() | st.integers(1),
    dataset_hash=st.none() | TEXTS,
    dataset_created=st.booleans(),
    files=st.builds(FileCounts, stored=COUNTS, reused=COUNTS, left=COUNTS),
    bytes=st.builds(ByteCounts, stored=COUNTS, reused=COUNTS),
    links=st.builds(LinkCounts, hard=COUNTS, reflink=COUNTS, copy=COUNTS),
    warnings=st.lists(st.builds(Warning_, message=TEXTS, session=st.none() | TEXTS), max_size=2).map(tuple),
    differences=st.lists(TEXTS, max_size=2).map(tuple),
    error=st.none() | TEXTS,
    attempts=COUNTS,
    started_at=TIMES,
    finished_at=TIMES,
    duration_s=st.floats(0, 1e9),
)


def outcome(**changes: Any) -> Outcome:
    """An outcome with what every one has, and `changes`."""
    return Outcome(
        **{"project_id": 7, "project_name": "study", "status": Status.MIGRATED, "reason": "new"} | changes
    )


# Outcomes ---------------------------------------------------------------------------------------------------


@given(sent=OUTCOMES)
@settings(deadline=None)
def test_an_outcome_comes_back_from_json_as_it_was(sent: Outcome):
    assert Outcome.from_json(json.loads(json.dumps(sent.to_json()))) == sent


def test_every_field_of_an_outcome_is_plain_json():
    document = outcome(
        started_at=datetime(2025, 7, 1, 10, tzinfo=UTC), warnings=(Warning_(message="w"),)
    ).to_json()

    assert document.keys() == {field.name for field in dataclasses.fields(Outcome)}
    assert document["status"] == "migrated"
    assert document["started_at"] == "2025-07-01T10:00:00Z"
    assert document["files"] == {"stored": 0, "reused": 0, "left": 0}
    assert document["warnings"] == [{"message": "w", "session": None}]


def test_the_least_that_the_ledger_writes_itself_is_an_outcome():
    document = {
        "project_id": 7,
        "project_name": None,
        "status": "cancelled",
        "reason": "by hand",
        "original_path": None,
    }

    assert Outcome.from_json(document).status is Status.CANCELLED


@pytest.mark.parametrize(
    "change",
    [
        {"status": "finished"},
        {"status": None},
        {"project_id": "seven"},
        {"project_id": None},
        {"reason": None},
        {"files": {"stored": 1, "found": 2}},
        {"files": 5},
        {"bytes": {"read": 5}},
        {"warnings": "none"},
        {"warnings": [{"session": "s"}]},
        {"started_at": "yesterday"},
        {"mood": "fine"},
    ],
    ids=str,
)
def test_json_that_is_no_outcome_is_refused(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        Outcome.from_json(outcome().to_json() | change)


@pytest.mark.parametrize("name", ["project_id", "project_name", "status", "reason"])
def test_an_outcome_without_its_head_is_refused(name: str):
    document = outcome().to_json()
    del document[name]

    with pytest.raises(ValidationError):
        Outcome.from_json(document)


def test_a_changed_copy_leaves_the_outcome_as_it_was():
    before = outcome()

    after = before.with_changes(reason="other", dataset_id=5)

    assert (before.reason, before.dataset_id) == ("new", None)
    assert (after.reason, after.dataset_id, after.project_id) == ("other", 5, 7)
    with pytest.raises(ValidationError):
        before.with_changes(mood="fine")
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.reason = "other"  # type: ignore[misc]


def test_totals_of_an_outcome_are_computed_and_not_kept():
    files, size = FileCounts(stored=1, reused=2, left=4), ByteCounts(stored=10, reused=20)

    assert (files.total, size.read) == (7, 30)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (Status.MIGRATED, JobState.DONE),
        (Status.WOULD_MIGRATE, JobState.DONE),
        (Status.ROLLED_BACK, JobState.DONE),
        (Status.WOULD_ROLL_BACK, JobState.DONE),
        (Status.VERIFIED, JobState.DONE),
        (Status.SKIPPED, JobState.SKIPPED),
        (Status.FAILED, JobState.FAILED),
        (Status.CANCELLED, JobState.CANCELLED),
    ],
)
def test_each_status_is_one_end_of_a_job(status: Status, state: JobState):
    assert status.job_state is state


def test_every_end_of_a_job_has_a_status():
    assert {status.job_state for status in Status} == set(JobState) - {
        JobState.HELD,
        JobState.QUEUED,
        JobState.RUNNING,
    }


# Messages ---------------------------------------------------------------------------------------------------


@given(runs=st.lists(st.uuids(), min_size=2, max_size=2, unique=True), project=st.integers(1, 10**6))
@settings(deadline=None)
def test_a_task_has_the_same_id_at_every_delivery_and_no_other_has_it(runs: list[uuid.UUID], project: int):
    one, again = (JobRef(run_id=runs[0], subject_id=project) for _ in range(2))

    assert one.task_id == again.task_id
    assert str(uuid.UUID(one.task_id)) == one.task_id
    assert one.task_id != JobRef(run_id=runs[1], subject_id=project).task_id
    assert one.task_id != JobRef(run_id=runs[0], subject_id=project + 1).task_id


def test_the_id_of_a_task_never_changes_between_versions():
    ref = JobRef(run_id=uuid.UUID(int=1), subject_id=42)

    assert ref.task_id == str(uuid.uuid5(uuid.UUID(int=1), "project/42"))


@pytest.mark.parametrize(
    "fields",
    [
        {"run_id": "latest", "project_id": 1},
        {"run_id": None, "project_id": 1},
        {"run_id": uuid.UUID(int=1), "project_id": "one"},
        {"run_id": uuid.UUID(int=1), "project_id": 1.5},
        {"run_id": uuid.UUID(int=1)},
        {"run_id": uuid.UUID(int=1), "project_id": 1, "path": "/etc"},
    ],
    ids=str,
)
def test_arguments_that_name_no_job_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        JobRef(**fields)


def test_a_job_can_be_looked_up_by_its_name():
    one = JobRef(run_id=uuid.UUID(int=1), subject_id=1)

    assert {one: "here"}[JobRef(run_id=uuid.UUID(int=1), subject_id=1)] == "here"
    assert one.task_id != (JobRef(run_id=uuid.UUID(int=1), subject_id=11)).task_id


def test_a_run_keeps_the_options_that_it_was_given_and_no_other():
    migration = RunOptions(project_ids=(7, 3), exclude=(), limit=None)
    rollback = RunOptions(exclude=(5,), limit=2, restore_files=False)

    assert migration.to_json() == {"project_ids": [7, 3], "exclude": [], "limit": None}
    assert rollback.to_json() == {"exclude": [5], "limit": 2, "restore_files": False}
    for options in (migration, rollback):
        assert RunOptions.model_validate(options.to_json()) == options
