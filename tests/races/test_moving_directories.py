"""Jobs that meet over one legacy directory while it is moved."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from tests.support.claims import held, waiting_for_claims
from tests.support.runs import another_worker, migrate_all, open_run, run_one, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from tests.support.waiting import PATIENCE_S, eventually
from worker.jobs.reclaim import reclaim
from worker.messages import Outcome, Status, Verb


def say(site: Site, state: str) -> None:
    with site.engine.begin() as conn:
        conn.execute(text("update migration_reclaims set state = :state"), {"state": state})


def meets(site: Site, state: str, claim: str) -> Outcome:
    """Of two reclaims of one project the second, which finds the first in this state, and waits for the claim
    until it has ended.
    """
    with tools_of(site) as tools, another_worker(site, "late") as late, ThreadPoolExecutor(1) as thread:
        (migrated,) = migrate_all(site, tools)
        run_one(tools, Verb.RECLAIM, migrated.project_id, older_than_days=0)
        with site.engine.connect() as conn:
            conversion_id = conn.scalar(text("select conversion_id from migration_reclaims"))
        say(site, state)
        with held(site.engine, claim.format(conversion_id)):
            (ref,) = open_run(site.engine, Verb.RECLAIM, older_than_days=0)
            second = thread.submit(reclaim, late, ref, "late")
            eventually(lambda: waiting_for_claims(site.engine) == 1, "the second job waits for the claim")
            say(site, "reclaimed")
        outcome = second.result(PATIENCE_S)

    assert outcome is not None
    return outcome


def test_what_a_living_job_moves_is_not_taken_for_left_over(site: Site):
    legacy = plain_study(site, "study", 1)
    # As the ledger is while a job has renamed the directory and not said so yet.
    outcome = meets(site, "moving", "reclaiming")
    assert outcome.status is Status.SKIPPED
    assert not legacy.exists()


def test_a_directory_that_another_run_moved_meanwhile_is_named_as_reclaimed(site: Site):
    plain_study(site, "study", 1)
    # As the other job finds it before the first has begun to move.
    outcome = meets(site, "undone", "reclaim:{}")
    assert outcome.status is Status.SKIPPED
    assert outcome.reason is not None
    assert "was reclaimed already: its directory is at" in outcome.reason
