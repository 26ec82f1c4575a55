"""Verifications as the producer opens them and workers do them: what is due, what is read once, what the jobs
say together.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from producer.cli.exit_codes import Exit, verdict
from producer.cli.follow import report_of
from producer.cli.render import status_lines
from producer.metrics import as_json
from producer.runs import verification
from producer.runs.collect import collect
from producer.runs.status import describe
from producer.runs.verification import Wanted
from tests.support.damages import HAS_BYTES, NEEDS_BYTES, Twins, flip, separate, twins
from tests.support.runs import WORK, migrate_all, run_one
from tests.support.sites import Site
from tests.support.studies import make_big, plain_study, study
from worker.db import datasets, ledger
from worker.errors import RunPausedError
from worker.jobs import dataset_check, judging
from worker.jobs.tools import Tools
from worker.messages import JobRef, Outcome, Status, Subject, Verb


class Verification:
    """A verification that was opened, whose jobs are done one after the other."""

    def __init__(self, site: Site, tools: Tools, **wanted: Any) -> None:
        self._site, self._tools = site, tools
        self.opened = verification.verify(site.settings, site.engine, wanted=Wanted(**wanted))
        self.refs = [
            JobRef(run_id=self.opened.run_id, subject=job.subject, subject_id=job.subject_id)
            for job in self.opened.jobs
        ]

    def do(self, ref: JobRef) -> Outcome | None:
        return WORK[Verb.VERIFY, ref.subject](self._tools, ref, "worker")

    def end(self) -> tuple[dict[str, Any], Exit]:
        """Do what is left, and collect: the report and the exit code."""
        for ref in self.refs:
            self.do(ref)
        return self.report()

    def report(self) -> tuple[dict[str, Any], Exit]:
        with self._site.engine.connect() as conn:
            run = ledger.find_run(conn, str(self.opened.run_id))
        collected = collect(self._site.settings, self._site.engine, run, timeout_s=10)
        assert collected.stopped is None, collected.stopped
        document = report_of(collected)
        return document, verdict(document, collected.run)


@pytest.fixture
def stored(site: Site, tools: Tools) -> Twins:
    return twins(site, tools)


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every stored file that is read to be judged."""
    found: list[str] = []
    really = judging.has_digest
    with monkeypatch.context() as patch:
        patch.setattr(judging, "has_digest", lambda path, *rest: (found.append(path), really(path, *rest))[1])
        yield found


def make_old(site: Site, days: int) -> None:
    with site.engine.begin() as conn:
        for table in ("migration_blob_checks", "migration_indexed_datasets"):
            conn.execute(
                text(f"update {table} set checked_at = checked_at - make_interval(days => :days)"),
                {"days": days},
            )


def statuses(document: dict[str, Any]) -> list[str]:
    return [one["status"] for one in document["details"]]


def test_a_blob_is_read_once_a_run_whoever_shares_it(
    site: Site, tools: Tools, stored: Twins, monkeypatch: pytest.MonkeyPatch
):
    copy = separate(stored.shared[0])

    with reads(monkeypatch) as found:
        document, code = Verification(site, tools, store=True).end()

    blobs = [str(path) for path in site.settings.store_dir.glob("blobs/*/*")]
    assert sorted(found) == sorted([*blobs, str(copy)])
    assert (code, statuses(document)) == (Exit.WELL, ["verified", "verified"])
    assert document["coverage"]["files"] == len(found)


