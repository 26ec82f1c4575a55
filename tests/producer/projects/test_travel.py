"""A project goes to another server that has its datasets, and every session of it reads the same there."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from producer.projects import project_file
from producer.projects.exported import export
from producer.projects.imported import Imported, import_project
from tests.estate import Reading, dump, every_form, readings
from tests.estate.compare import CONVERTED_TABLES
from tests.support.runs import migrate_all, run, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.db import projects
from worker.errors import DatasetsMissingError, MigratorError, ProjectFileError, UsageError
from worker.messages import Status, Verb
from worker.sessions_csv import Reader

Document = dict[str, Any]

PAST_THE_END = "Study offsets_beyond"
"""Has sessions that begin where their recording has ended."""

OF_ONE_SERVER = {
    *("session_id", "project_id", "dataset_id", "parent_session_data_path", "split_config_id"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Two servers with the same recordings, and the projects of the first that were migrated, by id."""

    here: Site
    there: Site
    migrated: Mapping[int, str]


@pytest.fixture(scope="module")
def lab(make_site: Callable[[], AbstractContextManager[Site]]) -> Iterator[Lab]:
    with make_site() as here, make_site() as there:
        with there.engine.begin() as conn:
            # Nothing has the same number on both.
            for table, key in (
                ("projects", "project_id"),
                ("sessions", "session_id"),
                ("raw_datasets", "dataset_id"),
            ):
                conn.execute(text(f"select setval(pg_get_serial_sequence('{table}', '{key}'), 5000)"))
        done: dict[int, str] = {}
        for site in (there, here):
            with site.engine.begin() as conn:
                every_form(conn, site.legacy_root, data_dir=site.data_dir, outside=site.folder / "outside")
            with tools_of(site) as tools:
                done = {
                    number: one.project_name or ""
                    for number, one in run(tools, Verb.MIGRATE).items()
                    if one.status is Status.MIGRATED
                }
        yield Lab(here=here, there=there, migrated=done)


def carried(document: Mapping[str, Any]) -> Document:
    """As a file carries it."""
    found: Document = json.loads(json.dumps(document))
    return found


def taken_in(site: Site, document: Mapping[str, Any], **options: Any) -> Imported:
    return import_project(
        site.settings, site.engine, project_file.check(carried(document), "the file"), **options
    )


def sessions(site: Site, project_id: int | None) -> dict[str, Document]:
    with site.engine.connect() as conn:
        rows = conn.scalars(
            text("select to_jsonb(s) from sessions s where project_id = :id order by session_id"),
            {"id": project_id},
        )
        return {row["session_name"]: row for row in rows}


def lineage(site: Site, project_id: int | None) -> set[tuple[str, str]]:
    with site.engine.connect() as conn:
        rows = conn.execute(
            text(
                "select c.session_name as child, p.session_name as parent from session_lineage l"
                " join sessions c on c.session_id = l.child_session_id join sessions p on p.session_id = l.parent_session_id"
                " where c.project_id = :id"
            ),
            {"id": project_id},
        )
        return {(row.child, row.parent) for row in rows}


def read(site: Site, project_id: int | None) -> dict[tuple[str, Reader], Reading]:
    names = {row["session_id"]: name for name, row in sessions(site, project_id).items()}
    with site.engine.connect() as conn:
        found = readings(conn, site.data_dir, project_id=project_id)
    return {(names[number], reader): rows for (number, reader), rows in found.items()}


def same(one: Reading, other: Reading) -> bool:
    return one is other if one is None or other is None else one.equals(other)


def without(row: Mapping[str, Any], names: set[str]) -> Document:
    return {name: value for name, value in row.items() if name not in names}


# There and back ---------------------------------------------------------------------------------------------


