"""A job hears that it has to stop wherever it is, and tells of every byte it reads, so that limits count
them.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.claims import held, waiting_for_claims
from tests.support.ledger_rows import job_of
from tests.support.runs import do, migrate_all, open_run
from tests.support.sites import Site
from tests.support.studies import plain_study
from tests.support.waiting import eventually
from worker.jobs.tools import Tools
from worker.messages import Status, Verb


@contextmanager
def dataset_row_locked(site: Site) -> Iterator[None]:
    """Somebody of Label's is about to make a project from the dataset, and has not committed yet."""
    with site.engine.begin() as conn:
        conn.execute(text("select from raw_datasets for key share"))
        yield


@contextmanager
def claimed(site: Site) -> Iterator[None]:
    """Another worker stores the dataset."""
    with site.engine.connect() as conn:
        digest = conn.execute(text("select dataset_hash from raw_datasets")).scalar_one()
    # Its tree is damaged, so that whoever reuses it takes the claim.
    (site.settings.store_dir / f"manifests/{digest}.json").unlink()
    with held(site.engine, digest):
        yield


@pytest.mark.parametrize(
    ("verb", "others"),
    [
        (Verb.MIGRATE, dataset_row_locked),
        (Verb.ROLLBACK, dataset_row_locked),
        (Verb.MIGRATE, claimed),
    ],
)
def test_a_job_that_waits_for_others_stops_with_its_worker(
    site: Site, tools: Tools, verb: Verb, others: Callable[[Site], AbstractContextManager[None]]
):
    plain_study(site, "first", 1)
    migrate_all(site, tools)
    if verb is Verb.MIGRATE:
        plain_study(site, "equal to the first", 1)
    (ref,) = open_run(site.engine, verb)
    told = threading.Event()
    stoppable = replace(tools, stopping=told.is_set)

    with ThreadPoolExecutor(1) as worker:
        with others(site):
            done = worker.submit(do, stoppable, verb, [ref])
            eventually(lambda: waits(site), "the job waits for the others")
            told.set()
            assert done.result(20) == {}

        job = job_of(site.engine, ref.run_id, ref.subject_id)
        assert (job["state"], job["retries"]) == ("queued", 0)
        assert [one.status for one in do(tools, verb, [ref]).values()] == [
            Status.MIGRATED if verb is Verb.MIGRATE else Status.ROLLED_BACK
        ]


def waits(site: Site) -> bool:
    with site.engine.connect() as conn:
        waits_for_lock = conn.execute(text("select count(*) from pg_locks where not granted")).scalar()
    return bool(waits_for_lock) or waiting_for_claims(site.engine) > 0


def checked_long_ago(site: Site) -> None:
    with site.engine.begin() as conn:
        conn.execute(text("update migration_blob_checks set checked_at = checked_at - interval '99 days'"))


def test_stored_bytes_that_are_read_again_count_as_progress(site: Site, tools: Tools):
    size = 12 << 20
    for name in ("first", "equal to the first"):
        directory = plain_study(site, name, 1)
        (directory / "day 1/big.bin").write_bytes(b"\x01" * size)
    first, second = open_run(site.engine, Verb.MIGRATE)
    do(tools, Verb.MIGRATE, [first])
    # The run is younger than the check, but the check is too old.
    checked_long_ago(site)
    with site.engine.begin() as conn:
        conn.execute(text("update migration_runs set created_at = clock_timestamp()"))
    told: list[int] = []

    do(replace(tools, pace=told.append), Verb.MIGRATE, [second])

    assert sum(told) >= 2 * size


@pytest.mark.parametrize("verb", [Verb.MIGRATE, Verb.VERIFY])
def test_recordings_that_pandas_reads_count_as_progress(site: Site, tools: Tools, verb: Any):
    directory = plain_study(site, "first", 1)
    path = directory / "day 1/accelerometer_data.csv"
    quoted(path)
    size = path.stat().st_size
    if verb is Verb.VERIFY:
        migrate_all(site, tools)
    told: list[int] = []

    (outcome,) = do(replace(tools, pace=told.append), verb, open_run(site.engine, verb)).values()

    assert outcome.status in {Status.MIGRATED, Status.VERIFIED}
    # A migration hashes and counts it; a verification reads it once here and once there.
    assert sum(told) >= size * 2


def quoted(path: Path) -> None:
    """Put quotes around a field, so that bytes alone do not tell how many records there are."""
    header, first, *rest = path.read_text().splitlines()
    fields = first.split(",")
    path.write_text("\n".join([header, ",".join([f'"{fields[0]}"', *fields[1:]]), *rest]) + os.linesep)
