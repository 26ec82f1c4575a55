"""People and their tools do odd things before, during and after a migration: nothing of it is lost, nobody
has to wait.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from tests.estate import (
    Project,
    differences,
    dump,
    make_lineage,
    make_project,
    make_session,
    readings,
    record_session,
    split_session,
    write_recording,
)
from tests.support.model import Row, by_key
from tests.support.runs import another_worker, do, open_run, run, run_one
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker.db import projects
from worker.db.engine import connect
from worker.jobs import read_once, rollback
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb
from worker.sessions_csv import Reader


def make(site: Site, name: str = "study", **columns: Any) -> Project:
    """A project with a whole session, and one that is cut in two."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name, **columns)
        record_session(conn, project, "whole", rows=60, seed=1)
        cut = record_session(conn, project, "cut", rows=50, seed=2)
        split_session(conn, cut.session_id, [20], site.data_dir)
    return project


def look(engine: Engine) -> dict[str, list[Row]]:
    with engine.connect() as conn:
        return dump(conn)


def sessions(engine: Engine) -> dict[str, Row]:
    return by_key(look(engine)["sessions"], "session_name")


def read_all(site: Site) -> dict[tuple[int, Reader], Any]:
    with site.engine.connect() as conn:
        return readings(conn, site.data_dir)


def sql(engine: Engine, statement: str, **values: Any) -> None:
    """A statement as a person's, committed."""
    with engine.begin() as conn:
        conn.execute(text(statement), values)


# After the migration: edits of the columns that the migration wrote -----------------------------------------


def test_a_store_that_was_moved_since_does_not_hinder_a_rollback(site: Site, tools: Tools):
    """Somebody moved DATA_DIR and corrected the paths; a rollback then leads every session exactly to where
    it was.
    """
    make(site)
    before = look(site.engine)
    run(tools, Verb.MIGRATE)
    for table, column in (
        ("raw_datasets", "file_path"),
        ("raw_dataset_sessions", "session_path"),
        ("sessions", "parent_session_data_path"),
    ):
        sql(
            site.engine,
            f"update {table} set {column} = replace({column}, :old, '/srv/new home')",
            old=str(site.data_dir),
        )

    assert run(tools, Verb.ROLLBACK)[1].status is Status.ROLLED_BACK

    assert look(site.engine) == before


@pytest.mark.parametrize("name", ["whole", "cut.1"])
def test_offsets_that_a_person_corrected_are_kept_and_read(site: Site, tools: Tools, name: str):
    make(site)
    run(tools, Verb.MIGRATE)
    sql(
        site.engine,
        "update sessions set data_start_offset = 2, data_end_offset = 15 where session_name = :name",
        name=name,
    )
    edited = read_all(site)

    assert run(tools, Verb.ROLLBACK)[1].status is Status.ROLLED_BACK

    row = sessions(site.engine)[name]
    assert (row["data_start_offset"], row["data_end_offset"]) == (2, 15)
    assert differences(edited, read_all(site)) == []
    assert (row["dataset_id"], row["raw_session_name"]) == (None, None)


def test_a_session_that_was_renamed_since_still_reads(site: Site, tools: Tools):
    """Its directory has the old name; after the rollback only a parent path can say so."""
    make(site)
    run(tools, Verb.MIGRATE)
    sql(site.engine, "update sessions set session_name = 'renamed' where session_name = 'whole'")
    edited = read_all(site)

    assert run(tools, Verb.ROLLBACK)[1].status is Status.ROLLED_BACK

    assert differences(edited, read_all(site)) == []
    assert {"renamed", "cut", "cut.1", "cut.2"} == sessions(site.engine).keys()
    again = run(tools, Verb.MIGRATE)[1]
    assert (again.status, again.warnings) == (Status.MIGRATED, ())
    assert differences(edited, read_all(site)) == []


