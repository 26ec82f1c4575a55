"""The way back: everything as it was, plus exactly what people did in between; and nothing at all where that cannot be."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from producer.runs import migrated_projects as converted
from tests.estate import (
    JSON_NULL,
    Form,
    Project,
    RawJson,
    differences,
    dump,
    make_dataset,
    make_lineage,
    make_participant,
    make_project,
    make_session,
    readings,
    record_session,
    snapshot_tree,
    split_on_upload,
    split_session,
    write_labels,
    write_recording,
)
from tests.estate.compare import LABEL_TABLES
from tests.support.model import Row
from tests.support.runs import do, open_run, run, run_one
from tests.support.sites import Site
from worker.db import ledger, overview
from worker.errors import UsageError
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb

TABLES = (
    *LABEL_TABLES,
    "project_dataset_refs",
    "project_split_configs",
    "raw_datasets",
    "raw_dataset_sessions",
    "project_conversions",
    "dataset_claims",
)
"""All that is not the ledger's: what a rehearsal or a refused rollback must not change."""

STAMPS = ("created_at", "updated_at", "split_timestamp", "watch_assigned_at")
"""What the database's clock writes into a new row."""

CONFIG = {"window_s": 60, "notes": "Prüfung", "nested": {"b": [1, 2.50], "a": None}}


def study(conn: Connection, root: Path, name: str = "study", *, seed: int = 0, **columns: Any) -> Project:
    """A project with whole sessions, one cut by an upload, one by a person, and one without a directory."""
    project = make_project(conn, root, name, **columns)
    assert project.directory is not None
    record_session(conn, project, "whole", rows=60, seed=seed + 1, bouts=[{"start": 1, "end": 2}])
    recording = write_recording(
        project.directory / "cut", rows=50, seed=seed + 2, form=Form.GAPPED, gaps=[20, 35]
    )
    split_on_upload(conn, project, "cut", recording)
    by_hand = record_session(conn, project, "by hand", rows=80, seed=seed + 3, keep=True, verified=1)
    split_session(conn, by_hand.session_id, [30], root)
    old = record_session(conn, project, "old", rows=40, seed=seed + 4, status="Split", keep=False)
    child = make_session(
        conn,
        project.project_id,
        "old.1",
        parent_path=old.recording.path.parent,
        start_ns=old.recording.start_ns,
        stop_ns=old.recording.stop_ns,
    )
    make_lineage(conn, child, old.session_id)
    make_session(conn, project.project_id, "gone", keep=True, bouts=[{"start": 3, "end": 4}])
    write_labels(project.directory / "whole", [[1, 2, "smoking"]])
    return project


def make(site: Site, name: str = "study", **columns: Any) -> Project:
    """The same, committed."""
    with site.engine.begin() as conn:
        return study(conn, site.legacy_root, name, **columns)


def make_small(site: Site, name: str, **columns: Any) -> Project:
    """A project with one session."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name, **columns)
        record_session(conn, project, "s", rows=5, seed=len(name))
    return project


def statuses(outcomes: Mapping[int, Outcome]) -> set[Status]:
    """How jobs ended."""
    return {outcome.status for outcome in outcomes.values()}


def look(engine: Engine, tables: tuple[str, ...] = TABLES) -> dict[str, list[Row]]:
    """Rows as they are now."""
    with engine.connect() as conn:
        return dump(conn, tables)


def one(conn: Connection, project: Project, name: str) -> int:
    """The id of a session."""
    query = text("select session_id from sessions where project_id = :id and session_name = :name")
    return int(conn.execute(query, {"id": project.project_id, "name": name}).scalar_one())


def sql(conn: Connection, statement: str, **values: Any) -> None:
    """A statement as a person's."""
    conn.execute(text(statement), values)


# What people do between migration and rollback ------------------------------------------------------------------

Edit = Callable[[Connection, Site, Project], object]
EDITS: dict[str, Edit] = {}


