"""Holding the reins: a run that a full store has paused says why, and goes on when it is told to."""

import json

import pytest
from sqlalchemy import text

from tests.estate import make_project, record_session
from tests.support.runs import do, open_run, tools_of
from tests.support.sites import Site
from worker.errors import StoreFullError
from worker.messages import Verb
from worker.store.store import Store

REASON = "No space left in the store: /there"


def full(_store: Store, _size_bytes: int) -> None:
    raise StoreFullError(REASON)


def pause_by_a_full_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two projects, the first of which meets a full store."""
    with site.engine.begin() as conn:
        for number in (1, 2):
            project = make_project(conn, site.legacy_root, f"study {number}")
            record_session(conn, project, "day", rows=60, seed=number)
    refs = open_run(site.engine, Verb.MIGRATE)
    with monkeypatch.context() as patch, tools_of(site) as tools:
        patch.setattr(Store, "check_room", full)
        assert do(tools, Verb.MIGRATE, refs) == {}


def test_a_full_store_pauses_the_run_and_fails_no_project(site: Site, monkeypatch: pytest.MonkeyPatch):
    pause_by_a_full_store(site, monkeypatch)

    with site.engine.connect() as conn:
        run = conn.execute(text("select state, paused_because from migration_runs")).one()
        states = list(conn.scalars(text("select state from migration_jobs order by project_id")))
    assert run == ("paused", REASON)
    assert states == ["queued", "queued"]
    assert not list((site.settings.store_dir / "staging").iterdir())


def test_a_paused_run_says_why_and_how_to_go_on(site: Site, monkeypatch: pytest.MonkeyPatch):
    pause_by_a_full_store(site, monkeypatch)

    collected = site.run_producer("collect", "--json")
    status = site.run_producer("status", "--json")

    assert collected.returncode == 8
    assert json.loads(collected.stdout)["stopped"] == f"the run is paused: {REASON}"
    assert "producer resume" in collected.stderr
    assert json.loads(status.stdout)["paused_because"] == REASON


def test_a_resumed_run_ends_with_every_project_migrated(site: Site, monkeypatch: pytest.MonkeyPatch):
    pause_by_a_full_store(site, monkeypatch)

    with site.workers(1):
        resumed = site.run_producer("resume", "--json")
        collected = site.run_producer("collect", "--json", "--timeout", "60")
        again = site.run_producer("resume")

    assert (resumed.returncode, json.loads(resumed.stdout)["sent"]) == (0, 2)
    assert collected.returncode == 0
    assert json.loads(collected.stdout)["report"]["projects_migrated"] == 2
    assert again.returncode == 2
    assert "finished" in again.stderr
