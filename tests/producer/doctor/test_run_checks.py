"""Runs that do not go on by themselves are found."""

from producer.doctor.run_checks import check_runs
from tests.producer.doctor.chapters import bad
from tests.support.ledger_rows import expire, make_run, must_take
from tests.support.sites import Site
from worker.db import ledger


def test_paused_runs_and_jobs_of_dead_workers_are_found_with_the_next_step(site: Site):
    run_id = make_run(site.engine, [1, 2])
    must_take(site.engine, run_id)
    expire(site.engine, run_id)
    with site.engine.begin() as conn:
        ledger.pause_run(conn, run_id, "No space left in the store: /there")

    chapter = check_runs(site.engine)

    assert bad(chapter) == {"held runs": "warn", "dead holders": "warn"}
    held = chapter.checks["held runs"]
    assert held.finding == f"{str(run_id)[:8]}: No space left in the store: /there"
    assert f"producer resume {str(run_id)[:8]}" in (held.remedy or "")
    assert chapter.checks["dead holders"].finding.startswith("1 of 1 running jobs")
