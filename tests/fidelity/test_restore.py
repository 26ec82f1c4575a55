"""Rebuilding a legacy directory from the store: the same to the byte, mode and time, and never over
anything.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tests.estate import (
    Entry,
    differences,
    dump,
    make_project,
    make_session,
    readings,
    record_session,
    snapshot_tree,
)
from tests.estate.compare import LABEL_TABLES
from tests.support.folders import remove_all
from tests.support.model import Row
from tests.support.runs import WORK, at_once, open_run, run, run_one
from tests.support.sites import Site
from tests.support.studies import study_with_everything
from tests.support.trees import link_while_reading
from worker.jobs.tools import Tools
from worker.legacy import restore
from worker.messages import Outcome, Status, Verb
from worker.store.digest import read_stored

TABLES = (*LABEL_TABLES, "project_dataset_refs", "project_split_configs", "project_conversions")


def look(engine: Engine) -> dict[str, list[Row]]:
    with engine.connect() as conn:
        return dump(conn, TABLES)


def in_store(site: Site) -> dict[bytes, Entry]:
    """Trees, blobs and manifests; links and times of what staging came and went in do not count."""
    return snapshot_tree(site.data_dir / "raw_datasets") | {
        b"store/" + name: entry
        for name, entry in snapshot_tree(site.data_dir / "dataset_store").items()
        if not name.startswith(b"staging")
    }


def only(outcomes: dict[int, Outcome]) -> Outcome:
    (outcome,) = outcomes.values()
    return outcome


def test_the_directory_comes_back_with_bytes_modes_and_times(site: Site, tools: Tools):
    """Also where names are no UTF-8, and for the directories themselves."""
    directory = study_with_everything(site)
    rows, files = look(site.engine), snapshot_tree(directory)
    with site.engine.connect() as conn:
        read_before = readings(conn, site.data_dir)
    run(tools, Verb.MIGRATE)
    stored = in_store(site)
    remove_all(directory)

    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert (outcome.status, outcome.error) == (Status.ROLLED_BACK, None)
    assert (
        outcome.reason
        == f"rebuilt {len([e for e in files.values() if e.kind == 'file'])} files from the store"
    )
    assert snapshot_tree(directory) == files
    assert os.listdir(site.legacy_root) == [directory.name]
    after = look(site.engine)
    assert {table: after[table] for table in LABEL_TABLES} == {table: rows[table] for table in LABEL_TABLES}
    assert in_store(site) == stored
    with site.engine.connect() as conn:
        assert differences(read_before, readings(conn, site.data_dir)) == []


def test_without_restore_files_a_missing_directory_fails_and_names_that_option(site: Site, tools: Tools):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    (site.legacy_root / "another").mkdir()
    before = look(site.engine), snapshot_tree(site.legacy_root)

    outcome = only(run(tools, Verb.ROLLBACK))

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "LegacyPathMissingError")
    assert outcome.error == f"Legacy path no longer exists: {directory}"
    assert "--restore-files" in str(outcome.remedy)
    assert (look(site.engine), snapshot_tree(site.legacy_root)) == before


def test_restored_files_are_copies_that_the_application_may_rewrite(site: Site, tools: Tools):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    stored = in_store(site)
    remove_all(directory)
    run(tools, Verb.ROLLBACK, restore_files=True)

    (directory / "s" / "accelerometer_data.csv").write_text("rewritten in place")

    assert in_store(site) == stored


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("mine"),
    "an empty directory": lambda path: path.mkdir(),
    "a directory with something in it": lambda path: (path / "mine").mkdir(parents=True),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to an empty directory": lambda path: (
        (path.parent / "elsewhere").mkdir(),
        path.symlink_to("elsewhere"),
    ),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("thing", IN_THE_WAY)
def test_a_restore_replaces_nothing_that_exists(site: Site, tools: Tools, thing: str):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    IN_THE_WAY[thing](directory)
    before = look(site.engine), snapshot_tree(site.legacy_root)

    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "RollbackRefusedError")
    assert (look(site.engine), snapshot_tree(site.legacy_root)) == before


@pytest.mark.parametrize("thing", ["an empty directory", "a file", "a dangling link"])
def test_a_restore_replaces_nothing_that_comes_to_its_place_meanwhile(
    site: Site, tools: Tools, thing: str, monkeypatch: pytest.MonkeyPatch
):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    publish = restore._publish

    def somebody_is_faster(*place: Any) -> bool:
        IN_THE_WAY[thing](directory)
        return publish(*place)

    monkeypatch.setattr(restore, "_publish", somebody_is_faster)
    before = look(site.engine)

    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "RollbackRefusedError")
    assert os.listdir(site.legacy_root) == [directory.name]
    assert look(site.engine) == before


def _other_bytes(blob: Path) -> None:
    blob.chmod(0o600)
    blob.write_bytes(bytes(byte ^ 1 for byte in blob.read_bytes()))


def _shorter(blob: Path) -> None:
    blob.chmod(0o600)
    os.truncate(blob, blob.stat().st_size - 1)


SPOILED: dict[str, Callable[[Path], None]] = {
    "other bytes": _other_bytes,
    "one byte less": _shorter,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("how", SPOILED)
def test_bytes_that_differ_from_their_digest_never_get_into_a_legacy_directory(
    site: Site, tools: Tools, how: str
):
    """I11; and the rehearsal foretells it (I10)."""
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    blobs = [path for path in (site.data_dir / "dataset_store" / "blobs").rglob("*") if path.is_file()]
    SPOILED[how](max(blobs, key=lambda path: path.stat().st_size))
    before = look(site.engine), snapshot_tree(site.legacy_root)

    rehearsed = only(run(tools, Verb.ROLLBACK, dry_run=True, restore_files=True))
    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "StoredBytesMismatchError")
    after = look(site.engine), snapshot_tree(site.legacy_root)
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    assert (rehearsed.status, rehearsed.error_class) == (outcome.status, outcome.error_class)


def test_a_manifest_with_other_bytes_stops_the_restore(site: Site, tools: Tools):
    """A directory that is there needs no manifest."""
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    (manifest,) = (site.data_dir / "dataset_store" / "manifests").glob("*[0-9a-f].json")
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b"program", b"PROGRAM"))
    remove_all(directory)
    before = look(site.engine), snapshot_tree(site.legacy_root)

    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "StoredBytesMismatchError")
    assert (look(site.engine), snapshot_tree(site.legacy_root)) == before


def test_two_projects_on_one_path_are_rolled_back_at_once(site: Site, tools: Tools):
    """Whoever comes second finds the directory there, compares it, and uses it."""
    directory = study_with_everything(site, "one")
    with site.engine.begin() as conn:
        for name in ("two", "three"):
            other = make_project(conn, site.legacy_root, name, path=f"{directory}/")
            make_session(conn, other.project_id, "s")
    rows, files = look(site.engine), snapshot_tree(directory)
    for _ in range(3):
        run(tools, Verb.MIGRATE)
        remove_all(directory)
        refs = open_run(site.engine, Verb.ROLLBACK, restore_files=True)

        outcomes = at_once(site, [(Verb.ROLLBACK, ref) for ref in refs])

        assert [(one.status, one.error) for one in outcomes if one] == [(Status.ROLLED_BACK, None)] * len(
            refs
        )
        assert sum("rebuilt" in one.reason for one in outcomes if one) >= 1
        after = look(site.engine)
        assert {t: after[t] for t in LABEL_TABLES} == {t: rows[t] for t in LABEL_TABLES}
        assert snapshot_tree(directory) == files
        assert os.listdir(site.legacy_root) == [directory.name]


def test_a_dry_run_says_that_it_would_restore_and_writes_nothing(site: Site, tools: Tools):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    before = look(site.engine), snapshot_tree(site.folder)

    rehearsed = only(run(tools, Verb.ROLLBACK, dry_run=True, restore_files=True))

    assert rehearsed.status is Status.WOULD_ROLL_BACK
    assert "would rebuild" in rehearsed.reason
    assert (look(site.engine), snapshot_tree(site.folder)) == before


@pytest.mark.parametrize(
    "name", ["Ü" * 127, "研究" * 42, "n" * 255], ids=["two bytes", "three bytes", "one byte"]
)
def test_a_directory_with_a_name_as_long_as_names_may_be_comes_back(site: Site, tools: Tools, name: str):
    directory = study_with_everything(site, directory=name)
    files = snapshot_tree(directory)
    run(tools, Verb.MIGRATE)
    remove_all(directory)

    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert (outcome.status, outcome.error) == (Status.ROLLED_BACK, None)
    assert snapshot_tree(directory) == files


@pytest.mark.parametrize("first", ["inner", "outer", "both in one run"])
def test_a_project_inside_another_projects_directory_does_not_take_its_place(
    site: Site, tools: Tools, first: str
):
    """Were the inner one rebuilt alone, the outer one's place would be taken, and that could never be
    rebuilt.
    """
    outer = study_with_everything(site, "outer", directory="outer")
    with site.engine.begin() as conn:
        project = make_project(conn, outer, "inner", directory="folder/inner")
        record_session(conn, project, "s", seed=7)
    rows, files = look(site.engine), snapshot_tree(outer)
    run(tools, Verb.MIGRATE)
    remove_all(outer)
    numbers = {"inner": [2, 1], "outer": [1, 2]}.get(first)

    if numbers is None:
        rehearsed = run(tools, Verb.ROLLBACK, dry_run=True, restore_files=True)
        assert {one.status for one in rehearsed.values()} == {Status.WOULD_ROLL_BACK}
        outcomes = run(tools, Verb.ROLLBACK, restore_files=True)
    else:
        outcomes = {n: run_one(tools, Verb.ROLLBACK, n, restore_files=True) for n in numbers}

    assert [(one.status, one.error) for one in outcomes.values()] == [(Status.ROLLED_BACK, None)] * 2
    after = look(site.engine)
    assert {table: after[table] for table in LABEL_TABLES} == {table: rows[table] for table in LABEL_TABLES}
    assert snapshot_tree(outer) == files
    assert os.listdir(site.legacy_root) == ["outer"]


def test_a_directory_is_restored_where_the_file_system_has_no_exclusive_rename(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """NFS, for one, refuses the flag."""
    directory = study_with_everything(site)
    files = snapshot_tree(directory)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    _refuse_the_flag(monkeypatch)

    assert only(run(tools, Verb.ROLLBACK, restore_files=True)).status is Status.ROLLED_BACK

    assert snapshot_tree(directory) == files


def test_a_restore_without_exclusive_rename_replaces_nothing_either(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    _refuse_the_flag(monkeypatch)
    publish = restore._publish

    def somebody_is_faster(*place: Any) -> bool:
        directory.mkdir()
        return publish(*place)

    monkeypatch.setattr(restore, "_publish", somebody_is_faster)

    assert only(run(tools, Verb.ROLLBACK, restore_files=True)).status is Status.FAILED

    assert os.listdir(directory) == []
    assert os.listdir(site.legacy_root) == [directory.name]


def _refuse_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_source: str, target: str, _folder: int) -> bool:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)

    monkeypatch.setattr(restore, "rename_without_replacing", refuse)


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_left_beside_it(site: Site, tools: Tools):
    """A root could write anywhere; a file where a directory must be stops even that one."""
    directory = study_with_everything(site, directory="folder/study")
    run(tools, Verb.MIGRATE)
    remove_all(directory.parent)
    directory.parent.write_text("a file")
    before = look(site.engine), snapshot_tree(site.legacy_root)

    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert (outcome.status, outcome.error_class) == (Status.FAILED, "RollbackRefusedError")
    assert (look(site.engine), snapshot_tree(site.legacy_root)) == before


def test_what_a_killed_attempt_left_beside_the_place_is_removed_by_the_next(site: Site, tools: Tools):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    (ref,) = open_run(site.engine, Verb.ROLLBACK, restore_files=True)
    with site.engine.begin() as conn:
        conn.execute(text("update migration_jobs set attempt = 1 where run_id = :id"), {"id": ref.run_id})
    leftover = restore.building_place(str(directory), f"{ref.task_id}-1")
    shutil.copytree(site.data_dir / "raw_datasets", leftover)

    outcome = WORK[Verb.ROLLBACK, ref.subject](tools, ref, "worker")

    assert outcome is not None
    assert outcome.status is Status.ROLLED_BACK
    assert os.listdir(site.legacy_root) == [directory.name]


def test_a_blob_that_gets_another_link_while_it_is_restored_has_not_changed(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """Each link moves its time of change, and no byte of it."""
    directory = study_with_everything(site)
    files = snapshot_tree(directory)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    links = link_while_reading(monkeypatch, restore, site.folder)

    rehearsed = only(run(tools, Verb.ROLLBACK, dry_run=True, restore_files=True))
    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert links
    assert (rehearsed.status, outcome.status) == (Status.WOULD_ROLL_BACK, Status.ROLLED_BACK), outcome
    assert snapshot_tree(directory) == files


def test_a_blob_that_is_replaced_while_it_is_restored_is_read_again(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """Another worker repairs a bad one at that moment."""
    directory = study_with_everything(site)
    files = snapshot_tree(directory)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    blob = max((site.data_dir / "dataset_store" / "blobs").glob("*/*"), key=lambda path: path.stat().st_size)
    good = blob.read_bytes()
    _other_bytes(blob)

    def repair_meanwhile(path: str, *args: Any) -> Iterator[memoryview]:
        yield from read_stored(path, *args)
        if path == str(blob):
            blob.unlink()
            blob.write_bytes(good)

    monkeypatch.setattr(restore, "read_stored", repair_meanwhile)

    outcome = only(run(tools, Verb.ROLLBACK, restore_files=True))

    assert outcome.status is Status.ROLLED_BACK, outcome
    assert snapshot_tree(directory) == files


@pytest.mark.parametrize("name", ["{job}-1", "{job}-0", "{job}-1-64c0ffee", "removed-0"])
def test_a_link_that_is_called_like_a_leftover_is_not_followed(
    site: Site, tools: Tools, tmp_path: Path, name: str
):
    directory = study_with_everything(site)
    run(tools, Verb.MIGRATE)
    remove_all(directory)
    victim = tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    (victim / "precious").write_text("x")
    (ref,) = open_run(site.engine, Verb.ROLLBACK, restore_files=True)
    (site.legacy_root / f"{restore.BUILDING}{name.format(job=ref.task_id)}").symlink_to(victim)

    outcome = WORK[Verb.ROLLBACK, ref.subject](tools, ref, "worker")

    assert outcome is not None
    assert outcome.status is Status.ROLLED_BACK, outcome
    assert sorted(os.listdir(victim)) == ["deep", "precious"]
    assert os.listdir(site.legacy_root) == [directory.name]


def test_a_restored_directory_belongs_to_its_former_owner(site: Site, tools: Tools):
    """Only root may give files away; to anybody else the directory comes back as the migrator's user's."""
    directory = study_with_everything(site)
    if os.geteuid() == 0:
        os.chown(directory / "s" / "accelerometer_data.csv", 1234, 2345)
        os.chown(directory / "s", 3456, 4567)
        os.chown(directory, 5678, 6789)
    names = ["s/accelerometer_data.csv", "s", "at the top", "."]
    owners = {name: ((directory / name).stat().st_uid, (directory / name).stat().st_gid) for name in names}
    run(tools, Verb.MIGRATE)
    shutil.rmtree(directory)

    run(tools, Verb.ROLLBACK, restore_files=True)

    assert owners == {
        name: ((directory / name).stat().st_uid, (directory / name).stat().st_gid) for name in names
    }
