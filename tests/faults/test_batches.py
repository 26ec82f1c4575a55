"""Work that ends in the middle of a big project: what was finished has its name by then, and nobody writes it
again.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.estate import Project
from tests.faults.child import Children, End
from tests.faults.order import check_order, names_of_blobs
from tests.support.ledger_rows import jobs_of, recorded_outcomes
from tests.support.runs import WORK, let_lease_run_out, open_run
from tests.support.shim import Act, Fault
from tests.support.sites import Site
from tests.support.studies import (
    check_store,
    check_stored_once,
    counting_writes,
    folder_of,
    make_big,
    staged,
    study,
)
from worker.errors import RunPausedError
from worker.jobs import integrity
from worker.jobs.tools import Tools
from worker.messages import JobRef, JobState, Outcome, Status, Verb
from worker.store.digest import BIG_BYTES, HEAD_BYTES

FILES = 5
"""So many big recordings a project here has, each with a small file beside it."""


def big_study(site: Site, name: str = "big", first: int = 1) -> Project:
    """A project of big recordings, no two alike."""
    seeds = range(first, first + FILES)
    project = study(site, name, *seeds)
    for seed in seeds:
        make_big(project, seed)
    return project


def job_of(site: Site, project: Project) -> JobRef:
    (ref,) = open_run(site.engine, Verb.MIGRATE, only=[project.project_id])
    return ref


def blobs(site: Site) -> dict[str, int]:
    """The size of every blob."""
    return {blob.name: blob.stat().st_size for blob in (site.settings.store_dir / "blobs").glob("*/*")}


def size_of(project: Project) -> int:
    return sum(path.stat().st_size for path in folder_of(project).rglob("*") if path.is_file())


def written_by(end: End) -> int:
    """The bytes that a watched worker wrote into files of content."""
    return sum(
        call.result or 0
        for call in end.calls
        if call.name.startswith(("write", "pwrite")) and not call.path.endswith((".json", ".txt"))
    )


# Killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("were_met_before", [False, True], ids=["stored while hashed", "copied"])
def test_a_worker_that_dies_leaves_its_full_batches_to_the_next(
    site: Site, watched: Children, tools: Tools, *, were_met_before: bool
):
    """Two files fill a batch; it dies when it is about to wait for the second one."""
    tools.open_store(create=True)
    project = big_study(site)
    ref = job_of(site, project)
    if were_met_before:
        # Dying at its first write it has met every file, and stored none.
        assert watched.migrate(ref, Fault(act=Act.KILL_BEFORE, at=1, call="pwritev64v2")).died
        let_lease_run_out(tools.engine, ref)

    died = watched.migrate(ref, Fault(act=Act.KILL_BEFORE, at=2, call="syncfs"), batch_bytes=2 * BIG_BYTES)

    assert died.died
    left = blobs(site)
    assert 2 <= len(left) < FILES
    check_store(site)
    let_lease_run_out(tools.engine, ref)

    end = watched.migrate(ref)

    assert end.answer["status"] == Status.MIGRATED, end.answer
    assert written_by(end) == size_of(project) - sum(left.values())
    with site.engine.connect() as conn:
        outcome = recorded_outcomes(conn, ref.run_id)[ref]
    assert (outcome.files.stored, outcome.files.reused) == (2 * FILES - len(left), len(left))
    assert outcome.bytes.reused == sum(left.values())
    check_order(site, end)


def test_every_batch_is_durable_before_its_names(site: Site, watched: Children):
    project = big_study(site)

    end = watched.migrate(job_of(site, project), batch_bytes=BIG_BYTES)

    assert end.answer["status"] == Status.MIGRATED, end.answer
    assert len(names_of_blobs(site, end.calls)) == 2 * FILES
    done = [call for call in end.calls if call.result is not None and call.result >= 0]
    assert len([call for call in done if call.name == "syncfs"]) > 3
    check_order(site, end)


# Stopped ----------------------------------------------------------------------------------------------------


def stop_after(chunks: int) -> Callable[[int], None]:
    """Hold the run when so many chunks were read; beginnings of files and calls that only listen are none."""
    read = itertools.count(1)

    def pace(size_bytes: int) -> None:
        if size_bytes > HEAD_BYTES and next(read) > chunks:
            raise RunPausedError("The run is paused")

    return pace


def do(tools: Tools, ref: JobRef) -> Outcome | None:
    return WORK[Verb.MIGRATE, ref.subject](tools, ref, "a worker")


@contextmanager
def no_blob_is_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail when a blob is read to find out whether it is right."""
    with monkeypatch.context() as patch:
        patch.setattr(
            integrity, "is_right", lambda _job, path, _digest: pytest.fail(f"was read again: {path}")
        )
        yield


def test_a_job_that_is_handed_back_keeps_what_it_has_finished(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """Again and again: while it hashes and stores, and while it copies what the first attempt did not come
    to.
    """
    project = big_study(site)
    ref = job_of(site, project)
    kept = [0]
    with counting_writes(monkeypatch) as written, no_blob_is_read(monkeypatch):
        # Every attempt after the first reads all of them first, to know what is missing.
        for chunks in (20, 62):
            assert do(replace(tools, pace=stop_after(chunks)), ref) is None
            assert staged(site) == []
            check_store(site)
            kept.append(len(blobs(site)))
            with site.engine.connect() as conn:
                (job,) = jobs_of(conn, ref.run_id)
            assert job.state == JobState.QUEUED
        there = blobs(site)
        before = len(written)

        outcome = do(tools, ref)

    assert kept == sorted(set(kept)), "each attempt has finished some file"
    assert outcome is not None
    assert outcome.status is Status.MIGRATED, outcome
    assert sum(written[before:]) == size_of(project) - sum(there.values()) == outcome.bytes.stored
    assert outcome.files.stored == 2 * FILES - len(there)
    check_store(site)


def test_a_project_that_starts_over_has_stored_what_it_stored_before(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
):
    """A file that comes while the big ones are read is noticed at the end: they are stored by then, and by
    nobody else.
    """
    project = big_study(site)
    read, lock = itertools.count(1), threading.Lock()

    def pace(_size_bytes: int) -> None:
        with lock:
            if next(read) == 20:
                (folder_of(project) / "day 1" / "notes.txt").write_text("came late")

    with counting_writes(monkeypatch) as written:
        outcome = do(replace(tools, pace=pace), job_of(site, project))

    assert outcome is not None
    check_stored_once(site, [outcome], written)
    assert outcome.files.stored == 2 * FILES + 1