def edit(function: Edit) -> Edit:
    """Something that people do, in a legacy project or in a migrated one."""
    EDITS[function.__name__.replace("_", " ")] = function
    return function


@edit
def draws_bouts(conn: Connection, _: Site, project: Project) -> None:
    bouts = RawJson(
        '[{"start": 5.50, "end": 9, "label": "eating", "confidence": null}, [1, 2, "smoking", 0.5]]'
    )
    for name in ("whole", "cut.2", "gone"):
        sql(
            conn,
            "update sessions set bouts = cast(:bouts as jsonb) where session_id = :id",
            bouts=bouts,
            id=one(conn, project, name),
        )
    sql(conn, "update sessions set bouts = null where session_id = :id", id=one(conn, project, "cut.1"))


@edit
def sets_flags(conn: Connection, _: Site, project: Project) -> None:
    sql(
        conn,
        "update sessions set keep = false, verified = 100, puffs_verified = 1, smoking_verified = null,"
        " status = 'Decision Made' where project_id = :id and status <> 'Split'",
        id=project.project_id,
    )


@edit
def adds_a_labeling(conn: Connection, _: Site, project: Project) -> None:
    sql(
        conn,
        """update projects set labelings = coalesce(labelings, '[]') || '["eating", {"name": "x", "color": null}]'
           where project_id = :id""",
        id=project.project_id,
    )


@edit
def splits_a_whole_session(conn: Connection, site: Site, project: Project) -> None:
    split_session(conn, one(conn, project, "whole"), [10, 45], site.data_dir)


@edit
def splits_a_piece_and_a_piece_of_it(conn: Connection, site: Site, project: Project) -> None:
    _, second = split_session(conn, one(conn, project, "by hand.2"), [20], site.data_dir)
    split_session(conn, second, [7], site.data_dir)


@edit
def splits_a_piece_without_offsets(conn: Connection, site: Site, project: Project) -> None:
    split_session(conn, one(conn, project, "old.1"), [15], site.data_dir)


@edit
def adds_a_key_to_the_config(conn: Connection, _: Site, project: Project) -> None:
    sql(
        conn,
        """update projects set analysis_config = coalesce(analysis_config, '{}') || '{"added": {"n": 1.50}}'
           where project_id = :id""",
        id=project.project_id,
    )


@edit
def changes_a_key_of_the_config(conn: Connection, _: Site, project: Project) -> None:
    sql(
        conn,
        """update projects set analysis_config = jsonb_set(analysis_config, '{window_s}', '90.0')
           where project_id = :id""",
        id=project.project_id,
    )


@edit
def removes_a_key_from_the_config(conn: Connection, _: Site, project: Project) -> None:
    sql(
        conn,
        "update projects set analysis_config = analysis_config - 'notes' where project_id = :id",
        id=project.project_id,
    )


@edit
def takes_a_name_of_ours_for_a_key(conn: Connection, _: Site, project: Project) -> None:
    sql(
        conn,
        """update projects set analysis_config = coalesce(analysis_config, '{}') || '{"migrated_from": "Mars"}'
           where project_id = :id""",
        id=project.project_id,
    )


@edit
def deletes_sessions(conn: Connection, _: Site, project: Project) -> None:
    for name in ("cut.2", "gone", "old.1"):
        number = one(conn, project, name)
        sql(conn, "delete from session_lineage where :id in (child_session_id, parent_session_id)", id=number)
        sql(conn, "delete from sessions where session_id = :id", id=number)


@edit
def renames_the_project_and_gives_it_to_somebody_else(conn: Connection, _: Site, project: Project) -> None:
    participant = make_participant(conn, "P777")
    sql(
        conn,
        "update projects set project_name = 'renamed', participant_id = :participant where project_id = :id",
        participant=participant,
        id=project.project_id,
    )