def test_ten_samples_of_10_percent_read_everything_and_nothing_twice_before(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    for number in range(4):
        plain_study(site, f"study {number}", *range(10 * number, 10 * number + 6), rows=20 + 30 * number)
    migrate_all(site, tools)
    make_old(site, 9)
    everything = {str(path) for path in site.settings.store_dir.glob("blobs/*/*")}
    total = sum(Path(path).stat().st_size for path in everything)

    with reads(monkeypatch) as found:
        for _ in range(10):
            before = len(found)
            document, code = Verification(site, tools, store=True, sample=10).end()
            sample = found[before:]
            assert code == Exit.WELL
            assert document["coverage"]["bytes_verified"] >= total / 10
            assert sum(Path(path).stat().st_size for path in sample[1:]) <= total / 4
            once = everything <= set(found[:before])
            assert once or len(set(found[:before]) & set(sample)) == 0 or everything <= set(found)

    assert set(found) == everything


def test_only_what_was_read_longer_ago_is_due(
    site: Site, tools: Tools, stored: Twins, monkeypatch: pytest.MonkeyPatch
):
    make_old(site, 9)
    only = Verification(site, tools, store=True, dataset_ids=(stored.second.dataset_id,))
    only.end()

    with reads(monkeypatch) as found:
        document, code = Verification(site, tools, store=True, older_than_days=5).end()

    assert code == Exit.WELL
    assert len(found) == 1
    assert [one["dataset_id"] for one in document["details"]] == [stored.first.dataset_id]
    assert [one["dataset_id"] for one in document["selection"]["left_out"]] == [stored.second.dataset_id]


def test_a_named_dataset_that_was_removed_meanwhile_is_skipped_which_exits_3(
    site: Site, tools: Tools, stored: Twins
):
    named = Verification(site, tools, store=True, dataset_ids=(stored.first.dataset_id,))
    both = Verification(site, tools, store=True)
    run_one(tools, Verb.ROLLBACK, stored.first.project_id or 0)
    with site.engine.begin() as conn:
        conn.execute(text("delete from raw_datasets where dataset_id = :id"), {"id": stored.first.dataset_id})

    document, code = named.end()
    assert (code, statuses(document)) == (Exit.SOME_FAILED, ["skipped"])
    assert document["coverage"]["oldest_check"] is not None
    document, code = both.end()
    assert (code, sorted(statuses(document))) == (Exit.WELL, ["skipped", "verified"])


@pytest.mark.parametrize("repair", [False, True])
def test_what_one_job_finds_of_a_shared_blob_holds_for_both(
    site: Site,
    tools: Tools,
    stored: Twins,
    repair: bool,  # noqa: FBT001 - a case
):
    flip(stored.blob)

    document, code = Verification(site, tools, store=True, repair=repair).end()

    assert statuses(document) == (["repaired"] * 2 if repair else ["failed"] * 2)
    assert code == (Exit.WELL if repair else Exit.BYTES_MISMATCH)
    assert document["datasets_verified"] == (2 if repair else 0)


def test_a_dataset_whose_shared_blob_no_job_read_is_not_called_verified(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    twins(site, tools)
    made = Verification(site, tools, store=True)
    first, second = made.refs

    def fail(*_args: object) -> None:
        raise ValueError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(dataset_check, "judge", fail)
        assert made.do(first).status is Status.FAILED
    made.do(second)
    document, code = made.report()

    assert code == Exit.SOME_FAILED
    assert sorted(statuses(document)) == ["failed", "skipped"]
    assert "ended without reading them" in str([one["reason"] for one in document["details"]])


def test_an_attempt_that_is_cut_off_goes_on_where_it_was(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """Paused in the middle of a file: what was read before is not read again, that file is."""
    project = study(site, "big", *range(1, 6))
    for seed in range(1, 4):
        make_big(project, seed)
    migrate_all(site, tools)
    made = Verification(site, tools, store=True)
    (ref,) = made.refs
    stopped = []

    def stop_in_the_middle(size_bytes: int) -> None:
        if size_bytes and len(found) == 2 and not stopped:
            stopped.append(found[-1])
            raise RunPausedError("The run is paused")

    one_thread = replace(tools, pace=stop_in_the_middle)
    monkeypatch.setattr(dataset_check, "for_each", _one_by_one)
    with reads(monkeypatch) as found:
        assert WORK[Verb.VERIFY, Subject.DATASET](one_thread, ref, "worker") is None
        outcome = made.do(ref)

    assert outcome is not None
    assert outcome.status is Status.VERIFIED
    assert [path for path in set(found) if found.count(path) > 1] == stopped
    assert len(set(found)) == len(list(site.settings.store_dir.glob("blobs/*/*")))


def _one_by_one(_threads: object, call: Callable[[Any], None], items: list[Any], _size: int) -> None:
    for item in items:
        call(item)


def test_datasets_of_an_earlier_release_are_verified_and_repaired_in_every_tree(
    site: Site, tools: Tools, stored: Twins
):
    """They are in no index yet, and no blob of them was ever checked."""
    with site.engine.begin() as conn:
        conn.execute(text("delete from migration_dataset_blobs"))
        conn.execute(text("delete from migration_indexed_datasets"))
        conn.execute(text("delete from migration_blob_checks"))
    flip(stored.blob)

    document, code = Verification(site, tools, store=True, repair=True).end()

    assert code == Exit.WELL
    assert [one["dataset_ids"] for one in document["damaged"]] == [
        [stored.first.dataset_id, stored.second.dataset_id]
    ]
    stored.check_whole()
    _, code = Verification(site, tools, store=True).end()
    assert code == Exit.WELL


def test_blobs_are_read_although_the_tree_that_needs_them_is_missing(site: Site, tools: Tools, stored: Twins):
    HAS_BYTES["missing tree"](stored)
    flip(stored.blob)

    document, code = Verification(site, tools, store=True).end()

    assert code == Exit.BYTES_MISMATCH
    assert {one["path"] for one in document["damaged"]} == {str(stored.trees[0]), str(stored.blob)}


@pytest.mark.parametrize("kind", ["missing tree", "missing file", "missing manifest", "gone everywhere"])
def test_what_was_only_away_for_a_moment_is_no_damage(
    site: Site, tools: Tools, stored: Twins, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """A dataset was taken away as garbage, and is back by the time its row can be locked."""
    kept = site.folder / "kept"
    shutil.copytree(site.data_dir, kept, symlinks=True)
    (HAS_BYTES | NEEDS_BYTES)[kind](stored)
    really = datasets.is_held

    def back(*args: Any) -> bool:
        if kept.exists():
            for path in (
                *stored.trees,
                site.settings.store_dir / "blobs",
                site.settings.store_dir / "manifests",
            ):
                for folder, _, _ in os.walk(path):
                    os.chmod(folder, 0o755)
                shutil.rmtree(path, ignore_errors=True)
                shutil.copytree(kept / path.relative_to(site.data_dir), path)
            shutil.rmtree(kept)
        return really(*args)

    monkeypatch.setattr(datasets, "is_held", back)

    document, code = Verification(site, tools, store=True).end()

    assert (code, document["damaged"]) == (Exit.WELL, [])


def test_status_and_metrics_say_how_old_the_oldest_check_is(site: Site, tools: Tools, stored: Twins):
    make_old(site, 9)
    half = Verification(site, tools, store=True, dataset_ids=(stored.first.dataset_id,))
    half.end()
    total = sum(path.stat().st_size for path in site.settings.store_dir.glob("blobs/*/*"))

    with site.engine.connect() as conn:
        seen = describe(site.engine, ledger.find_run(conn, str(half.opened.run_id)))
        oldest = conn.scalar(text("select min(checked_at) from migration_blob_checks"))
    metrics = as_json(site.settings, site.engine)

    assert seen.to_json()["store"] == {
        "datasets": 2,
        "bytes_total": total,
        "bytes_never_read": 0,
        "oldest_check": oldest.isoformat(),
    }
    assert any("all of the store was read since" in line for line in status_lines(seen))
    values = {name: samples[0]["value"] for name, samples in metrics.items() if samples}
    assert values["label_migrator_stored_bytes"] == total
    assert values["label_migrator_oldest_check_timestamp_seconds"] == pytest.approx(oldest.timestamp())
