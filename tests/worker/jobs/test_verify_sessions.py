"""A verification of sessions reads each recording once by each way, however many sessions are parts of it."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.estate import make_project, record_session, split_session
from tests.support.runs import migrate_all, run, tools_of
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb
from worker.sessions_csv import RECORDING, Reader

ROWS = 3_000


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    with tools_of(site) as made:
        yield made


def study(site: Site, *, splits: int = 0) -> Path:
    """A project of two recordings, the first of which was split into so many sessions; its directory."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        first = record_session(conn, project, "day 1", rows=ROWS, seed=1)
        record_session(conn, project, "day 2", rows=ROWS, seed=2)
        if splits:
            cuts = [ROWS * number // splits for number in range(1, splits)]
            split_session(conn, first.session_id, cuts, site.data_dir)
    assert project.directory is not None
    return project.directory


def verified(tools: Tools) -> tuple[Outcome, int]:
    """The outcome of the only project, and how many bytes of recordings were read for it."""
    sizes: list[int] = []
    (outcome,) = run(replace(tools, pace=sizes.append), Verb.VERIFY).values()
    return outcome, sum(sizes)


def size_of(*directories: Path) -> int:
    """The size of all recordings in these."""
    return sum(path.stat().st_size for one in directories for path in one.glob(f"*/{RECORDING}"))


@pytest.mark.parametrize("splits", [0, 7])
def test_each_recording_is_read_once_by_each_way(site: Site, tools: Tools, splits: int):
    project = study(site, splits=splits)
    (migrated,) = migrate_all(site, tools)

    outcome, read_bytes = verified(tools)

    assert outcome.status is Status.VERIFIED
    assert outcome.sessions_count == 2 + splits
    assert read_bytes == size_of(project, Path(str(migrated.dataset_path)))


def test_no_whole_recording_is_held_in_memory(site: Site, tools: Tools):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        record_session(conn, project, "day", rows=80_000, seed=1)
    migrate_all(site, tools)
    alive: list[int] = []

    def count_frames(_size: int) -> None:
        alive.append(sum(isinstance(one, pd.DataFrame) and len(one) > 70_000 for one in gc.get_objects()))

    run(replace(tools, pace=count_frames), Verb.VERIFY)

    assert set(alive) == {0}


def test_a_change_is_named_for_each_session_and_reader_that_gets_it(site: Site, tools: Tools):
    """The whole of what is different is read once more, each part by itself, and sorted."""
    project = study(site, splits=3)
    (migrated,) = migrate_all(site, tools)
    recording = project / "day 1" / RECORDING
    lines = recording.read_bytes().splitlines(keepends=True)
    recording.write_bytes(b"".join([*lines[:1500], b"1,1,1,1\n", *lines[1501:]]))

    outcome, read_bytes = verified(tools)

    whole = [f"session day 1 ({reader.value}): {ROWS} rows before, {ROWS} rows now" for reader in Reader]
    part = [f"session day 1.2 ({reader.value}): 1000 rows before, 1000 rows now" for reader in Reader]
    assert outcome.status is Status.FAILED
    assert sorted(outcome.differences) == sorted(whole + part)
    assert read_bytes <= 3 * size_of(project, Path(str(migrated.dataset_path)))


def test_lines_in_another_order_are_no_difference_once_they_are_sorted(site: Site, tools: Tools):
    project = study(site)
    migrate_all(site, tools)
    recording = project / "day 1" / RECORDING
    header, *lines = recording.read_bytes().splitlines(keepends=True)
    recording.write_bytes(b"".join([header, *reversed(lines)]))

    outcome, _ = verified(tools)

    assert outcome.status is Status.VERIFIED


def test_a_recording_that_neither_way_can_read_is_named_with_nothing_of_it(site: Site, tools: Tools):
    project = study(site)
    recording = project / "day 1" / RECORDING
    recording.write_bytes(recording.read_bytes() + b"1,2,secret,4\n")
    (migrated,) = migrate_all(site, tools)

    outcome, read_bytes = verified(tools)

    assert outcome.status is Status.VERIFIED
    (warning,) = outcome.warnings
    assert warning.session == "day 1"
    assert "is not a recording" in warning.message
    assert "secret" not in warning.message
    assert read_bytes == size_of(project, Path(str(migrated.dataset_path)))