@edit
def adds_a_reference_by_hand(conn: Connection, site: Site, project: Project) -> None:
    tree = site.data_dir / "raw_datasets" / "by hand"
    (tree / "s").mkdir(parents=True, exist_ok=True)
    make_dataset(conn, tree, "b" * 64, project_id=project.project_id)


@edit
def adds_a_split_config_by_hand(conn: Connection, site: Site, project: Project) -> None:
    tree = site.data_dir / "raw_datasets" / "by hand, too"
    tree.mkdir(parents=True, exist_ok=True)
    number = conn.execute(
        text(
            "insert into project_split_configs (project_id, dataset_id, raw_session_name, split_parameters)"
            " values (:project_id, :dataset_id, 'whole', '{\"by\": \"hand\"}') returning config_id"
        ),
        {"project_id": project.project_id, "dataset_id": make_dataset(conn, tree, "c" * 64)},
    ).scalar_one()
    sql(
        conn,
        "update sessions set split_config_id = :number where session_id = :id",
        number=number,
        id=one(conn, project, "whole"),
    )


@edit
def adds_a_session_from_elsewhere(conn: Connection, site: Site, project: Project) -> None:
    recording = write_recording(site.legacy_root / "elsewhere" / "s", rows=10)
    make_session(
        conn,
        project.project_id,
        "elsewhere",
        recording=recording,
        parent_path=recording.path.parent,
        offsets=(2, 7),
    )


def _what_if(site: Site, edits: list[Edit], project: Project) -> dict[str, list[Row]]:
    """The rows if these edits had been made and nothing been migrated."""
    with site.engine.connect() as conn:
        for change in edits:
            change(conn, site, project)
        rows = dump(conn)
        conn.rollback()
        for table, key in (
            ("sessions", "session_id"),
            ("session_lineage", "id"),
            ("participants", "participant_id"),
            ("raw_datasets", "dataset_id"),
            ("project_split_configs", "config_id"),
        ):
            # Sequences do not go back with the transaction; the same edits are to get the same ids again.
            sql(
                conn,
                f"select setval(pg_get_serial_sequence('{table}', '{key}'),"
                f" coalesce(max({key}), 1), max({key}) is not null) from {table}",
            )
        conn.commit()
    return rows


def _without_stamps_of_new_rows(
    rows: Mapping[str, list[Row]], old: Mapping[str, list[Row]]
) -> dict[str, list[Row]]:
    def key(row: Row) -> Any:
        return next(iter(row.values()))

    return {
        table: [
            row
            if key(row) in {key(one) for one in old[table]}
            else {name: value for name, value in row.items() if name not in STAMPS}
            for row in rows[table]
        ]
        for table in LABEL_TABLES
    }


@pytest.mark.parametrize("name", [*EDITS, "everything at once"])
def test_what_people_did_meanwhile_is_there_after_the_rollback_and_nothing_else_differs(
    site: Site, tools: Tools, name: str
):
    """Equal to the rows that the same edits give where nothing was ever migrated."""
    project = make(site, analysis_config=CONFIG)
    edits = [EDITS[name]] if name in EDITS else _in_an_order_that_works()
    before = look(site.engine)
    expected = _what_if(site, edits, project)

    assert run_one(tools, Verb.MIGRATE, project.project_id).status is Status.MIGRATED
    with site.engine.begin() as conn:
        for change in edits:
            change(conn, site, project)
        edited = readings(conn, site.data_dir)
    outcome = run_one(tools, Verb.ROLLBACK, project.project_id)

    assert (outcome.status, outcome.reason) == (Status.ROLLED_BACK, "its legacy directory is unchanged")
    after = look(site.engine)
    if name in {"adds a split config by hand", "everything at once"}:
        # Its number is the next one of a sequence that the migration has used, too.
        _forget_config_numbers(after, expected)
    assert _without_stamps_of_new_rows(after, before) == _without_stamps_of_new_rows(expected, before)
    with site.engine.connect() as conn:
        assert differences(edited, readings(conn, site.data_dir)) == []


