"""The main job from end to end: a dry run, the run it foretold, and what is then on disk, in the rows and in
the reports.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from producer.report import document as report
from tests.acceptance.story import Call, Story, call, content, is_blob, stored_tree, tell
from tests.estate import differences, make_project, record_session
from tests.support.sites import Site

POINTERS = (
    "parent_session_data_path",
    "raw_session_name",
    "dataset_id",
    "data_start_offset",
    "data_end_offset",
    "split_config_id",
)
"""The columns of sessions that a migration may change; all others are what people made."""

ABOUT_THE_ATTEMPT = {"worker", "started_at", "finished_at", "duration_s", "bytes_remembered"}
ABOUT_THE_RUN = {
    *("run_id", "dry_run", "start_time", "end_time", "details"),
    *("bytes", "space", "statuses", "selection", "plan"),  # compared by themselves
}
ABOUT_THE_STORING = {
    "status",
    "reason",
    "disposition",
    "dataset_id",
    "dataset_created",
    "dataset_path",
    "links",
}
BY_CHANCE = {"bytes_stored", "bytes_reused", "files"}
"""Of several projects that share content, chance decides in a real run which of them is the first to store
it.
"""


@pytest.fixture(scope="module")
def story(_module_worker: None, module_site: Site) -> Story:
    """Tell it once; all tests look at the same one."""
    module_site.empty()
    return tell(module_site)


# The dry run ------------------------------------------------------------------------------------------------


def bytes_in(call: Call) -> dict[str, int]:
    """A report's sums, without what the dry run before may have read already."""
    sums: dict[str, int] = call.report["bytes"]
    return {key: size for key, size in sums.items() if key != "remembered"}


def assert_foretold(dry: Call, real: Call) -> None:
    """A dry run said what then came of every project, and all totals; a failed project came to nothing in
    both.
    """
    assert dry.details.keys() == real.details.keys()
    for number, detail in real.details.items():
        foretold = dry.details[number]
        expected = "would_migrate" if detail["status"] == "migrated" else detail["status"]
        assert (number, foretold["status"]) == (number, expected)
        for key in detail.keys() - ABOUT_THE_ATTEMPT - ABOUT_THE_STORING - BY_CHANCE:
            assert (number, key, foretold[key]) == (number, key, detail[key])
        assert foretold["files"]["total"] == detail["files"]["total"]
    for key in ("options", "left_out"):
        assert dry.report["selection"][key] == real.report["selection"][key]
    for key in real.report.keys() - ABOUT_THE_RUN:
        assert (key, dry.report[key]) == (key, real.report[key])
    assert bytes_in(dry) == bytes_in(real)
    ends = dry.report["statuses"]["project"]
    assert real.report["statuses"]["project"] == {
        "migrated" if status == "would_migrate" else status: count for status, count in ends.items()
    }
    # Blocks are predicted by bytes.
    said, took = (report.report["space"]["store"] for report in (dry, real))
    assert said <= took <= said + 4096 * real.report["files"]["stored"]
    assert dry.report["space"] | {"store": took} == real.report["space"]
    assert dry.exit_code == real.exit_code


def test_the_dry_run_predicts_the_outcome_of_every_project_and_all_totals(story: Story):
    assert_foretold(story.dry, story.real)


def test_the_dry_run_predicts_the_path_of_every_dataset_that_is_not_shared(story: Story):
    sharers = Counter(detail["dataset_hash"] for detail in story.migrated.values())

    for number, detail in story.migrated.items():
        if sharers[detail["dataset_hash"]] == 1:
            assert story.dry.details[number]["dataset_path"] == detail["dataset_path"]
            assert story.dry.details[number]["dataset_created"] == detail["dataset_created"]


def test_of_equal_projects_the_dry_run_lets_the_lowest_id_store_the_content(story: Story):
    for group in story.estate.equal:
        details = [story.dry.details[story.estate.projects[key]] for key in group]
        first, *others = sorted(details, key=lambda detail: detail["project_id"])

        assert first["dataset_created"]
        assert not any(other["dataset_created"] for other in others)
        assert {other["dataset_path"] for other in others} == {first["dataset_path"]}
        assert [other["bytes_stored"] for other in others] == [0] * len(others)


