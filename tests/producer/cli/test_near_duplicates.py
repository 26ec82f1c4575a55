"""What `producer datasets near-duplicates` reports of a store, to people and scripts, and that it only
reports.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from producer.cli.exit_codes import Exit
from tests.estate import make_project, record_session, snapshot_tree
from tests.producer.cli.calls import Call, lines
from tests.support.alike import recorded, uploaded, write
from tests.support.registered import register
from tests.support.runs import migrate_all, tools_of
from tests.support.sites import Site
from tests.support.studies import damage
from tests.support.waiting import PATIENCE_S, eventually
from worker.messages import Outcome
from worker.runtime import log

NEAR = ("datasets", "near-duplicates")
READ_ONLY = {"PGOPTIONS": "-c default_transaction_read_only=on"}


@pytest.fixture(autouse=True)
def _jobs_log_to_standard_error(_logging_as_it_was: None) -> None:
    log.configure(log_format="json", level="error")


def study(site: Site, name: str, sessions: Mapping[str, Mapping[str, pd.DataFrame]]) -> None:
    """A project with these recordings by session and file name."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        for session, files in sessions.items():
            record_session(conn, project, session)
            for file, table in files.items():
                write(table, Path(project.path) / session / file)


def two_studies(site: Site) -> list[Outcome]:
    """A study as it was recorded, and one of what uploads made of it; its third session is another one."""
    raw, turns = recorded(1), recorded(2)
    turns["ns_since_reboot"] = raw["ns_since_reboot"] + 1_234_567
    once, turns_once = uploaded(raw, turns)
    names = ("accelerometer_data.csv", "gyroscope_data.csv")
    study(
        site,
        "recorded",
        {
            "day 1": dict(zip(names, (raw, turns), strict=True)),
            "day 2": {names[0]: recorded(5)},
            "day 3": {names[0]: recorded(3)},
        },
    )
    study(
        site,
        "uploaded",
        {
            "one": dict(zip(names, (once, turns_once), strict=True)),
            "two": {names[0]: recorded(5).iloc[:250].round(5)},
        },
    )
    study(site, "another", {"day 1": {names[0]: recorded(4)}})
    with tools_of(site) as tools:
        return migrate_all(site, tools)


def test_pairs_are_named_with_kind_evidence_and_who_uses_them(site: Site, call: Call):
    rich, poor, _ = two_studies(site)
    before = snapshot_tree(site.data_dir)

    answer = json.loads(call(*NEAR, "--json", **READ_ONLY).stdout)
    people = call(*NEAR, **READ_ONLY)

    assert snapshot_tree(site.data_dir) == before
    assert (answer["datasets"], answer["recordings"], answer["not_compared"]) == (3, 8, [])
    found = {
        (one["kind"], one["sensor"], one["poorer"]["places"][0]["session"]): one for one in answer["pairs"]
    }
    assert found.keys() == {
        ("resampled", "accelerometer", "one"),
        ("resampled", "gyroscope", "one"),
        ("prefix", "accelerometer", "two"),
    }
    assert found["resampled", "gyroscope", "one"]["evidence"]["merged_with_other_sensor"]
    prefix = found["prefix", "accelerometer", "two"]
    assert prefix["evidence"] == {
        "records": 250,
        "records_more": 150,
        "records_that_change": 249,
        "readings": "rounded",
        "coarser": "poorer",
        "digits": "5 decimals",
        "merged_with_other_sensor": False,
    }
    assert prefix["richer"]["project_ids"] == [rich.project_id]
    assert prefix["poorer"]["project_ids"] == [poor.project_id]
    sizes = {one["poorer"]["digest"]: one["poorer"]["size_bytes"] for one in answer["pairs"]}
    assert answer["saves_bytes"] == sum(sizes.values()) > 0
    assert answer["covered_datasets"] == [{"dataset_id": poor.dataset_id, "by": [rich.dataset_id]}]
    assert people.returncode == Exit.WELL
    said = "\n".join(lines(people))
    assert "3 near-duplicates among 8 recordings of 3 datasets" in said
    assert "nothing was changed" in said
    assert f"dataset {poor.dataset_id}: every recording of it is in dataset {rich.dataset_id}" in said
    assert f"producer explain {poor.project_id}" in said


