"""What the dead leave behind is cleared by whoever takes their jobs, however these come to him."""

import pytest

from tests.conftest import Site
from tests.estate import make_project, record_session
from tests.fidelity.runs import do, let_lease_run_out, open_run, tools_of
from worker.db import leases
from worker.messages import Status, Verb

pytestmark = pytest.mark.stack


def test_a_second_message_that_comes_before_any_reaper_clears_the_staging_of_the_dead(site: Site):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        record_session(conn, project, "day", rows=60)
    ref = open_run(site.engine, Verb.MIGRATE)[0]
    with tools_of(site) as tools:
        store = tools.open_store(create=True)
        with site.engine.begin() as conn:
            leases.take_lease(conn, ref, "who dies", 60)
        for kind in ("", "-arrivals", "-mend"):
            (store.root / f"staging/{ref.task_id}-1{kind}").mkdir()
        let_lease_run_out(site.engine, ref)

        outcome = do(tools, Verb.MIGRATE, [ref])[project.project_id]

    assert (outcome.status, outcome.attempts) == (Status.MIGRATED, 2)
    assert list((store.root / "staging").iterdir()) == []