def test_the_dry_run_changes_no_row_outside_the_ledger_and_makes_no_file(story: Story):
    assert story.rehearsed.tables == story.before.tables
    assert story.rehearsed.data_dir == story.before.data_dir
    assert story.rehearsed.legacy == story.before.legacy


# The report -------------------------------------------------------------------------------------------------


def test_every_report_obeys_its_schema_and_adds_up(story: Story):
    schema = report.schema_document()

    for one in (story.dry, story.real, *story.collected):
        jsonschema.validate(one.report, schema, format_checker=jsonschema.FormatChecker())
        report.check_totals(one.report)
        assert one.report_path.with_suffix(".html").exists()


def test_every_legacy_project_is_in_the_report_with_its_outcome(story: Story):
    estate, details = story.estate, story.real.details
    keys = {number: key for key, number in estate.projects.items()}

    statuses = {keys[number]: detail["status"] for number, detail in details.items()}

    expected = (
        dict.fromkeys(estate.migrating, "migrated")
        | dict.fromkeys(estate.failing, "failed")
        | dict.fromkeys(estate.skipped, "skipped")
    )
    assert statuses == expected
    for key, error in estate.failing.items():
        detail = details[estate.projects[key]]
        assert (key, detail["error_class"]) == (key, error.__name__)
        assert detail["remedy"]
    assert {one["project_id"] for one in story.real.report["errors"]} == {
        estate.projects[key] for key in estate.failing
    }


def test_projects_without_a_path_are_skipped_with_the_reason_and_get_no_task(story: Story):
    reasons = {key: story.real.details[story.estate.projects[key]]["reason"] for key in story.estate.skipped}

    assert reasons == {"path_null": "path is NULL", "path_empty": "path is empty"}
    planned = {one["project_id"] for one in story.real.document["plan"]}
    left_out = {one["project_id"]: one["reason"] for one in story.real.document["left_out"]}
    assert left_out == {story.estate.projects[key]: reason for key, reason in reasons.items()}
    assert planned == story.real.details.keys() - left_out.keys()
    for key in story.estate.skipped:
        assert (
            f"left out: project {story.estate.projects[key]} Study {key}: {reasons[key]}" in story.real.words
        )


def test_failures_are_reported_with_the_remedy_and_give_exit_code_3(story: Story):
    assert story.real.exit_code == 3
    for one in story.real.report["errors"]:
        assert one["error"] in story.real.words
        assert one["remedy"] in story.real.words


def test_totals_of_the_report_are_those_of_the_disk(story: Story):
    sizes = [entry.size_bytes for name, entry in story.after.data_dir.items() if is_blob(name, entry)]
    read = sum(
        entry.size_bytes
        for number in story.migrated
        for entry in stored_tree(story.after.data_dir, story.real.details[number]["dataset_path"]).values()
        if entry.kind == "file"
    )

    assert bytes_in(story.real) == {
        "read": read,
        "stored": sum(sizes),
        "reused": read - sum(sizes),
        "saved": read - sum(sizes),
    }
    files = story.real.report["files"]
    assert (files["stored"], files["left"]) == (len(sizes), 0)
    assert files["total"] == files["stored"] + files["reused"]
    assert story.real.report["datasets_created"] == len(
        {detail["dataset_hash"] for detail in story.migrated.values()}
    )


def test_collecting_again_writes_an_equal_report_under_another_name(story: Story):
    calls = [story.real, *story.collected]

    assert len({one.report_path.read_bytes() for one in calls}) == 1
    assert len({one.report_path.with_suffix(".html").read_bytes() for one in calls}) == 1
    assert len({one.report_path for one in calls}) == 3
    assert [one.exit_code for one in calls] == [3, 3, 3]


def test_collecting_after_the_broker_was_emptied_takes_everything_from_the_ledger(story: Story):
    assert story.collected[-1].report == story.real.report


# The disk ---------------------------------------------------------------------------------------------------


def test_legacy_directories_are_left_as_they_are(story: Story):
    """Names, bytes, modes, times and link counts."""
    assert story.after.legacy == story.before.legacy


def test_every_stored_tree_equals_its_legacy_directory_byte_for_byte(story: Story):
    assert len(story.contents) == len(story.estate.migrating)
    for number, (legacy, stored) in story.contents.items():
        assert (number, stored) == (number, legacy)


