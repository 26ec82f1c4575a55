"""Databases that are not in UTF-8: what they can hold is migrated and comes back, what they cannot is refused
by name.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from producer.doctor.database_checks import check_database
from tests.estate import make_project, record_session
from tests.support.runs import do, open_run, tools_of
from tests.support.servers import database_like
from tests.support.sites import Site, site_in
from worker.db import schema
from worker.errors import EncodingRefusedError
from worker.messages import Outcome, Status, Verb

NAMES = {
    "SQL_ASCII": ("Étude 夜", "sitzung_ü夜"),
    "LATIN1": ("Étude du soir", "sitzung_ü"),
    "EUC_JP": ("夜の研究", "夜"),
}
encodings = pytest.mark.parametrize("encoding", NAMES)


@pytest.fixture
def site(stack, encoding: str, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A whole installation on a database of this encoding."""
    options = f"encoding '{encoding}' locale_provider libc locale 'C'"
    with database_like(stack, "template0", options) as engine:
        schema.apply(engine, with_baseline=True)
        with site_in(tmp_path, engine, redis_url) as made:
            yield made


def add_project(site: Site, encoding: str, **files: str) -> int:
    """A project with one session, both named in the encoding's own letters; the files lie in the session."""
    project_name, session_name = NAMES[encoding]
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, project_name)
        record_session(conn, project, session_name, rows=30)
    for name, content in files.items():
        (Path(project.path) / session_name / name).write_text(content)
    return project.project_id


def run(site: Site, verb: Verb, *, dry_run: bool = False) -> Outcome:
    with tools_of(site) as tools:
        (outcome,) = do(tools, verb, open_run(site.engine, verb, dry_run=dry_run)).values()
    return outcome


def rows(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as conn:
        return [
            tuple(row)
            for table in ("projects", "sessions")
            for row in conn.execute(text(f"select * from {table} order by 1"))
        ]


@encodings
def test_names_that_the_database_holds_are_migrated_and_come_back(site: Site, encoding: str):
    add_project(site, encoding)
    before = rows(site.engine)

    assert run(site, Verb.MIGRATE, dry_run=True).status is Status.WOULD_MIGRATE
    outcome = run(site, Verb.MIGRATE)
    assert (outcome.error, outcome.status, outcome.project_name) == (
        None,
        Status.MIGRATED,
        NAMES[encoding][0],
    )
    assert run(site, Verb.VERIFY).status is Status.VERIFIED
    assert run(site, Verb.ROLLBACK).status is Status.ROLLED_BACK

    assert rows(site.engine) == before


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
def test_a_name_that_the_database_cannot_hold_is_refused_and_named(site: Site, encoding: str):
    number = add_project(site, encoding)
    with site.engine.connect() as conn:
        path = conn.scalar(text("select path from projects where project_id = :id"), {"id": number})
    (Path(path) / "gehen_🚶").mkdir()
    before = rows(site.engine)

    predicted, outcome = run(site, Verb.MIGRATE, dry_run=True), run(site, Verb.MIGRATE)

    assert predicted.error == outcome.error
    assert (outcome.status, outcome.error_class) == (Status.FAILED, EncodingRefusedError.__name__)
    assert outcome.error is not None
    assert encoding in outcome.error
    assert rows(site.engine) == before


@pytest.mark.parametrize("encoding", ["SQL_ASCII"])
def test_a_row_whose_bytes_are_no_utf8_is_named(site: Site, encoding: str):
    number = add_project(site, encoding)
    with site.engine.begin() as conn:
        conn.execute(
            text("update projects set project_name = convert_from(bytea '\\xc974756465', 'SQL_ASCII')")
        )

    with (
        pytest.raises(EncodingRefusedError, match=r"0xc9 0x74; producer doctor names the row"),
        site.engine.connect() as conn,
    ):
        conn.execute(text("select project_name from projects")).all()

    found = check_database(site.engine).checks["encoding"]
    assert f"projects {number} (project_name)" in found.finding
