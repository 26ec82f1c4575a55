"""The way back: everything as it was, plus exactly what people did in between."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.estate import (
    Project,
    RawJson,
    differences,
    dump,
    make_dataset,
    make_participant,
    make_session,
    readings,
    split_session,
    write_recording,
)
from tests.estate.compare import LABEL_TABLES
from tests.fidelity.rolled_back import CONFIG, STAMPS, look, make, one, sql
from tests.support.model import Row
from tests.support.runs import run_one
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Status, Verb

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
def test_a_rollback_keeps_what_people_did_meanwhile_and_changes_nothing_else(
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


def test_a_rollback_removes_only_its_own_reference_and_split_configs(site: Site, tools: Tools):
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


def test_another_projects_session_that_uses_our_split_config_only_loses_it(site: Site, tools: Tools):
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