def test_stored_trees_and_blobs_are_read_only_and_named_by_their_content(story: Story):
    for detail in story.migrated.values():
        for name, entry in stored_tree(story.after.data_dir, detail["dataset_path"]).items():
            wanted = {"directory": 0o555, "file": 0o444}
            assert (name, entry.mode) == (name, wanted.get(entry.kind))
    assert {entry.mode for name, entry in story.after.data_dir.items() if is_blob(name, entry)} == {0o444}
    assert story.wrong_blobs == []


def test_stored_trees_share_files_with_blobs_and_never_with_a_legacy_directory(story: Story):
    """The application rewrites legacy files in place; a link would change the stored bytes, too."""
    assert not story.inodes["trees"] & story.inodes["legacy"]
    assert not story.inodes["blobs"] & story.inodes["legacy"]
    assert story.inodes["blobs"] <= story.inodes["trees"]


def test_nothing_but_trees_blobs_manifests_and_row_files_is_left(story: Story):
    new = story.after.data_dir.keys() - story.before.data_dir.keys()
    trees = [
        os.fsencode(os.path.relpath(detail["dataset_path"], story.estate.data_dir))
        for detail in story.migrated.values()
    ]
    manifests = {detail["dataset_hash"] for detail in story.migrated.values()}

    others = {
        name
        for name in new
        if not name.startswith((b"dataset_store/blobs", *(tree + b"/" for tree in trees)))
        and name not in trees
    }

    store = b"dataset_store"
    folders = {b"blobs", b"manifests", b"quarantine", b"staging"}
    assert others == {
        store,
        store + b"/store.json",
        *(store + b"/" + folder for folder in folders - {b"blobs"}),
        *(
            f"dataset_store/manifests/{digest}{ending}".encode()
            for digest in manifests
            for ending in (".json", ".row.json")
        ),
    }


# The rows ---------------------------------------------------------------------------------------------------


def test_projects_refer_to_their_dataset_and_keep_everything_else(story: Story):
    """Label contract, 6.1, items 1 and 7."""
    before, after = story.before.by("projects", "project_id"), story.after.by("projects", "project_id")
    refs = Counter(
        (row["project_id"], row["dataset_id"]) for row in story.after.tables["project_dataset_refs"]
    )

    for number, detail in story.migrated.items():
        old, new = before[number], after[number]
        changed = {key for key in new if new[key] != old[key]}
        assert changed <= {"path", "legacy_path", "project_type", "analysis_config"}
        assert (new["path"], new["legacy_path"]) == (None, old["path"])
        assert new["project_type"] == "dataset_based"
        assert refs[number, detail["dataset_id"]] == 1
        config, former = json.loads(new["analysis_config"]), json.loads(old["analysis_config"] or "null")
        ours = {
            "migrated_from": "legacy",
            "original_path": old["path"],
            "dataset_id": detail["dataset_id"],
            "run_id": story.real.report["run_id"],
        }
        date = config.pop("migration_date")
        # The report's end is that of the last outcome, which is written down just before the last rows.
        assert story.real.report["start_time"] <= date <= story.finished_at.isoformat()
        assert config == (former if isinstance(former, dict) else {}) | ours


def test_datasets_and_their_sessions_have_rows(story: Story):
    """Label contract, 6.1, items 2 and 3."""
    raw_datasets = story.estate.data_dir / "raw_datasets"
    datasets = story.after.by("raw_datasets", "dataset_id")
    rows = story.after.tables["raw_dataset_sessions"]
    base_names = [os.path.basename(row["file_path"]) for row in datasets.values()]

    assert len(set(base_names)) == len(base_names)
    for detail in story.migrated.values():
        dataset = datasets[detail["dataset_id"]]
        tree = stored_tree(story.after.data_dir, dataset["file_path"])
        sessions = {
            os.fsdecode(name)
            for name, entry in tree.items()
            if entry.kind == "directory" and b"/" not in name and name != b"."
        }
        assert os.path.dirname(dataset["file_path"]) == str(raw_datasets)
        assert (dataset["file_path"], dataset["dataset_hash"]) == (
            detail["dataset_path"],
            detail["dataset_hash"],
        )
        assert dataset["session_count"] == len(sessions)
        assert dataset["file_size_bytes"] == sum(e.size_bytes for e in tree.values() if e.kind == "file")
        own = {row["session_name"]: row for row in rows if row["dataset_id"] == detail["dataset_id"]}
        assert own.keys() == sessions
        for name, row in own.items():
            assert row["session_path"] == f"{dataset['file_path']}/{name}"
            inside = [path for path in tree if path.startswith(os.fsencode(name) + b"/")]
            assert row["file_count"] == sum(tree[path].kind == "file" for path in inside)