def test_sessions_discovered_since_the_migration_are_pointed_at_the_legacy_directory(
    site: Site, tools: Tools
):
    """Label adds them with the dataset's id, a raw name and a parent path, without offsets (label contract,
    9).
    """
    project = make(site)
    write_recording(Path(str(project.path)) / "unlisted", rows=30, seed=9)
    run(tools, Verb.MIGRATE)
    recording = write_recording(site.folder / "same times", rows=30, seed=9)
    with site.engine.begin() as conn:
        tree, dataset_id = conn.execute(text("select file_path, dataset_id from raw_datasets")).one()
        make_session(
            conn,
            project.project_id,
            "unlisted",
            recording=recording,
            parent_path=f"{tree}/unlisted",
            dataset_id=dataset_id,
            raw_session_name="unlisted",
        )
    edited = read_all(site)

    assert run(tools, Verb.ROLLBACK)[1].status is Status.ROLLED_BACK

    row = sessions(site.engine)["unlisted"]
    assert row["parent_session_data_path"] == f"{project.path}/unlisted"
    assert (row["dataset_id"], row["raw_session_name"]) == (None, None)
    assert differences(edited, read_all(site)) == []


# Before the migration: rows that lead elsewhere -------------------------------------------------------------


def test_a_session_that_pointed_into_the_store_before_does_so_after_the_rollback(site: Site, tools: Tools):
    """It was not for the migration to judge, so it is not for the rollback to move."""
    first, second = make(site, "first"), make(site, "second", directory="second")
    run_one(tools, Verb.MIGRATE, first.project_id)
    with site.engine.begin() as conn:
        tree = conn.execute(text("select file_path from raw_datasets")).scalar_one()
        make_session(conn, second.project_id, "by hand", parent_path=f"{tree}/whole", offsets=(3, 9))
    before = look(site.engine)["sessions"]

    outcome = run_one(tools, Verb.MIGRATE, second.project_id)
    assert [warning.session for warning in outcome.warnings] == ["by hand"]
    run_one(tools, Verb.ROLLBACK, second.project_id)

    assert look(site.engine)["sessions"] == before


def test_ids_that_referred_to_nothing_do_not_stop_a_rollback(site: Site, tools: Tools):
    """Dangling ids were legal before the foreign keys came (label contract, 2), which do not let them be
    written again.
    """
    make(site)
    before = look(site.engine)
    with site.engine.begin() as conn:
        keys = conn.execute(
            text(
                "select conname, pg_get_constraintdef(oid) from pg_constraint"
                " where conrelid = 'sessions'::regclass and conname in"
                " ('sessions_dataset_id_fkey', 'sessions_split_config_id_fkey')"
            )
        ).all()
        for name, _ in keys:
            conn.execute(text(f"alter table sessions drop constraint {name}"))
        conn.execute(text("update sessions set dataset_id = 999 where session_name = 'whole'"))
        conn.execute(text("update sessions set split_config_id = 998 where session_name = 'cut.1'"))
        for name, definition in keys:
            conn.execute(text(f"alter table sessions add constraint {name} {definition}"))
    read_before = read_all(site)
    assert run(tools, Verb.MIGRATE)[1].status is Status.MIGRATED

    rehearsed = run(tools, Verb.ROLLBACK, dry_run=True)[1]
    outcome = run(tools, Verb.ROLLBACK)[1]

    assert (outcome.status, outcome.error) == (Status.ROLLED_BACK, None)
    assert {(one.session, one.message) for one in outcome.warnings} == {
        ("whole", "session whole: its former dataset_id 999 refers to nothing; it stays empty"),
        ("cut.1", "session cut.1: its former split_config_id 998 refers to nothing; it stays empty"),
    }
    assert rehearsed.warnings == outcome.warnings
    assert look(site.engine) == before
    assert differences(read_before, read_all(site)) == []


