"""The way back does not depend on what it is meant to escape: a store that is gone, damaged, or not
mounted.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import dump, make_project, record_session
from tests.estate.compare import LABEL_TABLES
from tests.support.folders import remove_all
from tests.support.runs import run, run_one, tools_of
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Status, Verb


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    with tools_of(site) as made:
        yield made
    site.data_dir.mkdir(exist_ok=True)


def study(site: Site) -> tuple[int, Path]:
    """A project of two recordings, and its directory."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study", analysis_config={"a": 1.50})
        for seed in (1, 2):
            record_session(conn, project, f"day {seed}", rows=30, seed=seed)
    assert project.directory is not None
    return project.project_id, project.directory


def rows_of_label(site: Site) -> object:
    with site.engine.connect() as conn:
        return dump(conn, LABEL_TABLES)


def everything(site: Site) -> None:
    remove_all(site.data_dir)


def mount(site: Site) -> None:
    remove_all(site.data_dir)
    site.data_dir.mkdir()


def manifests(site: Site) -> None:
    shutil.rmtree(site.settings.store_dir / "manifests")


def description(site: Site) -> None:
    (site.settings.store_dir / "store.json").write_text("{", encoding="utf-8")


def forget_algorithm(site: Site) -> None:
    """Make the before-image one of release 0.1."""
    with site.engine.begin() as conn:
        conn.execute(text("update project_conversions set before = before - 'digest_algorithm'"))


@pytest.mark.parametrize("lose", [everything, mount, manifests, description])
def test_a_rollback_needs_no_store_while_the_legacy_directory_is_there(
    site: Site, tools: Tools, lose: Callable[[Site], None]
) -> None:
    number, _ = study(site)
    before = rows_of_label(site)
    run(tools, Verb.MIGRATE)

    lose(site)
    foretold = run_one(tools, Verb.ROLLBACK, number, dry_run=True)
    outcome = run_one(tools, Verb.ROLLBACK, number)

    assert (foretold.status, outcome.status) == (Status.WOULD_ROLL_BACK, Status.ROLLED_BACK), outcome.error
    assert rows_of_label(site) == before
    if lose is everything:
        assert not site.data_dir.exists(), "a rollback made a store"
    elif lose is mount:
        assert not list(site.data_dir.iterdir()), "a rollback made a store"


@pytest.mark.parametrize("made_with", ["blake3", "sha256"])
def test_conversions_that_did_not_note_their_digest_go_back_without_a_store(
    site: Site, tools: Tools, made_with: str
) -> None:
    number, _ = study(site)
    run(replace(tools, settings=tools.settings.model_copy(update={"store_digest": made_with})), Verb.MIGRATE)
    forget_algorithm(site)

    mount(site)
    outcome = run_one(tools, Verb.ROLLBACK, number)

    assert outcome.status is Status.ROLLED_BACK, outcome.error


@pytest.mark.parametrize("noted", [True, False])
def test_a_changed_directory_is_refused_without_a_store_too(site: Site, tools: Tools, *, noted: bool) -> None:
    number, directory = study(site)
    run(tools, Verb.MIGRATE)
    if not noted:
        forget_algorithm(site)

    (directory / "day 1" / "note.txt").write_text("new", encoding="utf-8")
    named = run_one(tools, Verb.ROLLBACK, number)
    mount(site)
    unnamed = run_one(tools, Verb.ROLLBACK, number)

    assert (named.error_class, named.differences) == ("RollbackRefusedError", ("added: day 1/note.txt",))
    assert unnamed.error_class == "RollbackRefusedError"
    assert "what differs cannot be named: " in (unnamed.error or "")
