"""The main job from end to end: a dry run, the run it foretold, and what is then on disk, in the rows and in the reports."""

import hashlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import jsonschema
import pandas as pd
import pytest
import redis
from sqlalchemy import text

from producer import report
from tests.conftest import Site
from tests.estate import (
    Entry,
    Estate,
    Reading,
    differences,
    dump,
    every_form,
    make_project,
    readings,
    record_session,
    snapshot_tree,
)
from worker.sessions_csv import Reader

pytestmark = pytest.mark.stack

LEDGER = {"migration_runs", "migration_jobs", "dry_run_blobs"}
"""The tables that a dry run may write."""

POINTERS = (
    "parent_session_data_path",
    "raw_session_name",
    "dataset_id",
    "data_start_offset",
    "data_end_offset",
    "split_config_id",
)
"""The columns of sessions that a migration may change; all others are what people made."""

ABOUT_THE_ATTEMPT = {"worker", "started_at", "finished_at", "duration_s"}
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
"""Of several projects that share content, chance decides in a real run which of them is the first to store it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of `producer`: its exit code, its words, its JSON document, and the report it wrote."""

    exit_code: int
    words: str
    document: dict[str, Any]
    report: dict[str, Any]
    report_path: Path

    @property
    def details(self) -> dict[int, dict[str, Any]]:
        """What the report says of each project."""
        return {detail["project_id"]: detail for detail in self.report["details"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Everything that a run might change, at one time. `tables` are all but the ledger's."""

    tables: dict[str, list[dict[str, Any]]]
    data_dir: dict[bytes, Entry]
    legacy: dict[bytes, Entry]
    readings: dict[tuple[int, Reader], Reading]

    def by(self, table: str, key: str) -> dict[Any, dict[str, Any]]:
        """The rows of a table by one of its columns."""
        return {row[key]: row for row in self.tables[table]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One estate's way through dry run and real run, kept in memory so that later tests may empty the site."""

    estate: Estate
    before: Moment
    rehearsed: Moment
    after: Moment
    dry: Call
    real: Call
    collected: list[Call]
    without_legacy: dict[tuple[int, Reader], Reading]
    contents: dict[int, tuple[dict[bytes, bytes | None], dict[bytes, bytes | None]]]
    inodes: dict[str, set[int]]
    wrong_blobs: list[str]
    records: dict[int, int | None]

    @property
    def migrated(self) -> dict[int, dict[str, Any]]:
        """The details of the projects that were migrated."""
        return {
            number: detail for number, detail in self.real.details.items() if detail["status"] == "migrated"
        }


@pytest.fixture(scope="module")
def story(_module_site: Site) -> Story:
    """Build an estate of every form, rehearse its migration, migrate it, and look at everything after each step."""
    site = _module_site
    site.empty()
    with site.engine.begin() as conn:
        estate = every_form(
            conn, site.legacy_root, data_dir=site.data_dir, outside=site.folder / "outside the roots"
        )
    before = _look(site)
    dry = _call(site, "enqueue", "--dry-run", "--wait")
    rehearsed = _look(site, with_readings=False)
    real = _call(site, "enqueue", "--wait")
    after = _look(site)
    collected = [_call(site, "collect", real.report["run_id"][:8])]
    with redis.Redis.from_url(site.redis_url) as client:
        client.flushdb()
    collected.append(_call(site, "collect"))
    datasets = {number: detail["dataset_path"] for number, detail in real.details.items()}
    return Story(
        estate=estate,
        before=before,
        rehearsed=rehearsed,
        after=after,
        dry=dry,
        real=real,
        collected=collected,
        without_legacy=_readings_without_legacy(site),
        contents={
            number: (_content(detail["original_path"]), _content(str(datasets[number])))
            for number, detail in real.details.items()
            if detail["status"] == "migrated"
        },
        inodes={
            name: _inodes(folder)
            for name, folder in {
                "legacy": site.legacy_root,
                "trees": site.data_dir / "raw_datasets",
                "blobs": site.data_dir / "dataset_store" / "blobs",
            }.items()
        },
        records=_records_of_whole_sessions(before),
        wrong_blobs=[path.name for path in _blobs(site.data_dir) if _blake3(path) != path.name],
    )


def _call(site: Site, *args: str) -> Call:
    done = site.run_producer(*args, "--json", "--report-dir", "reports")
    return _as_call(site, done)


def _as_call(site: Site, done: subprocess.CompletedProcess[str]) -> Call:
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    path = site.folder / document["report_path"]
    return Call(
        exit_code=done.returncode,
        words=done.stderr,
        document=document,
        report=json.loads(path.read_bytes()),
        report_path=path,
    )


def _look(site: Site, *, with_readings: bool = True) -> Moment:
    with site.engine.begin() as conn:
        names = conn.scalars(text("select tablename from pg_tables where schemaname = 'public' order by 1"))
        tables = dump(conn, [name for name in names if name not in LEDGER])
        found = readings(conn, site.data_dir) if with_readings else {}
    return Moment(
        tables=tables,
        data_dir=snapshot_tree(site.data_dir),
        legacy=snapshot_tree(site.legacy_root),
        readings=found,
    )


def _readings_without_legacy(site: Site) -> dict[tuple[int, Reader], Reading]:
    """What is read when the legacy directories are not there any more."""
    aside = site.legacy_root.rename(site.folder / "legacy, put aside")
    try:
        with site.engine.connect() as conn:
            return readings(conn, site.data_dir)
    finally:
        aside.rename(site.legacy_root)


def _records_of_whole_sessions(moment: Moment) -> dict[int, int | None]:
    """How many records pandas reads from the file of each session that is not a piece of another; None for none."""
    paths = {number: row["path"] for number, row in moment.by("projects", "project_id").items()}
    return {
        row["session_id"]: _records(
            Path(paths[row["project_id"]], row["session_name"], "accelerometer_data.csv")
        )
        for row in moment.tables["sessions"]
        if not row["parent_session_data_path"] and paths[row["project_id"]]
    }


def _records(path: Path) -> int | None:
    try:
        return len(pd.read_csv(path)) or None
    except (ValueError, OSError):
        return None


def _content(root: str) -> dict[bytes, bytes | None]:
    """The SHA-256 of each file and None for each directory, by relative path; links count as what they point to."""
    found: dict[bytes, bytes | None] = {}
    top = os.fsencode(os.path.realpath(root))
    for folder, directories, files in os.walk(top, followlinks=True):
        for name in directories:
            found[os.path.relpath(os.path.join(folder, name), top)] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = hashlib.file_digest(file, "sha256").digest()
    return found


def _inodes(root: Path) -> set[int]:
    return {path.lstat().st_ino for path in _files(root)}


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)


def _blobs(data_dir: Path) -> list[Path]:
    return list(_files(data_dir / "dataset_store" / "blobs"))


def _blake3(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


def _sum(details: Mapping[int, Mapping[str, Any]], key: str) -> int:
    return sum(detail[key] for detail in details.values())


# The dry run ----------------------------------------------------------------------------------------------------


def assert_foretold(dry: Call, real: Call) -> None:
    """A dry run said what then came of every project, and all totals; a failed project came to nothing in both."""
    assert dry.details.keys() == real.details.keys()
    for number, detail in real.details.items():
        foretold = dry.details[number]
        expected = "would_migrate" if detail["status"] == "migrated" else detail["status"]
        assert (number, foretold["status"]) == (number, expected)
        for key in detail.keys() - ABOUT_THE_ATTEMPT - ABOUT_THE_STORING - BY_CHANCE:
            assert (number, key, foretold[key]) == (number, key, detail[key])
        assert foretold["files"]["total"] == detail["files"]["total"]
    for key in real.report.keys() - {"run_id", "dry_run", "start_time", "end_time", "details"}:
        assert (key, dry.report[key]) == (key, real.report[key])
    assert dry.exit_code == real.exit_code


def test_the_dry_run_foretells_what_becomes_of_every_project_and_all_totals(story: Story):
    assert_foretold(story.dry, story.real)


def test_the_dry_run_foretells_the_place_of_every_dataset_that_is_not_shared(story: Story):
    sharers = Counter(detail["dataset_hash"] for detail in story.migrated.values())

    for number, detail in story.migrated.items():
        if sharers[detail["dataset_hash"]] == 1:
            assert story.dry.details[number]["dataset_path"] == detail["dataset_path"]
            assert story.dry.details[number]["dataset_created"] == detail["dataset_created"]


def test_of_equal_projects_the_dry_run_lets_the_lowest_id_store(story: Story):
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


# The report -----------------------------------------------------------------------------------------------------


def test_every_report_obeys_its_schema_and_adds_up(story: Story):
    schema = report.schema_document()

    for call in (story.dry, story.real, *story.collected):
        jsonschema.validate(call.report, schema, format_checker=jsonschema.FormatChecker())
        report.check_totals(call.report)
        assert call.report_path.with_suffix(".html").exists()


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
        assert f"left out: {story.estate.projects[key]} Study {key}: {reasons[key]}" in story.real.words


def test_failures_are_told_with_the_remedy_and_give_exit_code_3(story: Story):
    assert story.real.exit_code == 3
    for one in story.real.report["errors"]:
        assert one["error"] in story.real.words
        assert one["remedy"] in story.real.words


def test_totals_of_the_report_are_those_of_the_disk(story: Story):
    sizes = [entry.size_bytes for name, entry in story.after.data_dir.items() if _is_blob(name, entry)]
    read = sum(
        entry.size_bytes
        for number in story.migrated
        for entry in _tree(story.after.data_dir, story.real.details[number]["dataset_path"]).values()
        if entry.kind == "file"
    )

    counted = story.real.report["bytes"]
    assert counted == {
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

    assert len({call.report_path.read_bytes() for call in calls}) == 1
    assert len({call.report_path.with_suffix(".html").read_bytes() for call in calls}) == 1
    assert len({call.report_path for call in calls}) == 3
    assert [call.exit_code for call in calls] == [3, 3, 3]


def test_collecting_after_the_broker_was_emptied_takes_everything_from_the_ledger(story: Story):
    assert story.collected[-1].report == story.real.report


# The disk -------------------------------------------------------------------------------------------------------


def test_legacy_directories_are_left_as_they_are(story: Story):
    """Names, bytes, modes, times and link counts."""
    assert story.after.legacy == story.before.legacy


def test_every_stored_tree_equals_its_legacy_directory_byte_for_byte(story: Story):
    assert len(story.contents) == len(story.estate.migrating)
    for number, (legacy, stored) in story.contents.items():
        assert (number, stored) == (number, legacy)


def test_stored_trees_and_blobs_are_read_only_and_named_by_their_content(story: Story):
    for detail in story.migrated.values():
        for name, entry in _tree(story.after.data_dir, detail["dataset_path"]).items():
            wanted = {"directory": 0o555, "file": 0o444}
            assert (name, entry.mode) == (name, wanted.get(entry.kind))
    assert {entry.mode for name, entry in story.after.data_dir.items() if _is_blob(name, entry)} == {0o444}
    assert story.wrong_blobs == []


def test_stored_trees_share_their_files_with_the_blobs_and_never_with_a_legacy_directory(story: Story):
    """The application rewrites legacy files in place; a link would change the stored bytes, too."""
    assert not story.inodes["trees"] & story.inodes["legacy"]
    assert not story.inodes["blobs"] & story.inodes["legacy"]
    assert story.inodes["blobs"] <= story.inodes["trees"]


def test_nothing_but_trees_blobs_and_manifests_is_left_in_the_data_directory(story: Story):
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
        *(f"dataset_store/manifests/{digest}.json".encode() for digest in manifests),
    }


# The rows -------------------------------------------------------------------------------------------------------


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
        assert story.real.report["start_time"] <= date <= story.real.report["end_time"]
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
        tree = _tree(story.after.data_dir, dataset["file_path"])
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


# A store that is not new ----------------------------------------------------------------------------------------


def test_a_dry_run_foretells_what_is_reused_of_a_store_that_holds_a_part_of_it(shared_site: Site):
    """Whole datasets, single files, and a dataset whose tree somebody removed by hand."""
    site = shared_site
    # Where Label itself puts projects.
    _make(site, site.data_dir, stored=(1, 2), lost=(7,))
    first = _call(site, "enqueue", "--wait").details
    by_name = {detail["project_name"]: detail for detail in first.values()}
    shutil.rmtree(by_name["lost"]["dataset_path"])
    more = _make(site, site.legacy_root, equal=(1, 2), part=(2, 3), part_again=(2, 3), new=(4,), found=(7,))

    dry = _call(site, "enqueue", "--dry-run", "--wait")
    real = _call(site, "enqueue", "--wait")

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
        for call in (dry, real):
            for key in ("dataset_id", "dataset_hash", "dataset_path"):
                assert call.details[more[name]][key] == by_name[like][key]
    assert _content(by_name["lost"]["dataset_path"]) == _content(by_name["lost"]["original_path"])


def _make(site: Site, place: Path, **days: tuple[int, ...]) -> dict[str, int]:
    """Projects by name with a session for each of their days; equal days have equal recordings."""
    with site.engine.begin() as conn:
        projects = {name: make_project(conn, place, name) for name in days}
        for name, project in projects.items():
            for day in days[name]:
                record_session(conn, project, f"day {day}", seed=day)
    return {name: project.project_id for name, project in projects.items()}


# Nothing to do --------------------------------------------------------------------------------------------------


def test_a_second_run_finds_nothing_to_do_and_says_so(shared_site: Site):
    _make(shared_site, shared_site.legacy_root, one=(1,), two=(2,))
    first = _call(shared_site, "enqueue", "--wait")

    second = _call(shared_site, "enqueue", "--wait")
    rehearsal = _call(shared_site, "enqueue", "--wait", "--dry-run")

    assert (first.exit_code, first.report["projects_migrated"]) == (0, 2)
    for call in (second, rehearsal):
        assert call.exit_code == 0
        assert "Nothing to do" in call.words
        assert (call.document["plan"], call.report["details"]) == ([], [])
        counted = {key: value for key, value in call.report.items() if isinstance(value, int)}
        assert {key for key, value in counted.items() if value} <= {"schema", "dry_run"}
        assert set(call.report["bytes"].values()) | set(call.report["files"].values()) == {0}
        jsonschema.validate(call.report, report.schema_document())


def _tree(data_dir: Mapping[bytes, Entry], path: str) -> dict[bytes, Entry]:
    """The entries of one stored tree by their names in it; `.` is the tree itself."""
    top = b"raw_datasets/" + os.fsencode(os.path.basename(path))
    inside = {name.removeprefix(top + b"/"): e for name, e in data_dir.items() if name.startswith(top + b"/")}
    return {b".": data_dir[top], **inside}


def _is_blob(name: bytes, entry: Entry) -> bool:
    return name.startswith(b"dataset_store/blobs/") and entry.kind == "file"