@pytest.mark.parametrize(
    "parent",
    [
        pytest.param("{path}/a link/../whole", id="through a link and back"),
        pytest.param("{path}/nowhere/../whole", id="through nothing and back"),
        pytest.param("{relative}/whole", id="relative"),
        pytest.param("{path}/..", id="above"),
        pytest.param("{path}/.", id="the project itself"),
        pytest.param("{path}/whole/deeper/..", id="deeper and back, where nothing is deeper"),
    ],
)
def test_a_parent_path_is_judged_by_what_it_points_to_and_not_by_its_spelling(
    site: Site, tools: Tools, parent: str
):
    """I6: a row that led elsewhere, or nowhere, still does after migration and rollback."""
    project = make(site)
    elsewhere = site.legacy_root / "elsewhere"
    write_recording(elsewhere / "whole", rows=33, seed=77)
    (elsewhere / "linked").mkdir()
    (Path(str(project.path)) / "a link").symlink_to(elsewhere / "linked")
    with site.engine.begin() as conn:
        place = parent.format(path=project.path, relative=str(project.path)[1:])
        make_session(conn, project.project_id, "odd", parent_path=place, offsets=(1, 9))
    before, read_before = look(site.engine), read_all(site)

    outcome = run(tools, Verb.MIGRATE)[1]

    assert outcome.status is Status.MIGRATED
    assert [one.session for one in outcome.warnings if one.session] == ["odd"]
    assert differences(read_before, read_all(site)) == []
    run(tools, Verb.ROLLBACK)
    assert look(site.engine) == before


@pytest.mark.parametrize("name", ["whole/deeper", "", ".", "./whole", "whole/", "../study/whole"])
def test_a_readable_session_whose_name_is_no_directorys_name_fails_its_project(
    site: Site, tools: Tools, name: str
):
    """It has no parent path, so without the project's path it would become unreadable; guessing would be
    wrong.
    """
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study", directory="study")
        recording = record_session(conn, project, "whole", rows=60).recording
        write_recording(recording.path.parent / "deeper", rows=10, seed=3)
        write_recording(recording.path.parent.parent, rows=10, seed=4)
        make_session(conn, project.project_id, name, recording=recording)
    before = look(site.engine)

    rehearsed = run(tools, Verb.MIGRATE, dry_run=True)[1]
    outcome = run(tools, Verb.MIGRATE)[1]

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "SessionNameRefusedError")
    assert repr(name) in str(outcome.error)
    assert (rehearsed.status, rehearsed.error) == (outcome.status, outcome.error)
    assert look(site.engine) == before


# Between the opening of a run and its end -------------------------------------------------------------------

TURNS = {
    "deleted": (
        "delete from session_lineage; delete from sessions; delete from projects",
        Status.SKIPPED,
        "project 1: deleted since the run was opened",
    ),
    "led elsewhere": (
        "update projects set path = '/elsewhere'",
        Status.FAILED,
        "project 1: path changed since the run was opened, to '/elsewhere'",
    ),
    "without a path": (
        "update projects set path = null",
        Status.FAILED,
        "project 1: path changed since the run was opened, to None",
    ),
    "migrated by another tool": (
        "update projects set legacy_path = path, path = null, project_type = 'dataset_based'",
        Status.SKIPPED,
        "project 1: already dataset-based",
    ),
}


