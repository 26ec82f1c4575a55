"""Rows of datasets come back from the store as they were; what is there stays; what fits neither is named."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.estate import every_form, make_dataset
from tests.support.dying import EVERY_THIRD_OR_ALL, done_until
from tests.support.folders import remove_all
from tests.support.registered import Registered, register
from tests.support.runs import gc, migrate_all, run, tools_of
from tests.support.servers import forget_rows
from tests.support.sites import Site
from tests.support.studies import check_store, plain_study, staged, study_with_everything
from tests.support.trees import as_ordinary_user
from worker.db import exchange
from worker.db.engine import connect
from worker.errors import StoreElsewhereError, StoreUnusableError
from worker.jobs.drift import Kind
from worker.jobs.rebuild import Outcome, rebuild
from worker.jobs.tools import Tools
from worker.messages import Outcome as Outcome_
from worker.messages import Status, Subject, Verb
from worker.store.store import Store

Row = dict[str, Any]
Rows = dict[str, list[Row]]

LOST = "delete from project_dataset_refs; update sessions set dataset_id = null; delete from raw_datasets"
"""What an older backup lacks of datasets, while its projects are as they were."""


def do(site: Site, sql: str, **values: Any) -> None:
    with site.engine.begin() as conn:
        for statement in sql.split(";"):
            conn.execute(text(statement), values if ":" in statement else {})


def rows(site: Site, *tables: str) -> Rows:
    """All columns of all rows, of the tables of datasets."""
    with site.engine.connect() as conn:
        return {
            table: list(conn.scalars(text(f"select to_jsonb(t) from {table} t order by to_jsonb(t)::text")))
            for table in (*("raw_datasets", "raw_dataset_sessions"), *tables)
        }


def rebuilt(site: Site, *, dry_run: bool = False) -> Outcome:
    return rebuild(site.settings, site.engine, dry_run=dry_run)


def kinds(outcome: Outcome) -> list[Kind]:
    return [one.kind for one in outcome.drift]


def store_of(site: Site) -> Store:
    return Store.open(site.settings.store_dir, site.settings.datasets_dir, "blake3", create=False)


@pytest.fixture
def stored(site: Site, tools: Tools) -> Rows:
    """Two datasets; their rows."""
    plain_study(site, "first", 1, 2)
    study_with_everything(site, "second", seed=3)
    migrate_all(site, tools)
    return rows(site)


# Rows as they were ------------------------------------------------------------------------------------------


def test_rows_of_every_form_come_back_with_every_column_as_it_was(site: Site, tools: Tools):
    """Into a database that has no row of anything, as after a restore of nothing but the tables."""
    with site.engine.begin() as conn:
        every_form(conn, site.legacy_root, data_dir=site.data_dir, outside=site.folder / "outside")
    migrated = [one for one in run(tools, Verb.MIGRATE).values() if one.status is Status.MIGRATED]
    ours = {one.dataset_hash for one in migrated}
    before = rows(site)
    of_label = {row["dataset_id"] for row in before["raw_datasets"] if row["dataset_hash"] not in ours}
    wanted = {
        table: [row for row in found if row["dataset_id"] not in of_label] for table, found in before.items()
    }
    forget_rows(site.engine)

    foretold = rebuilt(site, dry_run=True)
    assert rows(site) == {"raw_datasets": [], "raw_dataset_sessions": []}
    done = rebuilt(site)

    assert rows(site) == wanted
    assert len(done.rebuilt) == len(ours) == len(foretold.rebuilt)
    assert done.rebuilt == foretold.rebuilt
    assert {note for one in done.rebuilt for note in one.notes} == set()
    assert set(kinds(done)) <= {Kind.TREE_WITHOUT_ROW}, "what Label registered itself"
    assert staged(site) == []


def test_a_second_rebuild_finds_everything_there(site: Site, stored: Rows):
    do(site, LOST)
    rebuilt(site)

    again = rebuilt(site)

    assert (again.there, again.rebuilt, again.row_files, again.drift) == (2, [], [], [])
    assert rows(site) == stored


@pytest.mark.usefixtures("stored")
def test_only_what_is_missing_is_written(site: Site):
    do(site, "update raw_datasets set description = 'of a person' where dataset_id = 1")
    do(site, "delete from project_dataset_refs; update sessions set dataset_id = null")
    do(site, "delete from raw_datasets where dataset_id = 2")
    kept = [row for row in rows(site)["raw_datasets"] if row["dataset_id"] == 1]

    done = rebuilt(site)

    assert [one.dataset_id for one in done.rebuilt] == [2]
    assert [row for row in rows(site)["raw_datasets"] if row["dataset_id"] == 1] == kept
    assert kinds(done) == [Kind.ROW_FILE_DIFFERS]
    assert "description is 'of a person', and 'Migrated from legacy project: first'" in done.drift[0].reason


def test_rebuilt_datasets_are_verified_found_reused_and_collected_later(
    site: Site, tools: Tools, stored: Rows
):
    do(site, LOST)
    do(
        site,
        "delete from project_conversions; delete from migration_indexed_datasets; update projects set project_type = 'legacy', path = legacy_path, legacy_path = null, analysis_config = null",
    )

    rebuilt(site)

    verified = run(tools, Verb.VERIFY, subject=Subject.DATASET)
    assert {one.status for one in verified.values()} == {Status.VERIFIED}
    (outcome,) = run(tools, Verb.GC, only=[1], subject=Subject.STORE, grace_hours=24.0).values()
    assert outcome.garbage == (), "their time begins now"
    first, second = migrate_all(site, tools)
    assert (first.dataset_id, second.dataset_id) == (1, 2)
    assert not first.dataset_created
    assert rows(site) == stored


def test_a_dataset_that_nothing_refers_to_is_collected_in_the_end(site: Site, tools: Tools, stored: Rows):
    do(
        site,
        "delete from project_dataset_refs; delete from session_lineage; delete from sessions; delete from projects; delete from project_conversions; delete from raw_datasets",
    )
    rebuilt(site)

    (outcome,) = run(tools, Verb.GC, only=[1], subject=Subject.STORE, grace_hours=0.0, expect=2).values()

    assert {(one.action, one.kind) for one in outcome.garbage} == {("quarantined", "dataset")}
    assert [row["dataset_id"] for row in stored["raw_datasets"]] == [1, 2]
    assert list((site.settings.store_dir / "manifests").iterdir()) == []
    for entry in outcome.garbage:
        run(tools, Verb.GC, only=[1], subject=Subject.STORE, restore_entry=entry.entry_id)
    assert rows(site) == stored
    assert rebuilt(site).drift == []
    check_store(site)


def test_label_s_hash_comes_back_where_it_was_known(site: Site, stored: Rows):
    with site.engine.begin() as conn:
        exchange.remember_label_hash(conn, stored["raw_datasets"][0]["dataset_hash"], "ab" * 32)
    for path in (site.settings.store_dir / "manifests").glob("*.row.json"):
        path.unlink()
    assert len(rebuilt(site).row_files) == 2
    known = rows(site, "migration_label_hashes")
    do(site, f"{LOST}; delete from migration_label_hashes")

    rebuilt(site)

    found = rows(site, "migration_label_hashes")
    assert [row["label_hash"] for row in found["migration_label_hashes"]] == ["ab" * 32]
    assert found["raw_datasets"] == known["raw_datasets"]


def test_a_store_that_was_moved_gets_rows_of_where_it_is_now(site: Site, stored: Rows):
    moved = site.folder / "moved"
    shutil.copytree(site.data_dir, moved, symlinks=True)
    forget_rows(site.engine)

    done = rebuild(site.settings.model_copy(update={"data_dir": moved}), site.engine, dry_run=False)

    assert done.drift == []
    found = rows(site)
    for table, column in (("raw_datasets", "file_path"), ("raw_dataset_sessions", "session_path")):
        assert [row[column] for row in found[table]] == [
            row[column].replace(str(site.data_dir), str(moved)) for row in stored[table]
        ]


# Ids --------------------------------------------------------------------------------------------------------


def test_sequences_go_on_behind_the_ids_that_came_back(site: Site, stored: Rows):
    do(site, LOST)
    for table, key in (("raw_datasets", "dataset_id"), ("raw_dataset_sessions", "raw_session_id")):
        do(site, f"select setval(pg_get_serial_sequence('{table}', '{key}'), 1, false)")

    rebuilt(site)

    with site.engine.begin() as conn:
        (number,) = conn.scalars(
            text(
                "insert into raw_datasets (dataset_name, dataset_hash, file_path)"
                " values ('new', repeat('0', 64), '/data/new') returning dataset_id"
            )
        )
        assert number == 3
        numbers = conn.scalars(
            text("select nextval(pg_get_serial_sequence('raw_dataset_sessions', 'raw_session_id'))")
        )
        assert numbers.one() > max(row["raw_session_id"] for row in stored["raw_dataset_sessions"])


USERS = {
    "another dataset": (
        "insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path) values (1, 'taken', repeat('0', 64), '/data/taken')",
        "dataset taken has it",
    ),
    "a session": (
        "alter table sessions disable trigger all; update sessions set dataset_id = 1, parent_session_data_path = '/elsewhere/day' where session_id = 1; alter table sessions enable trigger all",
        "session 1 names it",
    ),
    "a conversion": (
        "update project_conversions set dataset_hash = repeat('0', 64) where dataset_id = 1",
        "the record of project 1's migration names it",
    ),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.usefixtures("stored")
def test_an_id_that_is_another_one_s_by_now_is_never_given_again(site: Site, user: str):
    statement, reason = USERS[user]
    do(site, LOST)
    do(site, "update projects set analysis_config = null")
    do(site, statement)
    # As in the backup: the next number would be one of those that come back.
    do(site, "select setval(pg_get_serial_sequence('raw_datasets', 'dataset_id'), 1)")

    foretold, done = rebuilt(site, dry_run=True), rebuilt(site)

    assert foretold.rebuilt == done.rebuilt
    by_name = {one.dataset_name: one for one in done.rebuilt}
    assert by_name["second"].dataset_id == 2
    assert by_name["first"].dataset_id > 2
    (note,) = by_name["first"].notes
    assert note == f"its id was 1, which is another one's by now: {reason}"
    again = rebuilt(site)
    assert (again.rebuilt, again.drift) == ([], []), "its row file has its id by now"


# Drift ------------------------------------------------------------------------------------------------------


def first_tree(site: Site) -> Path:
    (tree,) = site.settings.datasets_dir.glob("first-*")
    return tree


def first_manifest(site: Site, ending: str = ".json") -> Path:
    (row,) = [
        path
        for path in (site.settings.store_dir / "manifests").glob("*.row.json")
        if json.loads(path.read_text())["dataset_name"] == "first"
    ]
    return row.with_name(row.name.removesuffix(".row.json") + ending)


def move_tree(site: Site) -> None:
    first_tree(site).chmod(0o755)
    first_tree(site).rename(site.folder / "away")


def lose_a_file(site: Site) -> None:
    file = first_tree(site) / "day 1" / "accelerometer_data.csv"
    file.parent.chmod(0o755)
    file.unlink()


def write(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def take_tree(site: Site) -> None:
    with site.engine.begin() as conn:
        make_dataset(conn, first_tree(site), "0" * 64)


LOSSES: dict[Kind, Callable[[Site], object]] = {
    Kind.MANIFEST_WITHOUT_TREE: move_tree,
    Kind.TREE_DIFFERS: lose_a_file,
    Kind.MANIFEST_DIFFERS: lambda site: write(first_manifest(site), b"{}"),
    Kind.ROW_FILE_UNREADABLE: lambda site: write(first_manifest(site, ".row.json"), b"{}"),
    Kind.OTHER_HASH: take_tree,
}


@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_not_whole_gets_no_row_and_is_named(site: Site, stored: Rows, kind: Kind):
    do(site, LOST)
    LOSSES[kind](site)
    there = rows(site)["raw_datasets"]

    foretold, done = rebuilt(site, dry_run=True), rebuilt(site)

    assert foretold.drift == done.drift
    assert [one.dataset_name for one in done.rebuilt] == ["second"]
    (drift,) = done.drift
    assert drift.kind is kind
    assert drift.dataset_hash == first_hash(stored)
    assert drift.remedy
    assert os.path.lexists(drift.path)
    assert [row for row in rows(site)["raw_datasets"] if row["dataset_name"] != "second"] == there


def first_hash(stored: Rows) -> str:
    found: str = next(row["dataset_hash"] for row in stored["raw_datasets"] if row["dataset_name"] == "first")
    return found


def test_labels_with_other_bytes_than_the_manifest_has_come_into_no_row(site: Site, tools: Tools):
    directory = plain_study(site, "labelled", 1)
    (directory / "day 1" / "labels.json").write_text("[1]")
    migrate_all(site, tools)
    assert rows(site)["raw_dataset_sessions"][0]["original_labels_json"] == "[1]"
    do(site, LOST)
    (tree,) = site.settings.datasets_dir.iterdir()
    write(tree / "day 1" / "labels.json", b"[2]")

    done = rebuilt(site)

    assert kinds(done) == [Kind.LABELS_DIFFER]
    assert rows(site)["raw_datasets"] == []


def test_rows_without_a_tree_or_manifest_and_trees_without_a_row_are_named(site: Site, stored: Rows):
    (site.settings.datasets_dir / "of Label").mkdir()
    with site.engine.begin() as conn:
        make_dataset(conn, site.settings.datasets_dir / "of Label", "0" * 64)
    (site.settings.datasets_dir / "of Label").rmdir()
    move_tree(site)
    (site.settings.datasets_dir / "nobody knows").mkdir()
    second = next(row for row in stored["raw_datasets"] if row["dataset_name"] == "second")
    (site.settings.store_dir / "manifests" / f"{second['dataset_hash']}.json").unlink()
    before = rows(site)

    done = rebuilt(site)

    assert {one.kind: one.dataset_id for one in done.drift} == {
        Kind.ROW_WITHOUT_TREE: 1,
        Kind.ROW_WITHOUT_MANIFEST: 2,
        Kind.TREE_WITHOUT_ROW: None,
    }
    assert rows(site) == before


def test_what_a_gc_took_since_the_backup_is_named_kept_and_brought_back(
    site: Site, tools: Tools, stored: Rows
):
    with site.engine.connect() as conn:
        backup = {
            table: conn.scalars(text(f"select cast(jsonb_agg(t) as text) from {table} t")).one()
            for table in ("raw_datasets", "raw_dataset_sessions")
        }
    run(tools, Verb.ROLLBACK)
    (taken,) = run(tools, Verb.GC, only=[1], subject=Subject.STORE, grace_hours=0.0, expect=2).values()
    for table, content in backup.items():
        do(
            site,
            f"insert into {table} select * from jsonb_populate_recordset(null::{table}, cast(:rows as jsonb))",
            rows=content,
        )

    found = rebuilt(site).drift
    do(
        site,
        "insert into project_dataset_refs (project_id, dataset_id) select project_id, project_id from projects",
    )
    (kept,) = run(tools, Verb.GC, only=[1], subject=Subject.STORE, grace_hours=0.0, expect=2).values()
    for entry in taken.garbage:
        run(tools, Verb.GC, only=[1], subject=Subject.STORE, restore_entry=entry.entry_id)

    entries = {entry.dataset_id: entry.entry_id for entry in taken.garbage}
    assert {one.dataset_id: one.reason for one in found} == {
        number: f"its tree is not there; a gc has put it into quarantine as {entry}"
        for number, entry in entries.items()
    }
    assert {one.kind for one in found} == {Kind.ROW_WITHOUT_TREE}
    assert "removed" not in {one.action for one in kept.garbage}
    assert any("stays in quarantine" in one.message for one in kept.warnings)
    assert rows(site) == stored
    assert rebuilt(site).drift == []
    check_store(site)


def test_a_missing_blob_is_named_and_the_row_comes_back(site: Site, tools: Tools, stored: Rows):
    do(site, LOST)
    store = store_of(site)
    file = store.read_manifest(first_hash(stored)).files[0]
    os.unlink(store.blob_path(file.digest))

    done = rebuilt(site)

    assert kinds(done) == [Kind.BLOBS_MISSING]
    assert rows(site) == stored
    assert Status.REPAIRED in {
        one.status for one in run(tools, Verb.VERIFY, subject=Subject.DATASET, repair=True).values()
    }


# What was adopted -------------------------------------------------------------------------------------------


def adopt(tools: Tools, one: Registered, **options: bool) -> Outcome_:
    (outcome,) = run(tools, Verb.ADOPT, only=[one.dataset_id], subject=Subject.DATASET, **options).values()
    return outcome


def test_an_adopted_dataset_comes_back_as_one_that_no_gc_takes(site: Site, tools: Tools):
    walk = register(site, "walk", 1, 2)
    adopt(tools, walk)
    before = rows(site)
    forget_rows(site.engine)

    (one,) = rebuilt(site).rebuilt

    assert one.dataset_id == walk.dataset_id
    for table, found in rows(site).items():
        assert [less(row, {"updated_at"}) for row in found] == [
            less(row, {"updated_at"}) for row in before[table]
        ]
    assert rebuilt(site).drift == []
    assert [gc(tools).garbage for _ in range(3)] == [(), (), ()]
    assert "was removed by a gc" in str(adopt(tools, walk, undo=True).error)


def test_what_was_adopted_since_the_backup_is_named_and_adopted_again(site: Site, tools: Tools):
    walk = register(site, "walk", 1, 2)
    before = rows(site)
    adopt(tools, walk)
    after = rows(site)
    do(site, "delete from migration_adoptions; delete from raw_dataset_sessions")
    do(site, "update raw_datasets set dataset_hash = :hash", hash=before["raw_datasets"][0]["dataset_hash"])
    do(
        site,
        "insert into raw_dataset_sessions select * from jsonb_populate_recordset(null::raw_dataset_sessions, cast(:rows as jsonb))",
        rows=json.dumps(before["raw_dataset_sessions"]),
    )

    assert kinds(rebuilt(site)) == [Kind.NOT_ADOPTED]
    walk.tree.rename(site.folder / "ours")
    subprocess.run(["cp", "--recursive", "--no-preserve=mode", site.folder / "ours", walk.tree], check=True)
    assert adopt(tools, walk).status is Status.ADOPTED

    assert kinds(rebuilt(site)) == []
    found = rows(site)
    assert [less(row, {"updated_at"}) for row in found["raw_datasets"]] == [
        less(row, {"updated_at"}) for row in after["raw_datasets"]
    ]
    walk.check_read()


def test_what_was_given_back_to_label_is_no_drift(site: Site, tools: Tools):
    walk = register(site, "walk", 1, 2)
    adopt(tools, walk)
    adopt(tools, walk, undo=True)

    assert rebuilt(site).drift == []
    walk.check_untouched()


# Stores of earlier releases ---------------------------------------------------------------------------------


def test_without_a_row_file_rows_are_made_of_manifest_and_tree(site: Site, tools: Tools):
    directory = plain_study(site, "P 1", 1, 2)
    (directory / "day 1" / "labels.json").write_text('[{"a": "ä"}]', encoding="utf-8")
    (directory / "day 2" / "labels.json").write_bytes(b"\xff")
    migrate_all(site, tools)
    stored = rows(site)
    do(site, LOST)
    first_file = next((site.settings.store_dir / "manifests").glob("*.row.json"))
    first_file.unlink()

    foretold, done = rebuilt(site, dry_run=True), rebuilt(site)

    (one,) = done.rebuilt
    assert [one.dataset_hash for one in foretold.rebuilt] == [one.dataset_hash]
    assert one.dataset_name == "P_1"
    assert one.notes[0].startswith("no row file tells its rows")
    own = {
        "dataset_id",
        "dataset_name",
        "description",
        "metadata",
        "upload_timestamp",
        "created_at",
        "updated_at",
    }
    found = rows(site)
    for table, mine in found.items():
        assert [less(row, own | {"raw_session_id"}) for row in mine] == [
            less(row, own | {"raw_session_id"}) for row in stored[table]
        ]
    assert first_file.exists()
    assert (rebuilt(site).drift, rebuilt(site).row_files) == ([], [])


def less(row: Row, columns: set[str]) -> Row:
    return {name: value for name, value in row.items() if name not in columns}


def test_a_store_of_an_earlier_release_gets_its_row_files(site: Site, stored: Rows):
    files = sorted((site.settings.store_dir / "manifests").glob("*.row.json"))
    said = [json.loads(path.read_text()) for path in files]
    for path in files:
        path.unlink()

    assert len(rebuilt(site, dry_run=True).row_files) == 2
    assert not files[0].exists()
    done = rebuilt(site)

    assert (done.row_files, done.drift, done.there) == ([1, 2], [], 2)
    assert [json.loads(path.read_text()) for path in files] == said
    assert rows(site) == stored


# What may go wrong ------------------------------------------------------------------------------------------


def rebuilt_until(site: Site, at: int) -> bool:
    """Let a process rebuild until that statement; did it come to the end?"""
    return done_until(site, lambda engine: rebuild(site.settings, engine, dry_run=False), at)


@pytest.mark.parametrize("every", EVERY_THIRD_OR_ALL)
def test_a_rebuild_may_be_killed_at_every_statement(site: Site, stored: Rows, every: int):
    first_manifest(site, ".row.json").unlink()
    by_id = {row["dataset_name"]: row for row in stored["raw_datasets"]}
    do(site, LOST)
    deaths = 0
    # No process is there to give its claim back; a real one would be waited for as long as a lease.
    while not rebuilt_until(site, at=1 + every * deaths):
        deaths += 1
        found = rows(site)
        for row in found["raw_datasets"]:
            sessions = [
                one for one in found["raw_dataset_sessions"] if one["dataset_id"] == row["dataset_id"]
            ]
            assert len(sessions) == row["session_count"]
        do(site, LOST + "; update dataset_claims set owner = null, attempt = null, expires_at = null")

    assert every * deaths > 15
    assert [row for row in rows(site)["raw_datasets"] if row["dataset_name"] == "second"] == [by_id["second"]]
    assert (rebuilt(site).rebuilt, rebuilt(site).drift) == ([], [])
    assert staged(site) == []


@pytest.mark.usefixtures("stored")
def test_no_store_and_another_one_are_refused(site: Site):
    store = site.settings.store_dir / "store.json"
    content = json.loads(store.read_text())
    write(store, json.dumps(content | {"id": "0" * 8 + content["id"][8:]}).encode())
    with pytest.raises(StoreElsewhereError):
        rebuilt(site)

    forget_rows(site.engine)
    remove_all(site.settings.store_dir)
    shutil.rmtree(site.settings.store_dir, ignore_errors=True)
    with pytest.raises(StoreUnusableError, match="There is no store at"):
        rebuilt(site)


def test_an_ordinary_user_rebuilds_what_it_stored(site: Site):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)

        def store_and_lose() -> tuple[Rows, Rows, int]:
            engine = connect(site.settings.sqlalchemy_url, application_name="ordinary")
            places = {"data_dir": folder / "data", "legacy_roots": (folder / "legacy",)}
            own = replace(
                site,
                engine=engine,
                data_dir=folder / "data",
                legacy_root=folder / "legacy",
                settings=site.settings.model_copy(update=places),
            )
            for path in (own.data_dir, own.legacy_root):
                path.mkdir()
            plain_study(own, "first", 1, 2)
            with tools_of(own) as tools:
                migrate_all(own, tools)
            before = rows(own)
            do(own, LOST)
            done = rebuilt(own)
            remove_all(own.data_dir)
            return before, rows(own), len(done.drift)

        before, after, drift = as_ordinary_user(store_and_lose)

    assert (after, drift) == (before, 0)
