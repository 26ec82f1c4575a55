"""What a rollback of an untouched project asks of PostgreSQL, and that it reads nothing of the directory."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import event

from tests.estate import RawJson, make_project, record_session
from tests.support.runs import migrate_all, run, tools_of
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.legacy import remembered
from worker.messages import Status, Verb


@pytest.fixture(autouse=True)
def files_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is to be believed as soon as it was written, so that no test has to wait for two seconds."""
    monkeypatch.setattr(remembered, "_LOCAL_MARGIN_NS", 0)


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    with tools_of(site) as made:
        yield made


def study(site: Site, **columns: object) -> None:
    """A project of one recording and two megabytes of other files."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study", **columns)
        record_session(conn, project, "day", rows=20, seed=1)
    assert project.directory is not None
    (project.directory / "day" / "raw.bin").write_bytes(os.urandom(2 << 20))


def asked_by_rollback(site: Site, tools: Tools) -> list[str]:
    """Roll the only project back, and all that the job asks the database meanwhile."""
    statements: list[str] = []

    def hear(_conn: object, _cursor: object, statement: str, *_others: object) -> None:
        statements.append(" ".join(statement.split()))

    event.listen(site.engine, "before_cursor_execute", hear)
    try:
        (outcome,) = run(tools, Verb.ROLLBACK).values()
    finally:
        event.remove(site.engine, "before_cursor_execute", hear)
    assert outcome.status is Status.ROLLED_BACK
    begin = next(place for place, one in enumerate(statements) if "set state = 'running', attempt" in one)
    return statements[begin:]


def test_an_untouched_project_is_rolled_back_by_18_statements_without_reading_it(site: Site, tools: Tools):
    study(site)
    migrate_all(site, tools)
    sizes: list[int] = []

    statements = asked_by_rollback(site, replace(tools, pace=sizes.append))

    assert len(statements) <= 18, "\n".join(statements)
    assert sum(sizes) == 0


@pytest.mark.parametrize("config", [RawJson("[1]"), RawJson('"text"'), RawJson("null")])
def test_a_former_config_that_was_no_object_is_looked_at_before_it_comes_back(
    site: Site, tools: Tools, config: RawJson
):
    study(site, analysis_config=config)
    migrate_all(site, tools)

    statements = asked_by_rollback(site, tools)

    assert sum("jsonb_each(case when" in one and one.startswith("select now.key") for one in statements) == 2