@pytest.mark.parametrize("when", ["before its job", "while its files are read", "while it waits for the row"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_project_that_was_converted_after_the_run_was_opened_is_left_alone(
    site: Site, tools: Tools, turn: str, when: str, monkeypatch: pytest.MonkeyPatch
):
    """Reference defect 30: nothing is overwritten, and nobody is told that it was migrated."""
    make(site)
    statement, status, reason = TURNS[turn]
    refs = open_run(site.engine, Verb.MIGRATE)
    hash_tree: Callable[..., Any] = read_once.hash_tree
    lock: Callable[..., Any] = projects.lock

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def with_a_turn_before(*args: Any, **options: Any) -> Any:
            monkeypatch.undo()
            sql(site.engine, statement)
            return function(*args, **options)

        return with_a_turn_before

    if when == "before its job":
        sql(site.engine, statement)
    elif when == "while its files are read":
        monkeypatch.setattr(read_once, "hash_tree", once(hash_tree))
    else:
        monkeypatch.setattr(projects, "lock", once(lock))
    outcome = do(tools, Verb.MIGRATE, refs)[1]

    assert (outcome.status, outcome.reason) == (status, reason)
    with site.engine.begin() as conn:
        left = dump(conn, ["project_dataset_refs", "project_split_configs", "project_conversions"])
        assert not any(left.values())
        assert (
            conn.execute(text("select count(*) from sessions where dataset_id is not null")).scalar_one() == 0
        )
        rows = dump(conn)["projects"]
    assert [row["path"] for row in rows] in ([], ["/elsewhere"], [None])


def test_a_migrated_project_that_label_deletes_is_still_in_the_report(site: Site, tools: Tools):
    """Reference defect 25: whose the orphaned directory was, and which dataset it is in, stays on record."""
    project = make(site)
    outcome = run(tools, Verb.MIGRATE)[1]

    sql(site.engine, "delete from session_lineage; delete from sessions; delete from projects")

    with site.engine.connect() as conn:
        kept = conn.execute(
            text(
                "select project_id, legacy_path, dataset_id from project_conversions where rolled_back_at is null"
            )
        ).one()
        refs = dump(conn, ["project_dataset_refs"])["project_dataset_refs"]
    assert tuple(kept) == (project.project_id, project.path, outcome.dataset_id)
    assert refs == []
    assert Path(str(project.path)).is_dir()


# While it runs ----------------------------------------------------------------------------------------------


@contextmanager
def _as_a_person(site: Site) -> Iterator[Connection]:
    """A transaction of the application's, from a connection of its own."""
    engine = connect(site.engine.url, application_name="label")
    try:
        with engine.begin() as conn:
            conn.execute(text("set local lock_timeout = '20s'"))
            yield conn
    finally:
        engine.dispose()


@pytest.mark.parametrize("verb", [Verb.MIGRATE, Verb.ROLLBACK])
def test_splitting_a_session_during_its_conversion_neither_fails_nor_loses_anything(
    site: Site, tools: Tools, verb: Verb
):
    """They hold the session's row and need the project's; the conversion holds the project's and needs the
    session's.
    """
    project = make(site)
    if verb is Verb.ROLLBACK:
        run(tools, Verb.MIGRATE)
    whole = sessions(site.engine)["whole"]
    refs = open_run(site.engine, verb)

    with another_worker(site, "migrator") as own, ThreadPoolExecutor(1) as threads:
        with _as_a_person(site) as conn:
            conn.execute(text("update sessions set status = 'Split' where session_name = 'whole'"))
            running: Future[dict[int, Outcome]] = threads.submit(do, own, verb, refs)
            _wait_until_blocked(site.engine, "migrator")
            child = make_session(
                conn,
                project.project_id,
                "whole.1",
                parent_path=whole["parent_session_data_path"] or f"{project.path}/whole",
                offsets=(0, 30),
            )
            make_lineage(conn, child, whole["session_id"])
        outcome = running.result(timeout=PATIENCE_S)[project.project_id]

    assert outcome.error is None
    row = sessions(site.engine)["whole.1"]
    if verb is Verb.ROLLBACK:
        assert row["parent_session_data_path"] == f"{project.path}/whole"
    else:
        assert row["parent_session_data_path"] == f"{outcome.dataset_path}/whole"
        assert row["dataset_id"] == outcome.dataset_id
    assert sessions(site.engine)["whole"]["status"] == "Split"


def _wait_until_blocked(engine: Engine, name: str) -> None:
    """Wait until the other side waits for one of our locks, or has just given up waiting and will try
    again.
    """
    query = text(
        "select count(*) from pg_stat_activity"
        " where application_name = :name and wait_event_type = 'Lock' and datname = current_database()"
    )
    pause = threading.Event()
    for _ in range(500):
        with engine.connect() as conn:
            if conn.execute(query, {"name": name}).scalar_one():
                return
        pause.wait(0.01)
    raise AssertionError(f"{name} never waited")


def test_a_verification_waits_for_no_lock(site: Site, tools: Tools):
    make(site)
    run(tools, Verb.MIGRATE)
    refs = open_run(site.engine, Verb.VERIFY)

    with (
        another_worker(site, "migrator") as own,
        ThreadPoolExecutor(1) as threads,
        _as_a_person(site) as conn,
    ):
        _edit(conn)
        outcome = threads.submit(do, own, Verb.VERIFY, refs).result(timeout=PATIENCE_S)[1]

    assert outcome.status is Status.VERIFIED


@pytest.mark.parametrize("verb", [Verb.MIGRATE, Verb.ROLLBACK])
def test_a_dry_run_gives_way_to_people_as_the_real_run_does(site: Site, tools: Tools, verb: Verb):
    """It takes the real locks, so it waits for them, a moment at a time, and never keeps one that a person
    needs.
    """
    make(site)
    if verb is Verb.ROLLBACK:
        run(tools, Verb.MIGRATE)
    refs = open_run(site.engine, verb, dry_run=True)

    with another_worker(site, "migrator") as own, ThreadPoolExecutor(1) as threads:
        with _as_a_person(site) as conn:
            conn.execute(text("update sessions set status = 'Visualized'"))
            running: Future[dict[int, Outcome]] = threads.submit(do, own, verb, refs)
            _wait_until_blocked(site.engine, "migrator")
            _edit(conn)
        outcome = running.result(timeout=PATIENCE_S)[1]

    assert outcome.status in {Status.WOULD_MIGRATE, Status.WOULD_ROLL_BACK}


def _edit(conn: Connection) -> None:
    """Change what a conversion locks; not committed yet."""
    conn.execute(text("update sessions set status = 'Decision Made'"))
    conn.execute(text("update projects set labelings = '[]'"))


@pytest.mark.parametrize("verb", [Verb.MIGRATE, Verb.ROLLBACK])
def test_edits_that_are_committed_while_the_files_are_read_are_in_the_result(
    site: Site, tools: Tools, verb: Verb, monkeypatch: pytest.MonkeyPatch
):
    """Rows are read again under the lock: a session that came meanwhile is moved, one that went is
    forgotten.
    """
    project = make(site)
    if verb is Verb.ROLLBACK:
        run(tools, Verb.MIGRATE)
    room = read_once if verb is Verb.MIGRATE else rollback
    hash_tree: Callable[..., Any] = room.hash_tree

    def with_a_person(*args: Any, **options: Any) -> Any:
        tree = hash_tree(*args, **options)
        with site.engine.begin() as conn:
            whole = by_key(dump(conn)["sessions"], "session_name")["whole"]
            split_session(conn, whole["session_id"], [25], site.data_dir)
            cut = by_key(dump(conn)["sessions"], "session_name")["cut.1"]["session_id"]
            conn.execute(text("delete from session_lineage where child_session_id = :id"), {"id": cut})
            conn.execute(text("delete from sessions where session_id = :id"), {"id": cut})
            edited.update(readings(conn, site.data_dir))
        return tree

    edited: dict[tuple[int, Reader], Any] = {}
    monkeypatch.setattr(room, "hash_tree", with_a_person)

    outcome = run(tools, verb)[project.project_id]

    assert outcome.error is None
    found = sessions(site.engine)
    assert found.keys() == {"whole", "whole.1", "whole.2", "cut", "cut.2"}
    place = project.path if verb is Verb.ROLLBACK else outcome.dataset_path
    assert {row["parent_session_data_path"] for name, row in found.items() if name.startswith("whole.")} == {
        f"{place}/whole"
    }
    assert differences(edited, read_all(site)) == []
