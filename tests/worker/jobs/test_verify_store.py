"""Stored datasets are verified byte for byte, what is damaged is named, and repaired only by right bytes."""

import os
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.damages import HAS_BYTES, NEEDS_BYTES, Twins, flip, separate, twins
from tests.support.runs import migrate_all, verify_datasets
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status
from worker.store.store import Store


@pytest.fixture
def stored(site: Site, tools: Tools) -> Twins:
    return twins(site, tools)


def test_whole_datasets_are_verified_and_a_shared_blob_is_read_once(stored: Twins, tools: Tools):
    first, second = verify_datasets(tools)

    assert {one.status for one in (first, second)} == {Status.VERIFIED}
    assert first.verified.files + second.verified.files == 3
    assert first.verified.bytes_verified + second.verified.bytes_verified == sum(
        path.stat().st_size for path in stored.site.settings.store_dir.glob("blobs/*/*")
    )


@pytest.mark.parametrize("kind", [*NEEDS_BYTES, *HAS_BYTES])
def test_every_kind_of_damage_is_found_named_and_left_alone(stored: Twins, tools: Tools, kind: str):
    (NEEDS_BYTES | HAS_BYTES)[kind](stored)

    outcomes = verify_datasets(tools)

    failed = [one for one in outcomes if one.status is Status.FAILED]
    assert failed
    assert {one.error_class for one in failed} == {"StoredBytesMismatchError"}
    damage = [one for outcome in outcomes for one in outcome.damaged]
    assert not any(one.repaired for one in damage)
    assert stored.first.project_id in {number for one in damage for number in one.project_ids}
    assert not any((stored.site.settings.store_dir / "quarantine").iterdir())


@pytest.mark.parametrize("kind", HAS_BYTES)
def test_what_the_store_has_the_bytes_for_is_repaired_from_itself(stored: Twins, tools: Tools, kind: str):
    without_legacy(stored)
    HAS_BYTES[kind](stored)

    outcomes = verify_datasets(tools, repair=True)

    assert Status.FAILED not in {one.status for one in outcomes}, outcomes
    assert Status.REPAIRED in {one.status for one in outcomes}
    stored.check_whole()
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}


def without_legacy(stored: Twins) -> None:
    for one in (stored.first, stored.second):
        shutil.rmtree(str(one.original_path))


def tree_copy(stored: Twins) -> tuple[str, ...]:
    separate(stored.shared[1])
    without_legacy(stored)
    return ()


def first_legacy(stored: Twins) -> tuple[str, ...]:
    shutil.rmtree(str(stored.second.original_path))
    return ()


def second_legacy(stored: Twins) -> tuple[str, ...]:
    shutil.rmtree(str(stored.first.original_path))
    return ()


def backup(stored: Twins) -> tuple[str, ...]:
    """Any tree with the file under any name, behind decoys of the same size."""
    without_legacy(stored)
    folder = stored.site.folder / "backup" / "of last year"
    folder.mkdir(parents=True)
    decoy = bytearray(stored.content)
    decoy[0] ^= 1
    (folder / "a decoy").write_bytes(decoy)
    (folder / "zeros").write_bytes(bytes(len(stored.content)))
    (folder / "the file").write_bytes(stored.content)
    (folder / "link").symlink_to("the file")
    return (str(folder.parent),)


def nothing(stored: Twins) -> tuple[str, ...]:
    """Decoys alone."""
    folders = backup(stored)
    Path(folders[0], "of last year", "the file").unlink()
    return folders


@pytest.mark.parametrize("kind", NEEDS_BYTES)
@pytest.mark.parametrize("source", [tree_copy, first_legacy, second_legacy, backup])
def test_bytes_that_are_gone_come_back_from_each_source(stored: Twins, tools: Tools, kind: str, source):
    folders = source(stored)
    NEEDS_BYTES[kind](stored)

    outcomes = verify_datasets(tools, repair=True, repair_from=folders)

    assert Status.FAILED not in {one.status for one in outcomes}, outcomes
    (blob,) = (one for outcome in outcomes for one in outcome.damaged if one.path == str(stored.blob))
    assert blob.repaired
    assert blob.source
    assert sorted(blob.project_ids) == [stored.first.project_id, stored.second.project_id]
    stored.check_whole()


@pytest.mark.parametrize("kind", NEEDS_BYTES)
def test_decoys_of_equal_size_are_refused_and_the_damage_stays_named(stored: Twins, tools: Tools, kind: str):
    folders = nothing(stored)
    NEEDS_BYTES[kind](stored)
    bad = stored.blob.read_bytes() if stored.blob.exists() else None

    outcomes = verify_datasets(tools, repair=True, repair_from=folders)

    assert Status.FAILED in {one.status for one in outcomes}
    assert (stored.blob.read_bytes() if stored.blob.exists() else None) == bad
    assert not any(
        one.repaired for outcome in outcomes for one in outcome.damaged if one.path == str(stored.blob)
    )
    assert os.listdir(stored.site.settings.store_dir / "staging") == []


