"""Stored bytes are never trusted for longer than the settings say, and bad ones are mended in every tree."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.runs import migrate_all
from tests.support.sites import Site
from tests.support.studies import damage, plain_study
from tests.support.trees import link_while_reading
from worker.jobs import integrity, judging
from worker.jobs.tools import Tools
from worker.legacy import hash as hashing
from worker.messages import Outcome
from worker.store.digest import BIG_BYTES


def keep_times(path: Path, act: Any) -> None:
    """Do something to a file so that its times do not tell."""
    status = path.stat()
    act(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def make_old(site: Site, days: int) -> None:
    """Let every check have been made that long ago."""
    with site.engine.begin() as conn:
        conn.execute(
            text("update migration_blob_checks set checked_at = checked_at - make_interval(days => :days)"),
            {"days": days},
        )


def recording(outcome: Outcome, seed: int) -> Path:
    return Path(outcome.dataset_path or "") / f"day {seed}" / "accelerometer_data.csv"


def quarantined(site: Site) -> list[str]:
    return sorted(path.name for path in (site.settings.store_dir / "quarantine").iterdir())


def test_a_damaged_blob_is_repaired_from_the_incoming_copy_in_every_tree(site: Site, tools: Tools):
    plain_study(site, "first", 1, 2)
    plain_study(site, "second", 2, 3)
    first, second = migrate_all(site, tools)
    whole = recording(first, 2).read_bytes()
    damage(recording(first, 2))
    assert recording(second, 2).read_bytes() != whole
    plain_study(site, "third", 2, 4)

    (third,) = migrate_all(site, tools)

    assert [recording(one, 2).read_bytes() for one in (first, second, third)] == [whole] * 3
    assert len({recording(one, 2).stat().st_ino for one in (first, second, third)}) == 1
    assert recording(first, 2).stat().st_mode & 0o777 == 0o444
    assert recording(first, 2).parent.stat().st_mode & 0o777 == 0o555
    assert [name for name in quarantined(site) if name.endswith(".reason.txt")]
    assert third.bytes.stored >= len(whole)


def test_a_damaged_dataset_is_repaired_before_an_equal_project_refers_to_it(site: Site, tools: Tools):
    plain_study(site, "first", 1)
    (first,) = migrate_all(site, tools)
    whole = recording(first, 1).read_bytes()
    damage(recording(first, 1))
    plain_study(site, "second", 1)

    (second,) = migrate_all(site, tools)

    assert second.dataset_id == first.dataset_id
    assert not second.dataset_created
    assert recording(first, 1).read_bytes() == whole


def test_damage_without_a_trace_in_the_times_is_found_when_the_last_check_is_old(site: Site, tools: Tools):
    plain_study(site, "first", 1)
    (first,) = migrate_all(site, tools)
    whole = recording(first, 1).read_bytes()
    keep_times(recording(first, 1), damage)
    make_old(site, 31)
    plain_study(site, "second", 1)

    migrate_all(site, tools)

    assert recording(first, 1).read_bytes() == whole


def test_a_fresh_check_is_trusted_and_an_old_one_is_repeated(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    read: list[str] = []
    really = integrity.is_right
    monkeypatch.setattr(
        integrity, "is_right", lambda job, *file: (read.append(file[0]), really(job, *file))[1]
    )
    plain_study(site, "first", 1)
    migrate_all(site, tools)
    plain_study(site, "second", 1)
    migrate_all(site, tools)
    assert read == []

    make_old(site, 31)
    plain_study(site, "third", 1)
    plain_study(site, "fourth", 1)
    migrate_all(site, tools)

    assert len(read) == len(set(read)) > 0
    assert quarantined(site) == []


def test_a_blob_that_gets_another_link_while_it_is_read_is_not_taken_for_bad(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """Each link moves its time of change, and no byte of it."""
    plain_study(site, "first", 1)
    (first,) = migrate_all(site, tools)
    make_old(site, 31)
    plain_study(site, "second", 1)
    links = link_while_reading(monkeypatch, hashing, site.folder)

    (second,) = migrate_all(site, tools)

    assert links
    assert (second.dataset_id, second.bytes.stored) == (first.dataset_id, 0)
    assert quarantined(site) == []


def test_of_two_that_repair_a_blob_the_second_keeps_what_the_first_put_there(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """What it read was the bad one, by a name that leads to the good one by now. The first look was before
    its turn.
    """
    plain_study(site, "first", 1)
    (first,) = migrate_all(site, tools)
    path = recording(first, 1)
    (blob,) = (one for one in (site.settings.store_dir / "blobs").glob("*/*") if one.samefile(path))
    good = path.read_bytes()
    damage(path)
    make_old(site, 31)
    plain_study(site, "second", 1)
    read: list[bool] = []
    real = judging.has_digest

    def another_is_faster(place: str, *args: Any) -> bool:
        found = real(place, *args)
        if place == str(blob):
            read.append(found)
            if read == [False, False]:
                for name in (path, blob):
                    name.parent.chmod(0o755)
                    name.unlink()
                blob.write_bytes(good)
                os.link(blob, path)
                path.parent.chmod(0o555)
        return found

    monkeypatch.setattr(judging, "has_digest", another_is_faster)

    migrate_all(site, tools)

    assert read == [False, False, True]
    assert path.read_bytes() == good
    assert quarantined(site) == []


def test_a_big_file_that_was_not_seen_before_is_read_once(site: Site, tools: Tools):
    from worker.store import digest

    path = plain_study(site, "big", 1)
    recorded = path / "day 1" / "accelerometer_data.csv"
    line = b"1000000000000,0.100000,0.200000,0.300000\n"
    recorded.write_bytes(b"ns_since_reboot,x,y,z\n" + line * (2 * BIG_BYTES // len(line)))
    opened: list[str] = []
    really = digest.open_resolved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            digest, "open_resolved", lambda name, *rest: (opened.append(name), really(name, *rest))[1]
        )
        (outcome,) = migrate_all(site, tools)

    # Once for its first chunk, which tells that it is new, and once for everything else.
    assert opened.count(os.path.realpath(recorded)) == 2
    assert recording(outcome, 1).read_bytes() == recorded.read_bytes()
    assert outcome.bytes.stored == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_a_big_file_seen_before_is_stored_once_however_often_it_comes(site: Site, tools: Tools):
    line = b"1000000000000,0.100000,0.200000,0.300000\n"
    for name, sessions in (("one", (1,)), ("two", (1, 2)), ("three", (1,))):
        path = plain_study(site, name, *sessions)
        for seed in sessions:
            (path / f"day {seed}" / "accelerometer_data.csv").write_bytes(
                b"ns_since_reboot,x,y,z\n%d,0,0,0\n" % seed + line * (2 * BIG_BYTES // len(line))
            )

    outcomes = migrate_all(site, tools)

    size = recording(outcomes[0], 1).stat().st_size
    assert [one.bytes.stored // size for one in outcomes] == [1, 1, 0]
    assert not any((site.settings.store_dir / "staging").iterdir())