def _in_an_order_that_works() -> list[Edit]:
    """What is split cannot have been deleted before."""
    last = "deletes sessions"
    others = [function for name, function in EDITS.items() if name != last]
    return [function for function in others if function is not splits_a_piece_without_offsets] + [EDITS[last]]


def _forget_config_numbers(*dumps: dict[str, list[Row]]) -> None:
    for rows in dumps:
        for row in rows["sessions"]:
            row["split_config_id"] = row["split_config_id"] is not None


def test_only_the_own_reference_and_the_own_split_configs_go(site: Site, tools: Tools):
    project = make(site)
    run_one(tools, Verb.MIGRATE, project.project_id)
    with site.engine.begin() as conn:
        before = dump(conn, ["project_dataset_refs", "project_split_configs"])
        EDITS["adds a reference by hand"](conn, site, project)
        EDITS["adds a split config by hand"](conn, site, project)

    run_one(tools, Verb.ROLLBACK, project.project_id)

    after = look(site.engine)
    assert len(before["project_dataset_refs"]) == 1
    assert len(before["project_split_configs"]) == 3
    assert len(after["project_dataset_refs"]) == 1
    assert after["project_dataset_refs"][0] not in before["project_dataset_refs"]
    assert [row["split_parameters"] for row in after["project_split_configs"]] == ['{"by": "hand"}']


def test_a_reference_that_was_there_before_the_migration_stays(site: Site, tools: Tools):
    first, second = make(site, "first"), make(site, "second")
    outcome = run_one(tools, Verb.MIGRATE, first.project_id)
    with site.engine.begin() as conn:
        sql(
            conn,
            "insert into project_dataset_refs (project_id, dataset_id) values (:project_id, :dataset_id)",
            project_id=second.project_id,
            dataset_id=outcome.dataset_id,
        )
    before = look(site.engine)

    assert run_one(tools, Verb.MIGRATE, second.project_id).status is Status.MIGRATED
    run_one(tools, Verb.ROLLBACK, second.project_id)

    after = look(site.engine)
    assert after["project_dataset_refs"] == before["project_dataset_refs"]
    assert after["sessions"] == before["sessions"]


def test_a_piece_of_another_project_that_uses_a_config_of_ours_only_loses_it(site: Site, tools: Tools):
    project, other = make(site, "one"), make(site, "other", seed=100)
    run_one(tools, Verb.MIGRATE, project.project_id)
    before = look(site.engine)
    with site.engine.begin() as conn:
        sql(
            conn,
            "update sessions set split_config_id = (select min(config_id) from project_split_configs)"
            " where session_id = :id",
            id=one(conn, other, "whole"),
        )

    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.ROLLED_BACK

    after = look(site.engine)
    assert after["project_split_configs"] == []
    assert [row for row in after["sessions"] if row["project_id"] == other.project_id] == [
        row for row in before["sessions"] if row["project_id"] == other.project_id
    ]


# analysis_config ------------------------------------------------------------------------------------------------

CONFIGS: dict[str, Any] = {
    "NULL": None,
    "object": CONFIG,
    "empty object": {},
    "JSON null": JSON_NULL,
    "list": [1, "two"],
    "string": "as it was",
    "number": RawJson("12345678901234567890.10"),
    "true": True,
    "our keys": {
        "migrated_from": "another server",
        "dataset_id": 7,
        "run_id": None,
        "migration_date": [1.50],
    },
}
NO_OBJECTS = ("JSON null", "list", "string", "number", "true")