def test_only_pairs_of_named_datasets_are_reported(site: Site, call: Call):
    rich, poor, other = two_studies(site)

    def pairs(*ids: int | None) -> int:
        return len(json.loads(call(*NEAR, *map(str, ids), "--json").stdout)["pairs"])

    assert [pairs(rich.dataset_id), pairs(poor.dataset_id), pairs(other.dataset_id)] == [3, 3, 0]
    unknown = call(*NEAR, "98", str(rich.dataset_id), "99")
    assert unknown.returncode == Exit.USAGE
    assert "There is no dataset 98, 99. See all: producer datasets list" in unknown.stderr


def test_damaged_lost_and_odd_recordings_are_named_and_the_rest_is_compared(site: Site, call: Call):
    rich, poor, other = two_studies(site)
    tree = Path(str(rich.dataset_path))
    study(site, "odd", {"day 1": {"accelerometer_data.csv": pd.DataFrame({"what": [1]})}})
    with tools_of(site) as tools:
        (odd,) = migrate_all(site, tools)
    assert call(*NEAR).returncode == Exit.SOME_FAILED

    damage(tree / "day 2" / "accelerometer_data.csv")
    lost = Path(str(other.dataset_path)) / "day 1" / "accelerometer_data.csv"
    inode = lost.stat().st_ino
    (blob,) = (one for one in site.settings.store_dir.glob("blobs/*/*") if one.stat().st_ino == inode)
    blob.unlink()
    done = call(*NEAR, "--json")

    assert done.returncode == Exit.BYTES_MISMATCH
    answer = json.loads(done.stdout)
    assert sorted(one["kind"] for one in answer["pairs"]) == ["resampled", "resampled"]
    assert answer["covered_datasets"] == []
    by_dataset = {one["dataset_ids"][0]: one for one in answer["not_compared"]}
    assert {number: one["damaged"] for number, one in by_dataset.items()} == {
        rich.dataset_id: True,
        other.dataset_id: True,
        odd.dataset_id: False,
    }
    assert "does not have the bytes its digest promises" in by_dataset[rich.dataset_id]["reason"]
    assert "no column ns_since_reboot" in by_dataset[odd.dataset_id]["reason"]
    said = call(*NEAR).stderr
    assert f"producer verify --store --repair --dataset {other.dataset_id}" in said
    assert f"producer datasets show {odd.dataset_id} says where it is" in said
    assert poor.dataset_id not in by_dataset


def test_a_damaged_manifest_and_datasets_of_label_are_named(site: Site, call: Call):
    rich, *_ = two_studies(site)
    foreign = register(site, "foreign", 7)
    (manifest,) = site.settings.store_dir.glob(f"manifests/{rich.dataset_hash}.json")

    noted = call(*NEAR)
    assert noted.returncode == Exit.WELL
    assert f"producer datasets adopt {foreign.dataset_id}" in noted.stderr
    assert call(*NEAR, str(foreign.dataset_id)).returncode == Exit.SOME_FAILED
    damage(manifest)
    done = call(*NEAR)

    assert done.returncode == Exit.BYTES_MISMATCH
    assert f"not compared: all recordings of dataset {rich.dataset_id}" in done.stderr


def test_a_store_that_is_empty_or_not_there_says_so(site: Site, call: Call):
    nothing = call(*NEAR)
    assert nothing.returncode == Exit.WELL
    assert "0 near-duplicates among 0 recordings of 0 datasets" in nothing.stderr
    two_studies(site)
    (site.settings.store_dir / "store.json").unlink()

    gone = call(*NEAR)

    assert gone.returncode == Exit.NOT_READY
    assert "no store" in gone.stderr


def test_ctrl_c_ends_it_at_once_however_slowly_it_reads(site: Site):
    two_studies(site)
    with subprocess.Popen(
        [sys.executable, "-m", "producer", *NEAR, "--limit-bytes-per-second", "1"],
        cwd=site.folder,
        # Then the only threads are those that read.
        env={**site.env, **READ_ONLY, "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no threads run here
        stderr=subprocess.PIPE,
        text=True,
    ) as search:
        threads = Path(f"/proc/{search.pid}/task")
        eventually(lambda: len(list(threads.iterdir())) > 1, "it reads")
        search.send_signal(signal.SIGINT)
        _, said = search.communicate(timeout=PATIENCE_S)

    assert search.returncode == Exit.INTERRUPTED
    assert "Interrupted before all was compared; nothing was changed" in said
