"""Whole rounds over projects with something odd about them: what cannot be kept is predicted, named, and said
in warnings.
"""

import json
import os
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import make_project, make_session, record_session
from tests.estate.rows import Project
from tests.support.runs import run_one
from tests.support.sites import Site
from worker.db import checks, datasets
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb


def study(site: Site, name: str = "study") -> Project:
    """A project with one ordinary session."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        record_session(conn, project, "day 1")
    return project


def folder_of(project: Project) -> Path:
    assert project.directory is not None
    return project.directory


def messages(outcome: Outcome) -> list[str]:
    return [warning.message for warning in outcome.warnings]


def both(tools: Tools, project: Project) -> tuple[Outcome, Outcome]:
    """The dry run and the real run."""
    rehearsed = run_one(tools, Verb.MIGRATE, project.project_id, dry_run=True)
    return rehearsed, run_one(tools, Verb.MIGRATE, project.project_id)


# Sessions that cannot be read either way --------------------------------------------------------------------


def unreadable_session(site: Site, project: Project, name: str) -> None:
    with site.engine.begin() as conn:
        make_session(conn, project.project_id, name)
    (folder_of(project) / name).mkdir()
    (folder_of(project) / name / "accelerometer_data.csv").write_bytes(b"a;b\n1;2\n")


def test_sessions_unreadable_before_and_after_are_counted_apart_and_named(site: Site, tools: Tools):
    project = study(site)
    for name in ("odd 1", "odd 2"):
        unreadable_session(site, project, name)
    run_one(tools, Verb.MIGRATE, project.project_id)

    outcome = run_one(tools, Verb.VERIFY, project.project_id)

    assert outcome.status == Status.VERIFIED
    assert (
        outcome.reason == "1 sessions read alike by legacy directory and by dataset; 2 can be read by neither"
    )
    assert [warning.session for warning in outcome.warnings] == ["odd 1", "odd 2"]
    # And nothing of what the file says.
    assert messages(outcome)[0].endswith("/odd 1/accelerometer_data.csv is not a recording")


def test_a_project_of_which_no_session_can_be_read_is_not_called_verified(site: Site, tools: Tools):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "odd")
    unreadable_session(site, project, "odd 1")
    run_one(tools, Verb.MIGRATE, project.project_id)

    outcome = run_one(tools, Verb.VERIFY, project.project_id)

    assert outcome.status == Status.SKIPPED
    assert outcome.reason == "none of its 1 sessions can be read by either"
    assert [warning.session for warning in outcome.warnings] == ["odd 1"]


# What other programs leave ----------------------------------------------------------------------------------


def test_what_other_programs_left_is_named_by_the_dry_run_and_by_the_real_one(site: Site, tools: Tools):
    project = study(site)
    for place in ("@eaDir/day 1", ".git", "day 1/.snapshot"):
        (folder_of(project) / place).mkdir(parents=True)
    for number in range(12):
        (folder_of(project) / "day 1" / f"._{number:02}").write_bytes(b"1")

    rehearsed, real = both(tools, project)

    assert messages(rehearsed) == messages(real)
    stored, sessions = messages(real)
    assert stored.endswith("another dataset: .git, @eaDir, day 1/._00, day 1/._01, day 1/._02, day 1/._03, "
                           "day 1/._04, day 1/._05, day 1/._06, day 1/._07 and 5 more")  # fmt: skip
    assert sessions == "directories that other programs leave behind become raw sessions: .git, @eaDir"


# Paths ------------------------------------------------------------------------------------------------------


def test_a_path_too_long_for_label_in_the_store_fails_before_anything_is_stored(site: Site, tools: Tools):
    project = study(site)
    deep = folder_of(project) / "day 1"
    while len(str(deep)) < 3800:
        deep /= "d" * 200
    deep.mkdir(parents=True)
    # Short enough to be opened where it is, too long by the names that lie above it in the store.
    (deep / ("f" * (4090 - len(str(deep)) - 1))).write_bytes(b"1")

    rehearsed, real = both(tools, project)

    for outcome in (rehearsed, real):
        assert (outcome.status, outcome.error_class) == (Status.FAILED, "EntryRefusedError"), outcome
        assert "Path is too long to be stored: day 1/ddd" in (outcome.error or "")
    assert rehearsed.error == real.error
    assert not any(files for _, _, files in os.walk(site.settings.store_dir / "blobs"))


# Labels -----------------------------------------------------------------------------------------------------


LARGE_BYTES = 270 << 20
"""More than a string of a JSON document can have in PostgreSQL."""


def labels_of(site: Site, outcome: Outcome) -> dict[str, str | None]:
    with site.engine.connect() as conn:
        rows = conn.execute(
            text(
                "select session_name, original_labels_json from raw_dataset_sessions where dataset_id = :id"
            ),
            {"id": outcome.dataset_id},
        )
        return {row.session_name: row.original_labels_json for row in rows}


def test_labels_of_hundreds_of_megabytes_stay_a_file_with_a_warning_in_both_runs(site: Site, tools: Tools):
    project = study(site)
    part = b'[1, 2, "smoking"],' * 50_000
    with (folder_of(project) / "day 1/labels.json").open("wb") as file:
        file.writelines(part for _ in range(LARGE_BYTES // len(part)))

    rehearsed, real = both(tools, project)

    expected = ["labels.json is larger than 16 MiB; the file is kept, the column stays empty"]
    assert (messages(rehearsed), messages(real)) == (expected, expected)
    assert labels_of(site, real) == {"day 1": None}
    stored = Path(real.dataset_path or "") / "day 1/labels.json"
    assert stored.stat().st_size == LARGE_BYTES // len(part) * len(part)


def test_many_labels_are_written_in_portions_and_none_is_lost(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets, "_PORTION_CHARACTERS", 100)
    project = study(site)
    expected: dict[str, str | None] = {"day 1": None}
    for number in range(2, 9):
        labels = expected[f"day {number}"] = json.dumps([["é", number]] * number * 5)
        (folder_of(project) / f"day {number}").mkdir()
        (folder_of(project) / f"day {number}/labels.json").write_text(labels)

    outcome = run_one(tools, Verb.MIGRATE, project.project_id)

    assert labels_of(site, outcome) == expected


# Numbers ----------------------------------------------------------------------------------------------------


def test_checks_of_files_with_any_inode_and_any_time_come_back_as_they_were(site: Site):
    seen = {
        "a": (2**63, 1),
        "b": (2**64 - 1, -(10**9)),
        "c": (1, 2**62),
    }
    with site.engine.begin() as conn:
        checks.record(conn, seen | {"d": (1, 15 * 10**18)})
        found = checks.fresh(conn, [*seen, "d"], max_age_days=1, or_since=conn.scalar(text("select now()")))

    assert {digest: found[digest] for digest in seen} == seen
    assert found["d"] is not None
