"""The operator's story by Compose: rehearse, migrate with four workers and one outside, lose one, verify, let
the store be the only copy, roll back, collect garbage.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from producer.demo import projects
from producer.report import document as report
from producer.runs import status
from tests.compose import flower, hardening, metrics
from tests.compose.beside import NODE, worker_beside
from tests.compose.engine import Container
from tests.compose.installation import Installation
from tests.estate import differences, readings, snapshot_tree
from tests.estate.compare import Reading
from tests.support.waiting import eventually
from worker.db import ledger
from worker.db.overview import CurrentAttempt
from worker.sessions_csv import Reader

WORKERS = 4
_MEGABYTES = 60
_SLOW = "500K"
"""Bytes a second for all workers together: each holds a job long enough to be found with it."""

_SOUND, _UNSOUND, _DATASETS = 12, 3, 9
"""Of the demo's estate: projects that can be migrated, those that cannot, and the different contents of the
first.
"""

_SOME_FAILED = 3

Say = Callable[[str], None]
Readings = dict[tuple[int, Reader], Reading]
Report = dict[str, Any]


def tell(installation: Installation, say: Say) -> None:
    """All chapters; `AssertionError` if anything is not as it should be."""
    hardening.check(installation)
    say("every container is hardened, and no password is to be seen")
    flower.check(installation, workers=WORKERS)
    say(f"Flower asks for its password and lists {WORKERS} workers")
    metrics.check(installation)
    say("Prometheus is told of every part, and of the store's room")
    with installation.engine() as engine:
        projects.build(engine, installation.legacy_dir, megabytes=_MEGABYTES, say=lambda _: None)
        _give_to_workers(installation)
        folders = sorted(installation.legacy_dir.iterdir())
        before, trees = _readings(engine, installation), [snapshot_tree(folder) for folder in folders]
        say(f"an estate of {_SOUND + _UNSOUND} projects is there")
        _migrate(installation, engine, say)
        _check_sessions(installation, engine, before)
        say("every session reads as before")
        _reclaim(installation, say)
        _check_sessions(installation, engine, before)
        say("the store is the only copy in use, and every session reads as before")
        _roll_back(installation)
        assert [snapshot_tree(folder) for folder in folders] == trees
        assert differences(before, _readings(engine, installation)) == []
        say("rolled back: every legacy file is back as it was, and every session reads as before")
        _collect_garbage(installation)
        say("gc: what nothing refers to any more is gone from the store, and from its quarantine")


def tell_in_short(installation: Installation) -> None:
    """Migrate and take back the same projects where they lie in DATA_DIR itself, beside the store."""
    with installation.engine() as engine:
        projects.build(engine, installation.legacy_dir, megabytes=_MEGABYTES, say=lambda _: None)
        folders = sorted(installation.legacy_dir.iterdir())
        before, trees = _readings(engine, installation), [snapshot_tree(folder) for folder in folders]
        _check_figures(_report(installation, "enqueue", "--wait", exit_code=_SOME_FAILED))
        _check_sessions(installation, engine, before)
        _roll_back(installation)
        assert [snapshot_tree(folder) for folder in folders] == trees
        assert differences(before, _readings(engine, installation)) == []


def _migrate(installation: Installation, engine: Engine, say: Say) -> None:
    """Rehearse, migrate, and lose a worker meanwhile."""
    foretold = _report(installation, "enqueue", "--dry-run", "--wait", exit_code=_SOME_FAILED)
    _check_figures(foretold)
    assert list(installation.data_dir.iterdir()) == [], "a dry run writes nothing"
    say("dry run: its report has the right figures, and nothing is written")
    with worker_beside(installation):
        lost = _lose_one_at_work(installation, engine)
        say("a worker beside the containers takes jobs of the same run; a container is killed at work")
        migrated = _report(installation, "collect", exit_code=_SOME_FAILED)
    _check_figures(migrated)
    _check_workers(migrated, lost)
    # What the dry run has read, the real one need not read again.
    assert migrated["bytes"] | {"remembered": 0} == foretold["bytes"] | {"remembered": 0}
    assert len(list((installation.data_dir / "raw_datasets").iterdir())) == _DATASETS
    say(
        "the run is complete, its figures are those that were foretold; another attempt migrated the lost project"
    )
    eventually(lambda: _all_are_back(installation), f"{WORKERS} workers again", within_s=60)
    say("the engine has started the killed container again")


def _lose_one_at_work(installation: Installation, engine: Engine) -> int:
    """Start a run and kill a container that holds a job; the project that it holds."""
    installation.producer("enqueue", "--limit-bytes-per-second", _SLOW)
    everybody = WORKERS + 1
    eventually(lambda: len(_holders(engine)) == everybody, f"{everybody} workers hold jobs", within_s=60)
    holders = _holders(engine)
    assert NODE in holders
    host_names = {
        f"celery@{each.container_id[:12]}": each for each in installation.compose.containers("worker")
    }
    node = max(host_names, key=lambda name: (holders[name].bytes_total or 0) - holders[name].bytes_done)
    _kill(host_names[node])
    installation.producer("throttle")
    return holders[node].subject_id


def _holders(engine: Engine) -> dict[str, CurrentAttempt]:
    """What each worker holds of the latest run."""
    with engine.connect() as conn:
        run = ledger.find_run(conn, "latest")
    return {attempt.worker: attempt for attempt in status.describe(engine, run).attempts}


def _kill(container: Container) -> None:
    """As a crash does: a container that the engine is told to kill is not started again."""
    os.kill(container.main_pid, signal.SIGKILL)


def _all_are_back(installation: Installation) -> bool:
    workers = installation.compose.containers("worker")
    return all(each.is_healthy for each in workers) and sum(each.starts_again for each in workers) == 1


def _report(installation: Installation, *words: str, exit_code: int = 0) -> Report:
    """Call a verb that writes a report; that report, whose totals add up."""
    said = json.loads(installation.producer(*words, "--json", exit_code=exit_code))
    written = installation.reports / Path(said["report_path"]).name
    document: Report = json.loads(written.read_text(encoding="utf-8"))
    report.check_totals(document)
    return document


def _check_figures(document: Report) -> None:
    """The demo's estate, migrated or rehearsed."""
    keys = ("projects_processed", "projects_migrated", "projects_failed", "datasets_created")
    assert [document[key] for key in keys] == [_SOUND + _UNSOUND, _SOUND, _UNSOUND, _DATASETS]


