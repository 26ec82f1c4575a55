"""`producer rollback` and `producer verify --sessions` as an operator calls them, with a real worker
behind.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from producer.report import document as report
from tests.acceptance.story import LEDGER, Call, call
from tests.estate import (
    Project,
    dump,
    make_dataset,
    make_project,
    make_session,
    record_session,
    snapshot_tree,
    split_session,
    write_recording,
)
from tests.support.runs import run, tools_of
from tests.support.sites import Site
from worker.messages import Status, Verb

TABLES = (
    "participants",
    "projects",
    "sessions",
    "session_lineage",
    "models",
    "project_dataset_refs",
    "project_split_configs",
    "project_conversions",
    "raw_datasets",
    "raw_dataset_sessions",
)


def make(site: Site, *names: str) -> list[Project]:
    """Projects of two sessions each, one of them cut in two; the first two have equal content."""
    projects = []
    with site.engine.begin() as conn:
        for number, name in enumerate(names):
            project = make_project(conn, site.legacy_root, name)
            record_session(conn, project, "whole", rows=40, seed=max(1, number))
            cut = record_session(conn, project, "cut", rows=30, seed=100 + max(1, number))
            split_session(conn, cut.session_id, [12], site.data_dir)
            projects.append(project)
    return projects


def migrated(site: Site, *names: str) -> tuple[list[Project], dict[str, Any]]:
    """The same, migrated in this process; and the rows of before."""
    projects = make(site, *names)
    before = look(site)
    with tools_of(site) as tools:
        assert {one.status for one in run(tools, Verb.MIGRATE).values()} == {Status.MIGRATED}
    return projects, before


def look(site: Site) -> dict[str, Any]:
    with site.engine.connect() as conn:
        return dump(conn, TABLES)


def everything(site: Site) -> tuple[Any, ...]:
    """All that a rehearsal or a refusal must leave as it is: rows but the ledger's, the store, the legacy
    directories.
    """
    assert not LEDGER & set(TABLES)
    return look(site), snapshot_tree(site.data_dir), snapshot_tree(site.legacy_root)


def check_report(made: Call, verb: str) -> None:
    """It obeys the schema, adds up, has its name, and stands beside an HTML file."""
    stem = {"rollback": "rollback_report", "verify": "verification_report"}[verb]
    assert made.report_path.name.startswith(f"{stem}_")
    assert made.report_path.with_suffix(".html").exists()
    jsonschema.validate(made.report, report.schema_document(), format_checker=jsonschema.FormatChecker())
    report.check_totals(made.report)
    assert made.report["verb"] == verb


def fails_with_usage(site: Site, *args: str) -> str:
    """Exit code 2, no run and no report; what it says."""
    before = everything(site), _runs(site)
    done = site.run_producer(*args)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert (everything(site), _runs(site)) == before
    return " ".join(done.stderr.split())


def _runs(site: Site) -> tuple[list[Any], list[str]]:
    with site.engine.connect() as conn:
        return dump(conn, ["migration_runs"])["migration_runs"], sorted(os.listdir(site.folder))


# Rollback ---------------------------------------------------------------------------------------------------


def test_a_rollback_of_all_projects_is_predicted_and_brings_every_row_back(shared_site: Site):
    """One that the reference tool migrated is named with the remedy; one that was made in Label is none of
    ours.
    """
    made_in_label, by_reference = _by_others(shared_site)
    projects, before = migrated(shared_site, "one", "two", "three")
    files = snapshot_tree(shared_site.legacy_root)
    at_rest = everything(shared_site)

    rehearsed = call(shared_site, "rollback", "--dry-run", "--wait")

    assert everything(shared_site) == at_rest
    made = call(shared_site, "rollback", "--wait")
    assert (rehearsed.exit_code, made.exit_code) == (0, 0)
    for each, status in ((rehearsed, "would_roll_back"), (made, "rolled_back")):
        check_report(each, "rollback")
        assert (each.report["projects_rolled_back"], each.report["projects_skipped"]) == (3, 1)
        assert {number: (one["status"], one["restored_path"]) for number, one in each.details.items()} == {
            by_reference: ("skipped", None),
            **{one.project_id: (status, one.path) for one in projects},
        }
        assert each.details[by_reference]["remedy"] == "Roll it back with the tool that migrated it."
        assert made_in_label not in each.details
    after = look(shared_site)
    for table in TABLES[:7]:
        assert (table, after[table]) == (table, before[table])
    assert snapshot_tree(shared_site.legacy_root) == files
    nothing = call(shared_site, "rollback", "--wait")
    assert (nothing.exit_code, nothing.details.keys()) == (0, {by_reference})
    assert "Nothing to do: no project is migrated." in nothing.words


def test_a_rollback_of_chosen_projects_leaves_the_others(shared_site: Site):
    projects, _ = migrated(shared_site, "one", "two", "three")
    chosen, other = projects[0], projects[1]
    ids = ["--project-id", str(chosen.project_id), "--project-id", str(projects[2].project_id)]

    queued = shared_site.run_producer("rollback", *ids, *ids)

    assert queued.returncode == 0
    assert "Queued 2 projects" in queued.stderr + queued.stdout
    made = call(shared_site, "collect")
    check_report(made, "rollback")
    assert made.details.keys() == {chosen.project_id, projects[2].project_id}
    rows = {row["project_id"]: row for row in look(shared_site)["projects"]}
    assert rows[chosen.project_id]["path"] == chosen.path
    assert (rows[other.project_id]["path"], rows[other.project_id]["legacy_path"]) == (None, other.path)


def test_what_cannot_be_rolled_back_is_named_and_nothing_begins(shared_site: Site):
    projects, _ = migrated(shared_site, "one")
    made_in_label, by_reference = _by_others(shared_site)
    (legacy,) = make(shared_site, "still legacy")
    wanted = {
        legacy.project_id: "not migrated",
        made_in_label: "dataset-based, but never was a legacy project",
        by_reference: "migrated by another tool, which kept no before-image",
        999: "no such project",
        0: "ids begin at 1",
    }

    words = fails_with_usage(
        shared_site,
        "rollback",
        *(part for number in (projects[0].project_id, *wanted) for part in ("--project-id", str(number))),
    )

    for number, reason in wanted.items():
        assert f"{number} ({reason})" in words
    assert f"{projects[0].project_id} (" not in words


def _by_others(site: Site) -> tuple[int, int]:
    tree = site.data_dir / "raw_datasets" / "others"
    recording = write_recording(tree / "s", rows=10)
    with site.engine.begin() as conn:
        made = make_project(conn, site.legacy_root, "made in Label", path=None, project_type="dataset_based")
        make_dataset(conn, tree, "d" * 64, project_id=made.project_id)
        make_session(conn, made.project_id, "s", recording=recording, parent_path=tree / "s")
        reference = make_project(
            conn,
            site.legacy_root,
            "reference tool",
            path=None,
            legacy_path="/was/here",
            project_type="dataset_based",
            analysis_config={"migrated_from": "legacy"},
        )
    return made.project_id, reference.project_id


def test_a_missing_directory_fails_and_names_restore_files_which_helps(shared_site: Site):
    (gone, kept), before = migrated(shared_site, "gone", "kept")
    files = snapshot_tree(shared_site.legacy_root)
    shutil.rmtree(str(gone.path))

    failed = call(shared_site, "rollback", "--wait")

    check_report(failed, "rollback")
    assert failed.exit_code == 3
    assert {number: one["status"] for number, one in failed.details.items()} == {
        gone.project_id: "failed",
        kept.project_id: "rolled_back",
    }
    (error,) = failed.report["errors"]
    assert error["error"] == f"Legacy path no longer exists: {gone.path}"
    assert "--restore-files" in error["remedy"]
    assert error["error"] in failed.words
    assert error["remedy"] in failed.words

    restored = call(shared_site, "rollback", "--restore-files", "--wait")

    check_report(restored, "rollback")
    assert restored.exit_code == 0
    assert restored.details[gone.project_id]["reason"] == "rebuilt 2 files from the store"
    after = look(shared_site)
    for table in TABLES[:7]:
        assert (table, after[table]) == (table, before[table])
    now = snapshot_tree(shared_site.legacy_root)
    assert {name: entry for name, entry in now.items() if name != b"."} == {
        name: entry for name, entry in files.items() if name != b"."
    }


def test_a_changed_directory_is_refused_with_the_differences_in_the_report(shared_site: Site):
    (project,), _ = migrated(shared_site, "one")
    (Path(str(project.path)) / "whole" / "accelerometer_data.csv").write_text("rewritten")
    (Path(str(project.path)) / "added").mkdir()
    before = everything(shared_site)

    made = call(shared_site, "rollback", "--wait")

    check_report(made, "rollback")
    assert made.exit_code == 3
    assert made.details[project.project_id]["differences"] == [
        "added: added",
        "changed: whole/accelerometer_data.csv",
    ]
    assert everything(shared_site) == before


def test_bytes_in_the_store_that_do_not_match_give_exit_code_4(shared_site: Site):
    (project,), _ = migrated(shared_site, "one")
    shutil.rmtree(str(project.path))
    _tamper(_largest(shared_site.data_dir / "dataset_store" / "blobs"))

    made = call(shared_site, "rollback", "--restore-files", "--wait")

    check_report(made, "rollback")
    assert made.exit_code == 4
    assert [error["error_class"] for error in made.report["errors"]] == ["StoredBytesMismatchError"]
    assert os.listdir(shared_site.legacy_root) == []


# Verification -----------------------------------------------------------------------------------------------


def test_a_verification_of_whole_projects_and_of_a_sample_finds_them_alike(shared_site: Site):
    projects, _ = migrated(shared_site, "one", "two", "three")
    before = everything(shared_site)

    whole = call(shared_site, "verify", "--sessions")
    sample = call(shared_site, "verify", "--sessions", "--sample", "25", "--project-id", "1")

    assert (whole.exit_code, sample.exit_code) == (0, 0)
    check_report(whole, "verify")
    check_report(sample, "verify")
    assert {number: (one["status"], one["sessions_count"]) for number, one in whole.details.items()} == {
        one.project_id: ("verified", 4) for one in projects
    }
    assert {number: one["sessions_count"] for number, one in sample.details.items()} == {1: 1}
    assert everything(shared_site) == before


def _largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _tamper(path: Path) -> None:
    """Change a digit in the last line of a file, as a bad disk or a busy hand may."""
    content = path.read_bytes()
    place = content.rindex(b".") + 1
    path.chmod(0o644)
    path.write_bytes(
        content[:place] + (b"1" if content[place : place + 1] != b"1" else b"2") + content[place + 1 :]
    )


def _stored(site: Site, project: Project) -> Path:
    (row,) = (row for row in look(site)["projects"] if row["project_id"] == project.project_id)
    dataset_id = json.loads(row["analysis_config"])["dataset_id"]
    (tree,) = (one["file_path"] for one in look(site)["raw_datasets"] if one["dataset_id"] == dataset_id)
    return Path(tree, "whole", "accelerometer_data.csv")


def _legacy(_: Site, project: Project) -> Path:
    return Path(str(project.path)) / "whole" / "accelerometer_data.csv"


@pytest.mark.parametrize("place", [_stored, _legacy], ids=["stored", "legacy"])
def test_a_session_that_differs_gives_exit_code_4_and_is_named(
    shared_site: Site, place: Callable[[Site, Project], Path]
):
    """Whichever of the two files was changed; others are verified all the same, or skipped where nothing is
    to compare.
    """
    with shared_site.engine.begin() as conn:
        other = make_project(conn, shared_site.legacy_root, "other")
        record_session(conn, other, "s", seed=77)
    (project, gone), _ = migrated(shared_site, "spoiled", "gone")
    shutil.rmtree(str(gone.path))
    _tamper(place(shared_site, project))

    made = call(shared_site, "verify", "--sessions")

    check_report(made, "verify")
    assert made.exit_code == 4
    assert made.details[other.project_id]["status"] == "verified"
    assert made.details[gone.project_id]["status"] == "skipped"
    assert made.details[gone.project_id]["reason"] == f"Legacy path no longer exists: {gone.path}"
    spoiled = made.details[project.project_id]
    assert (spoiled["status"], spoiled["error_class"]) == ("failed", "SessionsDifferError")
    assert spoiled["differences"] == [
        f"session whole ({reader}): 40 rows before, 40 rows now" for reader in ("plot", "split", "scoring")
    ]
    assert spoiled["remedy"] in made.words


def test_sessions_of_a_project_that_is_not_migrated_cannot_be_verified(shared_site: Site):
    (legacy,) = make(shared_site, "still legacy")

    words = fails_with_usage(shared_site, "verify", "--sessions", "--project-id", str(legacy.project_id))
    assert f"cannot be verified: {legacy.project_id} (not migrated)" in words


def test_a_verification_that_verified_nothing_does_not_exit_with_0(shared_site: Site):
    (first, second), _ = migrated(shared_site, "first", "second")
    assert first.directory is not None
    assert second.directory is not None
    shutil.rmtree(first.directory)

    assert call(shared_site, "verify", "--sessions").exit_code == 0
    named = call(
        shared_site, "verify", "--sessions", *(f"--project-id={one.project_id}" for one in (first, second))
    )
    assert (named.exit_code, named.report["projects_verified"]) == (3, 1)
    # An empty root would be the machine's fault, and waited for.
    (shared_site.legacy_root / "another project").mkdir()
    shutil.rmtree(second.directory)
    nothing = call(shared_site, "verify", "--sessions")
    assert (nothing.exit_code, nothing.report["projects_verified"]) == (3, 0)