def test_labels_are_kept_in_the_rows_as_they_were_read(story: Story):
    folder = Path(str(story.estate.paths["labels"]))
    detail = story.real.details[story.estate.projects["labels"]]

    rows = {
        row["session_name"]: row["original_labels_json"]
        for row in story.after.tables["raw_dataset_sessions"]
        if row["dataset_id"] == detail["dataset_id"]
    }

    unfit = {"no_text", "with_nul"}
    for name, stored in rows.items():
        digest = hashlib.sha256((stored or "").encode()).digest()
        kept = story.before.legacy[
            os.fsencode(os.path.relpath(folder / name / "labels.json", story.estate.root))
        ]
        assert (name, stored is None) == (name, name in unfit)
        assert name in unfit or (name, digest) == (name, kept.content)
    assert {warning["session"] for warning in detail["warnings"]} == unfit


def test_every_session_is_pointed_at_the_store_and_keeps_what_people_made(story: Story):
    """Label contract, 6.1, items 4, 5 and 7."""
    before = story.before.by("sessions", "session_id")
    assert story.after.tables["session_lineage"] == story.before.tables["session_lineage"]
    assert story.after.tables["models"] == story.before.tables["models"]
    assert story.after.tables["participants"] == story.before.tables["participants"]

    for number, new in story.after.by("sessions", "session_id").items():
        old, detail = before[number], story.migrated.get(new["project_id"])
        assert {key: new[key] for key in new if key not in POINTERS} == {
            key: old[key] for key in old if key not in POINTERS
        }
        if detail is None or number in story.estate.unmoved:
            assert new == old
            continue
        parent = old["parent_session_data_path"]
        raw = os.path.basename(os.path.normpath(parent)) if parent else old["session_name"]
        offsets = (old["data_start_offset"], old["data_end_offset"])
        if not parent and story.records[number]:
            offsets = (0, story.records[number])
        assert (number, new["parent_session_data_path"]) == (number, f"{detail['dataset_path']}/{raw}")
        assert (new["raw_session_name"], new["dataset_id"]) == (raw, detail["dataset_id"])
        assert (number, new["data_start_offset"], new["data_end_offset"]) == (number, *offsets)


def test_split_sessions_get_one_config_for_each_raw_session(story: Story):
    configs = story.after.by("project_split_configs", "config_id")
    pointing: dict[int, list[dict[str, Any]]] = {}
    for row in story.after.tables["sessions"]:
        if row["split_config_id"] is not None:
            pointing.setdefault(row["split_config_id"], []).append(row)

    assert pointing.keys() == configs.keys()
    assert len({(row["project_id"], row["raw_session_name"]) for row in configs.values()}) == len(configs)
    for number, children in pointing.items():
        config = configs[number]
        assert {child["project_id"] for child in children} == {config["project_id"]}
        assert {child["dataset_id"] for child in children} == {config["dataset_id"]}
        assert {child["raw_session_name"] for child in children} == {config["raw_session_name"]}
        assert config["split_strategy"] == "custom"
        assert json.loads(config["split_parameters"]) == {
            "source": "migration",
            "segments": [
                {
                    "session_name": child["session_name"],
                    "start": child["data_start_offset"],
                    "end": child["data_end_offset"],
                }
                for child in children
            ],
        }


def test_every_session_reads_as_before_also_without_the_legacy_directories(story: Story):
    assert differences(story.before.readings, story.after.readings) == []
    legacy = {
        row["session_id"] for row in story.after.tables["sessions"] if row["project_id"] not in story.migrated
    }

    lost = {line.partition(",")[0] for line in differences(story.before.readings, story.without_legacy)} - {
        f"session {number}" for number in legacy | story.estate.unmoved
    }

    assert lost == set()