def test_every_migrated_project_is_the_same_on_another_server(lab: Lab):
    assert len(lab.migrated) > 40
    for number in lab.migrated:
        sent = export(lab.here.engine, number)
        made = taken_in(lab.there, sent.document)
        before, after = sessions(lab.here, number), sessions(lab.there, made.project_id)
        assert not made.left_out
        assert {name: without(row, OF_ONE_SERVER) for name, row in after.items()} == {
            name: without(row, OF_ONE_SERVER) for name, row in before.items()
        }
        assert {name: row["dataset_id"] is None for name, row in after.items()} == {
            name: row["dataset_id"] is None for name, row in before.items()
        }
        assert lineage(lab.there, made.project_id) == lineage(lab.here, number)
        lost = {
            name
            for name, row in before.items()
            if f"session {name} reads from no dataset" in str(sent.warnings)
        }
        here, there = read(lab.here, number), read(lab.there, made.project_id)
        for key, rows in here.items():
            assert key[0] in lost or same(rows, there[key]), (lab.migrated[number], key)


def test_by_labels_format_alone_every_kept_session_reads_the_same(lab: Lab):
    for number in lab.migrated:
        document = without(carried(export(lab.here.engine, number).document), {"migrator"})
        if any(one["dataset_hash"] is None for one in document["datasets"]):
            continue
        if lab.migrated[number] == PAST_THE_END:
            with pytest.raises(ProjectFileError, match=r"begins at row 20 of .*, which has 20 rows"):
                taken_in(lab.there, document)
            continue
        made = taken_in(lab.there, document)
        before = {name: row for name, row in sessions(lab.here, number).items() if row["keep"] is not False}
        after = sessions(lab.there, made.project_id)
        left = {one.session_name for one in made.left_out}
        assert after.keys() | left == before.keys()
        here, there = read(lab.here, number), read(lab.there, made.project_id)
        for name, row in after.items():
            assert [row[key] for key in ("start_ns", "stop_ns", "data_start_offset", "data_end_offset")] == [
                before[name][key] for key in ("start_ns", "stop_ns", "data_start_offset", "data_end_offset")
            ]
            assert bool(row["verified"]) == bool(before[name]["verified"])
            place = before[name]["parent_session_data_path"] or ""
            if place.startswith(str(lab.here.data_dir / "raw_datasets")):
                assert all(same(here[name, reader], there[name, reader]) for reader in Reader), name
        assert not lineage(lab.there, made.project_id)


# What a file may not say ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A migrated project of two sessions, and its export."""

    site: Site
    project_id: int
    document: Document


@pytest.fixture(scope="module")
def study(make_site: Callable[[], AbstractContextManager[Site]]) -> Iterator[Study]:
    with make_site() as site:
        plain_study(site, "study", 1, 2, rows=30)
        with tools_of(site) as tools:
            (outcome,) = migrate_all(site, tools)
        yield Study(
            site=site,
            project_id=outcome.project_id or 0,
            document=carried(export(site.engine, outcome.project_id or 0).document),
        )


def edited(study: Study, edit: Callable[[Document], object]) -> Document:
    document = carried(study.document)
    edit(document)
    return document


def label_only(edit: Callable[[Document], object]) -> Callable[[Document], object]:
    def both(document: Document) -> None:
        del document["migrator"]
        edit(document)

    return both