def test_any_analysis_config_comes_back_to_the_digit(site: Site, tools: Tools):
    for kind, config in CONFIGS.items():
        make_small(site, kind, analysis_config=config)
    before = look(site.engine, LABEL_TABLES)

    run(tools, Verb.MIGRATE)
    outcomes = run(tools, Verb.ROLLBACK)

    assert (len(outcomes), statuses(outcomes)) == (len(CONFIGS), {Status.ROLLED_BACK})
    assert look(site.engine, LABEL_TABLES) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("""analysis_config || '{"added": 1}'""", "added"),
        ("""analysis_config || '{"migrated_from": "Mars"}'""", "migrated_from"),
    ],
    ids=["added", "changed"],
)
def test_a_key_that_would_be_lost_refuses_the_rollback(site: Site, tools: Tools, change: str, key: str):
    """Of its own project; all others are rolled back."""
    refused = {make_small(site, kind, analysis_config=CONFIGS[kind]).project_id for kind in NO_OBJECTS}
    other = make_small(site, "other", analysis_config=CONFIG).project_id
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, f"update projects set analysis_config = {change}")
    before = look(site.engine)

    rehearsed = run(tools, Verb.ROLLBACK, dry_run=True)
    outcomes = run(tools, Verb.ROLLBACK, only=refused)

    assert look(site.engine) == before
    for number in refused:
        outcome = outcomes[number]
        assert (outcome.status, outcome.error_class) == (Status.FAILED, "RollbackRefusedError")
        assert outcome.differences == (f"analysis_config.{key}",)
        assert (rehearsed[number].status, rehearsed[number].error) == (outcome.status, outcome.error)
    all_others = run(tools, Verb.ROLLBACK)
    assert {number for number, one in all_others.items() if one.status is Status.ROLLED_BACK} == {other}


def test_a_removed_key_of_ours_is_no_edit_that_could_be_lost(site: Site, tools: Tools):
    for kind in NO_OBJECTS:
        make_small(site, kind, analysis_config=CONFIGS[kind])
    before = look(site.engine, LABEL_TABLES)
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, "update projects set analysis_config = analysis_config - 'run_id'")

    assert statuses(run(tools, Verb.ROLLBACK)) == {Status.ROLLED_BACK}

    assert look(site.engine, LABEL_TABLES) == before


@pytest.mark.parametrize("theirs", ["null", "'null'", "'[\"theirs\"]'", "'3.50'"])
def test_an_analysis_config_that_people_replaced_as_a_whole_is_theirs(site: Site, tools: Tools, theirs: str):
    for kind, config in CONFIGS.items():
        make_small(site, kind, analysis_config=config)
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, f"update projects set analysis_config = cast({theirs} as jsonb)")
        expected = conn.execute(text(f"select cast(cast({theirs} as jsonb) as text)")).scalar_one()

    assert statuses(run(tools, Verb.ROLLBACK)) == {Status.ROLLED_BACK}

    assert [row["analysis_config"] for row in look(site.engine)["projects"]] == [expected] * len(CONFIGS)


def test_a_former_value_of_a_key_of_ours_comes_back_unless_a_person_changed_it(site: Site, tools: Tools):
    project = make(site, analysis_config=CONFIGS["our keys"])
    run_one(tools, Verb.MIGRATE, project.project_id)
    with site.engine.begin() as conn:
        sql(conn, """update projects set analysis_config = analysis_config || '{"dataset_id": "mine"}'""")

    run_one(tools, Verb.ROLLBACK, project.project_id)

    with site.engine.connect() as conn:
        found = conn.execute(text("select analysis_config from projects")).scalar_one()
    assert found == CONFIGS["our keys"] | {"dataset_id": "mine"}


# Which projects -------------------------------------------------------------------------------------------------


