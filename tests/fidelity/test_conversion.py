"""What a migration makes of an estate in every form: label contract 6.1, item by item, and that people lose
nothing.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.estate import (
    Entry,
    Estate,
    Reading,
    differences,
    dump,
    every_form,
    readings,
    snapshot_tree,
)
from tests.estate.compare import CONVERTED_TABLES, LABEL_TABLES
from tests.support.model import POINTERS, Migrated, Row, Tree, by_key, grouped, migrated, parsed
from tests.support.runs import run, tools_of
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb
from worker.sessions_csv import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Everything that a run might change, at one time."""

    tables: dict[str, list[Row]]
    readings: dict[tuple[int, Reader], Reading]
    legacy: dict[bytes, Entry]

    @property
    def projects(self) -> dict[int, Row]:
        """Projects by id."""
        return by_key(self.tables["projects"], "project_id")

    @property
    def sessions(self) -> dict[int, Row]:
        """Sessions by id."""
        return by_key(self.tables["sessions"], "session_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """An estate's way to the store, back, and there again, kept in memory."""

    estate: Estate
    site: Site
    before: Moment
    migrated: Moment
    without_legacy: dict[tuple[int, Reader], Reading]
    rolled_back: Moment
    again: Moment
    outcomes: dict[int, Outcome]
    back_outcomes: dict[int, Outcome]
    again_outcomes: dict[int, Outcome]
    trees: dict[int, Tree]
    store_entries: dict[bytes, Entry]
    inodes: dict[str, set[int]] = field(default_factory=dict)

    @property
    def moved(self) -> dict[int, Outcome]:
        """The outcomes of the projects that were migrated."""
        return {number: one for number, one in self.outcomes.items() if one.status is Status.MIGRATED}

    def expected(self, number: int, moment: Moment) -> Migrated:
        """What the contract says one project's rows are after the migration that `moment` shows."""
        configs = grouped(moment.tables["project_split_configs"], "project_id").get(number, [])
        found = parsed(moment.projects[number]["analysis_config"])
        dataset = by_key(moment.tables["raw_datasets"], "dataset_id")[found["dataset_id"]]
        old = self.before.projects[number]
        return migrated(
            old,
            grouped(self.before.tables["sessions"], "project_id").get(number, []),
            self.trees[number],
            dataset,
            written={
                "migrated_from": "legacy",
                "migration_date": found["migration_date"],
                "original_path": old["path"],
                "dataset_id": dataset["dataset_id"],
                "run_id": found["run_id"],
            },
            config_ids={row["raw_session_name"]: row["config_id"] for row in configs},
        )


@pytest.fixture(scope="module")
def story(module_site: Site) -> Iterator[Story]:
    """Migrate an estate, look with and without its legacy directories, roll it back, migrate it again."""
    with tools_of(module_site) as tools:
        yield _tell(module_site, tools)


def _tell(site: Site, tools: Tools) -> Story:
    with site.engine.begin() as conn:
        estate = every_form(
            conn, site.legacy_root, data_dir=site.data_dir, outside=site.folder / "outside the roots"
        )
    before = _look(site)
    trees = {number: Tree.of(str(estate.paths[key])) for key, number in estate.migrating.items()}
    outcomes = run(tools, Verb.MIGRATE)
    after = _look(site)
    without_legacy = _readings_without_legacy(site)
    inodes = {
        "legacy": _inodes(site.legacy_root),
        "trees": _inodes(site.data_dir / "raw_datasets"),
        "blobs": _inodes(site.data_dir / "dataset_store" / "blobs"),
    }
    back_outcomes = run(tools, Verb.ROLLBACK)
    rolled_back = _look(site)
    again_outcomes = run(tools, Verb.MIGRATE)
    return Story(
        estate=estate,
        site=site,
        before=before,
        migrated=after,
        without_legacy=without_legacy,
        rolled_back=rolled_back,
        again=_look(site, with_readings=False),
        outcomes=outcomes,
        back_outcomes=back_outcomes,
        again_outcomes=again_outcomes,
        trees=trees,
        store_entries=snapshot_tree(site.data_dir / "raw_datasets"),
        inodes=inodes,
    )


def _look(site: Site, *, with_readings: bool = True) -> Moment:
    with site.engine.connect() as conn:
        return Moment(
            tables=dump(conn, CONVERTED_TABLES),
            readings=readings(conn, site.data_dir) if with_readings else {},
            legacy=snapshot_tree(site.legacy_root),
        )


def _readings_without_legacy(site: Site) -> dict[tuple[int, Reader], Reading]:
    aside = site.legacy_root.rename(site.folder / "legacy, put aside")
    try:
        with site.engine.connect() as conn:
            return readings(conn, site.data_dir)
    finally:
        aside.rename(site.legacy_root)


def _inodes(root: Path) -> set[int]:
    return {
        os.lstat(os.path.join(folder, name)).st_ino for folder, _, names in os.walk(root) for name in names
    }


# Items 1 to 9 of the contract -------------------------------------------------------------------------------


def test_every_project_that_can_be_migrated_is_migrated(story: Story):
    assert story.moved.keys() == set(story.estate.migrating.values())
    assert {story.outcomes[story.estate.projects[key]].error_class for key in story.estate.failing} == {
        error.__name__ for error in story.estate.failing.values()
    }


def test_item_1_the_project_refers_to_its_dataset_and_has_no_path(story: Story):
    refs = grouped(story.migrated.tables["project_dataset_refs"], "project_id")
    runs = {parsed(story.migrated.projects[number]["analysis_config"])["run_id"] for number in story.moved}

    assert len(runs) == 1
    for number, outcome in story.moved.items():
        found = story.migrated.projects[number]
        assert (
            found | {"analysis_config": parsed(found["analysis_config"])}
            == story.expected(number, story.migrated).project
        )
        assert [row["dataset_id"] for row in refs[number]] == [outcome.dataset_id]


@pytest.mark.parametrize(
    "key",
    ["recorded", "config_object", "config_json_null", "config_list", "config_string", "config_our_keys"],
)
def test_item_1_analysis_config_keeps_the_keys_it_had(story: Story, key: str):
    number = story.estate.projects[key]
    config = parsed(story.migrated.projects[number]["analysis_config"])
    former = parsed(story.before.projects[number]["analysis_config"])

    ours = {"migrated_from", "migration_date", "original_path", "dataset_id", "run_id"}
    assert config["migrated_from"] == "legacy"
    assert config["original_path"] == story.before.projects[number]["path"]
    kept = {name: value for name, value in config.items() if name not in ours}
    assert kept == (
        {name: value for name, value in former.items() if name not in ours}
        if isinstance(former, dict)
        else {}
    )


def test_item_2_every_dataset_has_a_directory_of_its_own_where_the_plot_looks(story: Story):
    datasets = [
        row
        for row in story.migrated.tables["raw_datasets"]
        if row["dataset_id"] in {outcome.dataset_id for outcome in story.moved.values()}
    ]
    base_names = [os.path.basename(row["file_path"]) for row in datasets]

    assert len(set(base_names)) == len(base_names)
    for row in datasets:
        assert os.path.dirname(row["file_path"]) == str(story.site.data_dir / "raw_datasets")
        assert "raw_datasets/raw_datasets" not in row["file_path"]
        assert os.path.basename(row["file_path"]).endswith(row["dataset_hash"][:12])


def test_item_3_every_immediate_subdirectory_has_a_row(story: Story):
    datasets = by_key(story.migrated.tables["raw_datasets"], "dataset_id")
    rows = grouped(story.migrated.tables["raw_dataset_sessions"], "dataset_id")

    for number, outcome in story.moved.items():
        dataset = datasets[outcome.dataset_id]
        found = by_key(rows[outcome.dataset_id], "session_name")
        assert found.keys() == story.trees[number].names
        assert dataset["session_count"] == len(found)
        for name, row in found.items():
            assert row["session_path"] == f"{dataset['file_path']}/{name}"


def test_items_4_and_5_every_session_is_pointed_at_the_store(story: Story):
    """Split parents and discarded ones, too; pieces keep their offsets, whole ones get 0 and N."""
    sessions = grouped(story.migrated.tables["sessions"], "project_id")
    hidden = 0

    for number in story.moved:
        expected = story.expected(number, story.migrated)
        assert (number, sessions.get(number, [])) == (number, expected.sessions)
        hidden += sum(row["status"] == "Split" and row["dataset_id"] is not None for row in expected.sessions)
    assert hidden > 10


def test_item_6_what_cannot_be_judged_is_left_alone_and_named(story: Story):
    left_alone = set()
    for number, outcome in story.moved.items():
        untouched = story.expected(number, story.migrated).untouched
        left_alone |= untouched
        named = {warning.session for warning in outcome.warnings if "left as it is" in warning.message}
        assert named == {story.before.sessions[one]["session_name"] for one in untouched}

    assert left_alone == story.estate.unmoved
    for number in left_alone:
        assert story.migrated.sessions[number] == story.before.sessions[number]


@pytest.mark.parametrize(
    ("key", "session", "reason"),
    [
        ("missing_session", "2025-07-08_08_30_00", "its directory is missing: 2025-07-08_08_30_00"),
        ("missing_session", "2025-07-09_08_30_00.1", "its directory is missing: 2025-07-09_08_30_00"),
        (
            "foreign_parent",
            "outside",
            "its parent path is not directly below the project's: {outside}/elsewhere",
        ),
        (
            "foreign_parent",
            "relative",
            "its parent path is not directly below the project's: 2025-07-01_08_30_00",
        ),
        (
            "offsets_beyond",
            "2025-07-01_08_30_00.1",
            "its offsets end at 500, past the 20 records of its recording",
        ),
        ("rough_recordings", "no recording", "its recording has no records or cannot be read"),
        ("rough_recordings", "garbage", "its recording has no records or cannot be read"),
        ("labels", "no_text", "labels.json is not text"),
        ("labels", "with_nul", "labels.json is not text"),
    ],
)
def test_item_6_warnings_name_session_and_reason(story: Story, key: str, session: str, reason: str):
    outcome = story.outcomes[story.estate.projects[key]]

    found = [one.message for one in outcome.warnings if one.session == session]

    assert len(found) == 1
    assert reason.format(outside=story.estate.outside) in found[0]


def test_a_project_without_oddities_has_no_warnings(story: Story):
    for key in ("recorded", "uploaded", "gapped", "auto_split", "manual_split", "dotted", "bouts", "states"):
        assert (key, story.outcomes[story.estate.projects[key]].warnings) == (key, ())


def test_item_7_what_people_made_is_untouched_to_the_byte(story: Story):
    for moment in (story.migrated, story.again):
        for table in ("participants", "session_lineage", "models"):
            assert moment.tables[table] == story.before.tables[table]
        for number, row in moment.sessions.items():
            assert _without(row, POINTERS) == _without(story.before.sessions[number], POINTERS)
        for number, row in moment.projects.items():
            pointers = ("path", "legacy_path", "project_type", "analysis_config")
            assert _without(row, pointers) == _without(story.before.projects[number], pointers)


def test_item_8_legacy_directories_are_left_as_they_are(story: Story):
    for moment in (story.migrated, story.rolled_back, story.again):
        assert moment.legacy == story.before.legacy


def test_item_9_the_store_is_read_only_and_shares_no_file_with_a_legacy_directory(story: Story):
    stored = {os.path.basename(str(one.dataset_path)).encode() for one in story.moved.values()}
    entries = {
        name: entry for name, entry in story.store_entries.items() if name.partition(b"/")[0] in stored
    }

    modes = {(entry.kind, entry.mode) for entry in entries.values()}
    assert modes == {("directory", 0o555), ("file", 0o444)}
    assert not (story.inodes["trees"] | story.inodes["blobs"]) & story.inodes["legacy"]


def test_projects_that_are_not_migrated_keep_every_row(story: Story):
    for number, row in story.migrated.projects.items():
        if number not in story.moved:
            assert row == story.before.projects[number]
    for number, row in story.migrated.sessions.items():
        if row["project_id"] not in story.moved:
            assert row == story.before.sessions[number]


# Split configs and the before-image -------------------------------------------------------------------------


def test_every_raw_session_with_pieces_has_one_split_config(story: Story):
    configs = grouped(story.migrated.tables["project_split_configs"], "project_id")
    expected = {number: story.expected(number, story.migrated) for number in story.moved}

    assert configs.keys() == {number for number, one in expected.items() if one.segments}
    for number, rows in configs.items():
        assert {row["raw_session_name"]: parsed(row["split_parameters"]) for row in rows} == {
            raw: {"source": "migration", "segments": segments}
            for raw, segments in expected[number].segments.items()
        }
        assert len({row["raw_session_name"] for row in rows}) == len(rows)
        assert {(row["dataset_id"], row["split_strategy"]) for row in rows} == {
            (story.moved[number].dataset_id, "custom")
        }


def test_the_before_image_holds_the_old_value_of_every_column_that_changed(story: Story):
    images = {
        row["project_id"]: row | {"before": json.loads(row["before"])}
        for row in story.migrated.tables["project_conversions"]
    }

    assert images.keys() == story.moved.keys()
    for number, image in images.items():
        old, before = story.before.projects[number], image["before"]
        assert {key: before[key] for key in ("path", "legacy_path", "project_type")} == {
            key: old[key] for key in ("path", "legacy_path", "project_type")
        }
        assert before["analysis_config_is_null"] == (old["analysis_config"] is None)
        assert before["analysis_config"] == json.loads(old["analysis_config"] or "null")
        recorded = {change["session_id"]: change for change in before["sessions"]}
        for change in recorded.values():
            session = change["session_id"]
            assert change["before"] == _only(story.before.sessions[session], POINTERS)
            assert change["after"] == _only(story.migrated.sessions[session], POINTERS)
        changed = {
            session
            for session, row in story.migrated.sessions.items()
            if row["project_id"] == number and row != story.before.sessions[session]
        }
        assert changed <= recorded.keys()


# What the application reads, and the way back ---------------------------------------------------------------


def test_every_session_reads_as_before_with_and_without_legacy_directories(story: Story):
    """I6; what was unreadable stays so, what led elsewhere still does."""
    elsewhere = {
        number for number, row in story.before.sessions.items() if row["project_id"] not in story.moved
    }
    own = {
        key: reading
        for key, reading in story.before.readings.items()
        if key[0] not in elsewhere | story.estate.unmoved
    }

    assert differences(story.before.readings, story.migrated.readings) == []
    assert differences(own, story.without_legacy) == []
    assert sum(reading is not None for reading in own.values()) > 400
    assert sum(reading is None for reading in own.values()) > 10


def test_a_rollback_gives_every_row_of_label_back_and_every_session_reads_as_before(story: Story):
    assert {one.status for one in story.back_outcomes.values()} == {Status.ROLLED_BACK}
    assert story.back_outcomes.keys() == story.moved.keys()
    for table in LABEL_TABLES:
        assert (table, story.rolled_back.tables[table]) == (table, story.before.tables[table])
    for table in ("project_dataset_refs", "project_split_configs"):
        assert story.rolled_back.tables[table] == story.before.tables[table]
    assert differences(story.before.readings, story.rolled_back.readings) == []


def test_a_rollback_leaves_datasets_and_their_files(story: Story):
    for table in ("raw_datasets", "raw_dataset_sessions"):
        assert story.rolled_back.tables[table] == story.migrated.tables[table]


def test_migrating_again_stores_nothing_new_and_makes_equal_rows(story: Story):
    again = {n: one for n, one in story.again_outcomes.items() if one.status is Status.MIGRATED}

    assert again.keys() == story.moved.keys()
    assert {(one.dataset_created, one.bytes.stored, one.files.stored) for one in again.values()} == {
        (False, 0, 0)
    }
    assert {n: one.warnings for n, one in again.items()} == {
        n: one.warnings for n, one in story.moved.items()
    }
    sessions = grouped(story.again.tables["sessions"], "project_id")
    for number in again:
        expected = story.expected(number, story.again)
        found = story.again.projects[number]
        assert found | {"analysis_config": parsed(found["analysis_config"])} == expected.project
        assert sessions.get(number, []) == expected.sessions


def _without(row: Row, columns: tuple[str, ...]) -> Row:
    return {key: value for key, value in row.items() if key not in columns}


def _only(row: Row, columns: tuple[str, ...]) -> Row:
    return {key: row[key] for key in columns}