def test_projects_that_were_not_migrated_keep_their_rows(story: Story):
    before, after = story.before.by("projects", "project_id"), story.after.by("projects", "project_id")
    others = after.keys() - story.migrated.keys()

    assert {story.estate.projects[key] for key in story.estate.untouched} <= others
    assert {number: after[number] for number in others} == {number: before[number] for number in others}
    referring = {row["project_id"] for row in story.after.tables["project_dataset_refs"]}
    assert referring & others == {row["project_id"] for row in story.before.tables["project_dataset_refs"]}


def test_projects_of_equal_content_share_one_dataset(story: Story):
    """Among them two projects on one path."""
    groups = [sorted(story.estate.projects[key] for key in group) for group in story.estate.equal]
    assert any({"shared_path_a", "shared_path_b"} <= group for group in story.estate.equal)

    for group in groups:
        details = [story.migrated[number] for number in group]
        assert len({detail["dataset_id"] for detail in details}) == 1
        assert sorted(detail["disposition"] for detail in details) == ["reused"] * (len(group) - 1) + [
            "stored"
        ]
    assert len({detail["dataset_id"] for detail in story.migrated.values()}) == (
        len(story.migrated) - sum(len(group) - 1 for group in groups)
    )


# A store that is not new ------------------------------------------------------------------------------------


def test_a_dry_run_predicts_what_is_reused_of_a_store_that_has_a_part_of_it(shared_site: Site):
    """Whole datasets, single files, and a dataset whose tree somebody removed by hand."""
    site = shared_site
    # Where Label itself puts projects.
    _make(site, site.data_dir, stored=(1, 2), lost=(7,))
    first = call(site, "enqueue", "--wait").details
    by_name = {detail["project_name"]: detail for detail in first.values()}
    shutil.rmtree(by_name["lost"]["dataset_path"])
    more = _make(site, site.legacy_root, equal=(1, 2), part=(2, 3), part_again=(2, 3), new=(4,), found=(7,))

    dry = call(site, "enqueue", "--dry-run", "--wait")
    real = call(site, "enqueue", "--wait")

    assert_foretold(dry, real)
    assert real.exit_code == 0
    assert {number: detail["disposition"] for number, detail in dry.details.items()} == {
        more["equal"]: "reused",
        more["part"]: "stored",
        more["part_again"]: "reused",
        more["new"]: "stored",
        more["found"]: "reused",
    }
    assert real.report["files"] == {"total": 8, "stored": 2, "reused": 6, "left": 0}
    for name, like in (("equal", "stored"), ("found", "lost")):
        for one in (dry, real):
            for key in ("dataset_id", "dataset_hash", "dataset_path"):
                assert one.details[more[name]][key] == by_name[like][key]
    assert content(by_name["lost"]["dataset_path"]) == content(by_name["lost"]["original_path"])


def _make(site: Site, place: Path, **days: tuple[int, ...]) -> dict[str, int]:
    """Projects by name with a session for each of their days; equal days have equal recordings."""
    with site.engine.begin() as conn:
        projects = {name: make_project(conn, place, name) for name in days}
        for name, project in projects.items():
            for day in days[name]:
                record_session(conn, project, f"day {day}", seed=day)
    return {name: project.project_id for name, project in projects.items()}


# Nothing to do ----------------------------------------------------------------------------------------------


def test_a_second_run_finds_nothing_to_do_and_says_so(shared_site: Site):
    _make(shared_site, shared_site.legacy_root, one=(1,), two=(2,))
    first = call(shared_site, "enqueue", "--wait")

    second = call(shared_site, "enqueue", "--wait")
    rehearsal = call(shared_site, "enqueue", "--wait", "--dry-run")

    assert (first.exit_code, first.report["projects_migrated"]) == (0, 2)
    for one in (second, rehearsal):
        assert one.exit_code == 0
        assert "Nothing to do" in one.words
        assert (one.document["plan"], one.report["details"]) == ([], [])
        counted = {key: value for key, value in one.report.items() if isinstance(value, int)}
        assert {key for key, value in counted.items() if value} <= {"schema", "dry_run"}
        assert set(one.report["bytes"].values()) | set(one.report["files"].values()) == {0}
        jsonschema.validate(one.report, report.schema_document())