def _by_others(conn: Connection, site: Site) -> tuple[Project, Project]:
    """A project that was made in Label from a dataset, and one that the reference tool migrated."""
    tree = site.data_dir / "raw_datasets" / "others"
    recording = write_recording(tree / "s", rows=10)
    made = make_project(
        conn,
        site.legacy_root,
        "made in Label",
        path=None,
        project_type="dataset_based",
        analysis_config={"created_with": "dataset_based_workflow"},
    )
    dataset_id = make_dataset(conn, tree, "d" * 64, project_id=made.project_id)
    make_session(
        conn,
        made.project_id,
        "s",
        recording=recording,
        parent_path=tree / "s",
        dataset_id=dataset_id,
        raw_session_name="s",
    )
    reference = make_project(
        conn,
        site.legacy_root,
        "reference tool",
        path=None,
        legacy_path=str(site.legacy_root / "was here"),
        project_type="dataset_based",
        analysis_config={"migrated_from": "legacy", "dataset_id": dataset_id},
    )
    sql(
        conn,
        "insert into project_dataset_refs (project_id, dataset_id) values (:project_id, :dataset_id)",
        project_id=reference.project_id,
        dataset_id=dataset_id,
    )
    return made, reference


def test_only_projects_that_this_program_converted_are_rolled_back(site: Site, tools: Tools):
    """In a run over all, one of the reference tool is named as skipped with the remedy; one made in Label is not ours at all."""
    project = make(site)
    with site.engine.begin() as conn:
        made, reference = _by_others(conn, site)
    before = look(site.engine)
    run_one(tools, Verb.MIGRATE, project.project_id)

    opened = converted.rollback(
        site.settings, site.engine, dry_run=False, project_ids=(), restore_files=False
    )

    assert [job.project_id for job in opened.jobs if job.skipped is None] == [project.project_id]
    skipped = {job.project_id: job.skipped for job in opened.jobs if job.skipped is not None}
    assert skipped.keys() == {reference.project_id}
    assert "no before-image" in skipped[reference.project_id].reason
    assert skipped[reference.project_id].remedy == "Roll it back with the tool that migrated it."
    with site.engine.connect() as conn:
        jobs = {job.project_id for job in overview.jobs(conn, opened.run_id)}
    assert made.project_id not in jobs
    refs = [ledger.JobRef(run_id=opened.run_id, project_id=number) for number in jobs]
    do(tools, Verb.ROLLBACK, refs)
    after = look(site.engine)
    for table in (*LABEL_TABLES, "project_dataset_refs"):
        assert (table, after[table]) == (table, before[table])


def test_an_id_that_cannot_be_rolled_back_is_refused_with_the_reason_and_no_run_is_opened(site: Site):
    with site.engine.begin() as conn:
        made, reference = _by_others(conn, site)
    legacy = make(site)
    before = look(site.engine, (*TABLES, "migration_runs", "migration_jobs"))
    ids = [made.project_id, reference.project_id, legacy.project_id, 0, -3, 999]

    with pytest.raises(UsageError) as caught:
        converted.rollback(site.settings, site.engine, dry_run=False, project_ids=ids, restore_files=False)

    for number, reason in (
        (made.project_id, "dataset-based, but never was a legacy project"),
        (reference.project_id, "migrated by another tool, which kept no before-image"),
        (legacy.project_id, "not migrated"),
        (0, "ids begin at 1"),
        (-3, "ids begin at 1"),
        (999, "no such project"),
    ):
        assert f"{number} ({reason})" in str(caught.value)
    assert look(site.engine, (*TABLES, "migration_runs", "migration_jobs")) == before


def _delete(conn: Connection, project: Project) -> None:
    """As Label deletes a project."""
    sql(
        conn,
        "delete from session_lineage where child_session_id in (select session_id from sessions where project_id = :id)"
        " or parent_session_id in (select session_id from sessions where project_id = :id)",
        id=project.project_id,
    )
    sql(conn, "delete from sessions where project_id = :id", id=project.project_id)
    sql(conn, "delete from projects where project_id = :id", id=project.project_id)


