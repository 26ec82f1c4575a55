"""The builder of legacy estates builds what it says, and its comparisons see what they should."""

import os
import shutil
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from tests.estate import (
    JSON_NULL,
    Estate,
    Form,
    RawJson,
    differences,
    dump,
    every_form,
    make_dataset,
    make_project,
    make_session,
    readings,
    record_session,
    session_row,
    snapshot_tree,
    split_on_upload,
    split_session,
    write_recording,
)
from worker.errors import ProjectError
from worker.legacy.roots import Roots
from worker.legacy.scan import scan
from worker.sessions_csv import Reader, count_records, read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory in which projects may lie."""
    path = tmp_path / "legacy"
    path.mkdir()
    return path


def test_every_form_is_built_in_a_short_time(database: Engine, root: Path):
    started = time.thread_time()

    with database.begin() as conn:
        estate = every_form(conn, root)

    assert time.thread_time() - started < 10
    assert len(estate.projects) > 60
    assert len(estate.migrating) > 40
    known = estate.projects.keys()
    assert estate.failing.keys() <= known
    assert estate.skipped <= known
    assert estate.untouched <= known
    assert all(group <= estate.migrating.keys() for group in estate.equal)


def test_the_scan_accepts_and_refuses_the_projects_that_the_estate_says(database: Engine, root: Path):
    with database.begin() as conn:
        estate = every_form(conn, root)
    roots = Roots(allowed=(root,), store=(root / "raw_datasets", root / "dataset_store"))

    found = {}
    for key in [*estate.migrating, *estate.failing]:
        try:
            scan(str(estate.paths[key]), roots)
        except ProjectError as error:
            found[key] = type(error)

    assert found == estate.failing


def test_unmoved_sessions_have_no_directory_of_their_own(database: Engine, root: Path):
    with database.begin() as conn:
        estate = every_form(conn, root)

        rows = [session_row(conn, session_id) for session_id in estate.unmoved]

    for row in rows:
        expected = os.path.normpath(f"{row.project_path}/{row.session_name}")
        parent = row.parent_session_data_path and os.path.normpath(row.parent_session_data_path)
        is_child = parent is not None and os.path.dirname(parent) == os.path.normpath(str(row.project_path))
        assert not os.path.exists(str(parent) if is_child else expected)


def test_an_estate_moved_by_the_rules_of_the_contract_reads_as_before(
    database: Engine, root: Path, tmp_path: Path
):
    """Section 6.1 by the shortest code that follows it: what the estate holds, and how it is read, can be
    trusted.
    """
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with database.begin() as conn:
        estate = every_form(conn, root, data_dir=data_dir)
        before = readings(conn, data_dir)

        for key in estate.migrating:
            _move(conn, estate, key)

        assert differences(before, readings(conn, data_dir)) == []
    assert sum(reading is not None for reading in before.values()) > 400


def _move(conn: Connection, estate: Estate, key: str) -> None:
    tree = estate.data_dir / "raw_datasets" / key
    shutil.copytree(str(estate.paths[key]), tree)
    dataset_id = make_dataset(conn, tree, f"digest of {key}", project_id=estate.projects[key])
    for session_id in estate.sessions[key].values():
        if session_id not in estate.unmoved:
            _point_into(conn, session_id, tree, dataset_id)
    conn.execute(
        text(
            "update projects set path = null, legacy_path = path, project_type = 'dataset_based'"
            " where project_id = :project_id"
        ),
        {"project_id": estate.projects[key]},
    )


def _point_into(conn: Connection, session_id: int, tree: Path, dataset_id: int) -> None:
    row = session_row(conn, session_id)
    raw_name, offsets = row.session_name, (row.data_start_offset, row.data_end_offset)
    if row.parent_session_data_path:
        raw_name = os.path.basename(os.path.normpath(row.parent_session_data_path))
    elif (csv := tree / raw_name / "accelerometer_data.csv").exists() and (records := count_records(csv)):
        offsets = (0, records)
    conn.execute(
        text(
            "update sessions set parent_session_data_path = :path, raw_session_name = :raw_name,"
            " dataset_id = :dataset_id, data_start_offset = :start, data_end_offset = :end"
            " where session_id = :session_id"
        ),
        {
            "path": str(tree / raw_name),
            "raw_name": raw_name,
            "dataset_id": dataset_id,
            "start": offsets[0],
            "end": offsets[1],
            "session_id": session_id,
        },
    )


def test_equal_projects_have_equal_trees_and_others_differ(database: Engine, root: Path):
    with database.begin() as conn:
        estate = every_form(conn, root)

    def content(key: str) -> frozenset[object]:
        tree = snapshot_tree(Path(os.path.realpath(str(estate.paths[key]))))
        return frozenset((name, entry.kind, entry.content) for name, entry in tree.items())

    contents = {key: content(key) for key in estate.migrating}

    for group in estate.equal:
        assert len({contents[key] for key in group}) == 1
    in_groups = sum(len(group) for group in estate.equal)
    assert len(set(contents.values())) == len(contents) - in_groups + len(estate.equal)


def test_the_same_seed_gives_the_same_estate_and_another_seed_another(database: Engine, tmp_path: Path):
    trees = []
    for place, seed in (("one", 1), ("two", 1), ("three", 2)):
        root = tmp_path / place / "legacy"
        root.mkdir(parents=True)
        with database.connect() as conn:
            estate = every_form(conn, root, seed)
            conn.rollback()
        tree = snapshot_tree(Path(str(estate.paths["recorded"])))
        trees.append({name: entry.content for name, entry in tree.items()})

    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_a_dump_shows_json_and_timestamps_as_text_and_nulls_apart(database: Engine, root: Path):
    with database.begin() as conn:
        for name, config in (("a", None), ("b", JSON_NULL), ("c", "text"), ("d", RawJson('{"n": 1.50}'))):
            make_project(conn, root, name, analysis_config=config)

        projects = dump(conn)["projects"]

    assert [row["analysis_config"] for row in projects] == [None, "null", '"text"', '{"n": 1.50}']
    assert isinstance(projects[0]["created_at"], str)
    assert [row["project_id"] for row in projects] == sorted(row["project_id"] for row in projects)


def test_a_snapshot_sees_every_kind_of_change(tmp_path: Path):
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "file").write_text("content")
    (tree / "link").symlink_to("folder")
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9")).touch()
    before = snapshot_tree(tree)

    (tree / "folder" / "file").chmod(0o600)
    os.utime(tree / "folder", ns=(1, 1))
    (tree / "link").unlink()
    (tree / "link").symlink_to("elsewhere")

    after = snapshot_tree(os.fsencode(tree))
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() == {b".", b"folder", b"folder/file", b"link", b"caf\xe9"}
    assert changed >= {b"folder", b"folder/file", b"link"}
    assert b"caf\xe9" not in changed


def test_a_second_link_to_a_file_is_a_change(tmp_path: Path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    before = snapshot_tree(tree)

    (tmp_path / "elsewhere").hardlink_to(tree / "file")

    assert snapshot_tree(tree) != before


def test_an_upload_with_gaps_makes_a_hidden_parent_and_a_child_for_each_segment(database: Engine, root: Path):
    with database.begin() as conn:
        project = make_project(conn, root, "study")
        recording = write_recording(root / str(project.path) / "s", rows=30, form=Form.GAPPED, gaps=[10, 25])

        _, children = split_on_upload(conn, project, "s", recording)

        rows = {row["session_name"]: row for row in dump(conn)["sessions"]}
        lengths = [len(read(session_row(conn, child), Reader.PLOT, root)) for child in children]
    assert rows.keys() == {"s", "s.1", "s.2", "s.3"}
    assert (rows["s"]["status"], rows["s"]["keep"], rows["s"]["is_visible"]) == ("Split", False, False)
    assert lengths == [10, 15, 5]


def test_a_split_of_a_split_counts_rows_of_the_root_file(database: Engine, root: Path):
    with database.begin() as conn:
        project = make_project(conn, root, "study")
        session = record_session(conn, project, "s", rows=100, keep=True, verified=100)
        _, second = split_session(conn, session.session_id, [40], root)

        split_session(conn, second, [20], root)

        rows = {row["session_name"]: row for row in dump(conn)["sessions"]}
    assert (rows["s.2.2"]["data_start_offset"], rows["s.2.2"]["data_end_offset"]) == (60, 100)
    assert (rows["s.2.2"]["keep"], rows["s.2.2"]["verified"]) == (True, 100)
    assert rows["s.2.2"]["parent_session_data_path"] == f"{project.path}/s"


def test_a_split_below_a_parent_path_without_offsets_has_no_offsets(database: Engine, root: Path):
    with database.begin() as conn:
        project = make_project(conn, root, "study")
        recording = write_recording(root / str(project.path) / "s", rows=100)
        child = make_session(
            conn, project.project_id, "s.1", recording=recording, parent_path=recording.path.parent
        )

        first, _ = split_session(conn, child, [30], root)

        row = session_row(conn, first)
    assert (row.data_start_offset, row.data_end_offset) == (None, None)
    assert len(read(row, Reader.SPLIT, root)) == 30


def test_differences_name_the_sessions_whose_rows_changed(database: Engine, root: Path):
    with database.begin() as conn:
        project = make_project(conn, root, "study")
        kept = record_session(conn, project, "kept", seed=1)
        lost = record_session(conn, project, "lost", seed=2)
        before = readings(conn, root)
        lost.recording.path.unlink()
        conn.execute(text("update sessions set status = 'Visualized'"))

        found = differences(before, readings(conn, root))

    assert found == [
        f"session {lost.session_id}, {reader}: 40 rows before, unreadable after" for reader in Reader
    ]
    assert not [line for line in found if f"session {kept.session_id}," in line]
