"""Schedules of faults, each from its own seed, end with every project where it should be and nothing
lost.

`make chaos` runs as many others as one likes, and says what each kind of fault costs.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.chaos import invariants
from tests.chaos.estate import Estate
from tests.chaos.plan import BLOWS, Ending, Kind, make_plan
from tests.chaos.schedule import run_schedule, schedule_of
from tests.chaos.servers import Servers, servers
from tests.support.forking import PROGRAMS, Forks, forks

pytestmark = pytest.mark.slow

SEEDS = (6613, 9042, 11173)
"""Short ones which together have every kind of fault and of ending."""


@pytest.fixture(scope="module")
def own_servers(_starts_servers: None) -> Iterator[Servers]:
    """Servers that may be killed: those of all other tests may not."""
    with servers() as running:
        yield running


@pytest.fixture(scope="module")
def processes(own_servers: Servers) -> Iterator[Forks]:
    """Give what starts workers and producers."""
    with forks(own_servers.folder, PROGRAMS) as running:
        yield running


@pytest.mark.parametrize("seed", SEEDS)
def test_no_project_is_lost_whichever_processes_die(own_servers: Servers, processes: Forks, seed: int):
    result = run_schedule(make_plan(seed), own_servers, processes)

    assert not result.findings, "\n".join(
        [*result.findings, f"make chaos N=1 SEED={seed}", str(result.folder)]
    )


@pytest.mark.long
@pytest.mark.parametrize("seed", range(301, 311))
def test_nothing_is_lost_in_waves_either(own_servers: Servers, processes: Forks, seed: int):
    result = run_schedule(make_plan(seed, waves=True), own_servers, processes)

    assert not result.findings, "\n".join(
        [*result.findings, f"make chaos N=1 SEED={seed} WAVES=1", str(result.folder)]
    )


def test_a_schedule_of_faults_follows_from_its_seed():
    assert make_plan(7) == make_plan(7)
    assert replace(make_plan(7, waves=True), waves=None) == make_plan(7)
    assert make_plan(7) != make_plan(8)


def test_these_schedules_have_every_kind_of_fault_and_of_ending():
    plans = [make_plan(seed) for seed in SEEDS]

    assert {kind for plan in plans for kind in plan.kinds} == set(Kind) - set(BLOWS.values())
    assert {plan.ending for plan in plans} == set(Ending)


# Whoever looks must see something ---------------------------------------------------------------------------


def _blob(estate: Estate) -> Path:
    return next(
        path for path in sorted((estate.data_dir / "dataset_store/blobs").rglob("*")) if path.is_file()
    )


def _change_a_blob(_engine: Engine, estate: Estate) -> None:
    blob = _blob(estate)
    content = bytearray(blob.read_bytes())
    content[-2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    blob.chmod(0o444)


def _copy_a_blob(_engine: Engine, estate: Estate) -> None:
    blob = _blob(estate)
    shutil.copy(blob, blob.with_name(f"{blob.name[:-1]}x"))


def _write_to_a_legacy_file(_engine: Engine, estate: Estate) -> None:
    directory = next(iter(estate.directories.values()))
    with next(path for path in directory.rglob("*") if path.is_file()).open("a") as file:
        file.write("\n")


def _leave_something_in_staging(_engine: Engine, estate: Estate) -> None:
    (estate.data_dir / "dataset_store/staging/left").mkdir()


def _leave_something_in_quarantine(_engine: Engine, estate: Estate) -> None:
    (estate.store / "quarantine/left").mkdir(parents=True)


def _leave_half_of_a_restore(_engine: Engine, estate: Estate) -> None:
    (estate.legacy_root / ".restoring-job-1").mkdir()


def _leave_something_moved_away(_engine: Engine, estate: Estate) -> None:
    (estate.legacy_root / ".label-reclaimed/1-of-nobody").mkdir(parents=True)


def _move_a_legacy_directory(_engine: Engine, estate: Estate) -> None:
    next(iter(estate.directories.values())).rename(estate.legacy_root / "elsewhere")


def _sql(statement: str) -> Callable[[Engine, Estate], None]:
    def damage(engine: Engine, _estate: Estate) -> None:
        with engine.begin() as conn:
            conn.execute(text(statement))

    return damage


def _reclaims(state: str) -> Callable[[Engine, Estate], None]:
    """A row that says so of a project whose directory is where it always was."""

    def damage(engine: Engine, estate: Estate) -> None:
        own = estate.directories[1]
        with engine.begin() as conn:
            conn.execute(text("delete from migration_reclaims"))
            conn.execute(
                text(
                    "insert into migration_reclaims (conversion_id, project_id, run_id, legacy_path, moved_from, moved_to,"
                    " state) select conversion_id, 1, run_id, :own, :own, :away, :state from project_conversions"
                    " where project_id = 1 limit 1"
                ),
                {
                    "own": str(own),
                    "away": str(estate.legacy_root / ".label-reclaimed/1-nowhere"),
                    "state": state,
                },
            )

    return damage


DAMAGES: list[tuple[Callable[[Engine, Estate], None], str]] = [
    (_leave_something_in_staging, "staging is not empty"),
    (_leave_something_in_quarantine, "quarantine is not empty"),
    (_leave_half_of_a_restore, "left among legacy directories"),
    (_leave_something_moved_away, ".label-reclaimed/1-of-nobody"),
    (_sql("update sessions set bouts = '[]' where session_id = 1"), "session 1 has bouts = '[]'"),
    (_sql("update sessions set keep = not coalesce(keep, true)"), "has keep ="),
    (_sql("update sessions set data_start_offset = 1 where session_id = 1"), "reading: session 1,"),
    (_sql("update sessions set dataset_id = null where session_id = 1"), "session 1 has dataset_id = None"),
    (_sql("update projects set path = legacy_path where project_id = 1"), "its row has path ="),
    (
        _sql("delete from project_dataset_refs where project_id = 1"),
        "project 1, which is migrated: it refers to",
    ),
    (
        _sql(
            "insert into project_conversions (project_id, run_id, dataset_id, dataset_hash, legacy_path, before,"
            " tree_attributes, rolled_back_at) select project_id, run_id, dataset_id, dataset_hash, legacy_path, before,"
            " tree_attributes, now() from project_conversions where project_id = 1"
        ),
        "2 conversions of one job",
    ),
    (_sql("update project_conversions set rolled_back_at = now()"), "0 conversions are active"),
    (_write_to_a_legacy_file, "legacy directory of project"),
    (_change_a_blob, "does not have the bytes of its digest"),
    (_copy_a_blob, "2 blobs have one content"),
    (_reclaims("moving"), "its reclaim is left moving"),
    (_reclaims("purging"), "its reclaim is left purging"),
    (_move_a_legacy_directory, "is not at"),
    (_reclaims("reclaimed"), ".label-reclaimed/1-nowhere"),
]


def test_the_invariants_detect_each_kind_of_damage(own_servers: Servers, processes: Forks):
    """A check that never complains proves nothing."""
    folder = Path(tempfile.mkdtemp(prefix="label-chaos-damage-"))
    plan = make_plan(283, faultless=True, ending=Ending.MIGRATED)

    with schedule_of(plan, own_servers, processes, folder) as schedule:
        assert schedule.play() == []
        seen = []
        for damage, words in DAMAGES:
            damage(schedule.engine, schedule.estate)
            findings = invariants.wrong_rows_and_bytes(schedule.engine, schedule.estate)
            seen.append((words, any(words in line for line in findings)))

    assert [words for words, found in seen if not found] == []