@pytest.mark.parametrize("when", ["before the run", "before the job"])
def test_a_project_that_was_deleted_since_is_skipped(site: Site, tools: Tools, when: str):
    project, other = make(site), make(site, "other", seed=50)
    run(tools, Verb.MIGRATE)
    if when == "before the run":
        with site.engine.begin() as conn:
            _delete(conn, project)
    refs = open_run(site.engine, Verb.ROLLBACK)
    if when == "before the job":
        with site.engine.begin() as conn:
            _delete(conn, project)

    outcomes = do(tools, Verb.ROLLBACK, refs)

    assert outcomes[project.project_id].status is Status.SKIPPED
    assert "deleted since it was migrated" in outcomes[project.project_id].reason
    assert outcomes[other.project_id].status is Status.ROLLED_BACK


def test_rolling_back_twice_finds_nothing_to_do(site: Site, tools: Tools):
    project = make(site)
    run(tools, Verb.MIGRATE)
    first, second = open_run(site.engine, Verb.ROLLBACK), open_run(site.engine, Verb.ROLLBACK)
    do(tools, Verb.ROLLBACK, first)
    before = look(site.engine)

    outcomes = do(tools, Verb.ROLLBACK, second)

    assert outcomes[project.project_id].status is Status.SKIPPED
    assert do(tools, Verb.ROLLBACK, first) == {}
    assert look(site.engine) == before


@pytest.mark.parametrize(
    "change",
    ["path = '/somewhere'", "legacy_path = '/somewhere'", "legacy_path = null", "project_type = 'legacy'"],
)
def test_a_project_whose_row_somebody_else_turned_is_not_touched(site: Site, tools: Tools, change: str):
    project = make(site)
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, f"update projects set {change}")
    before = look(site.engine)

    outcome = run_one(tools, Verb.ROLLBACK, project.project_id)

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "RollbackRefusedError")
    assert look(site.engine) == before


# The legacy directory is not what it was ------------------------------------------------------------------------


def _missing(directory: Path) -> None:
    # Not the root as a whole: that would be a mount that is missing.
    (directory.parent / "another").mkdir()
    shutil.rmtree(directory)