def _check_workers(document: Report, lost: int) -> None:
    """Somebody else migrated what the killed worker had; the worker beside the containers did its part."""
    (detail,) = (one for one in document["details"] if one["project_id"] == lost)
    assert (detail["status"], detail["attempts"]) == ("migrated", 2)
    assert NODE in {one["worker"] for one in document["details"]}


def _check_sessions(installation: Installation, engine: Engine, before: Readings) -> None:
    verified = _report(installation, "verify", "--sessions")
    assert verified["projects_verified"] == _SOUND
    assert differences(before, _readings(engine, installation)) == []


def _roll_back(installation: Installation) -> None:
    document = _report(installation, "rollback", "--wait")
    assert document["projects_rolled_back"] == _SOUND


def _give_to_workers(installation: Installation) -> None:
    """Only who may write in the directories can move them; root's would stay where they are."""
    if os.geteuid() == 0:
        uid, gid = installation.identity.uid, installation.identity.gid
        for folder, folders, files in os.walk(installation.legacy_dir):
            for name in (".", *folders, *files):
                os.chown(Path(folder) / name, uid or -1, gid or -1, follow_symlinks=False)


def _reclaim(installation: Installation, say: Say) -> None:
    """Refused with the reason while legacy directories are mounted read-only; then done."""
    verified = _report(installation, "verify", "--store")
    assert verified["coverage"]["datasets"] == _DATASETS
    reclaim = ("reclaim", "--older-than", "0", "--yes", "--wait")
    refused = _report(installation, *reclaim)
    reasons = [one["reason"] for one in refused["details"] if "read-only mount" in one["reason"]]
    assert len(reasons) == _SOUND, refused["details"]
    assert all(f"{installation.legacy_dir}" in one and "celery@" in one for one in reasons)
    say("the store is verified; a reclaim says which worker has which mount read-only")
    writable = replace(installation.compose, also=("docker-compose.restore-files.yml",))
    writable("up", "--detach", f"--scale=worker={WORKERS}", "worker")
    eventually(
        lambda: sum(each.is_healthy for each in writable.containers("worker")) == WORKERS,
        "workers that may write there",
        within_s=120,
    )
    reclaimed = _report(installation, *reclaim)
    assert reclaimed["projects_reclaimed"] == _SOUND, reclaimed["details"]
    assert reclaimed["bytes"]["moved"] == reclaimed["bytes"]["legacy"] > 0


def _collect_garbage(installation: Installation) -> None:
    gc = ("gc", "--grace", "0", "--yes", "--wait")
    assert _report(installation, *gc)["quarantined"]["count"] == _DATASETS
    assert _report(installation, *gc)["removed"]["count"] == _DATASETS
    assert list((installation.data_dir / "raw_datasets").iterdir()) == []


def _readings(engine: Engine, installation: Installation) -> Readings:
    with engine.connect() as conn:
        return readings(conn, installation.data_dir)
