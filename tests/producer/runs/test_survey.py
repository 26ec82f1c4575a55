"""What `enqueue` says of directories that do not answer, and of a store that has no room for what it
plans.
"""

import os
import threading
from pathlib import Path

import pytest

from producer.runs import survey as surveys
from producer.runs.legacy_projects import enqueue
from producer.runs.open import Opened
from producer.runs.survey import Listing, Survey, at_most_stored, room_warnings
from tests.estate import make_project, record_session
from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S
from worker.settings import Settings


def seen(size_bytes: int, signature: int) -> Survey:
    return Survey(sessions=1, files=1, size_bytes=size_bytes, signature=signature)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let the store's file system have 100,000 bytes of which 30,000 are free, less 2,000 in reserve; who was
    asked for it.
    """
    asked: list[Path] = []

    def statvfs(path: Path) -> os.statvfs_result:
        asked.append(path)
        return os.statvfs_result((1000, 1000, 100, 30, 30, 9, 9, 9, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    return asked


def test_a_plan_that_does_not_fit_is_reported_with_both_sizes(settings: Settings, room: list[Path]):
    (warning,) = room_warnings(settings, at_most_stored([seen(28_000, 1), seen(1, 2)]))

    assert "28 kB are planned, and it has room for 28 kB" in warning
    assert str(settings.store_dir) in warning
    assert room == [settings.data_dir]


def test_a_plan_that_fits_to_the_last_byte_gives_no_warning(settings: Settings, room: list[Path]):
    assert room_warnings(settings, 28_000) == ()
    assert room


def test_likely_duplicates_are_counted_once(settings: Settings, room: list[Path]):
    assert room_warnings(settings, at_most_stored([seen(20_000, 1)] * 3)) == ()
    assert room


def test_free_room_is_measured_where_the_store_is(settings: Settings, room: list[Path]):
    settings.store_dir.mkdir()

    room_warnings(settings, 1)

    assert room == [settings.store_dir]


def test_no_room_warning_is_given_for_a_store_that_is_not_mounted_here(settings: Settings, room: list[Path]):
    settings.data_dir.rename(settings.data_dir.with_name("mounted elsewhere"))
    try:
        assert room_warnings(settings, 1 << 50) == ()
    finally:
        settings.data_dir.with_name("mounted elsewhere").rename(settings.data_dir)
    assert room == []


def test_a_real_run_is_enqueued_with_the_warning_and_a_dry_run_without_it(site: Site, room: list[Path]):
    def opened(*, dry_run: bool) -> Opened:
        return enqueue(site.settings, site.engine, dry_run=dry_run)

    with site.engine.begin() as conn:
        record_session(conn, make_project(conn, site.legacy_root, "big"), "day", rows=2000, seed=1)

    rehearsal, run = opened(dry_run=True), opened(dry_run=False)

    assert rehearsal.warnings == ()
    assert len(run.warnings) == 1
    assert len(run.jobs) == 1
    assert room


def test_a_directory_that_does_not_answer_is_named_while_it_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    """A mount that hangs, as seen from the producer: a call that does not return."""
    with site.engine.begin() as conn:
        for name in ("one", "two", "three"):
            record_session(conn, make_project(conn, site.legacy_root, name), "s", rows=20)
    back = threading.Event()
    survey = surveys.survey

    def hangs(path: str) -> Survey | None:
        if "two" in path:
            back.wait(PATIENCE_S)
        return survey(path)

    monkeypatch.setattr(surveys, "survey", hangs)
    heard: list[Listing] = []

    def listen(listing: Listing) -> None:
        heard.append(listing)
        if listing.done == 2:
            back.set()

    opened = enqueue(site.settings, site.engine, dry_run=True, on_listing=listen)

    assert len(opened.jobs) == 3
    assert (heard[-1].done, heard[-1].total) == (2, 3)
    assert "two" in heard[-1].waits_for[0][0]