def _file_instead(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("a file")


def _dangling_link_instead(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.symlink_to("nowhere")


def _emptied(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def _one_byte_changed(directory: Path) -> None:
    recording = directory / "whole" / "accelerometer_data.csv"
    content = bytearray(recording.read_bytes())
    content[-2] ^= 1
    stamp = recording.stat().st_mtime_ns
    recording.write_bytes(content)
    os.utime(recording, ns=(stamp, stamp))


def _file_removed(directory: Path) -> None:
    (directory / "whole" / "labels.json").unlink()


def _file_added(directory: Path) -> None:
    (directory / "whole" / "added").touch()


def _empty_directory_added(directory: Path) -> None:
    (directory / "whole" / "added").mkdir()


def _dangling_link_added(directory: Path) -> None:
    (directory / "whole" / "added").symlink_to("nowhere")


def _pipe_added(directory: Path) -> None:
    os.mkfifo(directory / "whole" / "added")


def _session_renamed(directory: Path) -> None:
    (directory / "whole").rename(directory / "renamed")


def _file_became_directory(directory: Path) -> None:
    (directory / "whole" / "labels.json").unlink()
    (directory / "whole" / "labels.json").mkdir()


def _much_added(directory: Path) -> None:
    for number in range(15):
        (directory / f"added {number:02}").touch()


CHANGES: dict[str, tuple[Callable[[Path], None], str, str, tuple[str, ...]]] = {
    "missing": (_missing, "LegacyPathMissingError", "Legacy path no longer exists: {path}", ()),
    "a file instead": (
        _file_instead,
        "RollbackRefusedError",
        "Legacy path is not a directory any more: {path}",
        (),
    ),
    "a dangling link instead": (
        _dangling_link_instead,
        "RollbackRefusedError",
        "Legacy path is not a directory any more: {path}",
        (),
    ),
    "emptied": (
        _emptied,
        "RollbackRefusedError",
        "Legacy path is not what was migrated: {path}: missing: by hand; ",
        (
            "missing: by hand",
            "missing: by hand/accelerometer_data.csv",
            "missing: cut",
            "missing: cut/accelerometer_data.csv",
            "missing: old",
            "missing: old/accelerometer_data.csv",
            "missing: whole",
            "missing: whole/accelerometer_data.csv",
            "missing: whole/labels.json",
        ),
    ),
    "one byte changed": (
        _one_byte_changed,
        "RollbackRefusedError",
        "is not what was migrated",
        ("changed: whole/accelerometer_data.csv",),
    ),
    "a file removed": (
        _file_removed,
        "RollbackRefusedError",
        "is not what was migrated",
        ("missing: whole/labels.json",),
    ),
    "a file added": (
        _file_added,
        "RollbackRefusedError",
        "is not what was migrated",
        ("added: whole/added",),
    ),
    "an empty directory added": (
        _empty_directory_added,
        "RollbackRefusedError",
        "is not what was migrated",
        ("added: whole/added",),
    ),
    "a dangling link added": (
        _dangling_link_added,
        "EntryRefusedError",
        "Link leads nowhere: whole/added",
        (),
    ),
    "a pipe added": (_pipe_added, "EntryRefusedError", "it is a named pipe: whole/added", ()),
    "a session renamed": (
        _session_renamed,
        "RollbackRefusedError",
        "is not what was migrated",
        (
            "added: renamed",
            "added: renamed/accelerometer_data.csv",
            "added: renamed/labels.json",
            "missing: whole",
            "missing: whole/accelerometer_data.csv",
            "missing: whole/labels.json",
        ),
    ),
    "a file became a directory": (
        _file_became_directory,
        "RollbackRefusedError",
        "is not what was migrated",
        ("became a directory: whole/labels.json",),
    ),
    "fifteen files added": (
        _much_added,
        "RollbackRefusedError",
        "added: added 09 and 5 more",
        tuple(f"added: added {number:02}" for number in range(10)),
    ),
}


def test_a_legacy_directory_that_is_not_what_was_migrated_refuses_the_rollback(site: Site, tools: Tools):
    """In every way in which it may be another one; nothing is changed, and the rehearsal says the same."""
    projects = {change: make(site, change) for change in CHANGES}
    assert statuses(run(tools, Verb.MIGRATE)) == {Status.MIGRATED}
    for change, project in projects.items():
        assert project.directory is not None
        CHANGES[change][0](project.directory)
    before = look(site.engine), snapshot_tree(site.folder)

    rehearsed = run(tools, Verb.ROLLBACK, dry_run=True)
    outcomes = run(tools, Verb.ROLLBACK)

    assert (look(site.engine), snapshot_tree(site.folder)) == before
    for change, project in projects.items():
        _, error_class, words, differing = CHANGES[change]
        outcome, foretold = outcomes[project.project_id], rehearsed[project.project_id]
        assert (change, outcome.status, outcome.error_class) == (change, Status.FAILED, error_class)
        assert words.format(path=project.path) in str(outcome.error)
        assert (change, outcome.differences) == (change, differing)
        assert (change, foretold.status, foretold.error) == (change, outcome.status, outcome.error)
        assert foretold.differences == outcome.differences


def test_other_modes_and_times_of_the_legacy_directory_do_not_matter(site: Site, tools: Tools):
    project = make(site)
    run_one(tools, Verb.MIGRATE, project.project_id)
    assert project.directory is not None
    (project.directory / "whole" / "accelerometer_data.csv").touch(mode=0o600)
    (project.directory / "whole").chmod(0o700)

    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.ROLLED_BACK


def test_a_refused_rollback_succeeds_once_the_directory_is_put_right(site: Site, tools: Tools):
    project = make(site)
    before = look(site.engine, LABEL_TABLES)
    run_one(tools, Verb.MIGRATE, project.project_id)
    assert project.directory is not None
    _file_added(project.directory)
    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.FAILED
    (project.directory / "whole" / "added").unlink()

    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.ROLLED_BACK

    assert look(site.engine, LABEL_TABLES) == before
