"""What the dead leave behind is cleared by whoever takes their jobs, and what the living make is left alone
by those who slept.
"""

import os
import uuid
from typing import NoReturn

from tests.estate import make_project, record_session
from tests.support.runs import do, let_lease_run_out, open_run, tools_of
from tests.support.sites import LEASE_S, Site
from worker.db import leases
from worker.db.leases import Lease
from worker.errors import LeaseLostError
from worker.jobs.attempt import Attempt
from worker.jobs.runner import _run
from worker.legacy.restore import _remove_leftovers, building_place
from worker.messages import JobRef, Status, Verb
from worker.store.beneath import directory


def one_job(site: Site) -> JobRef:
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        record_session(conn, project, "day", rows=60)
    return open_run(site.engine, Verb.MIGRATE)[0]


def take(site: Site, ref: JobRef, worker: str) -> Lease:
    """Take the job as a worker does, once the lease of the one before has run out."""
    let_lease_run_out(site.engine, ref)
    with site.engine.begin() as conn:
        lease = leases.take_lease(conn, ref, worker, LEASE_S)
    assert lease is not None
    return lease


def test_a_second_message_before_any_reaper_clears_the_staging_of_the_dead_attempt(site: Site):
    ref = one_job(site)
    with tools_of(site) as tools:
        store = tools.open_store(create=True)
        take(site, ref, "who dies")
        for kind in ("", "-arrivals", "-mend"):
            (store.root / f"staging/{ref.task_id}-1{kind}").mkdir()
        let_lease_run_out(site.engine, ref)

        outcome = do(tools, Verb.MIGRATE, [ref])[ref.subject_id]

    assert (outcome.status, outcome.attempts) == (Status.MIGRATED, 2)
    assert list((store.root / "staging").iterdir()) == []


def test_a_worker_that_slept_with_its_lease_leaves_its_successors_staging_alone(site: Site):
    """It wakes up and does not know yet that it is not the holder any more."""
    ref = one_job(site)

    def find_out(_job: Attempt) -> NoReturn:
        raise LeaseLostError("somebody else has it")

    with tools_of(site) as tools:
        store = tools.open_store(create=True)
        take(site, ref, "who dies")
        sleeper = take(site, ref, "sleeper")
        take(site, ref, "successor")
        made = {kind: store.root / f"staging/{ref.task_id}-{kind}" for kind in ("1", "3", "3-arrivals", "10")}
        for directory in made.values():
            directory.mkdir()

        assert _run(Attempt(tools, sleeper, "sleeper"), find_out) is None

    assert {kind for kind, directory in made.items() if directory.exists()} == {"3", "3-arrivals", "10"}


def test_a_restore_that_slept_does_not_remove_what_its_successor_rebuilds(site: Site):
    """A name has the number of its attempt, and since leases are a number and a time, that time as well."""
    target = str(site.legacy_root / "study")
    job, another = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
    gone = (f"{job}-1", f"{job}-1-64c0ffee", f"{job}-2-64c0ffef")
    stays = (f"{job}-3", f"{job}-3-64c0fff0", f"{job}-10-64c0fff1", f"{another}-1-64c0ffee")
    for attempt in gone + stays:
        (site.legacy_root / building_place(target, attempt)).mkdir()

    with directory(os.path.dirname(target)) as folder:
        _remove_leftovers(folder, os.path.basename(building_place(target, gone[-1])))

    left = {path.name for path in site.legacy_root.iterdir()}
    assert left == {f".restoring-{attempt}" for attempt in stays}