BAD: Mapping[str, tuple[Callable[[Document], object], type[MigratorError], str]] = {
    "other type": (lambda d: d.update(export_type="labels"), ProjectFileError, 'export_type is "labels"'),
    "no type": (lambda d: d.pop("export_type"), ProjectFileError, "export_type is null"),
    "version 1.0": (lambda d: d.update(export_version="1.0"), ProjectFileError, "names no datasets"),
    "no version": (lambda d: d.pop("export_version"), ProjectFileError, "names no datasets"),
    "version 3.0": (lambda d: d.update(export_version="3.0"), ProjectFileError, 'is "3.0"'),
    "no datasets": (lambda d: d.update(datasets=[]), ProjectFileError, "datasets is empty"),
    "no name": (lambda d: d["project"].pop("project_name"), ProjectFileError, "project.project_name"),
    "name too long": (
        lambda d: d["project"].update(project_name="n" * 256),
        ProjectFileError,
        "project.project_name: String should have at most 255",
    ),
    "a number for a name": (
        lambda d: d["sessions"][1].update(session_name=7),
        ProjectFileError,
        r"sessions\[1\].session_name",
    ),
    "a session twice": (
        label_only(lambda d: d["sessions"].append(d["sessions"][0])),
        ProjectFileError,
        "more than one session of the name 'day 1'",
    ),
    "a session twice in ours": (
        lambda d: d["migrator"]["sessions"].append(d["migrator"]["sessions"][0]),
        ProjectFileError,
        "more than one session of the name 'day 1'",
    ),
    "one offset": (
        label_only(lambda d: d["sessions"][0]["virtual_split_info"].update(data_end_offset=None)),
        ProjectFileError,
        "one of data_start_offset and data_end_offset is null",
    ),
    "offsets the wrong way round": (
        lambda d: d["migrator"]["sessions"][0]["columns"].update(data_start_offset=31),
        ProjectFileError,
        "is after data_end_offset",
    ),
    "negative offset": (
        lambda d: d["sessions"][0]["virtual_split_info"].update(data_start_offset=-1),
        ProjectFileError,
        "data_start_offset",
    ),
    "a range past the recording": (
        label_only(
            lambda d: d["sessions"][0]["virtual_split_info"].update(data_start_offset=30, data_end_offset=40)
        ),
        ProjectFileError,
        "day 1 begins at row 30 of day 1, which has 30 rows",
    ),
    "a dataset that the list has not": (
        label_only(lambda d: d["sessions"][0].update(dataset_id=99)),
        ProjectFileError,
        "'day 1' has dataset_id 99",
    ),
    "lineage of nothing": (
        lambda d: d["migrator"]["lineage"].append({"child": 1, "parent": 99}),
        ProjectFileError,
        "lineage names session 1 or 99",
    ),
    "a time beyond 64 bits": (
        label_only(lambda d: d["sessions"][0].update(stop_ns=2**63)),
        ProjectFileError,
        r"sessions\[0\].stop_ns",
    ),
    "a time that is no number": (
        lambda d: d["migrator"]["sessions"][0]["columns"].update(stop_ns="soon"),
        ProjectFileError,
        "invalid input syntax for type bigint",
    ),
    "bouts that are no list": (
        label_only(lambda d: d["sessions"][0].update(bouts={"start": 1})),
        ProjectFileError,
        r"sessions\[0\].bouts: Input should be a valid list",
    ),
    "one dataset twice": (
        lambda d: d["datasets"].append(d["datasets"][0]),
        ProjectFileError,
        "datasets has one dataset_id more than once",
    ),
    "a dataset that is no number": (
        lambda d: d["migrator"]["sessions"][0]["columns"].update(dataset_id=[1]),
        ProjectFileError,
        "'day 1' has a dataset that is not in datasets",
    ),
    "a dataset that is not here": (
        lambda d: [
            one.update(dataset_hash="0" * 64, label_hash=None)
            for one in (*d["datasets"], *d["migrator"]["datasets"])
        ],
        DatasetsMissingError,
        "1 of 1 datasets are not here: .*0{64}",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_a_file_may_not_say_is_named_and_nothing_is_written(study: Study, what: str):
    edit, kind, reason = BAD[what]
    with study.site.engine.connect() as conn:
        before = dump(conn, CONVERTED_TABLES)
    with pytest.raises(kind, match=reason):
        taken_in(study.site, edited(study, edit))
    with study.site.engine.connect() as conn:
        assert dump(conn, CONVERTED_TABLES) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"export_type": ', "is not JSON"),
        (b"[1, 2]", "is an object, not list"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(ProjectFileError, match=rf"study\.json.* {reason}"):
        project_file.load(tmp_path / "study.json")


def test_a_file_that_is_too_large_or_absent_is_named(tmp_path: Path):
    with (tmp_path / "study.json").open("wb") as file:
        file.truncate(500_000_000)
    with pytest.raises(ProjectFileError, match=r"study\.json has 500 MB"):
        project_file.load(tmp_path / "study.json")
    with pytest.raises(ProjectFileError, match=r"Cannot read .*nothing\.json: No such file"):
        project_file.load(tmp_path / "nothing.json")


def test_the_shipped_schema_is_that_of_the_file():
    shipped = Path(project_file.__file__).with_name("project_schema.json")
    assert json.loads(shipped.read_text()) == project_file.ProjectFile.model_json_schema()


# What becomes of it -----------------------------------------------------------------------------------------


def test_a_dry_run_does_everything_and_leaves_nothing(study: Study):
    with study.site.engine.connect() as conn:
        before = dump(conn, CONVERTED_TABLES)
    made = taken_in(study.site, study.document, name="rehearsed", dry_run=True)
    assert (made.sessions, made.project_name) == (2, "rehearsed")
    with study.site.engine.connect() as conn:
        assert dump(conn, CONVERTED_TABLES) == before


def test_a_name_that_is_taken_is_changed_unless_it_was_asked_for(study: Study):
    made = taken_in(study.site, study.document)
    assert made.project_name.startswith("study_imported_20")
    with pytest.raises(UsageError, match="'study' already"):
        taken_in(study.site, study.document, name="study")
    assert taken_in(study.site, study.document, name="another").project_name == "another"
    with pytest.raises(UsageError, match="code has 1 to 50 characters, this one 51"):
        taken_in(study.site, study.document, participant="P" * 51)


def test_rollback_leaves_an_imported_project_alone(study: Study):
    made = taken_in(study.site, study.document, name="left alone", participant="P777")
    with study.site.engine.connect() as conn:
        row = conn.execute(
            text("select * from projects join participants using (participant_id) where project_id = :id"),
            {"id": made.project_id},
        ).one()
        converted = projects.converted(conn)
    assert (row.path, row.legacy_path, row.project_type) == (None, None, "dataset_based")
    assert row.participant_code == "P777"
    assert "migrated_from" not in row.analysis_config
    assert row.analysis_config["imported_from"]["project_name"] == "study"
    assert made.project_id not in {one.project_id for one in converted}


def test_keys_that_are_not_known_are_kept_and_named(study: Study):
    def edit(document: Document) -> None:
        document["colour"] = "blue"
        document["sessions"][0]["mood"] = {"good": 1}

    made = taken_in(study.site, edited(study, edit), name="with keys")
    assert list(made.unknown) == ["colour", "sessions[0].mood"]
    with study.site.engine.connect() as conn:
        config = conn.scalar(
            text("select analysis_config from projects where project_id = :id"), {"id": made.project_id}
        )
    assert config["import_unknown"] == {"colour": "blue", "sessions[0].mood": {"good": 1}}


def test_a_dataset_is_found_by_labels_hash_although_it_was_never_computed_here(study: Study):
    document = edited(study, label_only(lambda _document: None))
    with study.site.engine.begin() as conn:
        conn.execute(text("delete from migration_label_hashes"))
    made = taken_in(study.site, document, name="by another's hash")
    assert made.sessions == 2
    with study.site.engine.connect() as conn:
        assert (
            conn.scalar(text("select label_hash from migration_label_hashes"))
            == (document["datasets"][0]["dataset_hash"])
        )


def test_a_session_whose_recording_the_dataset_lacks_is_left_out_by_name(study: Study):
    def edit(document: Document) -> None:
        document["sessions"][0].update(session_name="night", raw_session_name="night")

    made = taken_in(study.site, edited(study, label_only(edit)), name="one short")
    (left,) = made.left_out
    assert (left.session_name, left.reason) == ("night", "dataset 1 has no recording night")
    assert sessions(study.site, made.project_id).keys() == {"day 2"}


def test_a_project_that_owns_its_directory_is_not_exported(study: Study):
    plain_study(study.site, "legacy", 3)
    with study.site.engine.connect() as conn:
        number = conn.scalar(text("select project_id from projects where project_name = 'legacy'"))
    with pytest.raises(UsageError, match="migrate it first"):
        export(study.site.engine, number)
    with pytest.raises(UsageError, match="no project 987654"):
        export(study.site.engine, 987654)