def test_the_bad_bytes_are_kept_with_their_story(stored: Twins, tools: Tools):
    flip(stored.blob)
    bad = stored.blob.read_bytes()

    (outcome, _) = verify_datasets(tools, repair=True)

    (reason,) = (stored.site.settings.store_dir / "quarantine").glob("*.reason.txt")
    assert reason.with_name(reason.name.removesuffix(".reason.txt")).read_bytes() == bad
    text = reason.read_text()
    assert str(stored.blob) in text
    assert str(outcome.damaged[0].source) in text
    assert "run " in text


def test_a_missing_row_file_is_no_damage_and_a_repair_writes_it(stored: Twins, tools: Tools):
    path = stored.manifest.with_suffix(".row.json")
    content = path.read_bytes()
    path.unlink()

    (first, _), (repaired, _) = verify_datasets(tools), verify_datasets(tools, repair=True)

    assert first.status is repaired.status is Status.VERIFIED
    assert first.reason.endswith("; it has no row file yet: producer datasets rebuild writes it")
    assert path.read_bytes() == content


def test_a_damaged_row_file_is_written_anew_from_the_rows(stored: Twins, tools: Tools):
    path = stored.manifest.with_suffix(".row.json")
    content = path.read_bytes()
    flip(path, 200)

    (found, _), (repaired, _) = verify_datasets(tools), verify_datasets(tools, repair=True)

    assert [(one.path, one.what, one.project_ids) for one in found.damaged] == [
        (str(path), "wrong_bytes", (stored.first.project_id,))
    ]
    assert (repaired.status, repaired.damaged[0].source) == (Status.REPAIRED, "its rows")
    assert path.read_bytes() == content
    assert [one.status for one in verify_datasets(tools)] == [Status.VERIFIED] * 2


def test_an_equal_project_still_reuses_what_was_repaired(stored: Twins, tools: Tools):
    flip(stored.blob)
    verify_datasets(tools, repair=True)
    plain_study(stored.site, "third", 1, 2)

    (third,) = migrate_all(stored.site, tools)

    assert third.dataset_id == stored.first.dataset_id
    assert third.bytes.stored == 0


def test_a_backup_that_this_machine_does_not_have_is_named(stored: Twins, tools: Tools):
    nothing(stored)
    flip(stored.blob)

    (outcome, _) = verify_datasets(tools, repair=True, repair_from=["/nowhere"])

    assert outcome.status is Status.FAILED
    assert [one.message for one in outcome.warnings] == ["--from /nowhere is not a directory on worker"]


def test_one_blob_in_many_datasets_opens_no_other_manifest(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    for number in range(12):
        plain_study(site, f"study {number}", number, rows=20)
    outcomes = migrate_all(site, tools)
    blob = next(path for path in site.settings.store_dir.glob("blobs/*/*"))
    flip(blob)
    read: list[str] = []
    really = Store.read_manifest
    monkeypatch.setattr(
        Store, "read_manifest", lambda store, digest: (read.append(digest), really(store, digest))[1]
    )
    owner = next(one for one in outcomes if _has(one, blob))

    (outcome,) = verify_datasets(tools, only=[owner.dataset_id], repair=True)

    assert outcome.status is Status.REPAIRED
    assert set(read) == {owner.dataset_hash}


def _has(one: Outcome, blob: Path) -> bool:
    return any(path.samefile(blob) for path in Path(str(one.dataset_path)).rglob("*.csv"))


def test_bytes_come_back_from_a_directory_that_a_reclaim_moved_away(stored: Twins, tools: Tools):
    """Also that of a project which was carried along: the directory around its own was renamed."""
    shutil.rmtree(str(stored.second.original_path))
    place = Path(str(stored.first.original_path))
    around, moved = place.parent, stored.site.folder / "legacy" / ".label-reclaimed" / "1-abc"
    moved.mkdir(parents=True)
    place.rename(moved / place.name)
    with stored.site.engine.begin() as conn:
        conn.execute(
            text("""
                insert into migration_reclaims (conversion_id, project_id, run_id, legacy_path, moved_from, moved_to,
                                                state)
                select conversion_id, project_id, run_id, :place, :around, :moved, 'reclaimed'
                from project_conversions where project_id = :id"""),
            {"place": str(place), "around": str(around), "moved": str(moved), "id": stored.first.project_id},
        )
    flip(stored.blob)

    outcomes = verify_datasets(tools, repair=True)

    (damage,) = (one for outcome in outcomes for one in outcome.damaged)
    assert damage.source == str(moved / place.name / "day 2" / "accelerometer_data.csv")
    stored.check_whole()
